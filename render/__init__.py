"""Differentiable cameras: soft images to train through, hard images to deploy with."""

if __name__ != "gradpath.render":
    raise ImportError("import this area as gradpath.render; a second copy would register every kernel twice")

from gradpath.render.camera import LOOKING_AHEAD, DepthCamera, pinhole
from gradpath.render.rasterize import rasterize
from gradpath.render.scene import Scene
from gradpath.render.topology import Topology

__all__ = ["LOOKING_AHEAD", "DepthCamera", "Scene", "Topology", "pinhole", "rasterize"]
