"""Planners that sample: MPPI and the cross-entropy method, with gradients, for objectives that are rough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradpath import relax
from gradpath.errors import InputError, NonFiniteError, ShapeError
from gradpath.relax_core import Temperature
from gradpath.relaxation import positive, relaxation

Objective = Callable[[Tensor], Tensor]
"""Controls (K, B, T, m) to costs (K, B); a `Shooting`."""


@dataclass
class Sampled:
    """What a sampling planner finds.

    Attributes:
        controls: (B, T, m), differentiable.
        spread: Standard deviation of the last candidates that count, (B, T, m).
        cost: The least cost among the last candidates, (B,), without gradient.
        effective: How many candidates count in the last round, 1 / sum of squared weights, (B,).
    """

    controls: Tensor
    spread: Tensor
    cost: Tensor
    effective: Tensor


def mppi(
    objective: Objective,
    controls: Tensor,
    *,
    std: Tensor | float,
    generator: torch.Generator,
    samples: int = 64,
    rounds: int = 1,
    low: float = -torch.inf,
    high: float = torch.inf,
    tau: Temperature = 1.0,
) -> Sampled:
    """Average sampled controls, weighted with exp(-cost / tau): model-predictive path integral control.

    Args:
        objective: Costs (K, B) of K candidates per sample, controls (K, B, T, m).
        controls: The mean of the first candidates, (B, T, m); differentiable.
        std: Standard deviation of the candidates, a number, (m,) or (B, T, m); differentiable.
        generator: Where the noise comes from.
        samples: Candidates K; the first one is the mean itself.
        rounds: How often to sample around the last result.
        low: Least control; candidates are cut off there.
        high: Largest control.
        tau: In units of the cost.
    Returns:
        A `Sampled`. In `gp.mode("hard")` the best candidate takes all, the limit of tau to zero.
    Raises:
        InputError: an option out of range.
        ShapeError: an objective of another shape.
        NonFiniteError: no candidate of a sample has a finite cost; single ones are left out.
    Gradients: through the costs and the candidates, of the noise that was drawn.
    References: Williams et al. 2017, Model Predictive Path Integral Control.
    """
    t = positive(tau, "mppi")
    mean = controls
    for _ in range(_check("mppi", samples, rounds, low, high, controls)):
        candidates = _draw(mean, std, samples, generator, low, high)
        scores = _scores("mppi", objective, candidates)
        weights = _count(scores, tau=t)
        mean = _mean(weights, candidates)
    return _sampled(mean, weights, candidates, scores)


def cem(
    objective: Objective,
    controls: Tensor,
    *,
    std: Tensor | float,
    generator: torch.Generator,
    samples: int = 64,
    elites: int = 8,
    rounds: int = 5,
    low: float = -torch.inf,
    high: float = torch.inf,
    tau: Temperature = 0.1,
) -> Sampled:
    """Sample, keep the elites, sample around them: the cross-entropy method, differentiable.

    Soft: candidates count by `relax.top_k` of their costs, whose weights add up to the number of elites. Hard: the
    elites count, and no others.

    Args:
        objective: As in `mppi`.
        controls: The mean of the first candidates, (B, T, m); differentiable.
        std: Their standard deviation; differentiable.
        generator: Where the noise comes from.
        samples: Candidates K.
        elites: How many of them are kept, fewer than K.
        rounds: How often to sample.
        low: Least control; candidates are cut off there.
        high: Largest control.
        tau: In units of the standard deviation of the costs of a round.
    Returns:
        A `Sampled`.
    Raises:
        InputError, ShapeError, NonFiniteError: as in `mppi`.
    Gradients: through the costs, the candidates, and which of them count; of the noise that was drawn.
    References: Amos, Yarats 2020, The Differentiable Cross-Entropy Method.
    """
    t = positive(tau, "cem")
    if not 1 <= elites < samples:
        raise InputError(f"cem: elites are from 1 to {samples - 1} of {samples} samples, got {elites}")
    mean, spread = controls, std
    for _ in range(_check("cem", samples, rounds, low, high, controls)):
        candidates = _draw(mean, spread, samples, generator, low, high)
        scores = _scores("cem", objective, candidates)
        left_out = scores.isinf()
        known = torch.where(left_out, 0.0, scores)
        count = (~left_out).sum(0)
        centre = known.sum(0) / count
        width = (torch.where(left_out, 0.0, scores - centre).square().sum(0) / count + 1e-12).sqrt()
        # What is left out ranks behind everything, at a finite distance.
        ranked = torch.where(left_out, known.amin(0).clamp_max(0.0) - 1e3 * width, scores)
        weights = _count_elites((ranked - centre) / width, elites, tau=t)
        mean = _mean(weights, candidates)
        spread = (_mean(weights, (candidates - mean).square()) + 1e-12).sqrt()
    return _sampled(mean, weights, candidates, scores)


@relaxation("mppi", decision=lambda value, **_: value.argmax(0))
def _count(scores: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """How much each candidate counts, (K, B), by scores (K, B): what soft and hard planning differ in."""
    return relax.one_hot(scores.T, tau=tau).T


@relaxation("cem", decision=lambda value, scores, elites, **_: value * elites > 0.5)
def _count_elites(scores: Tensor, elites: int, *, tau: Temperature = 0.1) -> Tensor:
    """The same where the elites count alike."""
    return relax.top_k(scores.T, elites, tau=tau).T / elites


def _draw(
    mean: Tensor, std: Tensor | float, samples: int, generator: torch.Generator, low: float, high: float
) -> Tensor:
    noise = torch.randn(
        samples, *mean.shape, dtype=mean.dtype, device=generator.device, generator=generator
    ).to(mean.device)
    noise[0] = 0.0  # the mean itself is a candidate: a round cannot be worse than the one before
    return (mean + std * noise).clamp(low, high)


def _scores(name: str, objective: Objective, candidates: Tensor) -> Tensor:
    """Minus the costs, (K, B); minus infinity where they are not finite."""
    cost = objective(candidates)
    if cost.shape != candidates.shape[:2]:
        raise ShapeError(
            f"{name}: the objective gave {tuple(cost.shape)} for candidates {tuple(candidates.shape)}; expected "
            f"{tuple(candidates.shape[:2])}"
        )
    finite = cost.isfinite()
    lost = ~finite.any(0)
    if lost.any():
        raise NonFiniteError(
            f"{name}: no candidate of sample {int(lost.nonzero()[0])} has a finite cost; look at its state, or draw "
            "closer to what works"
        )
    return torch.where(finite, -cost, -torch.inf)


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return (weights[:, :, None, None] * values).sum(0)


def _sampled(mean: Tensor, weights: Tensor, candidates: Tensor, scores: Tensor) -> Sampled:
    variance = _mean(weights, (candidates - mean).square())
    effective = 1.0 / weights.detach().square().sum(0)
    return Sampled(mean, variance.detach().sqrt(), -scores.detach().amax(0), effective)


def _check(name: str, samples: int, rounds: int, low: float, high: float, controls: Tensor) -> int:
    if samples < 2 or rounds < 1 or not low < high:
        raise InputError(
            f"{name}: at least two samples, one round and low < high, got {samples}, {rounds}, {low} to {high}"
        )
    if controls.ndim != 3:
        raise ShapeError(f"{name}: expected controls (B, T, m), got {tuple(controls.shape)}")
    return rounds
