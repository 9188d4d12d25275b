"""Costs of trajectories and plans, as data: what each term looks at, and how much it counts on the way and at the end.

A term takes quantities by name, such as "position" or "pose[:3]", with any axes before the batch: a sampled `Curve`,
a rollout's trajectory and the states of a planner are all costed by the same terms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradpath.config import Configured
from gradpath.errors import InputError
from gradpath.planners.clearances import Clearance, clearance

_NAME = re.compile(r"([\w.]+)(?:\[(-?\d*):(-?\d*)\])?")


@dataclass(frozen=True)
class Goal:
    """Squared distance of a quantity from a target.

    Attributes:
        of: The quantity.
        target: The input that holds its target, (B, k).
        running: Weight at every step.
        terminal: Weight at the end.
    """

    of: str = "position"
    target: str = "goal"
    running: float = 0.0
    terminal: float = 1.0

    def penalty(self, values: Mapping[str, Any]) -> Tensor:
        """Of each step, (..., B)."""
        return (look_up(values, self.of) - look_up(values, self.target)).square().sum(-1)


@dataclass(frozen=True)
class Effort:
    """Squared norm of a quantity, less a constant: smoothness, where it is a derivative; effort, where it is a control.

    Attributes:
        of: The quantity.
        rest: What costs nothing, one number per component; zero by default.
        running: Weight at every step.
        terminal: Weight at the end.
    """

    of: str = "acceleration"
    rest: tuple[float, ...] = ()
    running: float = 1.0
    terminal: float = 0.0

    def penalty(self, values: Mapping[str, Any]) -> Tensor:
        """Of each step, (..., B)."""
        value = look_up(values, self.of)
        return (value - value.new_tensor(self.rest) if self.rest else value).square().sum(-1)


@dataclass(frozen=True)
class Limit:
    """Square of what the norm of a quantity exceeds: a dynamic limit that may be broken at a price.

    Attributes:
        of: The quantity.
        most: The largest norm that costs nothing, in the quantity's unit.
        running: Weight at every step.
        terminal: Weight at the end.
    """

    of: str
    most: float
    running: float = 1.0
    terminal: float = 0.0

    def penalty(self, values: Mapping[str, Any]) -> Tensor:
        """Of each step, (..., B)."""
        square = look_up(values, self.of).square().sum(-1)
        above = square > self.most**2
        norm = torch.where(above, square, self.most**2 + 1.0).sqrt()  # no slope of a root at zero
        return torch.where(above, norm - self.most, 0.0).square()


@dataclass(frozen=True)
class Collision:
    """Square of how far a position comes closer to obstacles than a margin.

    Attributes:
        source: What is kept away from: `ToShapes`, `ToMesh`, `ToField` or `ToPoints`.
        margin: Distance from which on an obstacle costs nothing [m].
        of: The position.
        running: Weight at every step.
        terminal: Weight at the end.
    """

    source: Clearance
    margin: float = 0.5
    of: str = "position"
    running: float = 1.0
    terminal: float = 0.0

    def penalty(self, values: Mapping[str, Any]) -> Tensor:
        """Of each step, (..., B)."""
        distance = clearance(self.source, look_up(values, self.of), values)
        return (self.margin - distance).clamp_min(0.0).square()


Term: TypeAlias = Goal | Effort | Limit | Collision


class Costs(Configured):
    """Named terms, summed.

    ```python
    costs = planners.Costs(
        goal=planners.Goal(terminal=10.0),
        smooth=planners.Effort("jerk", running=0.01),
        fast=planners.Limit("velocity", most=3.0),
        clear=planners.Collision(planners.ToField(origin=(0.0, 0.0), spacing=0.1), margin=0.4, running=5.0),
    )
    ```

    Args:
        terms: Terms by name.
    Raises:
        InputError: no terms, or a weight that is negative or not finite.
    """

    def __init__(self, **terms: Term):
        if not terms:
            raise InputError("Costs: no terms, so every path costs the same; name at least one")
        for name, term in terms.items():
            for weight in (term.running, term.terminal):
                if not 0.0 <= weight < float("inf"):
                    raise InputError(f'Costs: the weights of "{name}" are finite, zero or more, got {weight}')
        self.terms = terms

    def __call__(self, path: Mapping[str, Any], **inputs: Any) -> Tensor:
        """Cost of trajectories, (B,): the mean of running costs over time, plus the terminal ones.

        Args:
            path: Quantities by name, time first, (T, B, k), as `Curve.sample` and rollouts give them.
            inputs: What does not change with time: goals (B, k), obstacles, fields.
        Gradients: exact, in everything.
        """
        return torch.stack(list(self.shares(path, **inputs).values())).sum(0)

    def shares(self, path: Mapping[str, Any], **inputs: Any) -> dict[str, Tensor]:
        """Return what each term adds to the cost, by name, (B,) each."""
        result = {}
        for name, term in self.terms.items():
            penalty = term.penalty({**path, **inputs})
            result[name] = term.running * penalty.mean(0) + term.terminal * penalty[-1]
        return result

    @property
    def has_running(self) -> bool:
        """Whether a term counts at every step."""
        return any(term.running > 0 for term in self.terms.values())

    @property
    def has_terminal(self) -> bool:
        """Whether a term counts at the end."""
        return any(term.terminal > 0 for term in self.terms.values())

    def step(self, state: Any, control: Tensor, **inputs: Any) -> Tensor:
        """Running cost of states and controls (..., B, k) to (..., B), for an `MPC`."""
        return self._sum({**_named(state), "control": control, **inputs}, "running")

    def end(self, state: Any, **inputs: Any) -> Tensor:
        """Terminal cost of states, for an `MPC`."""
        return self._sum({**_named(state), **inputs}, "terminal")

    def _sum(self, values: Mapping[str, Any], which: str) -> Tensor:
        parts = [
            weight * term.penalty(values)
            for term in self.terms.values()
            if (weight := getattr(term, which)) > 0
        ]
        if not parts:
            raise InputError(
                f"Costs: no term has a {which} weight, so there is nothing to add up; do not ask for it"
            )
        return torch.stack(parts).sum(0)


def _named(state: Any) -> Mapping[str, Any]:
    """A state that is one tensor is called "state"."""
    return state if isinstance(state, Mapping) else {"state": state}


def look_up(values: Mapping[str, Any], name: str) -> Tensor:
    """Return a quantity by its name; "pose[:3]" is the first three components of "pose", a dot reaches into dicts.

    Raises:
        InputError: there is none; says what there is.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(
            f'"{name}" is not the name of a quantity; write "velocity", "state.pose" or "pose[:3]"'
        )
    value: Any = values
    for word in found[1].split("."):
        if not isinstance(value, Mapping) or word not in value:
            known = ", ".join(value) if isinstance(value, Mapping) else "nothing"
            raise InputError(f'a cost asks for "{name}", and there is {known}; sample or pass it')
        value = value[word]
    if found[2] is None:
        return value
    return value[..., slice(*(int(number) if number else None for number in found.groups()[1:]))]
