"""Gradients of one step after another, last step first, summed in that order under every schedule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradpath import tree

Grads = list[Tensor | None]


@dataclass
class Segment:
    """One taped step: the leaves that its graph starts from, and what it returned.

    Attributes:
        step: The time step.
        carry_index: Which leaves of the carry are among `carry_leaves`.
        carry_leaves, xs_leaves: Fresh leaves for what is new at each step.
        shared_leaves: Leaves for what all steps read: constants, tensors with a history, captured leaves.
        carry, ys: What the step returned, with its graph.
        kept: Whether it was taped on the way forward, so that a backward pass that keeps its graph needs it again.
    """

    step: int
    carry_index: list[int]
    carry_leaves: list[Tensor]
    xs_leaves: list[Tensor]
    shared_leaves: list[Tensor]
    carry: list[Any]
    ys: list[Any]
    kept: bool = False

    def detached_carry(self) -> list[Any]:
        """The carry for the next step."""
        return [tree.detach(leaf) for leaf in self.carry]


class Sums:
    """The adjoint of the carry on its way back through time, and the sums of all other gradients.

    Args:
        carry_grads: Gradients of the leaves of the last carry.
        y_grads: Gradients of the stacked leaves of y.
        length: How many steps there are.
        decay: The factor on the adjoint of the carry at each step, None for 1.
        cut: No adjoint of the carry crosses from a step whose number is a multiple of this to the one before.
        uncounted: Entered where the gradient of `xs` is allocated, which the memory of the loop does not include.
    """

    def __init__(
        self,
        carry_grads: Grads,
        y_grads: Grads,
        length: int,
        decay: float | None,
        cut: int | None = None,
        uncounted: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        self.adjoint = list(carry_grads)
        self.y_grads = y_grads
        self.length = length
        self.decay = decay
        self.cut = cut
        self.uncounted = uncounted
        self.xs: Grads = []
        self.shared: Grads = []
        self._owned: list[bool] = []
        self._begun = False

    def add(self, segment: Segment, keep_tape: bool) -> Grads:
        """Reverse one step; returns what it gave to the shared leaves alone."""
        xs_count, shared_count = len(segment.xs_leaves), len(segment.shared_leaves)
        if not self._begun:
            self._begun = True
            self.xs, self.shared = [None] * xs_count, [None] * shared_count
            self._owned = [False] * shared_count
        grads = self._differentiate(segment, keep_tape)
        start = len(segment.carry_leaves)
        self.adjoint = [None] * len(self.adjoint)
        is_cut = self.cut is not None and segment.step > 0 and segment.step % self.cut == 0
        for i, grad in () if is_cut else zip(segment.carry_index, grads[:start], strict=True):
            self.adjoint[i] = grad if grad is None or self.decay is None else grad * self.decay
        for i, grad in enumerate(grads[start : start + xs_count]):
            if grad is not None:
                self._write_x(i, segment.step, grad)
        shared = grads[start + xs_count :]
        for i, grad in enumerate(shared):
            if grad is not None:
                self._add_shared(i, grad)
        return shared

    def _differentiate(self, segment: Segment, keep_tape: bool) -> Grads:
        leaves = [*segment.carry_leaves, *segment.xs_leaves, *segment.shared_leaves]
        ys = [None if grad is None else grad[segment.step] for grad in self.y_grads]
        outputs, grads = [], []
        for output, grad in zip([*segment.carry, *segment.ys], [*self.adjoint, *ys], strict=True):
            if grad is not None and isinstance(output, Tensor) and output.requires_grad:
                outputs.append(output)
                grads.append(grad.to(output.dtype))
        if not outputs or not leaves:
            return [None] * len(leaves)
        return list(torch.autograd.grad(outputs, leaves, grads, retain_graph=keep_tape, allow_unused=True))

    def _write_x(self, i: int, step: int, grad: Tensor) -> None:
        stack = self.xs[i]
        if stack is None:
            with self.uncounted():
                stack = self.xs[i] = grad.new_zeros((self.length, *grad.shape))
        stack[step] = grad

    def _add_shared(self, i: int, grad: Tensor) -> None:
        """Add to a sum; in place only once the sum is a tensor of its own, which the first gradient need not be."""
        total = self.shared[i]
        if total is None:
            self.shared[i] = grad
        elif self._owned[i]:
            total.add_(grad)
        else:
            self.shared[i] = total + grad
            self._owned[i] = True
