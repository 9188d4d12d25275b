"""The operation that places the vertices of instanced meshes in the camera frame."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

from typing import Any

import torch
import warp as wp
from torch import Tensor

from gradpath import kernels


def _make_place(scalar: Any) -> wp.Kernel:
    vec3 = wp.types.vector(3, scalar)
    transform = wp.types.transformation(scalar)

    @wp.kernel(module="unique")
    def _place_vertices(
        # Model:
        vertices: wp.array(dtype=vec3),  # V, mesh frames
        owner: wp.array(dtype=wp.int32),  # V
        # In:
        instances: wp.array2d(dtype=transform),  # B I, world frame
        scale: wp.array2d(dtype=vec3),  # B I
        camera: wp.array(dtype=transform),  # B, world frame
        # Out:
        points: wp.array2d(dtype=vec3),  # B V, camera frame
    ):
        b, v = wp.tid()
        i = owner[v]
        world = wp.transform_point(instances[b, i], wp.cw_mul(scale[b, i], vertices[v]))
        frame = camera[b]
        away = world - wp.transform_get_translation(frame)
        points[b, v] = wp.quat_rotate_inv(wp.transform_get_rotation(frame), away)

    return _place_vertices


def _place_samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def poses(*shape: int) -> Tensor:
        return torch.cat([draw(*shape, 3), torch.nn.functional.normalize(draw(*shape, 4), dim=-1)], -1)

    owner = torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32)
    return {
        "vertices": draw(5, 3),
        "owner": owner,
        "instances": poses(batch, 2),
        "scale": draw(batch, 2, 3),
        "camera": poses(batch),
    }


place = kernels.Op(
    "place_vertices",
    _make_place,
    inputs={
        "vertices": "V vec3",
        "owner": "V int32",
        "instances": "B I transform",
        "scale": "B I vec3",
        "camera": "B transform",
    },
    outputs={"points": "B V vec3"},
    launch="B V",
    samples=_place_samples,
)
"""Vertices of instanced meshes in the camera frame; differentiable in the mesh, the instances and the camera."""
