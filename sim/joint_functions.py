"""Forces of dampers, springs, dry friction, stops and actuators in the joints, and their adjoint by hand."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.spatial import make_memory
from gradpath.sim.tree import ACTUATOR_NUMBERS, ACTUATOR_OFFSETS, JOINT_OFFSETS, Trees
from gradpath.sim.tree_functions import DAMPING, DOF

DRY_FRICTION = wp.constant(JOINT_OFFSETS["dry_friction"])
STIFFNESS = wp.constant(JOINT_OFFSETS["stiffness"])
REST = wp.constant(JOINT_OFFSETS["rest"])
LOWER = wp.constant(JOINT_OFFSETS["lower"])
UPPER = wp.constant(JOINT_OFFSETS["upper"])
LIMIT_STIFFNESS = wp.constant(JOINT_OFFSETS["limit_stiffness"])
LIMIT_DISSIPATION = wp.constant(JOINT_OFFSETS["limit_dissipation"])
LIMIT_WIDTH = wp.constant(JOINT_OFFSETS["limit_width"])
ACTUATOR = wp.constant(ACTUATOR_NUMBERS)
GEAR = wp.constant(ACTUATOR_OFFSETS["gear"])
GAIN = wp.constant(ACTUATOR_OFFSETS["gain"])
BIAS = wp.constant(ACTUATOR_OFFSETS["bias"])
CONTROL_RANGE = wp.constant(ACTUATOR_OFFSETS["control_range"])
FORCE_RANGE = wp.constant(ACTUATOR_OFFSETS["force_range"])

SLIP = 0.05  # [rad/s or m/s] below which dry friction fades


@functools.cache
def make_joint_forces(scalar):
    """Return the function of all joint forces and its adjoint, as attributes."""
    vec2, vec3 = wp.types.vector(2, scalar), wp.types.vector(3, scalar)
    floats = wp.array2d(dtype=scalar)
    memory = make_memory(scalar)

    @wp.func
    def stop_ramp(depth: scalar, width: scalar):
        """Depth, smoothed within the width: zero below -width; and its derivatives by depth and by width."""
        if depth <= -width:
            return vec3()
        if depth >= width:
            return vec3(depth, scalar(1.0), scalar(0.0))
        slope = (depth + width) / (scalar(2.0) * width)
        return vec3(slope * slope * width, slope, slope * (scalar(1.0) - slope))

    @wp.func
    def stop_force(params: floats, row: int, at: int, depth: scalar, rate: scalar):
        """Force of a stop that is pressed in by `depth` at `rate`: it dissipates, and never pulls."""
        ramp = stop_ramp(depth, params[row, at + LIMIT_WIDTH])
        damped = scalar(1.0) + wp.tanh(params[row, at + LIMIT_DISSIPATION] * rate)
        return params[row, at + LIMIT_STIFFNESS] * ramp[0] * damped

    @wp.func
    def stop_force_adjoint(
        params: floats,
        row: int,
        at: int,
        depth: scalar,
        rate: scalar,
        seed: scalar,
        grads: floats,
        world: int,
    ):
        """Return the gradients by depth and rate; add those of the stop."""
        stiffness, dissipation = params[row, at + LIMIT_STIFFNESS], params[row, at + LIMIT_DISSIPATION]
        ramp = stop_ramp(depth, params[row, at + LIMIT_WIDTH])
        bend = wp.tanh(dissipation * rate)
        damped, slope = scalar(1.0) + bend, (scalar(1.0) - bend * bend) * stiffness * ramp[0] * seed
        if grads.shape[0] > 0:
            grads[world, at + LIMIT_STIFFNESS] = grads[world, at + LIMIT_STIFFNESS] + seed * ramp[0] * damped
            grads[world, at + LIMIT_DISSIPATION] = grads[world, at + LIMIT_DISSIPATION] + slope * rate
            grads[world, at + LIMIT_WIDTH] = (
                grads[world, at + LIMIT_WIDTH] + seed * stiffness * ramp[2] * damped
            )
        return vec2(seed * stiffness * ramp[1] * damped, slope * dissipation)

    @wp.func
    def passive_force(
        tree: Trees, params: floats, row: int, work: floats, slot: int, dof: int, q_at: int, v_at: int
    ):
        at = tree[0].joint_parameters + dof * DOF
        v = work[slot, v_at + dof]
        slip = scalar(wp.static(SLIP))
        force = -params[row, at + DRY_FRICTION] * v / wp.sqrt(v * v + slip * slip)
        place = tree[0].dof_coordinate[dof]
        if place >= 0:
            q = work[slot, q_at + place]
            force -= params[row, at + STIFFNESS] * (q - params[row, at + REST])
            force += stop_force(params, row, at, params[row, at + LOWER] - q, -v)
            force -= stop_force(params, row, at, q - params[row, at + UPPER], v)
        return force

    @wp.func
    def passive_force_adjoint(
        tree: Trees, params: floats, row: int, work: floats, slot: int, dof: int, q_at: int, v_at: int,
        seed: scalar, grad_q_at: int, grad_v_at: int, grads: floats, world: int,
    ):  # fmt: skip
        at = tree[0].joint_parameters + dof * DOF
        v = work[slot, v_at + dof]
        slip = scalar(wp.static(SLIP))
        speed = wp.sqrt(v * v + slip * slip)
        friction = params[row, at + DRY_FRICTION]
        grad_v = -seed * friction * slip * slip / (speed * speed * speed)
        if grads.shape[0] > 0:
            grads[world, at + DRY_FRICTION] = grads[world, at + DRY_FRICTION] - seed * v / speed
        place = tree[0].dof_coordinate[dof]
        if place >= 0:
            q, stiffness = work[slot, q_at + place], params[row, at + STIFFNESS]
            below, above = params[row, at + LOWER] - q, q - params[row, at + UPPER]
            low = stop_force_adjoint(params, row, at, below, -v, seed, grads, world)
            high = stop_force_adjoint(params, row, at, above, v, -seed, grads, world)
            grad_v += high[1] - low[1]
            work[slot, grad_q_at + place] = (
                work[slot, grad_q_at + place] - seed * stiffness + high[0] - low[0]
            )
            if grads.shape[0] > 0:
                grads[world, at + STIFFNESS] = grads[world, at + STIFFNESS] - seed * (
                    q - params[row, at + REST]
                )
                grads[world, at + REST] = grads[world, at + REST] + seed * stiffness
                grads[world, at + LOWER] = grads[world, at + LOWER] + low[0]
                grads[world, at + UPPER] = grads[world, at + UPPER] - high[0]
        work[slot, grad_v_at + dof] = work[slot, grad_v_at + dof] + grad_v

    @wp.func(inline=False)
    def add_damping(tree: Trees, params: floats, row: int, work: floats, slot: int, v_at: int, out_at: int):
        """Add the force of the dampers."""
        for dof in range(tree[0].freedoms):
            damping = params[row, tree[0].joint_parameters + dof * DOF + DAMPING]
            work[slot, out_at + dof] = work[slot, out_at + dof] - damping * work[slot, v_at + dof]

    @wp.func(inline=False)
    def add_damping_adjoint(
        tree: Trees, params: floats, row: int, work: floats, slot: int, v_at: int, seed_at: int, grad_v_at: int,
        grads: floats, world: int,
    ):  # fmt: skip
        for dof in range(tree[0].freedoms):
            at = tree[0].joint_parameters + dof * DOF + DAMPING
            seed = work[slot, seed_at + dof]
            work[slot, grad_v_at + dof] = work[slot, grad_v_at + dof] - seed * params[row, at]
            if grads.shape[0] > 0:
                grads[world, at] = grads[world, at] - seed * work[slot, v_at + dof]

    @wp.func
    def within(value: scalar, params: floats, row: int, at: int):
        """Limit a value to a range; what is not finite stays so, instead of becoming a full command."""
        if not wp.isfinite(value):
            return value
        return wp.max(wp.min(value, params[row, at + 1]), params[row, at])

    @wp.func
    def within_adjoint(
        value: scalar, params: floats, row: int, at: int, seed: scalar, grads: floats, world: int
    ):
        """Gradient of the value inside the range; outside, the limit has it."""
        if value < params[row, at]:
            if grads.shape[0] > 0:
                grads[world, at] = grads[world, at] + seed
            return scalar(0.0)
        if value > params[row, at + 1]:
            if grads.shape[0] > 0:
                grads[world, at + 1] = grads[world, at + 1] + seed
            return scalar(0.0)
        return seed

    @wp.func
    def actuator_length(tree: Trees, work: floats, slot: int, dof: int, q_at: int):
        if tree[0].dof_coordinate[dof] >= 0:
            return work[slot, q_at + tree[0].dof_coordinate[dof]]
        return scalar(0.0)

    @wp.func(inline=False)
    def sum_joint_forces(
        tree: Trees, params: floats, row: int, work: floats, slot: int, q_at: int, v_at: int,
        control: floats, world: int, first: int, out_at: int,
    ):  # fmt: skip
        """Write the force of all in the joints but dampers; the control of actuator a is in column `first + a`."""
        for dof in range(tree[0].freedoms):
            work[slot, out_at + dof] = passive_force(tree, params, row, work, slot, dof, q_at, v_at)
        for a in range(tree[0].actuators):
            at, acted = tree[0].actuator_parameters + a * ACTUATOR, tree[0].actuator_dof[a]
            gear, bias = params[row, at + GEAR], memory.read_vec3(params, row, at + BIAS)
            length = gear * actuator_length(tree, work, slot, acted, q_at)
            command = within(control[world, first + a], params, row, at + CONTROL_RANGE)
            force = params[row, at + GAIN] * command + bias[0] + bias[1] * length
            force += bias[2] * gear * work[slot, v_at + acted]
            limited = gear * within(force, params, row, at + FORCE_RANGE)
            work[slot, out_at + acted] = work[slot, out_at + acted] + limited

    @wp.func(inline=False)
    def sum_joint_forces_adjoint(
        tree: Trees, params: floats, row: int, work: floats, slot: int, q_at: int, v_at: int,
        control: floats, world: int, first: int, seed_at: int,
        grad_q_at: int, grad_v_at: int, grads: floats, grad_control: floats,
    ):  # fmt: skip
        """Add the gradients of `sum_joint_forces`."""
        for dof in range(tree[0].freedoms):
            seed = work[slot, seed_at + dof]
            passive_force_adjoint(
                tree, params, row, work, slot, dof, q_at, v_at, seed, grad_q_at, grad_v_at, grads, world
            )
        for a in range(tree[0].actuators):
            at, acted = tree[0].actuator_parameters + a * ACTUATOR, tree[0].actuator_dof[a]
            gear, gain = params[row, at + GEAR], params[row, at + GAIN]
            bias = memory.read_vec3(params, row, at + BIAS)
            position, v = actuator_length(tree, work, slot, acted, q_at), work[slot, v_at + acted]
            given = control[world, first + a]
            command = within(given, params, row, at + CONTROL_RANGE)
            force = gain * command + bias[0] + gear * (bias[1] * position + bias[2] * v)
            torque = work[slot, seed_at + acted]
            seed = within_adjoint(force, params, row, at + FORCE_RANGE, torque * gear, grads, world)
            through = within_adjoint(given, params, row, at + CONTROL_RANGE, seed * gain, grads, world)
            grad_control[world, first + a] = grad_control[world, first + a] + through
            work[slot, grad_v_at + acted] = work[slot, grad_v_at + acted] + seed * bias[2] * gear
            place = tree[0].dof_coordinate[acted]
            if place >= 0:
                work[slot, grad_q_at + place] = work[slot, grad_q_at + place] + seed * bias[1] * gear
            if grads.shape[0] > 0:
                limited = within(force, params, row, at + FORCE_RANGE)
                by_gear = torque * limited + seed * (bias[1] * position + bias[2] * v)
                grads[world, at + GEAR] = grads[world, at + GEAR] + by_gear
                grads[world, at + GAIN] = grads[world, at + GAIN] + seed * command
                memory.add_vec3(grads, world, at + BIAS, seed * vec3(scalar(1.0), gear * position, gear * v))

    return SimpleNamespace(
        sum=sum_joint_forces,
        sum_adjoint=sum_joint_forces_adjoint,
        damping=add_damping,
        damping_adjoint=add_damping_adjoint,
    )
