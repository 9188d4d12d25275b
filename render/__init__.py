"""Differentiable cameras: soft images to train through, hard images to deploy with."""

if __name__ != "gradpath.render":
    raise ImportError("import this area as gradpath.render; a second copy would register every kernel twice")

from gradpath.render import losses, operations  # noqa: F401 - the latter registers the kernels
from gradpath.render.attributes import Attribute, face_normals, vertex_normals
from gradpath.render.camera import LOOKING_AHEAD, DepthCamera, pinhole
from gradpath.render.lenses import Distortion, Fisheye, Orthographic
from gradpath.render.lights import AmbientLight, DirectionalLight, PointLight, illuminate
from gradpath.render.models import Model
from gradpath.render.pieces import Fragments
from gradpath.render.rasterize import fragments, rasterize
from gradpath.render.rig import Camera
from gradpath.render.scene import Scene
from gradpath.render.shading import Look, picture, sky
from gradpath.render.softras_image import SoftRas
from gradpath.render.spheres import spheres
from gradpath.render.textures import Texture
from gradpath.render.topology import Topology

__all__ = [
    "LOOKING_AHEAD",
    "AmbientLight",
    "Attribute",
    "Camera",
    "DepthCamera",
    "DirectionalLight",
    "Distortion",
    "Fisheye",
    "Fragments",
    "Look",
    "Model",
    "Orthographic",
    "PointLight",
    "Scene",
    "SoftRas",
    "Texture",
    "Topology",
    "face_normals",
    "fragments",
    "illuminate",
    "losses",
    "picture",
    "pinhole",
    "rasterize",
    "sky",
    "spheres",
    "vertex_normals",
]
