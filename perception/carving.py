"""What a camera looked through is free: evidence along rays, and maps that keep it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.grids import corners

SAMPLES_PER_SPACING = 2.0  # along the longest ray that fits into the grid


def free_space(
    points: Tensor,
    valid: Tensor,
    eye: Tensor,
    origin: Tensor,
    spacing: float,
    shape: Sequence[int],
    *,
    margin: float | None = None,
    looks: float = 1.0,
) -> Tensor:
    """Return how surely the nodes of a grid are free, because rays from the camera passed near them.

    Each ray is shared among the nodes around it, by multilinear weights and by its length; a node with the sum w, in
    spacings of ray, is free to 1 - exp(-w / looks).

    Args:
        points: Where the rays end [m], (B, N, d), d 2 or 3, such as a `point_cloud`; differentiable.
        valid: Which rays count, (B, N) bool.
        eye: Where they begin, the position of the camera [m], (B, d), differentiable.
        origin: Position of the first node [m], (d,) or (B, d), differentiable.
        spacing: Distance between nodes [m].
        shape: Nodes per axis, d numbers.
        margin: How far before its end a ray stops [m], so that what it hit stays; one spacing by default.
        looks: How many spacings of ray make a node free to 63 %.
    Returns:
        (B, *shape), from 0 to below 1. What lies behind the points, and what no ray passed, has 0: it was not seen. Of
        rays that leave the grid the part inside counts.
    Raises:
        ShapeError: shapes that do not fit.
        InputError: spacing, looks or margin not positive, or fewer than two nodes per axis.
    Gradients: exact in points, eye and origin, for the samples along the rays that the sum is made of; zero for rays
        that do not count.
    """
    d = len(shape)
    fits = points.ndim == 3 and points.shape[2] == d and d in (2, 3)
    if not fits or valid.shape != points.shape[:2] or eye.shape != (len(points), d):
        raise ShapeError(
            f"free_space: expected points (B, N, {d}), valid (B, N) and eye (B, {d}) for a grid of shape "
            f"{tuple(shape)}, got {tuple(points.shape)}, {tuple(valid.shape)} and {tuple(eye.shape)}"
        )
    margin = spacing if margin is None else margin
    if not (spacing > 0 and looks > 0 and margin > 0 and min(shape) >= 2):
        raise InputError(
            f"free_space: spacing, looks and margin are positive and every axis has two nodes, got {spacing}, {looks}, "
            f"{margin} and {tuple(shape)}"
        )
    start = ((eye - origin) / spacing)[:, None]
    end = (points - (origin if origin.ndim == 1 else origin[:, None])) / spacing
    end = torch.where(valid[..., None], end, start.detach())
    first, last = _inside(start, end, margin / spacing, shape)
    way = (end - start) * (last - first)[..., None]  # the part that counts, in nodes
    length = _norm(way)
    count = math.ceil(SAMPLES_PER_SPACING * math.hypot(*(n - 1 for n in shape)))
    total = points.new_zeros(len(points), math.prod(shape))
    limit = points.new_tensor([n - 1 for n in shape])
    for k in range(count):
        place = start + (end - start) * first[..., None] + way * ((k + 0.5) / count)
        place = torch.minimum(place.clamp_min(0.0), limit)  # rounding may be outside
        for node, weight in corners(place, shape):
            total = total.scatter_add(1, node, weight * length / count)
    return (1.0 - torch.exp(-total / looks)).reshape(-1, *shape)


def carve(belief: Tensor, occupied: Tensor, free: Tensor) -> Tensor:
    """Return a map after one more look: what was looked through is cleared, what was hit is marked.

    belief <- 1 - (1 - occupied) (1 - (1 - free) belief): where nothing was seen, the belief stays.

    Args:
        belief: How occupied each node is, (B, n1, n2) or (B, n1, n2, n3), from 0 to 1; 0.5 where nothing is known.
            Differentiable.
        occupied: What was hit now, see `occupancy`; differentiable.
        free: What was looked through now, see `free_space`; differentiable.
    Returns:
        The new belief, from 0 to 1.
    Raises:
        ShapeError: grids of different shapes.
        InputError: a value that is not from 0 to 1.
    Gradients: exact.
    """
    if not belief.shape == occupied.shape == free.shape:
        raise ShapeError(
            f"carve: belief, occupied and free are on one grid, got {tuple(belief.shape)}, {tuple(occupied.shape)} and "
            f"{tuple(free.shape)}"
        )
    for name, value in (("belief", belief), ("occupied", occupied), ("free", free)):
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise InputError(f"carve: {name} is below 0, above 1, or NaN at a node; look at the map")
    return 1.0 - (1.0 - occupied) * (1.0 - (1.0 - free) * belief)


def _inside(start: Tensor, end: Tensor, margin: float, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The shares of each ray, (B, N), between which it is in the grid and before its margin; equal where nowhere."""
    way = end - start
    length = _norm(way)
    first = torch.zeros_like(length)
    last = (1.0 - margin / torch.where(length > 0, length, 1.0)).clamp_min(0.0)
    last = torch.where(length > 0, last, 0.0)
    for axis, n in enumerate(shape):
        along, begin = way[..., axis], start[..., axis].expand(length.shape)
        flat = along.abs() < 1e-12
        safe = torch.where(flat, 1.0, along)
        low, high = -begin / safe, (n - 1 - begin) / safe
        outside = (begin < 0) | (begin > n - 1)
        enter = torch.where(flat, 0.0, torch.minimum(low, high))
        leave = torch.where(flat, torch.where(outside, 0.0, 1.0), torch.maximum(low, high))
        first, last = torch.maximum(first, enter), torch.minimum(last, leave)
    return first, torch.maximum(first, last)


def _norm(way: Tensor) -> Tensor:
    """Lengths, with a gradient of zero where they are zero."""
    square = way.square().sum(-1)
    nothing = square == 0
    return torch.where(nothing, 0.0, torch.where(nothing, 1.0, square).sqrt())
