"""The one place where Warp kernels meet torch autograd.

An `Op` turns a Warp kernel into a differentiable torch function: torch tensors in, torch tensors out. The
kernel is written once as a factory `make(scalar)`: the same text gives a float32 and a float64 kernel, and
float64 is what its gradient is checked in. Hand-written operations of several kernels use `specialize`,
`array`, `launch` and `launch_worlds` directly and `register` themselves.

Why explicit adjoint launches and not `wp.Tape`: the tape owns gradient arrays that survive from one backward
to the next, and it knows nothing of torch's bookkeeping. Here every gradient buffer is a fresh, zeroed torch
tensor, and everything needed later is saved through torch, whose version counter turns a tensor that was
changed after the forward pass into an error instead of a wrong gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import warp as wp

from gradpath.errors import ContractError, InputError, ShapeError
from gradpath.kernel_launch import (
    ELEMENT_SHAPES,
    SCALARS,
    Factory,
    array,
    element_type,
    get_threads,
    launch,
    launch_worlds,
    set_threads,
    specialize,
)
from gradpath.kernel_registry import Operation, all_kernels, register, registry

__all__ = [
    "Op",
    "Operation",
    "all_kernels",
    "array",
    "element_type",
    "get_threads",
    "launch",
    "launch_worlds",
    "register",
    "registry",
    "set_threads",
    "specialize",
]


@dataclass(frozen=True)
class _Array:
    """One array argument of an `Op`: its symbolic launch axes and its element."""

    name: str
    dims: tuple[str, ...]
    element: str
    spec: str

    @classmethod
    def parse(cls, op: str, name: str, spec: str) -> "_Array":
        words = spec.split()
        if not words or words[-1] not in ELEMENT_SHAPES:
            raise InputError(
                f'op "{op}": argument "{name}" is declared as {spec!r}, which ends in no element type; '
                f"write axes, then one of {', '.join(ELEMENT_SHAPES)}, as in 'B vec3'"
            )
        return cls(name, tuple(words[:-1]), words[-1], spec)

    @property
    def is_float(self) -> bool:
        return self.element != "int32"

    def torch_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.is_float else torch.int32

    def torch_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return (*(int(d) if d.isdigit() else sizes[d] for d in self.dims), *ELEMENT_SHAPES[self.element])

    def describe(self, tensor: torch.Tensor, dtype: torch.dtype) -> Any:
        """The C descriptor of a contiguous tensor: twice as quick to make as a `wp.array`; keeps it alive."""
        kind = element_type(self.element, SCALARS[dtype])
        tensor = tensor.detach()
        if tensor.ndim == 0:
            tensor = tensor.view(1)
        return wp.from_torch(tensor, dtype=kind, requires_grad=False, return_ctype=True)


class Op:
    """A Warp kernel as a differentiable torch function.

    The kernel's arguments are the inputs, the constants and the outputs, in the order of their declaration.
    Gradients come from Warp's automatic adjoint of the kernel, or from the kernel of `backward`.

    Args:
        name: Unique name; errors and the registry use it.
        make: `make(scalar)` returns the kernel with floats of type `scalar` (wp.float32 or wp.float64).
            Decorate it with `@wp.kernel(module="unique")`, so that the two do not recompile each other.
        inputs: Argument name to spec: symbolic axes, then the element type. "B N vec3" is a torch tensor
            (B, N, 3) and a two-dimensional Warp array of vec3. Elements: scalar, vec2, vec3, vec4, quat,
            mat33, transform (position, then quaternion xyzw), int32.
        outputs: The same for the outputs, whose axes must appear in the inputs or be numbers.
        launch: The axes the kernel is launched over, "B" or "B N".
        constants: Argument name to Warp type (or "scalar") of plain arguments without gradient, such as
            `{"mesh": wp.uint64}`. A Warp object with an `id` (wp.Mesh) may be passed; it is kept alive.
        backward: Optional factory of a hand-written adjoint kernel, launched over the same axes. Arguments:
            inputs, constants, outputs, gradients of the float outputs, zeroed gradients of the float inputs.
        samples: `samples(batch)` gives float64 example inputs for the gradient tests.
        helpers: Factories of kernels without a gradient that prepare its inputs; registered along, so that they are
            compiled and measured with it.
    Raises:
        InputError: a spec cannot be read, or the name is taken.
    Gradients: exact with respect to every float input; once differentiable.
    """

    def __init__(
        self,
        name: str,
        make: Factory,
        *,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        launch: str,
        constants: Mapping[str, Any] | None = None,
        backward: Factory | None = None,
        samples: Callable[[int], dict[str, Any]] | None = None,
        helpers: Sequence[Factory] = (),
    ):
        self.name = name
        self.make = make
        self.backward = backward
        self.inputs = tuple(_Array.parse(name, key, spec) for key, spec in inputs.items())
        self.outputs = tuple(_Array.parse(name, key, spec) for key, spec in outputs.items())
        self.launch_dims = tuple(launch.split())
        self.constants = dict(constants or {})
        self._input_names = tuple(inputs)
        if not any(argument.is_float for argument in self.inputs):
            raise InputError(f'op "{name}" has no floating input, so nothing to differentiate; declare one')
        known = {dim for argument in self.inputs for dim in argument.dims}
        needed = (*self.launch_dims, *(dim for argument in self.outputs for dim in argument.dims))
        for dim in needed:
            if dim not in known and not dim.isdigit():
                raise InputError(
                    f'op "{name}": axis {dim!r} is in no input, so its size is unknown; add it to one'
                )
        factories = [make, *helpers] if backward is None else [make, backward, *helpers]
        register(name, kernels=factories, fn=self, samples=samples)

    def __call__(self, *tensors: torch.Tensor, **named: Any) -> Any:
        """Run the kernel; inputs in order or by name, constants by name.

        Returns:
            The output tensor, or a tuple when there are several.
        Raises:
            ContractError: an argument is missing or unknown.
            ShapeError: an argument has another shape, dtype or device than declared.
        """
        inputs = self._bind(tensors, named)
        sizes, dtype = self._check(inputs)
        outputs = _Launch.apply(self, named, sizes, dtype, *inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def __repr__(self) -> str:
        arguments = ", ".join(f"{argument.name}: {argument.spec!r}" for argument in self.inputs)
        return f"Op({self.name!r}, {arguments})"

    def _bind(self, tensors: tuple[torch.Tensor, ...], named: dict[str, Any]) -> list[torch.Tensor]:
        """Order the inputs, leaving exactly the constants in `named`."""
        if len(tensors) > len(self.inputs):
            raise ContractError(
                f'op "{self.name}" takes {len(self.inputs)} inputs ({", ".join(self._input_names)}), '
                f"got {len(tensors)}; pass constants by name"
            )
        bound = list(tensors)
        for name in self._input_names[len(tensors) :]:
            if name not in named:
                raise ContractError(f'op "{self.name}": input "{name}" is missing; pass a tensor')
            bound.append(named.pop(name))
        if named.keys() != self.constants.keys():
            raise ContractError(
                f'op "{self.name}" takes the constants {list(self.constants)}, got {list(named)}; pass these'
            )
        return bound

    def _check(self, tensors: list[torch.Tensor]) -> tuple[dict[str, int], torch.dtype]:
        """Return the size of each axis and the float dtype of the call."""
        sizes: dict[str, int] = {}
        dtype: torch.dtype | None = None
        for argument, tensor in zip(self.inputs, tensors, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise self._error(argument, sizes, f"got {type(tensor).__name__}", "pass a torch tensor")
            if argument.is_float:
                if tensor.dtype not in SCALARS:
                    raise self._error(
                        argument, sizes, f"got {tensor.dtype}", "convert it to float32 or float64"
                    )
                dtype = dtype or tensor.dtype
            expected = argument.torch_dtype(dtype or torch.int32)
            if tensor.dtype != expected:
                remedy = (
                    f"the floats of one call share a dtype and indices are int32; convert it to {expected}"
                )
                raise self._error(argument, sizes, f"got {tensor.dtype}", remedy)
            if tensor.device != tensors[0].device:
                remedy = f"the other inputs are on {tensors[0].device}; move it there"
                raise self._error(argument, sizes, f"got a tensor on {tensor.device}", remedy)
            inner = ELEMENT_SHAPES[argument.element]
            rank = len(argument.dims)
            matches = tensor.ndim == rank + len(inner) and tuple(tensor.shape[rank:]) == inner
            if not matches or not all(
                size == (int(dim) if dim.isdigit() else sizes.setdefault(dim, size))
                for dim, size in zip(argument.dims, tensor.shape, strict=False)
            ):
                remedy = "unsqueeze and expand it to the declared axes"
                raise self._error(argument, sizes, f"got {tuple(tensor.shape)}", remedy)
        assert dtype is not None  # the constructor demands a floating input
        return sizes, dtype

    def _error(self, argument: _Array, sizes: dict[str, int], got: str, remedy: str) -> ShapeError:
        shape = ", ".join(str(sizes.get(dim, dim)) for dim in argument.dims)
        inner = "".join(f", {size}" for size in ELEMENT_SHAPES[argument.element])
        expected = f'"{argument.spec}", a tensor of shape ({(shape + inner).removeprefix(", ")})'
        return ShapeError(
            f'op "{self.name}": argument "{argument.name}": expected {expected}, {got}; {remedy}'
        )

    def _launch_size(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(int(dim) if dim.isdigit() else sizes[dim] for dim in self.launch_dims) or (1,)

    def _arguments(
        self, inputs: Sequence[torch.Tensor], constants: Mapping[str, Any], outputs: Sequence[torch.Tensor]
    ) -> list[Any]:
        dtype = next(t.dtype for t, a in zip(inputs, self.inputs, strict=True) if a.is_float)
        values = [constants[name] for name in self.constants]
        return [
            *(a.describe(t.contiguous(), dtype) for a, t in zip(self.inputs, inputs, strict=True)),
            *(getattr(value, "id", value) for value in values),
            *(a.describe(t, dtype) for a, t in zip(self.outputs, outputs, strict=True)),
        ]

    def _forward(
        self,
        inputs: Sequence[torch.Tensor],
        constants: Mapping[str, Any],
        sizes: Mapping[str, int],
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        device = inputs[0].device
        # Zeros, not empty: a kernel may return early or accumulate with atomic_add.
        outputs = tuple(
            torch.zeros(a.torch_shape(sizes), dtype=a.torch_dtype(dtype), device=device) for a in self.outputs
        )
        dim = self._launch_size(sizes)
        if 0 not in dim:
            launch(specialize(self.make, dtype), dim, self._arguments(inputs, constants, outputs), device)
        return outputs

    def _adjoint(
        self,
        inputs: Sequence[torch.Tensor],
        constants: Mapping[str, Any],
        outputs: Sequence[torch.Tensor],
        sizes: Mapping[str, int],
        dtype: torch.dtype,
        grad_outputs: Sequence[torch.Tensor | None],
        needed: Sequence[bool],
    ) -> list[torch.Tensor | None]:
        """Gradients of the inputs that need one, None for the others."""
        by_hand = self.backward is not None
        grads = [  # a hand-written kernel writes all of them
            torch.zeros_like(t, memory_format=torch.contiguous_format)
            if a.is_float and (need or by_hand)
            else None
            for a, t, need in zip(self.inputs, inputs, needed, strict=True)
        ]
        dim = self._launch_size(sizes)
        if 0 in dim:
            return grads
        # Clones: the adjoint kernel may overwrite the gradients of the outputs, which belong to autograd.
        seeds = [
            None if g is None or not a.is_float else g.clone(memory_format=torch.contiguous_format)
            for a, g in zip(self.outputs, grad_outputs, strict=True)
        ]
        arguments = self._arguments(inputs, constants, outputs)
        adj_inputs = [
            None if g is None else a.describe(g, dtype) for a, g in zip(self.inputs, grads, strict=True)
        ]
        adj_outputs = [
            None if g is None else a.describe(g, dtype) for a, g in zip(self.outputs, seeds, strict=True)
        ]
        device = inputs[0].device
        if self.backward is None:
            adjoint = [*adj_inputs, *(0 for _ in self.constants), *adj_outputs]
            launch(specialize(self.make, dtype), dim, arguments, device, adjoint=adjoint)
        else:
            given = [g for g in (*adj_outputs, *adj_inputs) if g is not None]
            launch(specialize(self.backward, dtype), dim, [*arguments, *given], device)
        return [g if need else None for g, need in zip(grads, needed, strict=True)]


class _Launch(torch.autograd.Function):
    """Forward and adjoint launch of an `Op`; inputs: op, constants, sizes and dtype, then the tensors."""

    @staticmethod
    def forward(
        ctx: Any, op: Op, constants: Any, sizes: Any, dtype: torch.dtype, *inputs: torch.Tensor
    ) -> Any:
        outputs = op._forward(inputs, constants, sizes, dtype)
        ctx.op, ctx.constants, ctx.sizes, ctx.dtype = op, constants, sizes, dtype
        # The inputs themselves, not contiguous copies: torch then notices a change of what the caller holds.
        ctx.save_for_backward(*inputs, *outputs)
        ctx.mark_non_differentiable(*(t for t in outputs if not t.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor | None) -> Any:
        op, count = ctx.op, len(ctx.op.inputs)
        saved = ctx.saved_tensors
        with torch.no_grad():
            grads = op._adjoint(
                saved[:count],
                ctx.constants,
                saved[count:],
                ctx.sizes,
                ctx.dtype,
                grad_outputs,
                ctx.needs_input_grad[4:],
            )
        if torch.is_grad_enabled():  # create_graph=True
            grads = _refuse_second_derivative(op.name, grads, [*saved[:count], *grad_outputs])
        return None, None, None, None, *grads


class _OnceDifferentiable(torch.autograd.Function):
    """The identity on gradients whose own derivative is an error instead of a silent zero."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: torch.Tensor) -> Any:
        ctx.name = name
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise ContractError(
            f'op "{ctx.name}" is once differentiable: a Warp adjoint has no adjoint, so its second '
            "derivative would be silently zero; detach the gradient, or use finite differences of it"
        )


def _refuse_second_derivative(
    name: str, grads: Sequence[torch.Tensor | None], sources: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Tie `grads` to everything they depend on by a node that raises when it is differentiated."""
    present = [g for g in grads if g is not None]
    tensors = [s for s in sources if s is not None and s.is_floating_point()]
    guarded = iter(_OnceDifferentiable.apply(name, len(present), *present, *tensors))
    return [None if g is None else next(guarded) for g in grads]
