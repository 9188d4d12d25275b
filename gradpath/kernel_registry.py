"""The registry of differentiable operations, which the gradient and CUDA tests walk over.

Part of `gradpath.kernels`, which exports these names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import warp as wp

from gradpath.errors import InputError
from gradpath.kernel_launch import Factory, specialize


@dataclass(frozen=True)
class Operation:
    """A registered differentiable operation: what the gradient tests and the CUDA compile test walk over.

    Attributes:
        name: Unique name.
        factories: Every kernel factory that the operation launches.
        call: The operation itself, called as `call(**samples(batch))`.
        samples: `samples(batch)` gives float64 example inputs with `batch` worlds.
        kind: `"exact"`: its gradient is its derivative. `"surrogate"`: it is meant to differ.
    """

    name: str
    factories: tuple[Factory, ...]
    call: Callable[..., Any]
    samples: Callable[[int], dict[str, Any]] | None = None
    kind: str = "exact"

    @property
    def module(self) -> str:
        """Where its first kernel is written, or the operation itself where it has none."""
        make = self.factories[0] if self.factories else self.call
        return getattr(make, "func", make).__module__  # a factory may be a functools.partial


KINDS = ("exact", "surrogate")

registry: dict[str, Operation] = {}


def register(
    name: str,
    *,
    kernels: Sequence[Factory],
    fn: Callable[..., Any],
    samples: Callable[[int], dict[str, Any]] | None = None,
    kind: str = "exact",
) -> None:
    """Register a differentiable operation, such as one written by hand around several kernels.

    Args:
        name: Unique name of the operation.
        kernels: The factories of all kernels it launches; empty where it launches none.
        fn: The operation; takes what `samples` gives as keywords, returns one tensor, a tuple or a dict.
        samples: `samples(batch)` gives float64 example inputs with `batch` worlds.
        kind: `"exact"`, or `"surrogate"` where its gradient is meant to differ from its derivative.
    Raises:
        InputError: the name is taken.
    """
    if name in registry:
        raise InputError(f"an operation named {name!r} is registered already; choose another name")
    registry[name] = Operation(name, tuple(kernels), fn, samples, kind)


def all_kernels(dtype: torch.dtype) -> list[tuple[str, wp.Kernel]]:
    """Return (operation name, kernel specialized to `dtype`) of every registered operation's kernels."""
    return [(op.name, specialize(make, dtype)) for op in registry.values() for make in op.factories]
