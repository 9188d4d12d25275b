"""What the steps of a time loop give, stacked along time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradpath.errors import ContractError, ShapeError
from gradpath.tree import Tree, TreeSpec, leaf_names, unflatten

_FIRST = 64
"""For how many steps room is made at first where their number is not known."""


class Stacked:
    """The leaves of y, each written into one tensor along time as it comes.

    Args:
        length: The number of steps; None where it turns out on the way.
    """

    def __init__(self, length: int | None):
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
            self._grow(step)
            for name, y, stack in zip(self.names, ys, self.leaves, strict=True):
                if stack is None:
                    continue
                _check(step, name, y, stack[0])
                stack[step].copy_(y)

    def finish(self, length: int) -> None:
        """Cut off the room that was not needed, once the number of steps is known."""
        self.leaves = [s if s is None or len(s) == length else s[:length].clone() for s in self.leaves]

    def take(self) -> list[Tensor | None]:
        """Hand the leaves over and forget them: their graph holds the loop, so the loop must not hold them."""
        leaves, self.leaves = self.leaves, []
        return leaves

    def _grow(self, step: int) -> None:
        """Make room for as many steps again, where the stacks are full."""
        for i, stack in enumerate(self.leaves):
            if stack is not None and len(stack) == step:
                self.leaves[i] = torch.cat([stack, torch.empty_like(stack)])

    def _allocate(self, y: Any) -> Tensor | None:
        if y is None or isinstance(y, Tensor):
            room = _FIRST if self.length is None else self.length
            return None if y is None else y.detach().new_empty((room, *y.shape))
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
