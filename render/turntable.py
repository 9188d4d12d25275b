"""A model from all sides: the pictures that `gradpath view` writes."""

import math

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.errors import InputError
from gradpath.render.camera import pinhole
from gradpath.render.lights import AmbientLight, DirectionalLight
from gradpath.render.models import Model
from gradpath.render.rasterize import fragments
from gradpath.render.shading import picture
from gradpath.render.topology import Topology

FIELD_OF_VIEW = 0.6  # [rad]
BACKGROUND = (0.94, 0.95, 0.97)
LIGHTS = (
    AmbientLight((0.45, 0.46, 0.5)),
    DirectionalLight((0.35, 0.55, 0.8), (0.6, 0.58, 0.52)),
)  # camera frame


def turntable(
    model: Model, frames: int = 36, height: int = 360, width: int = 480, elevation: float = 0.35
) -> Tensor:
    """Draw a model from a camera that goes around it once, so far away that it fills most of the picture.

    Args:
        model: The mesh, z up, and its look.
        frames: Number of pictures.
        height: Rows.
        width: Columns.
        elevation: Angle of the camera above the horizon [rad].
    Returns:
        RGB, shape (frames, height, width, 3), uint8, on the CPU.
    Raises:
        InputError: no frames, or an elevation of 90 degrees or more.
    """
    if frames < 1 or not abs(elevation) < 0.5 * math.pi:
        raise InputError(
            f"a turntable needs frames and an elevation below 90 degrees, got {frames} and {elevation}"
        )
    vertices = model.mesh.vertices
    centre = 0.5 * (vertices.amin(0) + vertices.amax(0))
    radius = max(float(torch.linalg.vector_norm(vertices - centre, dim=-1).max()), 1e-9)
    K = pinhole(width, height, FIELD_OF_VIEW)
    half = math.atan(0.5 * min(height, width) / float(K[0, 0]))  # angle to the nearer border
    distance = 1.05 * radius / math.sin(half)
    topology = Topology.of(model.mesh.faces)
    images = []
    for frame in range(frames):
        azimuth = 2.0 * math.pi * frame / frames - 0.25 * math.pi
        flat = math.cos(elevation)
        away = torch.tensor([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
        pose = geometry.look_at(centre + distance * away, centre)
        seen = geometry.pose_apply(geometry.pose_inverse(pose), vertices)[None]
        with torch.no_grad():
            pieces = fragments(
                seen,
                topology,
                K=K,
                height=height,
                width=width,
                sigma=0.5,
                near=distance - 1.01 * radius,
                far=distance + 1.01 * radius,
            )
            background = torch.tensor(BACKGROUND)
            image = picture(pieces, seen, model.look, LIGHTS, shading="flat", background=background)
        images.append((image[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8))
    return torch.stack(images)
