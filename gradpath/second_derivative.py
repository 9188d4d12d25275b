"""Second derivatives: whether autograd has them, and differences where it has first ones only, as of a Warp kernel.

A function that is `once_differentiable` would otherwise have a second derivative of zero, without an error, wherever
the seed of the gradient is a constant. The derivative of a vector-Jacobian product along a direction is all that a
second derivative needs: a stage may give it by hand (`hvp`); otherwise it is found from central differences of the
stage's own product, extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError

STEP = 2e-4  # of the differences: their error is then about 1e-13 of curvature and 1e-12 of rounding
MULTIPLES = (1.0, -1.0, 2.0, -2.0)

# Nodes that torch and `kernels.Op` put behind a gradient that cannot be differentiated.
REFUSALS = ("Error", "_OnceDifferentiableBackward")

Function = Callable[..., Tensor]
Hvp = Callable[[list[Tensor], Tensor, list[Tensor]], list[Tensor]]
"""Inputs, cotangent and direction to the derivative, along it, of the vector-Jacobian product of each input."""


class TwiceDifferentiable:
    """A function that autograd can differentiate twice, though it is made of parts that it can only once.

    Args:
        function: Tensors to a tensor (N, ...), row by row, differentiable once.
        rows: Which of the tensors have a row for each row of the output; the others are shared by all.
        hvp: The directional derivative of its vector-Jacobian product. None: central differences in float64 with
            Richardson extrapolation.

    Attributes:
        error: The largest relative difference, so far, of the two differences that are extrapolated from: a bound of
            the relative error of the derivative; zero where `hvp` is given.
    """

    def __init__(self, function: Function, rows: list[bool], hvp: Hvp | None = None):
        self.function, self.rows, self.hvp = function, rows, hvp
        self.error = 0.0

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Call the function.

        Raises:
            InputError: differences of tensors that are not float64.
        """
        if self.hvp is None and any(t.dtype != torch.float64 for t in tensors if t.is_floating_point()):
            raise InputError(
                "second derivatives by differences need float64: in float32, rounding would be all that is left of "
                "them; convert the stage and its inputs with .double()"
            )
        return _Step.apply(self, *tensors)

    def vjp(self, tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
        """Return the gradient of <cotangent, function> by each floating tensor; zero for others."""
        with torch.enable_grad():
            leaves = [
                t.detach().requires_grad_() if t.is_floating_point() else t
                for t in map(torch.Tensor.detach, tensors)
            ]
            wanted = [t for t in leaves if t.is_floating_point()]
            value = self.function(*leaves)
            found = iter(
                torch.autograd.grad(value, wanted, cotangent, materialize_grads=True)
                if value.requires_grad
                else map(torch.zeros_like, wanted)
            )
        return [next(found) if t.is_floating_point() else torch.zeros_like(t) for t in leaves]

    def curvature(self, tensors: list[Tensor], cotangent: Tensor, direction: list[Tensor]) -> list[Tensor]:
        """Return the derivative of `vjp` along a direction."""
        if self.hvp is not None:
            return self.hvp(tensors, cotangent, direction)
        size, unit = self._normalized(direction)
        scaled = cotangent * size.reshape(-1, *(1 for _ in cotangent.shape[1:]))
        return self._difference(lambda moved: self.vjp(moved, scaled), tensors, unit)

    def tangent(self, tensors: list[Tensor], direction: list[Tensor]) -> Tensor:
        """Return the derivative of the function along a direction, by differences of its values."""
        size, unit = self._normalized(direction)
        (found,) = self._difference(lambda moved: [self.function(*moved)], tensors, unit)
        return found * size.reshape(-1, *(1 for _ in found.shape[1:]))

    def _normalized(self, direction: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Size of the direction by row, or of all where it moves what rows share; the direction of size 1."""
        by_row = [
            d.reshape(len(d), -1).abs().amax(-1)
            for d, row in zip(direction, self.rows, strict=True)
            if row and d.numel()
        ]
        size = torch.stack(by_row).amax(0)
        shared = [d.abs().max() for d, row in zip(direction, self.rows, strict=True) if not row and d.numel()]
        if shared and float(most := torch.stack(shared).max()) > 0:
            size = torch.maximum(size.max(), most).expand_as(size)
        safe = torch.where(size > 0, size, 1.0)
        unit = [
            d / safe.reshape(-1, *(1 for _ in d.shape[1:])) if row else d / safe.max()
            for d, row in zip(direction, self.rows, strict=True)
        ]
        return size, unit

    @torch.no_grad()
    def _difference(
        self, values: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor], unit: list[Tensor]
    ) -> list[Tensor]:
        """Extrapolate differences of the widths 2h and 4h to the fourth order; note how far apart the two are."""
        points = []
        for multiple in MULTIPLES:
            moved = [
                t + multiple * STEP * d if t.is_floating_point() else t
                for t, d in zip(tensors, unit, strict=True)
            ]
            points.append(values(moved))
        result, apart, scale = [], 0.0, 0.0
        for near, nearer, far, farther in zip(*points, strict=True):
            first, second = (near - nearer) / (2 * STEP), (far - farther) / (4 * STEP)
            best = (4 * first - second) / 3
            if best.numel():
                apart, scale = (
                    max(apart, float((first - best).abs().max())),
                    max(scale, float(best.abs().max())),
                )
            result.append(best)
        if scale > 0:
            self.error = max(self.error, apart / scale)
        return result


class _Step(torch.autograd.Function):
    """The function; its backward is `_Vjp`, which has a backward of its own."""

    @staticmethod
    def forward(ctx: Any, rule: TwiceDifferentiable, *tensors: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*tensors)
        return rule.function(*tensors).clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        found = _Vjp.apply(ctx.rule, cotangent, *ctx.saved_tensors)
        return None, *(g if need else None for g, need in zip(found, ctx.needs_input_grad[1:], strict=True))


class _Vjp(torch.autograd.Function):
    """The vector-Jacobian product; its backward is the directional derivative of it, and that of the function."""

    @staticmethod
    def forward(ctx: Any, rule: TwiceDifferentiable, cotangent: Tensor, *tensors: Tensor) -> Any:
        ctx.rule = rule
        ctx.save_for_backward(cotangent, *tensors)
        return tuple(rule.vjp(list(tensors), cotangent))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> Any:
        cotangent, *tensors = ctx.saved_tensors
        direction = list(directions)
        by_cotangent = ctx.rule.tangent(tensors, direction) if ctx.needs_input_grad[1] else None
        by_tensors = [None] * len(tensors)
        if any(ctx.needs_input_grad[2:]):
            by_tensors = ctx.rule.curvature(tensors, cotangent, direction)
        return None, by_cotangent, *by_tensors


def has_second_derivative(value: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether autograd can differentiate the gradient of a value by inputs once more, as far as its graph tells.

    A function that is `once_differentiable` would otherwise have a second derivative of zero, without an error,
    wherever the seed of the gradient is a constant. How other tensors came about that the value depends on does not
    matter: they are differentiated once.

    Args:
        value: Any shape, with its graph, which stays.
        inputs: Tensors that require a gradient.
    """
    if not value.requires_grad:
        return True
    with torch.enable_grad():
        seed = torch.ones_like(value, requires_grad=True)
        youngest = (seed * 1.0).grad_fn  # younger than all nodes of the value itself
        assert youngest is not None
        first = youngest._sequence_nr()
        slopes = torch.autograd.grad(value, list(inputs), seed, create_graph=True, allow_unused=True)
        return not any(_refuses(slope, first) for slope in slopes if slope is not None)


def _refuses(slope: Tensor, first: int) -> bool:
    """Whether a node of the graph of a slope cannot be differentiated, among those that are no older than `first`."""
    seen, stack = set(), [slope.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen or node._sequence_nr() < first:
            continue
        if type(node).__name__ in REFUSALS:
            return True
        seen.add(node)
        stack += [upstream for upstream, _ in node.next_functions]
    return False
