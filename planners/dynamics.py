"""A stage that steps a state, as a function of vectors: what the optimizing planners work with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from gradpath import tree
from gradpath.contract import Contract
from gradpath.errors import ContractError, InputError, ShapeError
from gradpath.second_derivative import TwiceDifferentiable
from gradpath.specs import DictSpec, Spec, TensorSpec
from gradpath.stage import Stage

SECOND = ("auto", "differences")


class Packing:
    """How a tree of tensors (B, ...), such as a state, lies in one vector (B, n).

    Args:
        example: A tree of this structure.
    """

    def __init__(self, example: tree.Tree):
        leaves, self._spec = tree.flatten(example)
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
            raise ShapeError("a state or a control is a floating tensor (B, ...), or a dict of them")
        self._shapes = [tuple(leaf.shape[1:]) for leaf in leaves]
        self._sizes = [
            leaf[:1].numel() if len(leaf) else int(torch.Size(leaf.shape[1:]).numel()) for leaf in leaves
        ]

    @property
    def size(self) -> int:
        """n."""
        return sum(self._sizes)

    def pack(self, value: tree.Tree) -> Tensor:
        """Return a tree of tensors (B, ...) as vectors (B, n)."""
        leaves, _ = tree.flatten(value)
        return torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves], -1)

    def unpack(self, vector: Tensor) -> Any:
        """Return vectors (..., n) as a tree of tensors (..., sizes of the leaf)."""
        parts = vector.split(self._sizes, -1)
        shaped = [p.reshape(*vector.shape[:-1], *shape) for p, shape in zip(parts, self._shapes, strict=True)]
        return tree.unflatten(shaped, self._spec)


class StageDynamics:
    """A stage such as `sim.Quadrotor` as a function of vectors, x (..., B, n) and u (..., B, m) to the next x.

    Axes before the batch are time steps, candidates or directions; the other inputs of the stage are the same for
    all of them.

    Args:
        stage: Takes a state and a control, gives the next state.
        example_state: A state (its values do not matter).
        example_control: A control.
        inputs: The stage's other inputs by name, such as wind.
        state: The input that is the state.
        control: The input that is the control.
        output: The output that is the next state; `state` by default.
        second: Where second derivatives come from. `"auto"`: the stage's own method `hvp(inputs, cotangent,
            direction)`, or autograd where it can differentiate the stage twice. `"differences"`: extrapolated central
            differences of the stage's vector-Jacobian product, in float64.

    `hvp` takes the inputs by name, a cotangent in the form of the next state, and directions by the name of inputs;
    it returns the derivative, along the direction, of the vector-Jacobian product with each floating input, by name.

    Raises:
        InputError: an unknown choice, or a generator among the inputs: a plan needs the same dynamics in every call.
        ContractError: the stage has no such inputs or outputs.
    Gradients: exact in x, u, inputs and the stage's parameters; second derivatives as chosen.
    """

    def __init__(
        self,
        stage: Stage,
        example_state: tree.Tree,
        example_control: tree.Tree,
        inputs: Mapping[str, Any] | None = None,
        *,
        state: str = "state",
        control: str = "control",
        output: str | None = None,
        second: str = "auto",
    ):
        self.stage, self.state, self.control = stage, state, control
        self.output = state if output is None else output
        self._check(stage.contract, second)
        self.state_packing, self.control_packing = Packing(example_state), Packing(example_control)
        given = {name: value for name, value in (inputs or {}).items() if value is not None}
        for name, value in given.items():
            if tree.generators(tree.flatten(value)[0]):
                raise InputError(
                    f'the input "{name}" of the model is a random generator, and a plan needs the same dynamics '
                    "in every call; leave it out"
                )
        self._leaves, self._spec = tree.flatten(given)
        batched, _ = tree.flatten({name: self._batched(name, value) for name, value in given.items()})
        self._batched_leaves: list[bool] = batched
        self._tensors = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.parameters = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        self._rule = self._second_derivative(second)

    @property
    def difference_error(self) -> float:
        """The largest relative error bound of second derivatives by differences so far, zero without them."""
        return 0.0 if self._rule is None else self._rule.error

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Step states (..., B, n) under controls (..., B, m)."""
        lead = x.shape[:-1]
        rows = x.shape[:-2].numel()
        tensors = [x.reshape(-1, x.shape[-1]), u.reshape(-1, u.shape[-1])]
        for i in self._tensors:
            leaf = self._leaves[i]
            if self._batched_leaves[i]:
                leaf = leaf.expand(rows, *leaf.shape).reshape(rows * len(leaf), *leaf.shape[1:])
            tensors.append(leaf)
        tensors += self.parameters.values()
        step = self._function if self._rule is None else self._rule
        return step(*tensors).reshape(*lead, -1)

    def _function(self, x: Tensor, u: Tensor, *others: Tensor) -> Tensor:
        values = self._values(x, u, list(others))
        weights = dict(zip(self.parameters, others[len(self._tensors) :], strict=True))
        result = functional_call(self.stage, weights, (), values) if weights else self.stage(**values)
        return self.state_packing.pack(
            self.stage.named_outputs(result, type(self.stage).__name__)[self.output]
        )

    def _values(self, x: Tensor, u: Tensor, others: list[Tensor]) -> dict[str, Any]:
        leaves = list(self._leaves)
        for i, value in zip(self._tensors, others, strict=False):
            leaves[i] = value
        values = tree.unflatten(leaves, self._spec)
        return {
            **values,
            self.state: self.state_packing.unpack(x),
            self.control: self.control_packing.unpack(u),
        }

    def _hvp(self, tensors: list[Tensor], cotangent: Tensor, direction: list[Tensor]) -> list[Tensor]:
        """The stage's own `hvp`, from and to flat tensors."""
        values = self._values(tensors[0], tensors[1], tensors[2:])
        along = self._values(direction[0], direction[1], direction[2:])
        names = [self.state, self.control, *(n for n in values if n not in (self.state, self.control))]
        found = self.stage.hvp(  # type: ignore[operator]
            values, self.state_packing.unpack(cotangent), {name: along[name] for name in names}
        )
        missing = [name for name in names if name not in found]
        if missing:
            raise ContractError(
                f'hvp of {type(self.stage).__name__} did not return "{missing[0]}"; it returns every floating '
                "input that it was given"
            )
        rest = tree.flatten({name: found[name] for name in tree.unflatten(self._leaves, self._spec)})[0]
        return [
            self.state_packing.pack(found[self.state]),
            self.control_packing.pack(found[self.control]),
            *(rest[i] for i in self._tensors),
        ]

    def _second_derivative(self, second: str) -> TwiceDifferentiable | None:
        rows = [
            True,
            True,
            *(self._batched_leaves[i] for i in self._tensors),
            *(False for _ in self.parameters),
        ]
        if second == "differences":
            return TwiceDifferentiable(self._function, rows)
        if not hasattr(self.stage, "hvp"):
            return None
        if self.parameters:
            raise InputError(
                f"{type(self.stage).__name__}.hvp gives derivatives by inputs, not by the stage's own parameter "
                f'"{next(iter(self.parameters))}", whose gradient would be lost; pass it as an input, freeze it, '
                'or choose second="differences"'
            )
        return TwiceDifferentiable(self._function, rows, self._hvp)

    def _batched(self, name: str, value: tree.Tree) -> tree.Tree:
        spec: Spec | None = self.stage.contract.input_specs.get(name)
        if spec is None:
            known = ", ".join(self.stage.contract.inputs)
            raise ContractError(f'the model has no input "{name}"; its inputs are {known}')
        return _has_batch_axis(spec, value)

    def _check(self, contract: Contract, second: str) -> None:
        if second not in SECOND:
            raise InputError(f'second "{second}" is not known; it is one of {", ".join(SECOND)}')
        for name, known in (
            (self.state, contract.inputs),
            (self.control, contract.inputs),
            (self.output, contract.outputs),
        ):
            if name not in known:
                raise ContractError(
                    f'the model has no "{name}" among {", ".join(known)}; name its state, control and output'
                )


def _has_batch_axis(spec: Spec | None, value: tree.Tree) -> tree.Tree:
    """For each leaf, whether its first axis has a name, which is the batch."""
    if isinstance(spec, DictSpec) and isinstance(value, Mapping):
        return {name: _has_batch_axis(spec.fields.get(name), item) for name, item in value.items()}
    named = (
        isinstance(spec, TensorSpec)
        and not spec.leading
        and bool(spec.dims)
        and isinstance(spec.dims[0], str)
    )
    return tree.map_leaves(lambda leaf: named and isinstance(leaf, Tensor), value)
