"""Recorded construction: an object knows the arguments it was built with, so that a run can be rebuilt."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


class Configured:
    """A class whose instances keep their constructor arguments, defaults included, in `config`.

    Only the outermost constructor records: `super().__init__(...)` leaves the arguments of the subclass in
    place. Stages inherit this; plain objects that stages take as arguments (a scene, a sensor's noise)
    inherit it too, to be saved with them.
    """

    config: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    def constructed(self) -> None:
        """Run after the outermost constructor; a subclass may check here what it has become."""


def recorded(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor so that the outermost one in a chain leaves its arguments in `self.config`."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Configured, *args: Any, **kwargs: Any) -> None:
        if "config" in self.__dict__:
            init(self, *args, **kwargs)
            return
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        config: dict[str, Any] = {}
        for index, (name, value) in enumerate(bound.arguments.items()):
            if index == 0:  # self
                continue
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                config.update(value)
            else:
                config[name] = value
        # Not through __setattr__: torch modules refuse attributes before their own constructor has run.
        object.__setattr__(self, "config", config)
        init(self, *args, **kwargs)
        self.constructed()

    return wrapped


def rebuild(cls: type, config: Mapping[str, Any]) -> Any:
    """Construct `cls` from a recorded configuration.

    Raises:
        TypeError: the constructor no longer takes these arguments.
    """
    args: list[Any] = []
    kwargs = dict(config)
    parameters = list(inspect.signature(cls).parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(kwargs.pop(parameter.name, ()))
                break
            args.append(kwargs.pop(parameter.name))
    return cls(*args, **kwargs)


def default_argument(cls: type, name: str) -> Any:
    """Return the default of a constructor argument, `inspect.Parameter.empty` when it has none."""
    parameter = inspect.signature(cls).parameters.get(name)
    return inspect.Parameter.empty if parameter is None else parameter.default
