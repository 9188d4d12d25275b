"""Estimators of the gradient of an expectation, and a report that says where the first-order one is wrong.

The expectation is F(x) = E f(x + w) over normal noise w. Its first-order gradient averages f', which is blind to jumps
of f: where a contact, a collision or any other decision makes one, it is biased. The zeroth-order gradient averages
f w / std^2, which is right but noisy. The mixture takes as much of the first as its bias allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError

__all__ = [
    "BiasReport",
    "Estimate",
    "alpha_order",
    "bias_report",
    "first_order",
    "score_function",
    "zeroth_order",
]

Loss = Callable[[Tensor], Tensor]
"""f: samples (N, ...) to (N,), sample by sample."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of a gradient.

    Attributes:
        gradient: Of the shape of the parameters.
        variance: Estimated variance of `gradient` itself, not of one sample, of the same shape.
        value: Mean loss over the samples.
        alpha: Share of the first-order gradient: 1 for it, 0 for the zeroth-order one.
    """

    gradient: Tensor
    variance: Tensor
    value: float
    alpha: float

    @property
    def standard_error(self) -> float:
        """Root of the summed variance: what the norm of the error is expected to be, bias apart."""
        return math.sqrt(float(self.variance.sum()))


def first_order(loss: Loss, x: Tensor, *, std: float, samples: int, generator: torch.Generator) -> Estimate:
    """The mean of the gradients of the loss at x + noise.

    Args:
        loss: f, (N, ...) to (N,), sample by sample.
        x: Parameters, any shape.
        std: Standard deviation of the noise.
        samples: N, at least 2.
        generator: Where the noise comes from.

    Low variance where the loss is smooth; biased where it jumps, and of huge variance where it is stiff.
    """
    noise = _noise(x, std, samples, generator)
    values, gradients = _value_and_gradients(loss, x.detach() + noise)
    return _mean(gradients, values, 1.0)


def zeroth_order(
    loss: Loss, x: Tensor, *, std: float, samples: int, generator: torch.Generator, antithetic: bool = True
) -> Estimate:
    """The gradient of the smoothed loss from values only; without bias for any loss.

    Args:
        loss: f, (N, ...) to (N,), sample by sample; needs no gradient.
        x: Parameters, any shape.
        std: Standard deviation of the noise.
        samples: Evaluations N; even, at least 4, where antithetic.
        generator: Where the noise comes from.
        antithetic: Each noise is used with both signs; otherwise the loss at x is the baseline.
    """
    if not antithetic:
        noise = _noise(x, std, samples, generator)
        return _mean(*_score_samples(loss, x.detach(), noise, std), 0.0)
    if samples % 2 or samples < 4:
        raise InputError(
            f"estimate: antithetic samples come in pairs; take an even number from 4, got {samples}"
        )
    noise = _noise(x, std, samples // 2, generator)
    with torch.no_grad():
        values = _values(loss, torch.cat([x.detach() + noise, x.detach() - noise]))
    ahead, behind = values.chunk(2)
    return _mean(_times((ahead - behind) / (2.0 * std**2), noise), values, 0.0)


def alpha_order(
    loss: Loss,
    x: Tensor,
    *,
    std: float,
    samples: int,
    generator: torch.Generator,
    threshold: float | None = None,
    confidence: float = 2.0,
) -> Estimate:
    """The mixture of both with the least variance whose bias is within bounds.

    Args:
        loss: f, (N, ...) to (N,), sample by sample, differentiable.
        x: Parameters, any shape.
        std: Standard deviation of the noise.
        samples: N, at least 2; both gradients come from the same ones.
        generator: Where the noise comes from.
        threshold: How far the result may be from the gradient, in its norm. None: half the norm of the zeroth-order
            gradient.
        confidence: That radius, in standard errors.
    Returns:
        An estimate whose `alpha` is the share of the first order: the one of least variance, or less where the two
        differ so much that its bias could pass the threshold; 0 where the
        confidence interval alone is wider, for then a bias could hide in it.

    References: Suh, Simchowitz, Zhang, Tedrake 2022, Do Differentiable Simulators Give Better Policy Gradients?
    """
    noise = _noise(x, std, samples, generator)
    values, gradients = _value_and_gradients(loss, x.detach() + noise)
    first = _mean(gradients, values, 1.0)
    zeroth = _mean(*_score_samples(loss, x.detach(), noise, std), 0.0)
    low, high = float(first.variance.sum()), float(zeroth.variance.sum())
    alpha = high / (low + high) if low + high > 0 else 1.0
    radius = confidence * math.sqrt(high)
    allowed = 0.5 * float(torch.linalg.vector_norm(zeroth.gradient)) if threshold is None else threshold
    room = allowed - radius
    apart = float(torch.linalg.vector_norm(first.gradient - zeroth.gradient))
    if not first.gradient.isfinite().all() or room < 0:
        alpha = 0.0
    elif alpha * apart > room:
        alpha = room / apart
    if alpha == 0.0:
        return zeroth
    gradient = alpha * first.gradient + (1.0 - alpha) * zeroth.gradient
    variance = alpha**2 * first.variance + (1.0 - alpha) ** 2 * zeroth.variance
    return Estimate(gradient, variance, first.value, alpha)


def score_function(
    log_probability: Tensor,
    cost: Tensor,
    *,
    baseline: Literal["leave_one_out", "none"] | Tensor = "leave_one_out",
) -> Tensor:
    """A number whose gradient estimates that of the mean cost, through the choice of the samples.

    Args:
        log_probability: Of each sample under what chose it, (N,), with its graph.
        cost: Of each sample, (N,); its own gradient, if any, is added.
        baseline: Subtracted from the costs. `"leave_one_out"`: the mean of the others, without bias. A tensor that
            broadcasts to (N,), such as a value estimate: must not depend on the sample.
    Returns:
        The mean cost as a value; the score-function gradient, plus that of the costs, backward.

    References: Williams 1992 (REINFORCE); Kool, van Hoof, Welling 2019 (leave-one-out).
    """
    if log_probability.ndim != 1 or log_probability.shape != cost.shape or not len(cost):
        got = f"{tuple(log_probability.shape)} and {tuple(cost.shape)}"
        raise ShapeError(
            f"estimate.score_function: expected log_probability and cost of one shape (N,), got {got}"
        )
    held = cost.detach()
    if isinstance(baseline, Tensor):
        held = held - baseline.detach()
    elif baseline == "leave_one_out":
        if len(cost) < 2:
            raise InputError(
                "estimate.score_function: leave_one_out needs two samples; pass another baseline"
            )
        held = (held - held.mean()) * (len(cost) / (len(cost) - 1))
    elif baseline != "none":
        raise InputError(
            f'estimate.score_function: baseline "{baseline}" is not leave_one_out, none or a tensor'
        )
    return cost.mean() + (held * (log_probability - log_probability.detach())).mean()


@dataclass(frozen=True)
class BiasReport:
    """How the first-order gradient compares with the zeroth-order one.

    Attributes:
        first: The first-order estimate.
        zeroth: The zeroth-order estimate.
        bias: Norm of their difference.
        interval: What the norm would stay below, by chance alone, but for about one time in 500.
        cosine: Between the two gradients; NaN where one is zero.
    """

    first: Estimate
    zeroth: Estimate
    bias: float
    interval: float
    cosine: float

    @property
    def biased(self) -> bool:
        """Whether the first-order gradient is wrong beyond chance, or not finite."""
        return not self.bias <= self.interval

    def json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "biased": self.biased,
            "bias": self.bias,
            "interval": self.interval,
            "cosine": self.cosine,
            "first_order": {"norm": _size(self.first), "standard_error": self.first.standard_error},
            "zeroth_order": {"norm": _size(self.zeroth), "standard_error": self.zeroth.standard_error},
        }

    def table(self) -> str:
        """Return a text table and a verdict."""
        lines = [f"{'gradient':13}  {'norm':>10}  {'standard error':>14}"]
        for name, estimate in (("first order", self.first), ("zeroth order", self.zeroth)):
            lines.append(f"{name:13}  {_size(estimate):10.3g}  {estimate.standard_error:14.3g}")
        text = f"difference {self.bias:.3g}, by chance below {self.interval:.3g}; cosine {self.cosine:.3f}"
        verdict = (
            "BIASED: the first-order gradient misses a jump of the loss; use alpha_order, or relax the decision"
            if self.biased
            else "no bias seen"
        )
        return "\n".join([*lines, text, verdict])

    def __str__(self) -> str:
        return self.table()


def bias_report(
    loss: Loss, x: Tensor, *, std: float, generator: torch.Generator, samples: int = 2000
) -> BiasReport:
    """Compare the two gradients at x, and flag where the first-order one is wrong.

    Args:
        loss: f, (N, ...) to (N,), sample by sample, differentiable.
        x: Parameters, any shape.
        std: Standard deviation of the noise.
        generator: Where the noise comes from.
        samples: N; the more, the smaller a bias is seen.
    """
    noise = _noise(x, std, samples, generator)
    values, gradients = _value_and_gradients(loss, x.detach() + noise)
    scores = _score_samples(loss, x.detach(), noise, std)[0]
    first, zeroth = _mean(gradients, values, 1.0), _mean(scores, values, 0.0)
    difference = _mean(gradients - scores, values, 0.0)  # of the same noise, so its variance is its own
    total = float(difference.variance.sum())
    # A sum of squares of independent normal numbers: its mean, and six standard deviations of it.
    interval = math.sqrt(total + 6.0 * math.sqrt(2.0 * float(difference.variance.square().sum())))
    cosine = torch.nn.functional.cosine_similarity(
        first.gradient.flatten(), zeroth.gradient.flatten(), dim=0, eps=0.0
    )
    bias = float(torch.linalg.vector_norm(difference.gradient))
    return BiasReport(first, zeroth, bias, interval, float(cosine))


def _noise(x: Tensor, std: float, samples: int, generator: torch.Generator) -> Tensor:
    if not (std > 0 and math.isfinite(std)):
        raise InputError(f"estimate: std is above zero and finite, got {std}")
    if samples < 2:
        raise InputError(f"estimate: a variance needs two samples at least, got {samples}")
    shape = (samples, *x.shape)
    return std * torch.randn(shape, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)


def _values(loss: Loss, samples: Tensor) -> Tensor:
    values = loss(samples)
    if values.shape != samples.shape[:1]:
        raise ShapeError(
            f"estimate: the loss returned {tuple(values.shape)} for {len(samples)} samples; expected one number per "
            f"sample, ({len(samples)},)"
        )
    return values


def _value_and_gradients(loss: Loss, samples: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = samples.detach().requires_grad_()
        values = _values(loss, leaf)
        if not values.requires_grad:
            return values, torch.zeros_like(samples)
        (gradients,) = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)
    return values.detach(), gradients


def _score_samples(loss: Loss, x: Tensor, noise: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Zeroth-order gradients by sample, with the loss at x as baseline, and the losses."""
    with torch.no_grad():
        values = _values(loss, torch.cat([x + noise, x[None]]))
    return _times((values[:-1] - values[-1]) / std**2, noise), values[:-1]


def _times(weights: Tensor, noise: Tensor) -> Tensor:
    return weights.reshape(-1, *(1 for _ in noise.shape[1:])) * noise


def _mean(gradients: Tensor, values: Tensor, alpha: float) -> Estimate:
    return Estimate(gradients.mean(0), gradients.var(0) / len(gradients), float(values.mean()), alpha)


def _size(estimate: Estimate) -> float:
    return float(torch.linalg.vector_norm(estimate.gradient))
