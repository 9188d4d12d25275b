"""State constraints by an augmented Lagrangian, around a control problem. Used by `ilqr`."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath.errors import ShapeError
from gradpath.planners.problem import Derivatives, Function, Problem

FIRST_PENALTY, GROWTH, MOST_PENALTY = 10.0, 10.0, 1e7
REDUCTION = 0.25  # of the violation in one round; where it falls less, the penalty grows


class Augmented:
    """A problem whose costs have a penalty for constraint(x_t) > 0, t = 1 ... T, and a multiplier for each.

    Looks like a `Problem` to the solver. Between solves, `update` moves the multipliers; where they stand still, the
    constraints hold and the minimum is that of the constrained problem, whatever the penalty.

    References: Nocedal, Wright 2006, Numerical Optimization, section 17.3.
    """

    most_rounds = 30

    def __init__(self, problem: Problem, constraint: Function, start: Tensor, controls: Tensor):
        self.problem, self.constraint = problem, constraint
        length, batch, _ = controls.shape
        with torch.no_grad():
            value = constraint(start.expand(length + 1, *start.shape))
        if value.ndim != 3 or value.shape[:2] != (length + 1, batch):
            raise ShapeError(
                f"ilqr: constraint gave {tuple(value.shape)} for x {(length + 1, *start.shape)}; expected "
                f"({length + 1}, {batch}, k): index the last axis, as x[..., :1], and keep all axes before it"
            )
        self.tolerance = 1e-8 if start.dtype == torch.float64 else 1e-4
        self.multipliers = torch.zeros_like(value)
        self.penalty = value.new_full((batch, 1), FIRST_PENALTY)
        self._worst = value.new_full((batch,), torch.inf)
        self.settled = torch.zeros(batch, dtype=torch.bool, device=value.device)
        # The first state is given: what it violates cannot be helped.
        self._counts = torch.ones_like(value[:, :1, :1])
        self._counts[0] = 0.0
        self._penalized = Problem(problem.dynamics, self._cost, self._final)
        self.rollout, self.total, self.dynamics = problem.rollout, self._penalized.total, problem.dynamics

    def derivatives(self, states: Tensor, controls: Tensor, exact: bool) -> Derivatives:
        """Those of the penalized problem."""
        return self._penalized.derivatives(states, controls, exact)

    @torch.no_grad()
    def violation(self, states: Tensor) -> Tensor:
        """The largest excess of each sample, (B,), from states (T + 1, B, n)."""
        return (self.constraint(states) * self._counts).clamp_min(0.0).amax((0, -1))

    @torch.no_grad()
    def update(self, states: Tensor) -> bool:
        """Move multipliers and penalties after a solve; return whether another solve is of no use.

        That is where every sample is settled: its constraints hold, and their multipliers stand still; or where its
        violation no longer falls at the largest penalty.
        """
        value = self.constraint(states)
        moved = (self.multipliers + self.penalty * value).clamp_min(0.0) * self._counts
        # Zero where a constraint holds with equality, or does not matter: that is complementarity.
        gap = ((moved - self.multipliers) / self.penalty).abs().amax((0, -1))
        slow = gap > REDUCTION * self._worst
        self.multipliers = torch.where(gap.isfinite()[:, None], moved, self.multipliers)
        grown = (GROWTH * self.penalty).clamp_max(MOST_PENALTY)
        self.penalty = torch.where(slow[:, None], grown, self.penalty)
        self._worst = gap
        self.settled = gap <= self.tolerance
        hopeless = (slow & (self.penalty[:, 0] >= MOST_PENALTY)) | ~gap.isfinite()
        return bool((self.settled | hopeless).all())

    def active(self) -> Tensor:
        """Which constraints hold with equality, (T + 1, B, k)."""
        return self.multipliers > 0

    def _penalize(self, x: Tensor, at: slice | int) -> Tensor:
        multipliers = self.multipliers[at]
        pushed = (multipliers + self.penalty * self.constraint(x)).clamp_min(0.0)
        return (self._counts[at] * (pushed.square() - multipliers.square()) / (2.0 * self.penalty)).sum(-1)

    def _cost(self, x: Tensor, u: Tensor) -> Tensor:
        return self.problem.cost(x, u) + self._penalize(x, slice(0, -1))

    def _final(self, x: Tensor) -> Tensor:
        return self.problem.final(x) + self._penalize(x, -1)
