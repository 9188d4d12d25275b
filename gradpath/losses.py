"""Losses: named, weighted terms on a trajectory or on the values of a pipeline, summed to one scalar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradpath.errors import ContractError, InputError, NonFiniteError, ShapeError
from gradpath.stage import close_match

LossFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Term:
    """One loss: its weight, its function, and the names of the values that the function takes.

    Without names the function takes the whole mapping.
    """

    weight: float
    function: LossFunction
    values: tuple[str, ...] = ()


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
            ...)`, where it takes the values of these names in this order; a dotted name reaches into dicts.
            A function returns one number, one per world (B,), or one per step and world (T, B); the mean
            counts.

    Raises:
        InputError: a term of another form, or a weight that is not finite.
    """

    def __init__(self, **terms: tuple[Any, ...]):
        self.terms = {name: _term(name, term) for name, term in terms.items()}

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
        weighted = {name: self.terms[name].weight * mean for name, mean in means.items()}
        total = sum(weighted.values(), torch.zeros(()))
        if not math.isfinite(total.item()):
            raise _not_finite(raw)
        return LossValues(total, means, weighted)


@dataclass(frozen=True)
class LossValues:
    """The losses of one call.

    Attributes:
        total: The weighted sum, a 0-d tensor with its graph.
        terms: Each loss without its weight, 0-d.
        weighted: Each loss times its weight, 0-d.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    weighted: dict[str, torch.Tensor]

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
            lines.append(f"{name:{width}}  {value.item():12.5g}  {self.weighted[name].item():12.5g}")
        return "\n".join([*lines, f"{'total':{width}}  {'':12}  {self.total.item():12.5g}"])


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
    if isinstance(term, tuple) and len(term) >= 2:
        weight, function, *values = term
        right_names = all(isinstance(value, str) for value in values)
        if isinstance(weight, float | int) and math.isfinite(weight) and callable(function) and right_names:
            return Term(float(weight), function, tuple(values))
    raise InputError(
        f'loss "{name}": expected (weight, function) or (weight, function, "value", ...) with a finite '
        f"weight, got {term!r}"
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
    try:
        return lookup(values, path)
    except KeyError:
        known = _names(values)
        raise ContractError(
            f'loss "{loss}" is attached to "{path}"{close_match(path, known)}, which is not there; '
            f"there are {', '.join(known) or 'no values'}"
        ) from None


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
