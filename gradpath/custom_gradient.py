"""Operations with a gradient rule of their own, which is proven when it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import ContractError, GradientError, InputError, ShapeError
from gradpath.kernel_registry import KINDS, register, registry
from gradpath.proof import Proof, prove

Samples = Any
"""`samples(batch)` or `samples()`, or the samples themselves: a dict by name, a tuple in order, or one tensor."""


def custom_gradient(
    name: str, *, kind: str = "exact", samples: Samples
) -> Callable[[Callable[..., Any]], CustomGradient]:
    """Give an operation its own backward rule, and have it proven.

    ```python
    @gp.custom_gradient("softplus", kind="exact", samples=lambda batch: {"x": torch.randn(batch, 4)})
    def softplus(x):
        return torch.logaddexp(x, torch.zeros_like(x))

    @softplus.backward
    def _(ctx, x, y, dy):
        return dy * torch.sigmoid(x)
    ```

    Args:
        name: Unique name; `gradpath gradcheck` lists it.
        kind: `"exact"`: the rule is the derivative, which is proven against central differences in float64 when
            the rule is registered. `"surrogate"`: it is meant to differ, and `.proof` says by how much.
        samples: Example inputs: a function of the batch size (or of nothing) that gives a dict by name, a tuple in
            order or one tensor; or these themselves. Floating ones are differentiated, in float64.
    Returns:
        A decorator for the forward function, whose parameters are tensors and anything else, and which returns a
        tensor or a tuple of tensors.
    Raises:
        InputError: another kind, or the name is taken.
    Gradients: by the rule, `rule(ctx, *inputs, outputs, gradients of the outputs)`, which returns a tensor per input
        (None for what has no gradient), or one tensor where the operation takes one input. `ctx.needs_input_grad`
        says which are wanted. Twice differentiable where the rule is made of torch operations.
    """
    if kind not in KINDS:
        raise InputError(f'operation "{name}": kind "{kind}" is not known; it is one of {", ".join(KINDS)}')
    if name in registry:
        raise InputError(f"an operation named {name!r} is registered already; choose another name")
    return lambda forward: CustomGradient(name, kind, forward, samples)


class CustomGradient:
    """An operation made by `custom_gradient`; call it like the forward function that it wraps.

    Attributes:
        name: Its name in the registry.
        kind: `"exact"` or `"surrogate"`.
        proof: How its rule compares with central differences; None before the rule is registered.
    """

    def __init__(self, name: str, kind: str, forward: Callable[..., Any], samples: Samples):
        self.name, self.kind, self.forward = name, kind, forward
        self.proof: Proof | None = None
        self.__doc__ = forward.__doc__
        self.__module__ = forward.__module__
        self._signature = inspect.signature(forward)
        self._samples = samples
        self._rule: Callable[..., Any] | None = None

    def backward(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Register the backward rule; returns it.

        Raises:
            GradientError: an exact rule differs from central differences; names the input, the index, what was
                expected and what it gave. The operation is not registered then.
        """
        if self._rule is not None:
            raise InputError(f'operation "{self.name}" has a backward rule already')
        self._rule = rule
        try:
            proofs = [prove(self.name, self.kind, self, self.samples(batch)) for batch in (1, 3)]
            for proof in proofs:
                if not proof.passed:
                    raise GradientError(proof.fault)
        except BaseException:
            self._rule = None
            raise
        self.proof = max(proofs, key=lambda proof: proof.error)
        register(self.name, kernels=(), fn=self, samples=self.samples, kind=self.kind)
        return rule

    def samples(self, batch: int) -> dict[str, Any]:
        """Return the example inputs by name, floating ones in float64."""
        given = self._samples
        if callable(given):
            given = given(batch) if inspect.signature(given).parameters else given()
        if not isinstance(given, Mapping):
            given = given if isinstance(given, (tuple, list)) else (given,)
            given = self._signature.bind(*given).arguments
        return {key: _double(value) for key, value in given.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the operation."""
        if self._rule is None:
            raise ContractError(
                f'operation "{self.name}" has no backward rule yet; define one with @{self.forward.__name__}.backward'
            )
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _Custom.apply(self, *bound.arguments.values())

    def __repr__(self) -> str:
        return f"CustomGradient({self.name!r}, kind={self.kind!r})"

    def _gradients(self, ctx: Any, inputs: list[Any], outputs: Any, seeds: Any) -> list[Tensor | None]:
        assert self._rule is not None
        found = self._rule(_Needs(ctx.needs_input_grad[1:]), *inputs, outputs, seeds)
        found = list(found) if isinstance(found, (tuple, list)) else [found]
        names = list(self._signature.parameters)
        if len(found) != len(inputs):
            raise ContractError(
                f'operation "{self.name}": its backward rule gave {len(found)} gradients for {len(inputs)} inputs '
                f"({', '.join(names)}); return one for each, None where there is none"
            )
        for key, value, gradient in zip(names, inputs, found, strict=True):
            if gradient is not None and gradient.shape != value.shape:
                raise ShapeError(
                    f'operation "{self.name}": the gradient of input "{key}" is {tuple(gradient.shape)}, expected '
                    f"{tuple(value.shape)}, the shape of the input"
                )
        return found


class _Needs:
    """What a backward rule is told besides values."""

    def __init__(self, needs_input_grad: tuple[bool, ...]):
        self.needs_input_grad = needs_input_grad


class _Custom(torch.autograd.Function):
    """Forward and rule of a `CustomGradient`; its arguments are the operation, then the inputs."""

    @staticmethod
    def forward(ctx: Any, operation: CustomGradient, *inputs: Any) -> Any:
        outputs = operation.forward(*inputs)
        several = isinstance(outputs, (tuple, list))
        made = tuple(outputs) if several else (outputs,)
        # An output that is an input, or a view of one, would be taken for it by autograd.
        held = {
            value.untyped_storage().data_ptr()
            for value in inputs
            if isinstance(value, Tensor) and value.numel()
        }
        made = tuple(t.clone() if t.numel() and t.untyped_storage().data_ptr() in held else t for t in made)
        ctx.operation, ctx.several = operation, several
        ctx.tensors = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)), *made)
        ctx.mark_non_differentiable(*(t for t in made if not t.is_floating_point()))
        return made if several else made[0]

    @staticmethod
    def backward(ctx: Any, *seeds: Any) -> Any:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if t else other for t, other in zip(ctx.tensors, ctx.others, strict=True)]
        outputs = tuple(saved)
        gradients = ctx.operation._gradients(
            ctx, inputs, outputs if ctx.several else outputs[0], seeds if ctx.several else seeds[0]
        )
        return None, *gradients


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
