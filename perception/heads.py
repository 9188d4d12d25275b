"""Heads: from features to what a robot wants to know, with how sure it can be."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.stage import Stage


class CollisionDistance(Stage):
    """The distance to the nearest obstacle, never negative.

    Args:
        features: Size of the feature.
        scale: A typical distance [m], in units of which the layer works.

    Inputs: `feature` (B, features). Outputs: `distance` (B,) [m]. Gradients: exact.
    """

    contract: Contract

    def __init__(self, features: int = 64, scale: float = 1.0):
        super().__init__()
        self.contract = Contract(inputs={"feature": f"B {features}"}, outputs={"distance": "B"})
        self.layer = nn.Linear(features, 1)
        self.scale = scale

    def forward(self, feature: Tensor) -> Tensor:
        """Estimate one distance per world."""
        return self.scale * F.softplus(self.layer(feature)[:, 0])


class GoalDirection(Stage):
    """The direction of a goal, a unit vector.

    Args:
        features: Size of the feature.
        size: Components, 2 or 3.

    Inputs: `feature` (B, features). Outputs: `direction` (B, size). Gradients: exact; finite where the layer gives
    zero, whose direction is zero.
    """

    contract: Contract

    def __init__(self, features: int = 64, size: int = 3):
        super().__init__()
        self.contract = Contract(inputs={"feature": f"B {features}"}, outputs={"direction": f"B {size}"})
        self.layer = nn.Linear(features, size)

    def forward(self, feature: Tensor) -> Tensor:
        """Estimate one direction per world."""
        value = self.layer(feature)
        return value / (value.square().sum(-1, keepdim=True) + 1e-12).sqrt()


class GaussianMixture(Stage):
    """A mixture of Gaussians with independent components: one of them is a mean with its uncertainty.

    Args:
        features: Size of the feature.
        size: Size k of what is estimated.
        mixtures: Gaussians M.
        least_std: Standard deviations are above this, in the unit of what is estimated.

    Inputs: `feature` (B, features). Outputs: `logits` (B, M), `mean` (B, M, k), `log_std` (B, M, k), for
    `mixture_nll`. Gradients: exact.
    """

    contract: Contract

    def __init__(self, features: int = 64, size: int = 1, mixtures: int = 1, least_std: float = 1e-3):
        super().__init__()
        if mixtures < 1 or size < 1 or not least_std > 0:
            raise InputError(
                f"GaussianMixture: mixtures and size are at least 1, least_std positive, got {mixtures}, {size}, "
                f"{least_std}"
            )
        self.contract = Contract(
            inputs={"feature": f"B {features}"},
            outputs={
                "logits": f"B {mixtures}",
                "mean": f"B {mixtures} {size}",
                "log_std": f"B {mixtures} {size}",
            },
        )
        self.logits = nn.Linear(features, mixtures)
        self.mean = nn.Linear(features, mixtures * size)
        self.std = nn.Linear(features, mixtures * size)
        self.shape, self.least_std = (mixtures, size), least_std

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate one distribution per world."""
        std = self.least_std + F.softplus(self.std(feature))
        return (
            self.logits(feature),
            self.mean(feature).unflatten(-1, self.shape),
            std.log().unflatten(-1, self.shape),
        )


def gaussian_nll(mean: Tensor, log_std: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of targets (..., k) under independent Gaussians of the same shape, (...)."""
    scaled = (target - mean) * torch.exp(-log_std)
    return (0.5 * scaled.square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)


def mixture_nll(logits: Tensor, mean: Tensor, log_std: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of targets (B, k) under mixtures: logits (B, M), mean and log_std (B, M, k); (B,)."""
    each = -gaussian_nll(mean, log_std, target[..., None, :])
    return -torch.logsumexp(torch.log_softmax(logits, -1) + each, -1)


def coverage(mean: Tensor, log_std: Tensor, target: Tensor, level: float = 0.9) -> Tensor:
    """Share of targets within the central interval that Gaussians give for a level: near the level when calibrated.

    Args:
        mean: Any shape.
        log_std: The same.
        target: The same.
        level: In (0, 1).
    Returns:
        One number; not differentiable.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"coverage: level is in (0, 1), got {level}")
    width = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    return ((target - mean).abs() <= width * log_std.exp()).to(mean.dtype).mean()
