"""Values on regular grids, one grid per world, looked up between their nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.kernel_registry import register

__all__ = ["corners", "interpolate"]


def interpolate(values: Tensor, points: Tensor, origin: Tensor, spacing: float) -> Tensor:
    """Interpolate multilinearly between the nodes of a grid, in two or three dimensions.

    Args:
        values: One number per node, (B, n1, n2) or (B, n1, n2, n3), at least two nodes per axis; axis k of the grid is
            coordinate k of the points. Differentiable.
        points: Positions [m], (B, P, 2) or (B, P, 3), differentiable. Beyond the grid, the nearest value on its border
            is taken.
        origin: Position of the first node [m], (B, d) or (d,), differentiable.
        spacing: Distance between nodes [m].
    Returns:
        (B, P).
    Raises:
        ShapeError: shapes that do not fit, or an axis with a single node.
        InputError: a spacing that is not positive.
    Gradients: exact; by points they are constant along each axis within a cell, jump between cells, and are zero
        beyond the grid. A point that is not finite gives NaN.
    """
    axes = values.ndim - 1
    if (
        points.ndim != 3
        or points.shape[0] != values.shape[0]
        or points.shape[2] != axes
        or axes not in (2, 3)
    ):
        raise ShapeError(
            f"grids.interpolate: expected values (B, n1, n2[, n3]) and points (B, P, 2 or 3), got "
            f"{tuple(values.shape)} and {tuple(points.shape)}"
        )
    if min(values.shape[1:]) < 2:
        raise ShapeError(f"grids.interpolate: every axis has two nodes or more, got {tuple(values.shape)}")
    if not spacing > 0:
        raise InputError(f"grids.interpolate: spacing is positive, got {spacing}")
    sizes = values.shape[1:]
    place = (points - (origin if origin.ndim == 1 else origin[:, None])) / spacing
    last = points.new_tensor([n - 1 for n in sizes])
    inside = torch.minimum(place.clamp_min(0.0), last)
    flat = values.flatten(1)
    result = torch.zeros_like(points[..., 0])
    for node, weight in corners(inside, sizes):
        result = result + weight * flat.gather(1, node)
    return result


def corners(place: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the nodes around each place, and their multilinear weights.

    Args:
        place: In units of nodes, from 0 to the last node of each axis, (..., d), differentiable.
        sizes: Nodes per axis, d numbers, two or more each.
    Yields:
        The number of a node in the flattened grid, (...) int64, and its weight, (...), for each of the 2^d corners.
    """
    base = torch.minimum(torch.floor(place.detach()), place.new_tensor([n - 2 for n in sizes]))
    share, index = place - base, base.nan_to_num(0.0).long()
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        node = torch.zeros_like(index[..., 0])
        weight = torch.ones_like(share[..., 0])
        for k, up in enumerate(corner):
            node = node * sizes[k] + index[..., k] + up
            weight = weight * (share[..., k] if up else 1.0 - share[..., k])
        yield node, weight


def _samples(batch: int) -> dict[str, Tensor | float]:
    generator = torch.Generator().manual_seed(batch)

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, dtype=torch.float64, generator=generator)

    return {
        "values": draw(3, 4, 2),
        "points": 0.8 * draw(5, 3) - 0.1,
        "origin": 0.01 * draw(3),
        "spacing": 0.3,
    }


register("grids.interpolate", kernels=(), fn=interpolate, samples=_samples)
