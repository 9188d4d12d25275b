"""Relaxed look-ups: nearest neighbours and grids. See `gradpath.relax`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.relax_choice import one_hot
from gradpath.relax_core import Temperature, choose, draw, register_relaxation, soft_step
from gradpath.relaxation import relaxation


def _retrieved(value: Tensor, values: Tensor, **arguments: Any) -> Tensor:
    return (value.unsqueeze(-2) - values).square().sum(-1).argmin(-1)


@relaxation("relax.nearest", decision=_retrieved)
def nearest(
    query: Tensor, keys: Tensor, values: Tensor, *, k: int | None = None, tau: Temperature = 0.1
) -> Tensor:
    """The value whose key is nearest to the query: a table look-up, or retrieval from a memory.

    Args:
        query: (..., d).
        keys: (n, d).
        values: (n, c).
        k: Only the k nearest keys take part; None: all.
        tau: In units of squared distance.
    Returns:
        (..., c).

    Soft: the mean of the values, weighted with exp(-distance^2 / tau). Error: at most (k - 1) exp(-m / tau) times the
    range of the values, where m is the margin of the squared distances between the nearest and the second.

    References: Plötz, Roth 2018, Neural Nearest Neighbors Networks.
    """
    if keys.ndim != 2 or values.ndim != 2 or len(keys) != len(values) or query.shape[-1] != keys.shape[-1]:
        got = f"{tuple(query.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}"
        raise ShapeError(f"relax.nearest: expected query (..., d), keys (n, d) and values (n, c), got {got}")
    if k is not None and not 1 <= k <= len(keys):
        raise InputError(f"relax.nearest: k is from 1 to {len(keys)} for as many keys, got {k}")
    distance = (query[..., None, :] - keys).square().sum(-1)
    picked = values
    if k is not None:
        index = distance.topk(k, dim=-1, largest=False).indices
        distance, picked = distance.gather(-1, index), values[index]
    weights = one_hot(-distance, tau=float(tau))
    return (weights[..., None] * picked).sum(-2)


@relaxation("relax.grid")
def grid(values: Tensor, points: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """The value of the grid node that is nearest to each point: a map look-up.

    Args:
        values: (n1, ..., nd, c), at least two nodes per axis.
        points: In units of nodes, from 0 to n - 1, (..., d). Beyond the border the value of the border is taken,
            without gradient to what is beyond.
        tau: How sharp the changes half-way between nodes are; large is multilinear interpolation.
    Returns:
        (..., c).

    Soft: interpolation with smooth steps, continuous and equal to the values at all nodes. Error: at most the range
    of the values times the sum over axes of exp(-d / tau), d the distance of the point to the half-way plane.
    """
    t = float(tau)
    sizes = values.shape[:-1]
    if points.shape[-1] != len(sizes) or min(sizes, default=0) < 2:
        raise ShapeError(
            f"relax.grid: expected values (n1, ..., nd, c), two nodes per axis at least, and points (..., d), got "
            f"{tuple(values.shape)} and {tuple(points.shape)}"
        )
    last = torch.tensor([n - 1 for n in sizes], dtype=points.dtype, device=points.device)
    inside = torch.minimum(points.clamp_min(0.0), last)

    def soft() -> Tensor:
        base = torch.minimum(torch.floor(inside.detach()), last - 1)
        share = soft_step(inside - base, t)
        index = base.long().unbind(-1)
        result = torch.zeros((), dtype=values.dtype, device=values.device)
        for corner in itertools.product((0, 1), repeat=len(sizes)):
            parts = [share[..., i] if up else 1.0 - share[..., i] for i, up in enumerate(corner)]
            weight = torch.stack(parts, -1).prod(-1)
            result = (
                result
                + weight[..., None] * values[tuple(i + up for i, up in zip(index, corner, strict=True))]
            )
        return result

    return choose(soft, lambda: values[tuple(torch.floor(inside + 0.5).long().unbind(-1))])


register_relaxation(
    nearest,
    lambda batch: {"query": draw(batch, 2), "keys": draw(4, 2), "values": draw(4, 3), "k": 3, "tau": 0.8},
)
register_relaxation(
    grid,
    lambda batch: {"values": draw(3, 4, 2), "points": 1.0 + 0.9 * draw(batch, 2).tanh(), "tau": 0.4},
)
