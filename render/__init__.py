"""Differentiable cameras: soft images to train through, hard images to deploy with."""

if __name__ != "gradpath.render":
    raise ImportError("import this area as gradpath.render; a second copy would register every kernel twice")

from gradpath.render import operations  # noqa: F401 - registers the kernels
from gradpath.render.attributes import Attribute, face_normals, vertex_normals
from gradpath.render.camera import LOOKING_AHEAD, DepthCamera, pinhole
from gradpath.render.pieces import Fragments
from gradpath.render.rasterize import fragments, rasterize
from gradpath.render.scene import Scene
from gradpath.render.softras_image import SoftRas
from gradpath.render.topology import Topology

__all__ = [
    "LOOKING_AHEAD",
    "Attribute",
    "DepthCamera",
    "Fragments",
    "Scene",
    "SoftRas",
    "Topology",
    "face_normals",
    "fragments",
    "pinhole",
    "rasterize",
    "vertex_normals",
]
