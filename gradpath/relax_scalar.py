"""Relaxed functions of numbers: steps, rounding, extrema, and metrics that have no gradient. See `gradpath.relax`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradpath.errors import InputError, ShapeError
from gradpath.relax_core import (
    Temperature,
    above_half,
    choose,
    draw,
    register_relaxation,
    rounded,
    soft_step,
)
from gradpath.relaxation import relaxation


@relaxation("relax.step", decision=above_half)
def step(x: Tensor, *, tau: Temperature = 0.1) -> Tensor:
    """1 where x is above zero, else 0.

    Soft: sigmoid(x / tau). Error: at most exp(-|x| / tau).
    """
    t = float(tau)
    return choose(lambda: torch.sigmoid(x / t), lambda: (x > 0).to(x.dtype))


@relaxation("relax.sign", decision=rounded)
def sign(x: Tensor, *, tau: Temperature = 0.1) -> Tensor:
    """The sign of x, 0 at 0.

    Soft: tanh(x / tau). Error: at most 2 exp(-2 |x| / tau).
    """
    t = float(tau)
    return choose(lambda: torch.tanh(x / t), lambda: torch.sign(x))


@relaxation("relax.round", decision=rounded)
def round(x: Tensor, *, tau: Temperature = 0.1) -> Tensor:
    """The nearest whole number; halves go up.

    Soft: smooth stairs, through all whole numbers; the line y = x for large tau. Error: at most exp(-d / tau), where
    d is the distance of x to the nearest half.
    """
    t = float(tau)

    def soft() -> Tensor:
        base = torch.floor(x.detach())
        return base + soft_step(x - base, t)

    return choose(soft, lambda: torch.floor(x + 0.5))


def _level(value: Tensor, size: float, **arguments: Any) -> Tensor:
    return torch.floor(value / size + 0.5)


@relaxation("relax.quantize", decision=_level)
def quantize(x: Tensor, size: float, *, tau: Temperature = 0.1) -> Tensor:
    """The nearest multiple of `size`.

    Soft: as `round`; tau counts in sizes. Error: at most size exp(-d / tau), d the distance of x / size to a half.
    """
    if not size > 0:
        raise InputError(f"relax.quantize: size is above zero, got {size}")
    return size * round(x / size, tau=float(tau))


@relaxation("relax.clip")
def clip(x: Tensor, low: float, high: float, *, tau: Temperature = 0.1) -> Tensor:
    """x, but not below `low` and not above `high`.

    Soft: two softplus corners, with a gradient outside too. Error: at most tau log 2.
    """
    t = float(tau)
    if not low < high:
        raise InputError(f"relax.clip: low is below high, got {low} and {high}")
    return choose(
        lambda: low + _softplus(x - low, t) - _softplus(x - high, t), lambda: torch.clamp(x, low, high)
    )


@relaxation("relax.maximum")
def maximum(x: Tensor, *, dim: int = -1, tau: Temperature = 0.1) -> Tensor:
    """The largest of n values along an axis.

    Soft: tau log sum exp(x / tau). Error: above, by at most tau log n.
    """
    t = float(tau)
    return choose(lambda: t * torch.logsumexp(x / t, dim), lambda: torch.amax(x, dim))


@relaxation("relax.minimum")
def minimum(x: Tensor, *, dim: int = -1, tau: Temperature = 0.1) -> Tensor:
    """The smallest of n values along an axis.

    Soft: -tau log sum exp(-x / tau). Error: below, by at most tau log n.
    """
    t = float(tau)
    return choose(lambda: -t * torch.logsumexp(-x / t, dim), lambda: torch.amin(x, dim))


@relaxation("relax.absolute")
def absolute(x: Tensor, *, tau: Temperature = 0.1) -> Tensor:
    """The absolute value.

    Soft: sqrt(x^2 + tau^2), smooth at zero. Error: above, by at most tau.
    """
    t = float(tau)
    return choose(lambda: torch.sqrt(x * x + t * t), lambda: torch.abs(x))


@relaxation("relax.norm")
def norm(x: Tensor, *, dim: int = -1, tau: Temperature = 0.1) -> Tensor:
    """The length of a vector along an axis; its gradient is finite at zero in every mode.

    Soft: sqrt(x'x + tau^2). Error: above, by at most tau.
    """
    t = float(tau)
    return choose(lambda: torch.sqrt((x * x).sum(dim) + t * t), lambda: torch.linalg.vector_norm(x, dim=dim))


@relaxation("relax.visibility", decision=above_half)
def visibility(depth: Tensor, surface: Tensor, *, tau: Temperature = 0.05) -> Tensor:
    """1 where a point is in front of the surface that is seen at its pixel, else 0.

    Args:
        depth: Depth of the point [m].
        surface: Depth of the surface [m], of a shape that broadcasts with it.
        tau: In metres.

    Soft: sigmoid((surface - depth) / tau). Error: at most exp(-|surface - depth| / tau).
    """
    return step(surface - depth, tau=float(tau))


@relaxation("relax.success", decision=above_half)
def success(distance: Tensor, tolerance: float, *, tau: Temperature = 0.1) -> Tensor:
    """1 where a distance is below the tolerance, else 0: a success rate, when its mean is taken.

    Soft: sigmoid((tolerance - distance) / tau). Error: at most exp(-|tolerance - distance| / tau).
    """
    return step(tolerance - distance, tau=float(tau))


@relaxation("relax.collisions", decision=rounded)
def collisions(clearance: Tensor, *, dim: int = 0, tau: Temperature = 0.05) -> Tensor:
    """How many of the clearances along an axis are below zero.

    Soft: the sum of sigmoid(-clearance / tau). Error: at most the sum of exp(-|clearance| / tau).
    """
    return step(-clearance, tau=float(tau)).sum(dim)


@relaxation("relax.iou")
def iou(logits: Tensor, target: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """Intersection over union of the region where `logits` are above zero and a mask.

    Args:
        logits: (B, ...), above zero inside.
        target: Mask, 0 or 1, of the same shape.
        tau: Temperature of the soft mask p = sigmoid(logits / tau).
    Returns:
        (B,), in [0, 1]; 1 where both are empty.

    Soft: sum(p target) / sum(p + target - p target). Error: at most 2 e / U, where e is the sum of
    exp(-|logits| / tau) and U the hard union, and at most 1.
    """
    t = float(tau)
    if logits.shape != target.shape or logits.ndim < 2:
        raise ShapeError(
            f"relax.iou: expected logits and target of one shape (B, ...), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    mask = target.to(logits.dtype).flatten(1)

    def ratio(inside: Tensor) -> Tensor:
        both = (inside * mask).sum(-1)
        union = (inside + mask - inside * mask).sum(-1)
        return torch.where(union > 0, both / torch.where(union > 0, union, 1.0), 1.0)

    flat = logits.flatten(1)
    return choose(lambda: ratio(torch.sigmoid(flat / t)), lambda: ratio((flat > 0).to(flat.dtype)))


def _softplus(x: Tensor, tau: float) -> Tensor:
    return tau * F.softplus(x / tau, threshold=40.0)


for _function in (step, sign, round, maximum, minimum, absolute, norm):
    register_relaxation(_function, lambda batch: {"x": draw(batch, 4), "tau": 0.3})
register_relaxation(quantize, lambda batch: {"x": draw(batch, 4), "size": 0.25, "tau": 0.3})
register_relaxation(clip, lambda batch: {"x": draw(batch, 4), "low": -0.5, "high": 0.5})
register_relaxation(
    visibility, lambda batch: {"depth": draw(batch, 4), "surface": draw(batch + 1, 4)[1:], "tau": 0.5}
)
register_relaxation(success, lambda batch: {"distance": draw(batch), "tolerance": 0.5})
register_relaxation(collisions, lambda batch: {"clearance": draw(batch, 5), "dim": 1, "tau": 0.5})
register_relaxation(iou, lambda batch: {"logits": draw(batch, 3, 3), "target": draw(batch + 1, 3, 3)[1:] > 0})
