"""Losses: named, weighted terms on a trajectory or on the values of a pipeline, summed to one scalar."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gradpath.conflicts import CHOICES, combine
from gradpath.errors import ContractError, InputError, NonFiniteError, ShapeError
from gradpath.stage import close_match
from gradpath.tree import map_leaves

LossFunction = Callable[..., torch.Tensor]
Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Term:
    """One loss: its weight, its function, and the names of the values that the function takes.

    Without names the function takes the whole mapping. A weight that is a schedule gives a number for a position.
    """

    weight: float | Schedule
    function: LossFunction
    values: tuple[str, ...] = ()
    auxiliary: bool = False

    def weight_at(self, position: int) -> float:
        """Return the weight after so many steps."""
        return self.weight if isinstance(self.weight, float) else float(self.weight(position))


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from one number to another on a straight line, and stays there.

    Args:
        start: The weight before and at step `begin`.
        end: The weight from step `begin + steps` on.
        steps: Steps of the way, at least 1.
        begin: Steps before it.

    Raises:
        InputError: there are no steps, or a weight is not finite.
    """

    start: float
    end: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise InputError(f"Ramp: expected finite weights and at least one step, got {self}")

    def __call__(self, position: int) -> float:
        """Return the weight after so many steps."""
        share = min(max((position - self.begin) / self.steps, 0.0), 1.0)
        return self.start + share * (self.end - self.start)


def auxiliary(weight: float | Schedule, function: LossFunction, *values: str) -> Term:
    """Mark a loss as auxiliary: it helps to train, and does not count in what the task is about.

    `LossValues.main` leaves it out. Arguments as in `Losses`.
    """
    return replace(_term("auxiliary", (weight, function, *values)), auxiliary=True)


class Losses:
    """Named, weighted losses.

    ```python
    losses = gp.Losses(
        goal=(5.0, goal_loss),                                        # goal_loss(trajectory)
        clearance=(2.0, barrier, "body.state.pose", "obstacles"),     # barrier(pose, obstacles)
    )
    losses(trajectory).total.backward()
    ```

    Args:
        terms: `(weight, function)`, where the function takes the whole mapping, or `(weight, function, name,
            ...)`, where it takes the values of these names in this order; a dotted name reaches into dicts, and
            `"body.state.pose[-1]"` is one time step. `auxiliary(...)` marks a term. A weight is a number or a
            schedule: a function of the number of calls of `step`, such as `Ramp`.
            A function returns one number, one per world (B,), or one per step and world (T, B); the mean
            counts.

    Raises:
        InputError: a term of another form, or a weight that is not finite.
    """

    def __init__(self, **terms: tuple[Any, ...] | Term):
        self.terms = {name: _term(name, term) for name, term in terms.items()}
        self.position = 0
        """Where the schedules are; save it and set it to resume them."""

    def step(self) -> None:
        """Move all schedules on by one."""
        self.position += 1

    def weights(self) -> dict[str, float]:
        """Return the weights at this position."""
        return {name: term.weight_at(self.position) for name, term in self.terms.items()}

    def by_world(self, values: Mapping[str, Any]) -> torch.Tensor:
        """Return the weighted sum of each world, (B,), or () where no loss tells worlds apart.

        Its mean is the total; a loss that does not tell worlds apart counts in each. Raises as a call does, apart
        from numbers that are not finite, which are handed on.
        """
        weights = self.weights()
        total = torch.zeros(())
        for name, term in self.terms.items():
            value = _evaluate(name, term, values)
            total = total + weights[name] * (value.mean(0) if value.ndim == 2 else value)
        return total

    def __call__(self, values: Mapping[str, Any]) -> LossValues:
        """Compute every loss.

        Args:
            values: A trajectory, the outputs of a pipeline, or any mapping of names to values.

        Raises:
            ContractError: a value that a loss is attached to is missing; names the loss and what is there.
            ShapeError: a loss is not a number per step and world.
            NonFiniteError: a loss is NaN or infinite; names the loss, and the step and world where it tells
                them. The check waits for the device once per call.

        Gradients: those of the functions; the total is the sum of weight times mean.
        """
        raw = {name: _evaluate(name, term, values) for name, term in self.terms.items()}
        means = {name: value.mean() for name, value in raw.items()}
        weights = self.weights()
        weighted = {name: weights[name] * mean for name, mean in means.items()}
        total = sum(weighted.values(), torch.zeros(()))
        if not math.isfinite(total.item()):
            raise _not_finite(raw)
        marked = frozenset(name for name, term in self.terms.items() if term.auxiliary)
        return LossValues(total, means, weighted, marked)


@dataclass(frozen=True)
class LossValues:
    """The losses of one call.

    Attributes:
        total: The weighted sum, a 0-d tensor with its graph.
        terms: Each loss without its weight, 0-d.
        weighted: Each loss times its weight, 0-d.
        auxiliary: Names of the losses that are marked as auxiliary.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    weighted: dict[str, torch.Tensor]
    auxiliary: frozenset[str] = field(default=frozenset())

    @property
    def main(self) -> torch.Tensor:
        """The weighted sum without auxiliary losses, 0-d."""
        kept = [value for name, value in self.weighted.items() if name not in self.auxiliary]
        return sum(kept, torch.zeros_like(self.total))

    def backward(
        self,
        parameters: Iterable[torch.Tensor],
        conflicts: str = "none",
        *,
        caution: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add to `.grad` of the parameters, resolving conflicts between the weighted losses.

        One backward pass per loss over the same graph, which is freed by the last; what is kept for each loss is one
        gradient of the size of the parameters.

        Args:
            parameters: What gets gradients; nothing else does.
            conflicts: `"none"`, the gradient of the total; `"pcgrad"`; or `"cagrad"`. See `gradpath.conflicts`.
            caution: How far CAGrad may go from the mean gradient, relative to its length.
            generator: Draws the order of PCGrad's projections; without one it is that of the losses.

        Raises:
            InputError: another choice, a negative caution, or no loss depends on the parameters.
        """
        if conflicts not in CHOICES or caution < 0:
            raise InputError(
                f'losses: conflicts "{conflicts}" with caution {caution}: expected one of {", ".join(CHOICES)}, and '
                "a caution of at least 0"
            )
        targets = [parameter for parameter in parameters if parameter.requires_grad]
        rows = gradients_by_loss(self, targets, retain_graph=False)
        order = None if generator is None else torch.randperm(len(rows), generator=generator)
        flat = combine(torch.stack(list(rows.values())), conflicts, caution=caution, order=order)
        parts = flat.split([target.numel() for target in targets])
        for target, part in zip(targets, parts, strict=True):
            gradient = part.view_as(target).to(target.dtype)
            target.grad = gradient.clone() if target.grad is None else target.grad + gradient

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.terms:
            known = ", ".join(self.terms) or "none"
            raise ContractError(f'no loss "{name}"{close_match(name, self.terms)}; losses are {known}')
        return self.terms[name]

    def item_dict(self) -> dict[str, float]:
        """Return `total` and the losses without their weights as numbers."""
        return {"total": self.total.item(), **{name: value.item() for name, value in self.terms.items()}}

    def table(self) -> str:
        """Return a text table: each loss, its value, and what it contributes to the total."""
        width = max(map(len, ("total", *self.terms)))
        lines = [f"{'loss':{width}}  {'value':>12}  {'weighted':>12}"]
        for name, value in self.terms.items():
            mark = "  auxiliary" if name in self.auxiliary else ""
            lines.append(f"{name:{width}}  {value.item():12.5g}  {self.weighted[name].item():12.5g}{mark}")
        return "\n".join([*lines, f"{'total':{width}}  {'':12}  {self.total.item():12.5g}"])


def gradients_by_loss(
    values: LossValues, targets: list[torch.Tensor], *, retain_graph: bool
) -> dict[str, torch.Tensor]:
    """Return the gradient of each weighted loss with respect to all targets, as one vector (P,) on one device.

    Raises:
        InputError: no loss depends on a target.
    """
    wanted = [name for name, value in values.weighted.items() if value.requires_grad]
    if not wanted or not targets:
        raise InputError("losses: no loss depends on a parameter that requires a gradient; is one detached?")
    rows = {}
    for name in wanted:
        keep = retain_graph or name != wanted[-1]
        parts = torch.autograd.grad(
            values.weighted[name], targets, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
        rows[name] = torch.cat([part.reshape(-1).to(parts[0]) for part in parts])
    return rows


def lookup(values: Mapping[str, Any], name: str) -> Any:
    """Return a value by its dotted name: the longest key that fits, then fields of the dict there.

    `"body.state.pose"` finds `values["body.state.pose"]`, `values["body.state"]["pose"]` or
    `values["body"]["state"]["pose"]`, in this order.

    Raises:
        KeyError: nothing of this name.
    """
    words = name.split(".")
    for count in range(len(words), 0, -1):
        key = ".".join(words[:count])
        if key in values:
            value = values[key]
            if count == len(words):
                return value
            if isinstance(value, Mapping):
                return lookup(value, ".".join(words[count:]))
    raise KeyError(name)


def _term(name: str, term: Any) -> Term:
    if isinstance(term, Term):
        return term
    if isinstance(term, tuple) and len(term) >= 2:
        weight, function, *values = term
        right_names = all(isinstance(value, str) for value in values)
        fixed = isinstance(weight, float | int) and math.isfinite(weight)
        if (fixed or callable(weight)) and callable(function) and right_names:
            return Term(float(weight) if fixed else weight, function, tuple(values))
    raise InputError(
        f'loss "{name}": expected (weight, function) or (weight, function, "value", ...) with a finite '
        f"weight or a schedule, got {term!r}"
    )


def _evaluate(name: str, term: Term, values: Mapping[str, Any]) -> torch.Tensor:
    arguments = [_attached(name, path, values) for path in term.values] or [values]
    value = term.function(*arguments)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise ShapeError(
            f'loss "{name}": expected a floating tensor, got {got}; return one from its function'
        )
    if value.ndim > 2 or not value.numel():
        raise ShapeError(
            f'loss "{name}": expected a number, one per world (B,) or one per step and world (T, B), got '
            f"{tuple(value.shape)}; take a mean or a sum over the other axes in its function"
        )
    return value


def _attached(loss: str, path: str, values: Mapping[str, Any]) -> Any:
    name, index = _at_step(path)
    try:
        value = lookup(values, name)
        return value if index is None else map_leaves(lambda tensor: tensor[index], value)
    except IndexError:
        raise ContractError(
            f'loss "{loss}" is attached to "{path}", but "{name}" has no time step {index}'
        ) from None
    except KeyError:
        known = _names(values)
        raise ContractError(
            f'loss "{loss}" is attached to "{path}"{close_match(path, known)}, which is not there; '
            f"there are {', '.join(known) or 'no values'}"
        ) from None


def _at_step(path: str) -> tuple[str, int | None]:
    """Take "name[3]" apart."""
    match = re.fullmatch(r"(.+)\[(-?\d+)\]", path)
    return (match[1], int(match[2])) if match else (path, None)


def _names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            names += _names(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _not_finite(raw: Mapping[str, torch.Tensor]) -> NonFiniteError:
    remedy = (
        "no gradient can be taken from it. Run within gp.check_finite() to find the stage where it begins"
    )
    for name, value in raw.items():
        bad = ~torch.isfinite(value.detach())
        if bad.any():
            first = bad.nonzero()[0].tolist()
            where = ("", " in world {}", " at step {} in world {}")[bad.ndim].format(*first)
            number = value.detach()[tuple(first)].item()
            return NonFiniteError(f'loss "{name}" is {number}{where}; {remedy}')
    return NonFiniteError(f"the weighted losses {', '.join(raw)} are finite, but their sum is not; {remedy}")
