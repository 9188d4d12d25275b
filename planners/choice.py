"""Policies that remember, and policies that choose among candidate plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gradpath import relax
from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.mode import mode
from gradpath.planners.policy import Policy
from gradpath.relax_core import Temperature
from gradpath.relaxation import positive
from gradpath.stage import Stage


class RecurrentPolicy(Stage):
    """A policy with memory (GRU) and commands within bounds; see `Policy` for the bounds.

    Args:
        features: Size of the feature.
        actions: Number of commands.
        low: Lower bound of each command.
        high: Upper bound of each command.
        size: Size of the memory.

    Inputs: `feature` (B, features); `memory` (B, size), zero at the start.
    Outputs: `command` (B, actions); the next `memory` (B, size). Gradients: exact.
    """

    contract: Contract

    def __init__(
        self,
        features: int = 64,
        actions: int | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        size: int = 64,
    ):
        super().__init__()
        self.cell = nn.GRUCell(features, size)
        self.head = Policy(size, actions, low, high)
        self.contract = Contract(
            inputs={"feature": f"B {features}", "memory": f"B {size}"},
            outputs={"command": f"B {len(self.head.low)}", "memory": f"B {size}"},
        )

    def forward(self, feature: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Command each world, and remember."""
        memory = self.cell(feature, memory)
        return self.head(memory), memory


class SelectPlan(Stage):
    """Chooses the cheapest of some candidate plans.

    Args:
        estimator: `"relaxed"`: the mean plan under softmax(-cost / tau) in soft mode, which trains through every
            candidate; the cheapest in hard mode, which is what to deploy. A mean of plans around an obstacle may lead
            through it: train in `straight_through` mode, or at a low tau, where that matters. `"score_function"`: a
            plan that is drawn, for costs that have no gradient; the gradient is that of `log_probability`, see
            `gradpath.estimate.score_function`. In hard mode, or without a generator, the cheapest.
        tau: In units of the cost.

    Inputs: `plans` (B, N, ..., k as declared "B N T M"); `costs` (B, N); optional `generator`.
    Outputs: `plan` (B, T, M); `weights` of the candidates (B, N); `log_probability` of what was chosen (B,).
    Gradients: relaxed, to plans and costs; with `"score_function"`, to the chosen plan, and to costs by
    `log_probability` alone.

    Raises:
        InputError: an unknown estimator; when called, a world in which every cost is infinite or one is NaN.
    """

    contract: Contract

    def __init__(self, estimator: Literal["relaxed", "score_function"] = "relaxed", tau: Temperature = 1.0):
        super().__init__()
        if estimator not in ("relaxed", "score_function"):
            raise InputError(
                f'SelectPlan: estimator "{estimator}" is not known; it is one of relaxed, score_function'
            )
        self.estimator, self.tau = estimator, tau
        positive(tau, "SelectPlan")
        self.contract = Contract(
            inputs={"plans": "B N T M", "costs": "B N", "generator": "generator"},
            outputs={"plan": "B T M", "weights": "B N", "log_probability": "B"},
            gradient=estimator,
            detached=("weights",) if estimator == "score_function" else (),
        )

    def forward(
        self, plans: Tensor, costs: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Choose one plan per world."""
        bad = costs.isnan().any(-1) | ~(costs < torch.inf).any(-1)
        if bad.any():
            raise InputError(
                f"SelectPlan: the costs of world {int(bad.nonzero()[0])} are {costs[bad][0].tolist()}; one is NaN, "
                "or no plan is possible: offer one that is, such as standing still"
            )
        scores = -costs / positive(self.tau, "SelectPlan")
        log_probability = torch.log_softmax(scores, -1)
        if self.estimator == "relaxed":
            weights = relax.one_hot(-costs, tau=self.tau)
        elif generator is None:
            with mode("hard"):
                weights = relax.one_hot(scores.detach())
        else:
            with mode("hard"):
                weights = relax.categorical(scores.detach(), generator=generator)
        index = weights.detach().argmax(-1, keepdim=True)
        return {
            "plan": (weights[..., None, None] * plans).sum(1),
            "weights": weights,
            "log_probability": log_probability.gather(1, index)[:, 0],
        }
