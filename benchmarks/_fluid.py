"""A 2-D smoke step in Warp kernels: advection, pressure, projection. A long loop of cheap steps with a large state."""

import torch
import warp as wp
from torch import Tensor

from gradpath import kernels

JACOBI_ITERATIONS = 4


def make_advect(scalar):
    """Factory of the semi-Lagrangian step of one field, on a periodic grid with cells of size 1."""

    @wp.kernel
    def _advect_field(
        # In:
        field: wp.array(dtype=scalar, ndim=2),  # (H, W)
        u: wp.array(dtype=scalar, ndim=2),  # cells per step along W
        v: wp.array(dtype=scalar, ndim=2),  # along H
        # Out:
        field_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        h = field.shape[0]
        w = field.shape[1]
        y = scalar(i) - v[i, j]
        x = scalar(j) - u[i, j]
        y0 = wp.floor(y)
        x0 = wp.floor(x)
        fy = y - y0
        fx = x - x0
        top = ((int(y0) % h) + h) % h
        left = ((int(x0) % w) + w) % w
        low = (top + 1) % h
        right = (left + 1) % w
        one = scalar(1.0)
        upper = (one - fx) * field[top, left] + fx * field[top, right]
        lower = (one - fx) * field[low, left] + fx * field[low, right]
        field_out[i, j] = (one - fy) * upper + fy * lower

    return _advect_field


def make_divergence(scalar):
    """Factory of central differences of the velocity."""

    @wp.kernel
    def _measure_divergence(
        u: wp.array(dtype=scalar, ndim=2),
        v: wp.array(dtype=scalar, ndim=2),
        divergence_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        h = u.shape[0]
        w = u.shape[1]
        du = u[i, (j + 1) % w] - u[i, (j + w - 1) % w]
        dv = v[(i + 1) % h, j] - v[(i + h - 1) % h, j]
        divergence_out[i, j] = scalar(0.5) * (du + dv)

    return _measure_divergence


def make_jacobi(scalar):
    """Factory of one Jacobi iteration for the pressure."""

    @wp.kernel
    def _relax_pressure(
        pressure: wp.array(dtype=scalar, ndim=2),
        divergence: wp.array(dtype=scalar, ndim=2),
        pressure_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        h = pressure.shape[0]
        w = pressure.shape[1]
        beside = pressure[i, (j + 1) % w] + pressure[i, (j + w - 1) % w]
        above = pressure[(i + 1) % h, j] + pressure[(i + h - 1) % h, j]
        pressure_out[i, j] = scalar(0.25) * (beside + above - divergence[i, j])

    return _relax_pressure


def make_project(scalar):
    """Factory of the velocity without the gradient of the pressure."""

    @wp.kernel
    def _project_velocity(
        u: wp.array(dtype=scalar, ndim=2),
        v: wp.array(dtype=scalar, ndim=2),
        pressure: wp.array(dtype=scalar, ndim=2),
        u_out: wp.array(dtype=scalar, ndim=2),
        v_out: wp.array(dtype=scalar, ndim=2),
    ):
        i, j = wp.tid()
        h = u.shape[0]
        w = u.shape[1]
        u_out[i, j] = u[i, j] - scalar(0.5) * (pressure[i, (j + 1) % w] - pressure[i, (j + w - 1) % w])
        v_out[i, j] = v[i, j] - scalar(0.5) * (pressure[(i + 1) % h, j] - pressure[(i + h - 1) % h, j])

    return _project_velocity


_GRID = "H W scalar"
advect = kernels.Op(
    "fluid.advect", make_advect,
    inputs={"field": _GRID, "u": _GRID, "v": _GRID}, outputs={"field_out": _GRID}, launch="H W",
)  # fmt: skip
divergence = kernels.Op(
    "fluid.divergence", make_divergence,
    inputs={"u": _GRID, "v": _GRID}, outputs={"divergence_out": _GRID}, launch="H W",
)  # fmt: skip
jacobi = kernels.Op(
    "fluid.jacobi", make_jacobi,
    inputs={"pressure": _GRID, "divergence": _GRID}, outputs={"pressure_out": _GRID}, launch="H W",
)  # fmt: skip
project = kernels.Op(
    "fluid.project", make_project,
    inputs={"u": _GRID, "v": _GRID, "pressure": _GRID}, outputs={"u_out": _GRID, "v_out": _GRID}, launch="H W",
)  # fmt: skip


def fluid_step(
    state: tuple[Tensor, Tensor, Tensor], x: None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], None]:
    """Carry smoke and velocity one step on.

    Args:
        state: Velocity along W and H [cells per step] and density, each (H, W).
        x: Nothing, for a time loop.
    """
    u, v, density = state
    u, v, density = advect(u, u, v), advect(v, u, v), advect(density, u, v)
    source = divergence(u, v)
    pressure = torch.zeros_like(source)
    for _ in range(JACOBI_ITERATIONS):
        pressure = jacobi(pressure, source)
    u, v = project(u, v, pressure)
    return (u, v, density), None


def fluid_start(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A vortex pair and a disc of smoke, on a grid of `size` x `size`."""
    axis = torch.linspace(0.0, 2.0 * torch.pi, size + 1)[:-1]
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return (
        0.8 * torch.sin(x) * torch.cos(y),
        -0.8 * torch.cos(x) * torch.sin(y),
        torch.exp(-2.0 * ((x - 3.0) ** 2 + (y - 2.5) ** 2)),
    )
