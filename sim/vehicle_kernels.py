"""Kernels of vehicles through time, made of the functions of one substep of any of them; adjoints by hand.

A vehicle is a namespace of Warp functions on fixed-size vectors: `prepare(parameters, time)` gives the coefficients of
a substep of that duration, `advance(state, control, coefficients, time)` the state after it, `reverse(state, control,
coefficients, time, gradient)` the gradients of state, control and coefficients, and `unprepare(parameters, time,
gradient)` that of the parameters.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp

from gradpath.sim.bicycle_functions import make_bicycle
from gradpath.sim.differential_drive_functions import make_differential_drive
from gradpath.sim.quadrotor_functions import make_quadrotor

_VEHICLES = {
    "quadrotor": make_quadrotor,
    "bicycle": make_bicycle,
    "differential_drive": make_differential_drive,
}


@functools.cache
def _make_access(scalar, size):
    """Return functions that read and write a vector of `size` numbers in a row of a flat array."""
    vec = wp.types.vector(size, scalar)
    floats = wp.array2d(dtype=scalar)

    @wp.func
    def read_vector(source: floats, row: int, at: int):
        value = vec()
        for k in range(wp.static(size)):
            value[k] = source[row, at + k]
        return value

    @wp.func
    def write_vector(target: floats, row: int, at: int, value: vec):
        for k in range(wp.static(size)):
            target[row, at + k] = value[k]

    return read_vector, write_vector


@functools.cache
def _kernels(scalar, name):
    vehicle = _VEHICLES[name](scalar)
    floats = wp.array2d(dtype=scalar)
    n, m = vehicle.state, vehicle.control
    vec_n, vec_k = wp.types.vector(n, scalar), wp.types.vector(vehicle.coefficients, scalar)
    vec_m = wp.types.vector(m, scalar)
    read_state, write_state = _make_access(scalar, n)
    read_control, write_control = _make_access(scalar, m)
    read_parameters, write_parameters = _make_access(scalar, vehicle.parameters)
    prepare, advance, reverse, unprepare = (
        vehicle.prepare, vehicle.advance, vehicle.reverse, vehicle.unprepare,
    )  # fmt: skip
    # Both kernels in one module: the compiler reads Warp's headers once.
    module = wp.get_module(f"gradpath_{name}_{scalar.__name__}")
    module.options["enable_backward"] = False

    @wp.kernel(module=module, enable_backward=False)
    def _drive(
        first: int,
        # Model:
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, n)
        control: floats,  # (B, T * m), constant during a step
        steps: int,
        substeps: int,
        time: scalar,  # [s] of a substep
        # Out:
        work: floats,
        states: floats,  # (B, T * n) after each step
    ):
        world = first + wp.tid()
        coefficients = prepare(read_parameters(params, world % params.shape[0], 0), time)
        x = read_state(state, world, 0)
        for t in range(steps):
            u = read_control(control, world, t * wp.static(m))
            for _s in range(substeps):
                x = advance(x, u, coefficients, time)
            write_state(states, world, t * wp.static(n), x)

    @wp.kernel(module=module, enable_backward=False)
    def _drive_adjoint(
        first: int,
        # Model:
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, n)
        control: floats,  # (B, T * m)
        states: floats,  # (B, T * n)
        steps: int,
        substeps: int,
        time: scalar,  # [s] of a substep
        grad_states: floats,  # (B, T * n)
        # Out:
        work: floats,  # (B, substeps * n)
        grad_params: floats,  # (B, P), or without rows
        grad_state: floats,  # (B, n)
        grad_control: floats,  # (B, T * m)
    ):
        world = first + wp.tid()
        p = read_parameters(params, world % params.shape[0], 0)
        coefficients = prepare(p, time)
        grad_x, grad_k = vec_n(), vec_k()
        for back in range(steps):
            t = steps - 1 - back
            u = read_control(control, world, t * wp.static(m))
            x = read_state(state, world, 0)
            if t > 0:
                x = read_state(states, world, (t - 1) * wp.static(n))
            for s in range(substeps - 1):
                write_state(work, world, s * wp.static(n), x)
                x = advance(x, u, coefficients, time)
            grad_x += read_state(grad_states, world, t * wp.static(n))
            grad_u = vec_m()
            for s in range(substeps):
                if s > 0:
                    x = read_state(work, world, (substeps - 1 - s) * wp.static(n))
                by_x, by_u, by_k = reverse(x, u, coefficients, time, grad_x)
                grad_x = by_x
                grad_u += by_u
                grad_k += by_k
            write_control(grad_control, world, t * wp.static(m), grad_u)
        write_state(grad_state, world, 0, grad_x)
        if grad_params.shape[0] > 0:
            write_parameters(grad_params, world, 0, unprepare(p, time, grad_k))

    return {"drive": _drive, "adjoint": _drive_adjoint}


def make_drive(scalar, name):
    """Return the kernel of the motion of a vehicle over many steps."""
    return _kernels(scalar, name)["drive"]


def make_drive_adjoint(scalar, name):
    """Return the kernel of its gradient, which computes the states of substeps again."""
    return _kernels(scalar, name)["adjoint"]
