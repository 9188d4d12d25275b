"""What makes an operation a relaxed one: a temperature that can be scaled, and calls that can be watched.

The operations of `gradpath.relax` and the rasterizer are declared with it, and so are operations of your own that
`gp.mismatch` shall see. Part of `gradpath.relax`, which exports `relaxation` and `scaled`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor

from gradpath import tree
from gradpath.errors import InputError
from gradpath.mode import mode

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Decision = Callable[..., Tensor | None]
"""`decision(value, **arguments)`: what was decided, as whole numbers, read off a soft or a hard value; or None."""


@dataclass(frozen=True)
class Call:
    """One call of a relaxed operation, as a watcher sees it.

    Attributes:
        name: The operation.
        site: Where it was called, `"file.py:line"`.
        temperature: Its temperature, scaled.
        arguments: Its arguments by name.
        decision: Reads the decision off a value; None where the operation decides nothing that its value shows.
        run: Runs the operation in a mode, each time with the same random numbers.
    """

    name: str
    site: str
    temperature: float
    arguments: Mapping[str, Any]
    decision: Decision | None
    run: Callable[[str], Any]


Watcher = Callable[[Call], Any]
"""Takes a call and returns the value that the operation gives."""


class Surroundings(NamedTuple):
    """What relaxed operations are told besides the mode: belongs to the thread, like the mode."""

    factor: float = 1.0
    watcher: Watcher | None = None
    inside: bool = False


_PLAIN = Surroundings()
_surroundings: ContextVar[Surroundings] = ContextVar("gradpath_relaxation", default=_PLAIN)


def surroundings() -> Surroundings:
    """Return what holds here, to be entered again where a step is recomputed."""
    return _surroundings.get()


@contextlib.contextmanager
def within(there: Surroundings) -> Iterator[None]:
    """Run relaxed operations as they ran where `surroundings` was read."""
    token = _surroundings.set(there)
    try:
        yield
    finally:
        _surroundings.reset(token)


def scaled(factor: float) -> contextlib.AbstractContextManager[None]:
    """Multiply the temperature of every relaxed operation within a `with` block, whatever stage it is in.

    Args:
        factor: Above zero; factors of nested blocks multiply. The width of soft edges of a rasterizer is a
            temperature too.
    Raises:
        InputError: a factor that is not above zero and finite.
    """
    here = _surroundings.get()
    return within(here._replace(factor=here.factor * positive(factor, "relax.scaled", "factor")))


def watched(watcher: Watcher) -> contextlib.AbstractContextManager[None]:
    """Have a watcher called in place of every relaxed operation within a `with` block; it returns the value.

    Operations that an operation is made of are not seen apart.
    """
    return within(_surroundings.get()._replace(watcher=watcher))


def positive(value: Any, name: str, parameter: str = "tau") -> float:
    """Return a temperature as a number.

    Raises:
        InputError: it is not above zero and finite.
    """
    number = float(value)
    if not (number > 0.0 and math.isfinite(number)):
        raise InputError(
            f"{name}: {parameter} is above zero and finite, got {number}; for the operation without relaxation use "
            'gp.mode("hard")'
        )
    return number


def relaxation(
    name: str, *, temperature: str = "tau", decision: Decision | None = None
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Declare a relaxed operation: its temperature is checked and can be scaled, and `gp.mismatch` sees its calls.

    ```python
    @relax.relaxation("dock", decision=lambda value, **_: value > 0.5)
    def dock(distance, *, tau=0.1):
        if gp.current_mode() == "hard":
            return (distance < 0.2).to(distance.dtype)
        return torch.sigmoid((0.2 - distance) / float(tau))
    ```

    Args:
        name: What the operation is called in errors and reports.
        temperature: Its keyword-only parameter that is the temperature, with a default: a number or an `Anneal`.
        decision: `decision(value, **arguments)` reads off a value, soft or hard, what was decided, as whole numbers
            or truth values, (B, ...); None where the operation decides nothing.
    Returns:
        A decorator. The operation keeps its signature, follows `gp.mode`, and draws its random numbers from
        generators among its arguments; the temperature arrives as a number.
    Raises:
        InputError: when called, a temperature that is not above zero and finite.
    """

    def declare(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)
        default = signature.parameters[temperature].default

        @functools.wraps(function)
        def operation(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            here = _surroundings.get()
            if here.inside:
                return function(*args, **kwargs)
            tau = positive(kwargs.get(temperature, default), name, temperature)
            kwargs[temperature] = tau = tau * here.factor
            if here is _PLAIN:
                return function(*args, **kwargs)
            with within(here._replace(inside=True)):
                if here.watcher is None:
                    return function(*args, **kwargs)
                frame = sys._getframe(1)
                site = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                arguments = signature.bind(*args, **kwargs).arguments
                run = _repeatable(functools.partial(function, *args, **kwargs), arguments)
                return here.watcher(Call(name, site, tau, arguments, decision, run))

        return operation

    return declare


def _repeatable(function: Callable[[], Any], arguments: Mapping[str, Any]) -> Callable[[str], Any]:
    generators = tree.generators(tree.flatten(dict(arguments))[0])
    states = [generator.get_state() for generator in generators]

    def run(name: str) -> Any:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        with mode(name):
            return function()

    return run
