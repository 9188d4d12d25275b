"""Relaxed orders: sort, rank, quantile, permutation. See `gradpath.relax`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradpath.errors import InputError
from gradpath.relax_core import Temperature, choose, chosen, draw, register_relaxation, rounded
from gradpath.relaxation import relaxation


@relaxation("relax.sort")
def sort(values: Tensor, *, descending: bool = False, tau: Temperature = 0.1) -> Tensor:
    """The values in order along the last axis.

    Soft: the projection of (n, ..., 1) / tau onto the permutahedron of the values; neighbours that are far apart are
    drawn together. Error: none where tau times the largest gap between neighbours is at most 1; otherwise at most
    largest minus smallest value. Memory: n^2 numbers per row.

    References: Blondel et al. 2020, Fast Differentiable Sorting and Ranking.
    """
    t = float(tau)
    order = values.sort(dim=-1, descending=True).values

    def soft() -> Tensor:
        places = _places(order)
        pool = _pools(places / t - order)
        return (pool @ order[..., None])[..., 0] + (places - (pool @ places[..., None])[..., 0]) / t

    down = choose(soft, lambda: order)
    return down if descending else down.flip(-1)


@relaxation("relax.rank", decision=rounded)
def rank(values: Tensor, *, descending: bool = False, tau: Temperature = 0.1) -> Tensor:
    """The place of each value in the order along the last axis, from 1 to n, as a floating number.

    Soft: the projection of values / tau onto the permutahedron of (1, ..., n). Error: none where values are at least
    tau apart; otherwise at most n - 1. Memory: n^2 numbers per row.

    References: Blondel et al. 2020, Fast Differentiable Sorting and Ranking.
    """
    t = float(tau)
    signed = -values if descending else values
    order, index = signed.sort(dim=-1, descending=True)
    places = _places(order)

    def soft() -> Tensor:
        pool = _pools(order / t - places)
        pooled = (order - (pool @ order[..., None])[..., 0]) / t + (pool @ places[..., None])[..., 0]
        return torch.zeros_like(values).scatter(-1, index, pooled)

    return choose(soft, lambda: torch.zeros_like(values).scatter(-1, index, places.expand_as(values)))


@relaxation("relax.quantile")
def quantile(values: Tensor, q: float, *, tau: Temperature = 0.1) -> Tensor:
    """The q-quantile along the last axis, interpolated between neighbours; 0.5 is the median.

    Soft: the quantile of `sort`. Error: that of `sort`.
    """
    if not 0.0 <= q <= 1.0:
        raise InputError(f"relax.quantile: q is in [0, 1], got {q}")
    ordered = sort(values, tau=float(tau))
    place = q * (values.shape[-1] - 1)
    below = min(int(place), values.shape[-1] - 1)
    above = min(below + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., below], ordered[..., above], place - below)


@relaxation("relax.permutation", decision=chosen)
def permutation(values: Tensor, *, tau: Temperature = 0.1) -> Tensor:
    """The matrix P (..., n, n) for which P @ values is in ascending order: entry (i, j) is 1 where value j comes i-th.

    Soft: an odd-even sorting network whose comparators swap with probability 1/2 + arctan(x / tau) / pi; rows and
    columns add up to 1, and the gradient of the order is monotone. Error: each entry at most 2 n tau / (pi m), where
    m is the smallest distance of two values, if 8 n tau R / (pi m^2) is at most 1, R = largest minus smallest.

    References: Petersen et al. 2022, Monotonic Differentiable Sorting Networks.
    """
    t = float(tau)
    n = values.shape[-1]
    eye = torch.eye(n, dtype=values.dtype, device=values.device)

    def soft() -> Tensor:
        now, matrix = values, eye.expand(*values.shape, n)
        for layer in range(n):
            first = torch.arange(layer % 2, n - 1, 2, device=values.device)
            if not len(first):
                continue
            share = 0.5 + torch.arctan((now[..., first + 1] - now[..., first]) / t) / math.pi
            comparator = eye.expand(*values.shape, n).clone()
            comparator[..., first, first] = comparator[..., first + 1, first + 1] = share
            comparator[..., first, first + 1] = comparator[..., first + 1, first] = 1.0 - share
            matrix = comparator @ matrix
            now = (comparator @ now[..., None])[..., 0]
        return matrix

    return choose(soft, lambda: eye[values.argsort(-1)])


def _places(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], 0, -1, dtype=like.dtype, device=like.device).expand_as(like)


@torch.no_grad()
def _pools(values: Tensor) -> Tensor:
    """The averaging matrix (..., n, n) of the closest descending sequence to the values: isotonic regression.

    By the min-max formula: element i is the least over starts j <= i of the largest over ends k >= i of the mean of
    values j..k. It needs n^2 memory and no sequential merging, and which j and k attain it says what is pooled.
    """
    n = values.shape[-1]
    index = torch.arange(n, device=values.device)
    total = torch.nn.functional.pad(values.cumsum(-1), (1, 0))
    count = (index[None, :] - index[:, None] + 1).clamp_min(1)
    means = (total[..., None, 1:] - total[..., :-1, None]) / count
    means = torch.where(index[:, None] == index, values[..., None, :], means)  # exact for a single value
    means = means.masked_fill(index[None, :] < index[:, None], -math.inf)
    best, end = means.flip(-1).cummax(-1)
    best, end = best.flip(-1), n - 1 - end.flip(-1)
    best = best.masked_fill(index[:, None] > index[None, :], math.inf)
    start = best.argmin(-2)
    stop = end.gather(-2, start[..., None, :])[..., 0, :]
    inside = (index >= start[..., None]) & (index <= stop[..., None])
    return inside.to(values.dtype) / inside.sum(-1, keepdim=True)


register_relaxation(sort, lambda batch: {"values": 3.0 * draw(batch, 5), "tau": 0.7})
register_relaxation(rank, lambda batch: {"values": draw(batch, 5), "tau": 0.7})
register_relaxation(quantile, lambda batch: {"values": 3.0 * draw(batch, 5), "q": 0.3, "tau": 0.7})
register_relaxation(permutation, lambda batch: {"values": draw(batch, 4), "tau": 0.5})
