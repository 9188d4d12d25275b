"""Maps from what was seen: occupancy and distance to it, on a grid, differentiable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath import relax
from gradpath.errors import InputError, ShapeError
from gradpath.grids import corners
from gradpath.mode import current_mode
from gradpath.relax_core import Temperature
from gradpath.relaxation import relaxation

NEARLY_FREE = 1e-3  # occupancy below which a node soon counts as free altogether


def occupancy(
    points: Tensor, valid: Tensor, origin: Tensor, spacing: float, shape: Sequence[int], *, hits: float = 1.0
) -> Tensor:
    """Return how occupied the nodes of a grid are by the points near them.

    Each point is shared among the nodes around it by multilinear weights; a node with the sum w is occupied to
    1 - exp(-w / hits).

    Args:
        points: [m], (B, N, d), d 2 or 3, such as the first d coordinates of a `point_cloud`; differentiable.
        valid: Which points count, (B, N) bool.
        origin: Position of the first node [m], (d,) or (B, d), differentiable.
        spacing: Distance between nodes [m].
        shape: Nodes per axis, d numbers.
    Returns:
        (B, *shape), from 0 to below 1. Points beyond the grid do not count.
    Raises:
        ShapeError: shapes that do not fit.
        InputError: spacing or hits not positive, or fewer than two nodes per axis.
    Gradients: exact in points and origin; zero for points that do not count.
    """
    d = len(shape)
    if points.ndim != 3 or points.shape[2] != d or valid.shape != points.shape[:2] or d not in (2, 3):
        raise ShapeError(
            f"occupancy: expected points (B, N, {d}) and valid (B, N) for a grid of shape {tuple(shape)}, got "
            f"{tuple(points.shape)} and {tuple(valid.shape)}"
        )
    if not (spacing > 0 and hits > 0 and min(shape) >= 2):
        raise InputError(
            f"occupancy: spacing and hits are positive and every axis has two nodes, got {spacing}, {hits} and "
            f"{tuple(shape)}"
        )
    place = (points - (origin if origin.ndim == 1 else origin[:, None])) / spacing
    last = points.new_tensor([n - 1 for n in shape])
    counts = valid & ((place >= 0) & (place <= last)).all(-1)
    place = torch.where(counts[..., None], place, 0.0)
    total = points.new_zeros(len(points), math.prod(shape))
    for node, weight in corners(place, shape):
        total = total.scatter_add(1, node, torch.where(counts, weight, 0.0))
    return (1.0 - torch.exp(-total / hits)).reshape(-1, *shape)


def _inside(value: Tensor, occupied: Tensor, spacing: float, **_: Any) -> Tensor:
    """Which nodes a field says are occupied: those that are nearer than half a spacing to an occupied one."""
    return value < 0.5 * spacing


@relaxation("distance_field", decision=_inside)
def distance_field(
    occupied: Tensor,
    spacing: float,
    *,
    max_distance: float = 10.0,
    signed: bool = True,
    tau: Temperature = 0.01,
) -> Tensor:
    """Return the distance from each node of a grid to the nearest occupied one.

    The squared distance is the least, over nodes j, of |i - j|^2 plus a price for j being free, axis by axis
    (a generalized distance transform).

    Args:
        occupied: From 0 to 1, (B, n1, n2) or (B, n1, n2, n3), such as `occupancy`; differentiable.
        spacing: Distance between nodes [m].
        max_distance: What is farther, and an empty map, has this distance [m].
        signed: Subtract, inside, the distance to the nearest free node.
        tau: Temperature of the soft minima, in units of the squared spacing.
    Returns:
        [m], of the shape of `occupied`. Soft: soft minima, and a price of -log(occupied) squared spacings, which rises
        to the farthest below an occupancy of 1e-3. Hard: the exact distance to nodes that are occupied to more than
        one half.
    Raises:
        ShapeError: not a grid of two or three dimensions.
        InputError: spacing or max_distance not positive, or a value that is not from 0 to 1.
    Gradients: to `occupied`, of the soft version.
    References: Felzenszwalb, Huttenlocher 2012, Distance Transforms of Sampled Functions.
    """
    t = float(tau)
    if occupied.ndim not in (3, 4):
        raise ShapeError(
            f"distance_field: expected (B, n1, n2) or (B, n1, n2, n3), got {tuple(occupied.shape)}"
        )
    if not (spacing > 0 and max_distance > 0):
        raise InputError(
            f"distance_field: spacing and max_distance are positive, got {spacing} and {max_distance}"
        )
    if not bool(((occupied >= 0) & (occupied <= 1)).all()):
        raise InputError(
            "distance_field: a node is occupied to less than 0, more than 1, or NaN; look at the map"
        )
    farthest = (max_distance / spacing) ** 2
    outside = _transform(occupied, farthest, t)
    if signed:
        outside = outside - _transform(1.0 - occupied, farthest, t)
    return spacing * outside


def _transform(occupied: Tensor, farthest: float, tau: float) -> Tensor:
    """Distance in spacings, never beyond the farthest."""
    if current_mode() == "hard":
        square = torch.where(occupied > 0.5, 0.0, farthest)
    else:
        doubt = (1.0 - occupied / NEARLY_FREE).clamp_min(0.0)
        square = -torch.log(occupied.clamp_min(1e-3 * NEARLY_FREE)) + farthest * doubt.square()
    for axis in range(1, occupied.ndim):
        n = occupied.shape[axis]
        node = torch.arange(n, dtype=occupied.dtype, device=occupied.device)
        apart = (node[:, None] - node).square()
        by_node = square.movedim(axis, -1)[..., None, :] + apart
        square = relax.minimum(by_node, dim=-1, tau=tau).movedim(-1, axis)
    square = square.clamp(0.0, farthest)
    zero = square <= 1e-12
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
