"""What the steps of a time loop give, stacked along time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradpath.errors import ContractError, ShapeError
from gradpath.tree import Tree, TreeSpec, unflatten


class Stacked:
    """The leaves of y, each written into one tensor along time as it comes."""

    def __init__(self, length: int):
        self.length = length
        self.spec: TreeSpec | None = None
        self.leaves: list[Tensor | None] = []

    def write(self, step: int, ys: list[Any], spec: TreeSpec) -> None:
        """Put the outputs of one step in their place."""
        ys = [torch.as_tensor(y) if isinstance(y, (bool, int, float)) else y for y in ys]
        if self.spec is None:
            self.spec = spec
            self.leaves = [self._allocate(y) for y in ys]
        if spec != self.spec or any((y is None) != (s is None) for y, s in zip(ys, self.leaves, strict=True)):
            raise ContractError(
                f"step {step} returned a y of another structure than the steps before; all are stacked along time"
            )
        with torch.no_grad():
            for y, stack in zip(ys, self.leaves, strict=True):
                if stack is None:
                    continue
                if y.shape != stack.shape[1:]:
                    raise ShapeError(
                        f"step {step} returned a y of shape {tuple(y.shape)}, the steps before of shape "
                        f"{tuple(stack.shape[1:])}; all are stacked along time, so they need one shape"
                    )
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
