"""What the steps of a time loop give, stacked along time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradpath.errors import ContractError, ShapeError
from gradpath.tree import Tree, TreeSpec, leaf_names, unflatten


class Stacked:
    """The leaves of y, each written into one tensor along time as it comes."""

    def __init__(self, length: int):
        self.length = length
        self.spec: TreeSpec | None = None
        self.leaves: list[Tensor | None] = []
        self.names: list[str] = []

    def write(self, step: int, ys: list[Any], spec: TreeSpec) -> None:
        """Put the outputs of one step in their place."""
        ys = [torch.as_tensor(y) if isinstance(y, (bool, int, float)) else y for y in ys]
        if self.spec is None:
            self.spec = spec
            self.leaves = [self._allocate(y) for y in ys]
            self.names = leaf_names(unflatten(self.leaves, spec), "y")
        if spec != self.spec or any((y is None) != (s is None) for y, s in zip(ys, self.leaves, strict=True)):
            raise ContractError(
                f"step {step} returned a y of another structure than the steps before; all are stacked along time"
            )
        with torch.no_grad():
            for name, y, stack in zip(self.names, ys, self.leaves, strict=True):
                if stack is None:
                    continue
                _check(step, name, y, stack[0])
                stack[step].copy_(y)

    def _allocate(self, y: Any) -> Tensor | None:
        if y is None or isinstance(y, Tensor):
            return None if y is None else y.detach().new_empty((self.length, *y.shape))
        raise ContractError(
            f"a step returned a y with a {type(y).__name__} in it; only tensors, numbers and None can be stacked"
        )

    def tree(self, leaves: list[Any]) -> Tree:
        """Put leaves, these or others in their place, into the structure of y; None where no step gave any."""
        return None if self.spec is None else unflatten(leaves, self.spec)


def _check(step: int, name: str, y: Tensor, before: Tensor) -> None:
    for what in ("shape", "dtype", "device"):
        now, then = getattr(y, what), getattr(before, what)
        if now != then:
            now, then = (tuple(now), tuple(then)) if what == "shape" else (now, then)
            raise ShapeError(
                f"step {step} returned {name} with {what} {now}, the steps before with {then}; "
                f"all are stacked along time, so they need one {what}"
            )
