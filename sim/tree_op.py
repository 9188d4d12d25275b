"""Functions of a model as torch operations: one launch over the worlds each way, split over CPU threads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath import kernels
from gradpath.kernel_launch import SCALARS, Factory


class Sizes(Protocol):
    """What a `TreeOp` asks of a layout, such as that of a tree."""

    @property
    def arguments(self) -> list[Any]:
        """What the kernel takes before the packed parameters: the tree, or nothing."""

    @property
    def parameters(self) -> int:
        """Length P of the packed parameters."""

    @property
    def scratch(self) -> int:
        """Numbers of scratch for one world."""


@dataclass(frozen=True)
class TreeOp:
    """A differentiable function of packed parameters and of tensors with one row per world.

    The kernel takes `first`, the tree, the parameters, inputs, constants, scratch and outputs. That of its adjoint
    takes `first`, the tree, the parameters, what `adjoint_takes` names, constants, gradients of the outputs, scratch,
    and then zeroed gradients: of the parameters, a row per world, and of the inputs. Vehicles have no tree.

    Attributes:
        forward: Factory of the kernel.
        adjoint: Factory of the kernel of the adjoint.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        adjoint_takes: Names of the inputs and outputs that the adjoint needs.
        widths: Numbers per world of each output, from the layout and the widths of the inputs.
    """

    forward: Factory
    adjoint: Factory
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    adjoint_takes: tuple[str, ...]
    widths: Callable[[Any, Mapping[str, int], Mapping[str, Any]], Sequence[int]]

    def __call__(
        self, layout: Sizes, params: Tensor, *inputs: Tensor, history: int = 0, **constants: Any
    ) -> tuple[Tensor, ...]:
        """Run the kernel.

        Args:
            layout: The tree on the device of the tensors, or other sizes.
            params: Packed parameters, shape (1, P) or (B, P), differentiable.
            *inputs: One tensor (B, numbers) each, differentiable.
            history: Numbers per world of scratch that the adjoint needs beyond that of the layout.
            **constants: Plain numbers for the kernels, in their order.
        """
        outputs: tuple[Tensor, ...] = _Launch.apply(self, layout, history, constants, params, *inputs)
        return outputs


def _describe(tensor: Tensor) -> Any:
    scalar = SCALARS[tensor.dtype]
    return wp.from_torch(tensor.detach(), dtype=scalar, requires_grad=False, return_ctype=True)


def launch_tree(make: Factory, layout: Sizes, params: Tensor, worlds: int, arguments: Sequence[Any]) -> None:
    """Launch a kernel that takes `first`, what the layout gives and the parameters, then these arguments."""
    described = [_describe(a) if isinstance(a, Tensor) else a for a in (params, *arguments)]
    kernel = kernels.specialize(make, params.dtype)
    kernels.launch_worlds(kernel, worlds, [*layout.arguments, *described], params.device)


class _Launch(torch.autograd.Function):
    """The launches of a `TreeOp`; scratch is made for each and nothing in it is needed later."""

    @staticmethod
    def forward(
        ctx: Any,
        op: TreeOp,
        layout: Sizes,
        history: int,
        constants: Mapping[str, Any],
        params: Tensor,
        *inputs: Tensor,
    ) -> Any:
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        worlds = len(inputs[0])
        widths = {name: tensor.shape[1] for name, tensor in zip(op.inputs, inputs, strict=True)}
        outputs = tuple(params.new_zeros(worlds, n) for n in op.widths(layout, widths, constants))
        work = params.new_empty(worlds, layout.scratch)
        launch_tree(op.forward, layout, params, worlds, [*inputs, *constants.values(), work, *outputs])
        named = dict(zip((*op.inputs, *op.outputs), (*inputs, *outputs), strict=True))
        ctx.op, ctx.layout, ctx.history, ctx.constants = op, layout, history, constants
        ctx.save_for_backward(params, *(named[name] for name in op.adjoint_takes))
        ctx.widths = [tensor.shape[1] for tensor in inputs]
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        params, *taken = ctx.saved_tensors
        op, layout, worlds = ctx.op, ctx.layout, len(grad_outputs[0])
        seeds = [g.contiguous() for g in grad_outputs]
        work = params.new_empty(worlds, layout.scratch + ctx.history)
        grad_params = params.new_zeros(worlds if ctx.needs_input_grad[4] else 0, layout.parameters)
        grads = [params.new_zeros(worlds, width) for width in ctx.widths]
        arguments = [*taken, *ctx.constants.values(), *seeds, work, grad_params, *grads]
        launch_tree(op.adjoint, layout, params, worlds, arguments)
        total = None
        if ctx.needs_input_grad[4]:
            total = grad_params.sum(0, keepdim=True) if len(params) == 1 else grad_params
        return None, None, None, None, total, *grads
