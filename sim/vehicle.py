"""Vehicles: what the stages of all of them share, from the check of a parameter to the launch over many steps."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradpath import kernels
from gradpath.errors import InputError, ShapeError
from gradpath.sim.tree_op import TreeOp
from gradpath.sim.vehicle_kernels import make_drive, make_drive_adjoint
from gradpath.stage import Stage


@dataclass(frozen=True)
class Value:
    """What a state or a parameter is: its spec ("B" or "B 3"), and the values that a parameter may have."""

    spec: str
    above: float = -math.inf
    below: float = math.inf
    closed: bool = False
    """Whether the lowest value itself is allowed."""

    @property
    def numbers(self) -> int:
        """How many numbers it has for one world."""
        return int(self.spec.removeprefix("B") or 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape without the worlds."""
        return () if self.spec == "B" else (self.numbers,)

    def allowed(self) -> str:
        """The range in words."""
        if self.below < math.inf:
            low = f"{self.above:.4g}" if self.above > -math.inf else "any"
            return f"finite values between {low} and {self.below:.4g}"
        if self.above == -math.inf:
            return "finite values"
        return f"finite values, {'zero or more' if self.closed else 'positive'}"


@dataclass(frozen=True)
class _Sizes:
    parameters: int
    scratch: int = 0

    @property
    def arguments(self) -> list[Any]:
        return []


class Vehicle:
    """The motion of one kind of vehicle as a function of tensors.

    Args:
        name: What errors call it, and its kernels.
        state: Names and specs of the state, in the order that the kernels have.
        control: How many numbers a command has.
        parameters: Names of the parameters, the same.
        inputs: Further numbers that stay the same during a motion, after the parameters.
    """

    def __init__(
        self,
        name: str,
        state: Mapping[str, Value],
        control: int,
        parameters: Mapping[str, Value],
        inputs: Mapping[str, Value] | None = None,
    ):
        self.name, self.state, self.control, self.parameters = name, dict(state), control, dict(parameters)
        self.constants = {**self.parameters, **(inputs or {})}
        self.size = sum(value.numbers for value in state.values())
        self.sizes = _Sizes(sum(value.numbers for value in self.constants.values()))
        self.op = TreeOp(
            forward=functools.partial(make_drive, name=name),
            adjoint=functools.partial(make_drive_adjoint, name=name),
            inputs=("state", "control"),
            outputs=("states",),
            adjoint_takes=("state", "control", "states"),
            widths=lambda _, widths, constants: (constants["steps"] * widths["state"],),
        )

    def register(self, samples: Any) -> None:
        """Register the motion over several steps of two substeps as an operation, for the tests of all of them."""

        def call(state: Tensor, control: Tensor, params: Tensor, time: float) -> Tensor:
            return self._launch(state, control, params, 2, time)

        kernels.register(
            f"{self.name}_motion", kernels=[self.op.forward, self.op.adjoint], fn=call, samples=samples
        )

    def simulate(
        self,
        state: Mapping[str, Tensor],
        controls: Tensor,
        values: Mapping[str, Tensor],
        dt: float,
        substeps: int,
    ) -> dict[str, Tensor]:
        """Return the states after each of T steps, with an axis T after that of the worlds.

        Args:
            state: The state at the start, by name.
            controls: Commands, constant during a step, shape (B, T, controls).
            values: Parameters and inputs by name, a row per world.
            dt: Duration of a step [s].
            substeps: Integration steps in it.
        Raises:
            InputError: dt or substeps out of range, or a number of the state or of a command that is not finite; the
                last is not looked for on a GPU.
            ShapeError: a tensor of another shape or dtype.
        Gradients: exact in all but dt.
        """
        check_step(self.name, dt, substeps)
        if controls.ndim != 3 or controls.shape[2] != self.control:
            raise ShapeError(
                f"{self.name}: expected controls of shape (B, T, {self.control}), got {tuple(controls.shape)}"
            )
        start = self._join(state, self.state, "state", controls)
        params = self._join(values, self.constants, "parameters", controls)
        self._check_finite(start, controls)
        states = self._launch(start, controls.flatten(1), params, substeps, dt / substeps)
        states = states.reshape(len(controls), controls.shape[1], self.size)
        parts = states.split([value.numbers for value in self.state.values()], -1)
        return {
            name: part if value.shape else part.squeeze(-1)
            for (name, value), part in zip(self.state.items(), parts, strict=True)
        }

    def step(
        self,
        state: Mapping[str, Tensor],
        control: Tensor,
        values: Mapping[str, Tensor],
        dt: float,
        substeps: int,
    ) -> dict[str, Tensor]:
        """Return the state after one step under a command (B, controls); see `simulate`."""
        states = self.simulate(state, control.unsqueeze(1), values, dt, substeps)
        return {name: value.squeeze(1) for name, value in states.items()}

    def _launch(self, state: Tensor, control: Tensor, params: Tensor, substeps: int, time: float) -> Tensor:
        steps = control.shape[1] // self.control
        history = (substeps - 1) * self.size
        (states,) = self.op(
            self.sizes, params, state, control, history=history, steps=steps, substeps=substeps, time=time
        )
        return states

    def _join(
        self, values: Mapping[str, Tensor], specs: Mapping[str, Value], group: str, like: Tensor
    ) -> Tensor:
        worlds, columns = len(like), []
        for name, spec in specs.items():
            if name not in values:
                raise InputError(f"{self.name}: {group} has no {name!r}; it needs {', '.join(specs)}")
            value = values[name]
            if value.shape != (worlds, *spec.shape) or value.dtype != like.dtype:
                raise ShapeError(
                    f"{self.name}: {group} {name!r}: expected shape {(worlds, *spec.shape)} and {like.dtype}, as the "
                    f"control has, got {tuple(value.shape)} and {value.dtype}"
                )
            columns.append(value if spec.shape else value.unsqueeze(1))
        return torch.cat(columns, 1)

    def _check_finite(self, start: Tensor, controls: Tensor) -> None:
        if controls.is_cuda:
            return
        with torch.no_grad():
            # Zero times what is not finite is NaN.
            if bool((0.0 * start).sum() + (0.0 * controls).sum() == 0.0):
                return
            bad = (~torch.isfinite(controls)).nonzero()
            if len(bad):
                world, step = int(bad[0, 0]), int(bad[0, 1])
                raise InputError(
                    f"{self.name}: the control of world {world} is {controls[world, step].tolist()}; the limits would "
                    "hide that, find the step or the weights it came from"
                )
            world = int((~torch.isfinite(start)).nonzero()[0, 0])
            raise InputError(
                f"{self.name}: the state of world {world} is {start[world].tolist()}; find the step that spoiled it"
            )


class VehicleStage(Stage):
    """What the stages of vehicles have in common; abstract.

    Args:
        dt: Duration of a step [s].
        substeps: Integration steps in it.
        values: A number (or as many as the parameter has), or a tensor with one row per world, for each parameter.
        learnable: Makes them `nn.Parameter`s; otherwise they are buffers.
    """

    vehicle: ClassVar[Vehicle]

    def __init__(self, dt: float, substeps: int, values: Sequence[Any], learnable: bool):
        super().__init__()
        check_step(self.vehicle.name, dt, substeps)
        self.dt = dt
        self.substeps = substeps
        for (name, spec), value in zip(self.vehicle.parameters.items(), values, strict=True):
            tensor = _checked(self.vehicle.name, name, spec, value)
            if learnable:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def parameters_per_world(self, batch: int) -> dict[str, Tensor]:
        """Return the parameters of each of `batch` worlds: what the input `parameters` takes."""
        parameters = self.vehicle.parameters
        return {name: getattr(self, name).expand(batch, *spec.shape) for name, spec in parameters.items()}


def specs(values: Mapping[str, Value]) -> dict[str, str]:
    """Return the specs of a state or of parameters, as contracts have them."""
    return {name: value.spec for name, value in values.items()}


def check_step(name: str, dt: float, substeps: int) -> None:
    """Refuse a duration that is not positive, and less than one substep.

    Raises:
        InputError: says which.
    """
    if substeps < 1:
        raise InputError(f"{name} substeps: expected at least 1, got {substeps}")
    if not 0 < dt < math.inf:
        raise InputError(f"{name} dt: expected a positive duration in seconds, got {dt}")


def _checked(vehicle: str, name: str, spec: Value, value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    tensor = tensor.clone() if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    if tensor.shape != spec.shape and tensor.shape[1:] != spec.shape:
        numbers = spec.numbers
        expected = f"{numbers} numbers or shape (B, {numbers})" if spec.shape else "a number or shape (B,)"
        raise InputError(f"{vehicle} {name}: expected {expected}, got shape {tuple(tensor.shape)}")
    low = tensor >= spec.above if spec.closed else tensor > spec.above
    if not bool((low & (tensor < spec.below) & torch.isfinite(tensor)).all()):
        raise InputError(f"{vehicle} {name}: expected {spec.allowed()}, got {tensor.tolist()}")
    return tensor
