"""Relaxed decisions: argmax, top-k, samples, branches. See `gradpath.relax`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradpath.errors import InputError, ShapeError
from gradpath.mode import current_mode, mode
from gradpath.relax_core import Temperature, above_half, choose, chosen, draw, register_relaxation, rounded
from gradpath.relaxation import relaxation


@relaxation("relax.one_hot", decision=chosen)
def one_hot(scores: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """1 at the largest of n scores along the last axis, else 0.

    Soft: softmax(scores / tau). Error: the absolute differences add up to at most 2 (n - 1) exp(-m / tau), where m is
    the margin between the largest and the second.
    """
    t = float(tau)
    return choose(lambda: torch.softmax(scores / t, -1), lambda: _hard_one_hot(scores))


@relaxation("relax.argmax", decision=rounded)
def argmax(scores: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """The index of the largest of n scores along the last axis, as a floating number.

    Soft: the mean index under `one_hot`. Error: at most (n - 1)^2 exp(-m / tau), m the margin to the second.
    """
    index = torch.arange(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    return (one_hot(scores, tau=float(tau)) * index).sum(-1)


@relaxation("relax.top_k", decision=above_half)
def top_k(scores: Tensor, k: int, *, tau: Temperature = 0.1) -> Tensor:
    """1 at the k largest of n scores along the last axis, else 0.

    Soft: sigmoid((scores - threshold) / tau), the threshold such that they add up to k. Error: the absolute
    differences add up to at most 2 max(k, n - k) exp(-m / (2 tau)), where m is the margin between the k-th and the
    next.

    References: Amos, Koltun, Kolter 2019, The Limited Multi-Label Projection Layer.
    """
    t = float(tau)
    if not 1 <= k < scores.shape[-1]:
        raise InputError(
            f"relax.top_k: k is from 1 to {scores.shape[-1] - 1} for {scores.shape[-1]} scores, got {k}"
        )

    def hard() -> Tensor:
        return torch.zeros_like(scores).scatter(-1, scores.topk(k, dim=-1).indices, 1.0)

    return choose(lambda: torch.sigmoid((scores - _Threshold.apply(scores, k, t)) / t), hard)


class _Threshold(torch.autograd.Function):
    """Where sum sigmoid((scores - threshold) / tau) = k, by bisection; its gradient from that equation."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, tau: float) -> Tensor:
        ordered = scores.sort(dim=-1, descending=True).values
        spread = 40.0 * tau + scores.shape[-1] * tau
        low, high = ordered[..., k, None] - spread, ordered[..., k - 1, None] + spread
        for _ in range(80):
            middle = (low + high) / 2
            above = torch.sigmoid((scores - middle) / tau).sum(-1, keepdim=True) > k
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        threshold = (low + high) / 2
        ctx.tau = tau
        ctx.save_for_backward(scores, threshold)
        return threshold

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, threshold = ctx.saved_tensors
        x = (scores - threshold) / ctx.tau
        # The weights y (1 - y) over their sum, from logarithms: right where all of them underflow.
        return grad * torch.softmax(F.logsigmoid(x) + F.logsigmoid(-x), -1), None, None


@relaxation("relax.categorical", decision=chosen)
def categorical(logits: Tensor, *, generator: torch.Generator, tau: Temperature = 1.0) -> Tensor:
    """A sample from softmax(logits) along the last axis, as a one-hot vector.

    Hard samples are exactly distributed. Soft ones are `one_hot` of the same perturbed scores, logits plus Gumbel
    noise: for one state of the generator, the three modes draw the same sample. Error: that of `one_hot`, m the
    margin of the perturbed scores.

    References: Jang, Gu, Poole 2017; Maddison, Mnih, Teh 2017 (Gumbel-softmax).
    """
    noise = _gumbel(logits.shape, logits, generator)
    return one_hot(logits + noise, tau=float(tau))


@relaxation("relax.bernoulli", decision=above_half)
def bernoulli(logits: Tensor, *, generator: torch.Generator, tau: Temperature = 1.0) -> Tensor:
    """1 with probability sigmoid(logits), else 0.

    Hard samples are exactly distributed. Soft: sigmoid((logits + logistic noise) / tau), of the same noise. Error: at
    most exp(-|logits + noise| / tau).

    References: Maddison, Mnih, Teh 2017 (binary concrete).
    """
    t = float(tau)
    one, other = _gumbel((2, *logits.shape), logits, generator)
    x = logits + one - other  # the difference of two Gumbel numbers is logistic
    return choose(lambda: torch.sigmoid(x / t), lambda: (x > 0).to(x.dtype))


def _side(value: Tensor, inside: Tensor, outside: Tensor, **arguments: Any) -> Tensor:
    return (value - inside).abs() < (value - outside).abs()


@relaxation("relax.where", decision=_side)
def where(condition: Tensor, inside: Tensor, outside: Tensor, *, tau: Temperature = 0.1) -> Tensor:
    """`inside` where the condition is above zero, `outside` elsewhere: a branch that both sides are computed for.

    Soft: the two, blended by sigmoid(condition / tau), through which the condition gets a gradient. Error: at most
    |inside - outside| exp(-|condition| / tau). Both sides must be finite everywhere.
    """
    t = float(tau)

    def soft() -> Tensor:
        return torch.lerp(*torch.broadcast_tensors(outside, inside, torch.sigmoid(condition / t)))

    return choose(soft, lambda: torch.where(condition > 0, inside, outside))


def _outcome(value: Tensor, outcomes: Tensor, **arguments: Any) -> Tensor:
    return (value.unsqueeze(-2) - outcomes).square().sum(-1).argmin(-1)


@relaxation("relax.marginalize", decision=_outcome)
def marginalize(scores: Tensor, outcomes: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """The outcome of the decision with the largest of n scores.

    Args:
        scores: (..., n).
        outcomes: What follows from each decision, (..., n, k).
        tau: Temperature of the decision.
    Returns:
        (..., k).

    Soft: the mean outcome under `one_hot`. Error: at most (n - 1) exp(-m / tau) times the range of the outcomes, m
    the margin to the second.
    """
    if outcomes.shape[:-1] != scores.shape:
        raise ShapeError(
            f"relax.marginalize: expected outcomes {tuple(scores.shape)} and a last axis, got {tuple(outcomes.shape)}"
        )
    weights = one_hot(scores, tau=float(tau))
    return (weights[..., None] * outcomes).sum(-2)


@relaxation("relax.perturbed")
def perturbed(
    function: Callable[[Tensor], Tensor],
    scores: Tensor,
    *,
    generator: torch.Generator,
    samples: int = 100,
    tau: Temperature = 0.1,
) -> Tensor:
    """Any decision made from scores, such as a shortest path or an assignment by a solver.

    Args:
        function: The hard decision: scores (B, ...) to (B, ...), sample by sample; needs no gradient.
        scores: (B, ...), differentiable.
        generator: Where the noise comes from.
        samples: Perturbed decisions that the mean is taken over; the gradient has the noise of this many.
        tau: Standard deviation of the noise.

    Soft: the mean of function(scores + tau Z), Z normal, with the gradient of its expectation by the score function.
    Error: at most the range of the decisions, times the share of samples in which the decision changes.

    References: Berthet et al. 2020, Learning with Differentiable Perturbed Optimizers.
    """
    t = float(tau)
    if samples < 1:
        raise InputError(f"relax.perturbed: samples is at least 1, got {samples}")
    if current_mode() == "hard":
        return function(scores)
    noise = torch.randn(
        (samples, *scores.shape), dtype=scores.dtype, device=scores.device, generator=generator
    )
    return choose(lambda: _Perturbed.apply(scores, function, noise, t), lambda: function(scores))


class _Perturbed(torch.autograd.Function):
    """The mean of perturbed decisions; its gradient by the score function, with the decision itself as baseline."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, function: Callable[[Tensor], Tensor], noise: Tensor, tau: float
    ) -> Tensor:
        with mode("hard"):
            found = torch.stack([function(scores + tau * z) for z in noise])
            baseline = function(scores)
        ctx.tau = tau
        ctx.save_for_backward(found - baseline, noise)
        return found.mean(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        changes, noise = ctx.saved_tensors
        gain = (changes * grad).flatten(2).sum(-1) if changes.ndim > 2 else changes * grad
        gain = gain.reshape(*gain.shape[:2], *(1 for _ in noise.shape[2:]))
        return (gain * noise).mean(0) / ctx.tau, None, None, None


def _gumbel(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise, drawn on the device of the generator."""
    waiting = torch.empty(*shape, dtype=like.dtype, device=generator.device).exponential_(generator=generator)
    return -torch.log(waiting.clamp_min(torch.finfo(like.dtype).tiny)).to(like.device)


def _hard_one_hot(scores: Tensor) -> Tensor:
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def _seeded(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation with the same noise in every call, which differences need."""

    def fixed(logits: Tensor) -> Tensor:
        return operation(logits, generator=torch.Generator().manual_seed(0), tau=0.7)

    fixed.__name__ = operation.__name__
    return fixed


register_relaxation(one_hot, lambda batch: {"scores": draw(batch, 4)})
register_relaxation(argmax, lambda batch: {"scores": draw(batch, 4)})
register_relaxation(top_k, lambda batch: {"scores": draw(batch, 5), "k": 2, "tau": 0.5})
register_relaxation(_seeded(categorical), lambda batch: {"logits": draw(batch, 4)})
register_relaxation(_seeded(bernoulli), lambda batch: {"logits": draw(batch, 4)})
register_relaxation(
    where,
    lambda batch: {"condition": draw(batch), "inside": draw(batch + 1)[1:], "outside": draw(batch + 2)[2:]},
)
register_relaxation(marginalize, lambda batch: {"scores": draw(batch, 3), "outcomes": draw(batch, 3, 2)})
