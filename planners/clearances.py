"""Distances that a path keeps: to primitives, meshes, distance fields and point clouds, as data for costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradpath.distances import mesh_distance, shape_distance
from gradpath.errors import InputError, ShapeError
from gradpath.grids import interpolate
from gradpath.meshes import TriangleMesh
from gradpath.second_derivative import TwiceDifferentiable


@dataclass(frozen=True)
class ToShapes:
    """To primitives: the input `name` holds `pose` (B, I, 7) and `size` (B, I, 3); `kinds` are their `Shape`s."""

    kinds: tuple[int, ...]
    name: str = "obstacles"

    def distance(self, points: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Signed distance [m] to the nearest, (B, P), from points (B, P, 3)."""
        kind = torch.tensor(self.kinds, dtype=torch.int32, device=points.device)
        given = values[self.name]

        def function(points: Tensor, pose: Tensor, size: Tensor) -> Tensor:
            return shape_distance(points, kind, pose, size).amin(-1)

        return _curved(function, points, given["pose"], given["size"])


@dataclass(frozen=True)
class ToMesh:
    """To instances of a closed mesh: the input `name` holds `pose` (B, I, 7) and `scale` (B, I)."""

    mesh: TriangleMesh
    name: str = "obstacles"

    def distance(self, points: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Signed distance [m] to the nearest, (B, P), from points (B, P, 3)."""
        given = values[self.name]

        def function(points: Tensor, pose: Tensor, scale: Tensor) -> Tensor:
            return mesh_distance(points, pose, scale, self.mesh).amin(-1)

        return _curved(function, points, given["pose"], given["scale"])


@dataclass(frozen=True)
class ToField:
    """To what a distance field says: the input `name` is (B, n1, n2) or (B, n1, n2, n3) [m].

    In two dimensions, the height of points does not matter. `origin` is the position of the first node [m], `spacing`
    the distance between nodes [m].
    """

    origin: tuple[float, ...]
    spacing: float
    name: str = "field"

    def distance(self, points: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Interpolated distance [m], (B, P), from points (B, P, 2 or 3)."""
        axes = len(self.origin)
        return interpolate(
            values[self.name], points[..., :axes], points.new_tensor(list(self.origin)), self.spacing
        )


@dataclass(frozen=True)
class ToPoints:
    """To balls of `radius` [m] around the points of a cloud: the input `name` is (B, N, 2 or 3) [m]."""

    radius: float = 0.0
    name: str = "cloud"

    def distance(self, points: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Distance [m] to the nearest, (B, P), from points (B, P, 2 or 3)."""
        cloud = values[self.name]
        if cloud.shape[1] == 0:
            raise InputError(
                f'the cloud "{self.name}" holds no points; leave the cost out where nothing was seen'
            )
        square = (points[:, :, None, : cloud.shape[-1]] - cloud[:, None]).square().sum(-1).amin(-1)
        inside = square == 0  # no direction leads out: the gradient is zero there, not NaN
        return torch.where(inside, 0.0, torch.where(inside, 1.0, square).sqrt()) - self.radius


Clearance: TypeAlias = ToShapes | ToMesh | ToField | ToPoints


def clearance(source: Clearance, points: Tensor, values: Mapping[str, Any]) -> Tensor:
    """Distance [m] from points with any axes before the batch, (..., B, d), to (..., B).

    Gradients: exact; second derivatives of `ToShapes` and `ToMesh` by differences in float64 (see
    `TwiceDifferentiable`), none in float32.
    """
    if points.ndim < 2:
        raise ShapeError(f"a clearance needs points (..., B, d), got {tuple(points.shape)}")
    rows = points.reshape(-1, *points.shape[-2:]).transpose(0, 1)
    return source.distance(rows, values).transpose(0, 1).reshape(points.shape[:-1])


def _curved(function: Any, points: Tensor, place: Tensor, size: Tensor) -> Tensor:
    """Distances of kernels, whose second derivatives autograd does not know, or takes to be zero."""
    if points.dtype == torch.float64:
        return TwiceDifferentiable(function, [True, True, True])(points, place, size)
    return _Once.apply(function(points, place, size))


class _Once(torch.autograd.Function):
    """The identity, whose gradient cannot be differentiated again: better an error than a curvature of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
