"""A 2-D fluid step in Warp kernels: a long loop of steps whose tape is many times larger than their state.

The solver is that of Warp's own checkpointing example, on a grid of any size: advection backwards in time,
pressure by damped Jacobi iterations that start from the last pressure, projection, advection of the density.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import warp as wp
from torch import Tensor

from gradpath import kernels

State = tuple[Tensor, Tensor, Tensor, Tensor]


def make_advect(scalar):
    """Factory of the semi-Lagrangian step of one field, for up to one grid per step."""

    @wp.kernel(module="unique")
    def _advect_field(
        # In:
        vx: wp.array(dtype=scalar, ndim=2),  # (N, N), cells per step along the first axis
        vy: wp.array(dtype=scalar, ndim=2),  # along the second
        field: wp.array(dtype=scalar, ndim=2),
        # Out:
        field_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        n = field.shape[0]
        x = scalar(i) - vx[i, j]
        y = scalar(j) - vy[i, j]
        left = int(wp.floor(x))
        low = int(wp.floor(y))
        s = x - scalar(left)
        t = y - scalar(low)
        i0 = (left + n) % n
        i1 = (left + 1 + n) % n
        j0 = (low + n) % n
        j1 = (low + 1 + n) % n
        one = scalar(1.0)
        near = (one - t) * field[i0, j0] + t * field[i0, j1]
        far = (one - t) * field[i1, j0] + t * field[i1, j1]
        field_out[i, j] = (one - s) * near + s * far

    return _advect_field


def make_divergence(scalar):
    """Factory of backward differences of the velocity."""

    @wp.kernel(module="unique")
    def _measure_divergence(
        # In:
        wx: wp.array(dtype=scalar, ndim=2),
        wy: wp.array(dtype=scalar, ndim=2),
        # Out:
        divergence_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        n = wx.shape[0]
        dx = wx[i, j] - wx[wp.where(i == 0, n - 1, i - 1), j]
        dy = wy[i, j] - wy[i, wp.where(j == 0, n - 1, j - 1)]
        divergence_out[i, j] = (dx + dy) * scalar(n)

    return _measure_divergence


def make_jacobi(scalar):
    """Factory of one damped Jacobi iteration for the pressure."""

    @wp.kernel(module="unique")
    def _relax_pressure(
        # In:
        divergence: wp.array(dtype=scalar, ndim=2),
        pressure: wp.array(dtype=scalar, ndim=2),
        # Out:
        pressure_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        n = pressure.shape[0]
        up = wp.where(i == 0, n - 1, i - 1)
        down = wp.where(i == n - 1, 0, i + 1)
        left = wp.where(j == 0, n - 1, j - 1)
        right = wp.where(j == n - 1, 0, j + 1)
        around = pressure[up, j] + pressure[down, j] + pressure[i, left] + pressure[i, right]
        source = divergence[i, j] * (scalar(1.0) / (scalar(n) * scalar(n)))
        pressure_out[i, j] = scalar(1.0 / 3.0) * pressure[i, j] + scalar(1.0 / 6.0) * (around - source)

    return _relax_pressure


def make_jacobi_adjoint(scalar):
    """Factory of its adjoint: the stencil is symmetric, so gradients are gathered as the pressures were."""

    @wp.kernel(module="unique")
    def _relax_pressure_adjoint(
        # In:
        divergence: wp.array(dtype=scalar, ndim=2),
        pressure: wp.array(dtype=scalar, ndim=2),
        pressure_out: wp.array(dtype=scalar, ndim=2),
        adj_out: wp.array(dtype=scalar, ndim=2),
        # Out:
        adj_divergence: wp.array(dtype=scalar, ndim=2),
        adj_pressure: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        n = pressure.shape[0]
        up = wp.where(i == 0, n - 1, i - 1)
        down = wp.where(i == n - 1, 0, i + 1)
        left = wp.where(j == 0, n - 1, j - 1)
        right = wp.where(j == n - 1, 0, j + 1)
        around = adj_out[up, j] + adj_out[down, j] + adj_out[i, left] + adj_out[i, right]
        adj_pressure[i, j] = scalar(1.0 / 3.0) * adj_out[i, j] + scalar(1.0 / 6.0) * around
        adj_divergence[i, j] = scalar(-1.0 / 6.0) / (scalar(n) * scalar(n)) * adj_out[i, j]

    return _relax_pressure_adjoint


def make_project(scalar):
    """Factory of the velocity without the gradient of the pressure, by forward differences."""

    @wp.kernel(module="unique")
    def _project_velocity(
        # In:
        pressure: wp.array(dtype=scalar, ndim=2),
        wx: wp.array(dtype=scalar, ndim=2),
        wy: wp.array(dtype=scalar, ndim=2),
        # Out:
        vx_out: wp.array(dtype=scalar, ndim=2),
        vy_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        n = pressure.shape[0]
        down = wp.where(i == n - 1, 0, i + 1)
        right = wp.where(j == n - 1, 0, j + 1)
        vx_out[i, j] = wx[i, j] - (pressure[down, j] - pressure[i, j]) * scalar(n)
        vy_out[i, j] = wy[i, j] - (pressure[i, right] - pressure[i, j]) * scalar(n)

    return _project_velocity


_GRID = "N N scalar"
advect = kernels.Op(
    "fluid.advect", make_advect,
    inputs={"vx": _GRID, "vy": _GRID, "field": _GRID}, outputs={"field_out": _GRID}, launch="N N",
)  # fmt: skip
divergence = kernels.Op(
    "fluid.divergence", make_divergence,
    inputs={"wx": _GRID, "wy": _GRID}, outputs={"divergence_out": _GRID}, launch="N N",
)  # fmt: skip
jacobi = kernels.Op(
    "fluid.jacobi", make_jacobi,
    inputs={"divergence": _GRID, "pressure": _GRID}, outputs={"pressure_out": _GRID}, launch="N N",
    backward=make_jacobi_adjoint,
)  # fmt: skip
project = kernels.Op(
    "fluid.project", make_project,
    inputs={"pressure": _GRID, "wx": _GRID, "wy": _GRID}, outputs={"vx_out": _GRID, "vy_out": _GRID}, launch="N N",
)  # fmt: skip


def fluid_step(iterations: int) -> Callable[[State, None], tuple[State, None]]:
    """The step of a time loop: velocities [cells per step], density and pressure, each (N, N)."""

    def step(state: State, x: None = None) -> tuple[State, None]:
        vx, vy, density, pressure = state
        wx, wy = advect(vx, vy, vx), advect(vx, vy, vy)
        source = divergence(wx, wy)
        for _ in range(iterations):
            pressure = jacobi(source, pressure)
        vx, vy = project(pressure, wx, wy)
        return (vx, vy, advect(vx, vy, density), pressure), None

    return step


def fluid_start(size: int) -> State:
    """A vortex pair, a disc of smoke and no pressure, on a grid of `size` x `size`."""
    axis = torch.linspace(0.0, 2.0 * torch.pi, size + 1)[:-1]
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return (
        0.8 * torch.cos(y) * torch.sin(x),
        -0.8 * torch.sin(y) * torch.cos(x),
        torch.exp(-2.0 * ((x - 3.0) ** 2 + (y - 2.5) ** 2)),
        torch.zeros(size, size),
    )


def fluid_target(size: int) -> Tensor:
    """Where the smoke should end up."""
    return fluid_start(size)[2].roll((size // 4, size // 3), (0, 1))


class WarpExample:
    """Warp's own example of checkpointing (512 x 512 cells), with our start and target, to stand beside.

    Args:
        steps: Time steps T.
        iterations: Jacobi iterations per step.
    """

    def __init__(self, steps: int, iterations: int):
        from warp.examples.optim.example_fluid_checkpoint import Example

        self.example: Any = Example(sim_steps=steps, pressure_iterations=iterations)
        self.example.target_wp = wp.from_torch(fluid_target(512))
        lists = [value for value in vars(self.example).values() if isinstance(value, list)]
        arrays = {id(a): a for values in lists for a in values if isinstance(a, wp.array)}
        self.bytes = sum(a.capacity + (a.grad.capacity if a.grad is not None else 0) for a in arrays.values())

    def gradient(self) -> list[Tensor]:
        """The gradient of the loss to the first velocities."""
        example = self.example
        for array in (
            *example.vx_arrays,
            *example.vy_arrays,
            *example.density_arrays,
            *example.pressure_arrays,
        ):
            array.grad.zero_()
        places = (example.vx_arrays, example.vy_arrays, example.density_arrays, example.pressure_arrays)
        for arrays, start in zip(places, fluid_start(512), strict=True):
            arrays[0].assign(np.ascontiguousarray(start.numpy()))
        example.forward()
        example.backward()
        return [wp.to_torch(arrays[0].grad).clone() for arrays in (example.vx_arrays, example.vy_arrays)]
