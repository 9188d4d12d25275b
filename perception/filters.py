"""State estimation over time: Kalman and particle filters, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradpath.errors import InputError, NonFiniteError, ShapeError
from gradpath.mode import current_mode


def kalman_predict(
    mean: Tensor, covariance: Tensor, A: Tensor, Q: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move a Gaussian belief one step: x' = A x + offset + noise of covariance Q.

    Args:
        mean: (B, n).
        covariance: (B, n, n).
        A: (n, n) or (B, n, n).
        Q: (n, n) or (B, n, n).
        offset: (n,) or (B, n), such as what a control does.
    Returns:
        Mean and covariance. Gradients: exact in everything. For a nonlinear step, pass its Jacobian as A and what is
        left, f(mean) - A mean, as the offset (the extended filter).
    """
    moved = (A @ mean[..., None])[..., 0]
    return moved if offset is None else moved + offset, A @ covariance @ A.mT + Q


def kalman_update(
    mean: Tensor, covariance: Tensor, measured: Tensor, H: Tensor, R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Condition a Gaussian belief on a measurement y = H x + noise of covariance R.

    Args:
        mean: (B, n).
        covariance: (B, n, n).
        measured: y, (B, k); a sample in which it is NaN was not measured and stays as it is.
        H: (k, n) or (B, k, n).
        R: (k, k) or (B, k, k).
    Returns:
        Mean, covariance (in Joseph's form, which stays symmetric and positive), and the log-likelihood of the
        measurement (B,), zero where there is none. Gradients: exact in everything.
    Raises:
        InputError: a measurement without noise of what is known already; names the sample.
    """
    seen = measured.isfinite().all(-1)
    gap = torch.where(seen[:, None], measured, 0.0) - (H @ mean[..., None])[..., 0]
    spread = H @ covariance @ H.mT + R
    factor, failed = torch.linalg.cholesky_ex(spread)
    if bool((failed != 0).any()):
        raise InputError(
            f"kalman_update: the covariance of the measurement of sample {int((failed != 0).nonzero()[0])} is "
            "not positive definite; give R positive eigenvalues"
        )
    gain = torch.cholesky_solve(H @ covariance, factor).mT
    rest = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device) - gain @ H
    after = rest @ covariance @ rest.mT + gain @ R @ gain.mT
    whitened = torch.linalg.solve_triangular(factor, gap[..., None], upper=False)[..., 0]
    size = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + gap.shape[-1] * math.log(2.0 * math.pi)
    likelihood = -0.5 * (whitened.square().sum(-1) + size)
    moved = mean + (gain @ gap[..., None])[..., 0]
    return (
        torch.where(seen[:, None], moved, mean),
        torch.where(seen[:, None, None], after, covariance),
        torch.where(seen, likelihood, 0.0),
    )


def particle_step(
    particles: Tensor,
    log_weights: Tensor,
    move: Callable[[Tensor], Tensor],
    log_likelihood: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    mixing: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Resample a belief, move it, and weight it with a measurement.

    Args:
        particles: (B, N, n), differentiable.
        log_weights: Normalized, (B, N), differentiable.
        move: Particles (B, N, n) to the next ones, with the noise of the motion.
        log_likelihood: Of the measurement given each particle, (B, N, n) to (B, N).
        generator: Of the resampling.
        mixing: Soft: particles are drawn from mixing * weights + (1 - mixing) / N and keep what this changes as a
            weight, through which the gradient passes. Hard: drawn by their weights alone, the standard filter.
    Returns:
        Particles and normalized log-weights.
    Raises:
        NonFiniteError: a measurement that no particle of a sample explains.
        InputError: a mixing outside (0, 1].
    Gradients: through motion, likelihood and weights; which particle is drawn has none.
    References: Karkus, Hsu, Lee 2018, Particle Filter Networks; Kitagawa 1996 (systematic resampling).
    """
    if not 0.0 < mixing <= 1.0:
        raise InputError(f"particle_step: mixing is a share in (0, 1], got {mixing}")
    if particles.ndim != 3 or log_weights.shape != particles.shape[:2]:
        raise ShapeError(
            f"particle_step: expected particles (B, N, n) and log_weights (B, N), got {tuple(particles.shape)} and "
            f"{tuple(log_weights.shape)}"
        )
    share = 1.0 if current_mode() == "hard" else mixing
    count = particles.shape[1]
    weights = log_weights.exp()
    proposal = share * weights + (1.0 - share) / count
    index = _systematic(proposal.detach(), generator)
    drawn = particles.gather(1, index[..., None].expand_as(particles))
    kept = torch.zeros_like(log_weights)
    if share < 1.0:
        kept = (log_weights - proposal.log()).gather(1, index)
    moved = move(drawn)
    scores = kept + log_likelihood(moved)
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    lost = scores.isneginf().all(-1) | scores.isposinf().any(-1)
    if lost.any():
        raise NonFiniteError(
            f"particle_step: no particle of sample {int(lost.nonzero()[0])} explains its measurement; widen the "
            "noise of the motion or of the measurement, or take more particles"
        )
    return moved, torch.log_softmax(scores, -1)


def particle_mean(particles: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (B, n) and covariance (B, n, n) of a belief; exact gradients."""
    weights = log_weights.exp()[..., None]
    mean = (weights * particles).sum(1)
    apart = particles - mean[:, None]
    return mean, (weights * apart).mT @ apart


def _systematic(probability: Tensor, generator: torch.Generator) -> Tensor:
    """Indices (B, N) drawn with one random offset per sample."""
    batch, count = probability.shape
    offset = torch.rand(batch, 1, generator=generator, dtype=probability.dtype, device=generator.device)
    steps = torch.arange(count, dtype=probability.dtype, device=probability.device)
    places = (steps + offset.to(probability.device)) / count
    total = probability.cumsum(-1)
    return torch.searchsorted(total / total[:, -1:], places).clamp_max(count - 1)
