"""Kernels of joint forces and of motion through time, each one world per thread; their adjoints are written by hand."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.dynamics_kernels import build_rows
from gradpath.sim.joint_functions import make_joint_forces
from gradpath.sim.kinematics_functions import make_drift
from gradpath.sim.mass_functions import make_mass_matrix
from gradpath.sim.spatial import make_memory
from gradpath.sim.tree import Trees
from gradpath.sim.tree_adjoints import make_adjoints
from gradpath.sim.tree_functions import ARMATURE, DAMPING, DOF, make_recursions


@functools.cache
def make_midpoint(scalar):
    """Return the functions of one integration step and its adjoint, as attributes.

    Half a drift, accelerations at the middle with the velocity of the start, again with the velocity in the middle
    that they give, and the other half of the drift: of second order, symplectic where the inertia is constant.
    Viscous damping is implicit, by the trapezoidal rule: its force is that of the mean of both velocities.
    """
    floats = wp.array2d(dtype=scalar)
    clear_row = make_memory(scalar).clear_row
    recursions, mass, motion = make_recursions(scalar), make_mass_matrix(scalar), make_drift(scalar)
    adjoints, joint = make_adjoints(scalar), make_joint_forces(scalar)
    half = 0.5

    @wp.func
    def accelerate(
        tree: Trees, params: floats, row: int, work: floats, slot: int, v_at: int, a_at: int,
        control: floats, world: int, first: int,
    ):  # fmt: skip
        """Write the accelerations at the middle; the mass matrix is factorized already."""
        recursions.newton_euler(tree, params, row, work, slot, v_at, -1, tree[0].tau)
        joint.sum(tree, params, row, work, slot, tree[0].q_middle, v_at, control, world, first, tree[0].force)
        joint.damping(tree, params, row, work, slot, tree[0].qd, tree[0].force)
        for dof in range(tree[0].freedoms):
            work[slot, a_at + dof] = work[slot, tree[0].force + dof] - work[slot, tree[0].tau + dof]
        mass.solve(tree, work, slot, a_at)

    @wp.func
    def accelerate_adjoint(
        tree: Trees, params: floats, row: int, work: floats, slot: int, v_at: int, a_at: int, grad_v_at: int,
        time: scalar, control: floats, world: int, first: int, loaded: int, load_first: int,
        grad_params: floats, grad_control: floats, grad_wrench: floats,
    ):  # fmt: skip
        """Add the gradients of `accelerate`; `tree.seed` holds that of its result, and is overwritten."""
        mass.solve(tree, work, slot, tree[0].seed)
        joint.sum_adjoint(
            tree, params, row, work, slot, tree[0].q_middle, v_at, control, world, first, tree[0].seed,
            tree[0].grad_q_middle, grad_v_at, grad_params, grad_control,
        )  # fmt: skip
        joint.damping_adjoint(
            tree, params, row, work, slot, tree[0].qd, tree[0].seed, tree[0].grad_qd, grad_params, world
        )
        for dof in range(tree[0].freedoms):
            value = -work[slot, tree[0].seed + dof]
            work[slot, tree[0].seed + dof] = value
            if grad_params.shape[0] > 0:
                at = tree[0].joint_parameters + dof * DOF
                by_inertia = value * work[slot, a_at + dof]
                grad_params[world, at + ARMATURE] = grad_params[world, at + ARMATURE] + by_inertia
                by_damping = scalar(half) * time * by_inertia
                grad_params[world, at + DAMPING] = grad_params[world, at + DAMPING] + by_damping
        recursions.newton_euler(tree, params, row, work, slot, v_at, a_at, tree[0].tau)
        adjoints.newton_euler(
            tree, params, row, work, slot, tree[0].q_middle, v_at, a_at, tree[0].seed, tree[0].grad_q_middle,
            grad_v_at, -1,
            grad_params, grad_wrench, world, loaded, load_first,
        )  # fmt: skip

    @wp.func
    def halfway(
        tree: Trees, params: floats, row: int, work: floats, slot: int, time: scalar,
        control: floats, first: int, wrench: floats, load_first: int, world: int,
    ):  # fmt: skip
        """From the state at the start to coordinates and velocities in the middle and the velocity at the end."""
        motion.drift(tree, work, slot, tree[0].q, tree[0].qd, scalar(half) * time, tree[0].q_middle)
        recursions.place(tree, params, row, work, slot, tree[0].q_middle)
        recursions.load(tree, work, slot, wrench, world, load_first)
        mass.make(tree, params, row, work, slot, scalar(half) * time)
        mass.factorize(tree, work, slot)
        # A loop, so that the compiler sees the accelerations once.
        v_at, a_at, out_at, duration = (
            int(tree[0].qd),
            int(tree[0].qdd),
            int(tree[0].qd_middle),
            scalar(half) * time,
        )
        for _stage in range(tree[0].stages):
            accelerate(tree, params, row, work, slot, v_at, a_at, control, world, first)
            for dof in range(tree[0].freedoms):
                work[slot, out_at + dof] = work[slot, tree[0].qd + dof] + duration * work[slot, a_at + dof]
            v_at, a_at, out_at = int(tree[0].qd_middle), int(tree[0].qdd_middle), int(tree[0].qd_end)
            duration = time

    @wp.func
    def finish(tree: Trees, work: floats, slot: int, time: scalar):
        """From the middle to the state at the end, in place of that at the start."""
        motion.drift(tree, work, slot, tree[0].q_middle, tree[0].qd_end, scalar(half) * time, tree[0].q)
        for dof in range(tree[0].freedoms):
            work[slot, tree[0].qd + dof] = work[slot, tree[0].qd_end + dof]

    @wp.func
    def reverse_step(
        tree: Trees, params: floats, row: int, work: floats, slot: int, time: scalar,
        control: floats, first: int, wrench: floats, load_first: int, world: int,
        grad_params: floats, grad_control: floats, grad_wrench: floats,
    ):  # fmt: skip
        """Replace the gradient of the state at the end by that of the state at the start; after `halfway`."""
        loaded = wp.min(wrench.shape[1], 1)
        clear_row(work, slot, tree[0].grad_q_middle, tree[0].coordinates)
        clear_row(work, slot, tree[0].grad_qd_middle, tree[0].freedoms)
        motion.drift_adjoint(
            tree, work, slot, tree[0].q_middle, tree[0].qd_end, scalar(half) * time,
            tree[0].grad_q, tree[0].grad_q_middle, tree[0].grad_qd,
        )  # fmt: skip
        v_at, a_at, grad_v_at = int(tree[0].qd_middle), int(tree[0].qdd_middle), int(tree[0].grad_qd_middle)
        for dof in range(tree[0].freedoms):
            work[slot, tree[0].seed + dof] = time * work[slot, tree[0].grad_qd + dof]
        for _stage in range(tree[0].stages):
            accelerate_adjoint(
                tree, params, row, work, slot, v_at, a_at, grad_v_at, time, control, world, first, loaded,
                load_first, grad_params, grad_control, grad_wrench,
            )  # fmt: skip
            if v_at == tree[0].qd_middle:
                for dof in range(tree[0].freedoms):
                    through = work[slot, tree[0].grad_qd_middle + dof]
                    work[slot, tree[0].grad_qd + dof] = work[slot, tree[0].grad_qd + dof] + through
                    work[slot, tree[0].seed + dof] = scalar(half) * time * through
            v_at, a_at, grad_v_at = int(tree[0].qd), int(tree[0].qdd), int(tree[0].grad_qd)
        clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        motion.drift_adjoint(
            tree,
            work,
            slot,
            tree[0].q,
            tree[0].qd,
            scalar(half) * time,
            tree[0].grad_q_middle,
            tree[0].grad_q,
            tree[0].grad_qd,
        )

    return SimpleNamespace(halfway=halfway, finish=finish, reverse=reverse_step)


def build_motion(scalar, module):
    """Return the kernels of motion over many steps, and of its gradient."""
    floats = wp.array2d(dtype=scalar)
    rows, memory, midpoint = build_rows(scalar), make_memory(scalar), make_midpoint(scalar)

    @wp.func
    def copy_state(
        tree: Trees,
        source: floats,
        from_row: int,
        from_at: int,
        target: floats,
        row: int,
        q_at: int,
        qd_at: int,
    ):
        """Take coordinates and velocities that lie side by side apart."""
        for k in range(tree[0].coordinates):
            target[row, q_at + k] = source[from_row, from_at + k]
        for k in range(tree[0].freedoms):
            target[row, qd_at + k] = source[from_row, from_at + tree[0].coordinates + k]

    @wp.kernel(module=module, enable_backward=False)
    def _move(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, nq + nv)
        control: floats,  # (B, T * nu), constant during a step
        wrench: floats,  # (B, T * N * 6), or without columns
        steps: int,
        substeps: int,
        time: scalar,  # [s] of a substep
        # Out:
        work: floats,  # (B, scratch)
        states: floats,  # (B, T * (nq + nv)) after each step
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        size = tree[0].coordinates + tree[0].freedoms
        copy_state(tree, state, world, 0, work, slot, tree[0].q, tree[0].qd)
        for t in range(steps):
            for _s in range(substeps):
                midpoint.halfway(
                    tree, params, row, work, slot, time, control, t * tree[0].actuators, wrench, t * tree[0].bodies * 6,
                    world,
                )  # fmt: skip
                midpoint.finish(tree, work, slot, time)
            for k in range(tree[0].coordinates):
                states[world, t * size + k] = work[slot, tree[0].q + k]
            for k in range(tree[0].freedoms):
                states[world, t * size + tree[0].coordinates + k] = work[slot, tree[0].qd + k]

    @wp.kernel(module=module, enable_backward=False)
    def _move_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, nq + nv)
        control: floats,  # (B, T * nu)
        wrench: floats,  # (B, T * N * 6), or without columns
        states: floats,  # (B, T * (nq + nv))
        steps: int,
        substeps: int,
        time: scalar,  # [s] of a substep
        grad_states: floats,  # (B, T * (nq + nv))
        # Out:
        work: floats,  # (B, scratch + substeps * (nq + nv))
        grad_params: floats,  # (B, P), or without rows
        grad_state: floats,  # (B, nq + nv)
        grad_control: floats,  # (B, T * nu)
        grad_wrench: floats,  # (B, T * N * 6), or without columns
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        size = tree[0].coordinates + tree[0].freedoms
        memory.clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_qd, tree[0].freedoms)
        for reverse in range(steps):
            t = steps - 1 - reverse
            at = t * size
            for k in range(tree[0].coordinates):
                work[slot, tree[0].grad_q + k] = work[slot, tree[0].grad_q + k] + grad_states[world, at + k]
            for k in range(tree[0].freedoms):
                gradient = grad_states[world, at + tree[0].coordinates + k]
                work[slot, tree[0].grad_qd + k] = work[slot, tree[0].grad_qd + k] + gradient
            if t == 0:
                copy_state(tree, state, world, 0, work, slot, tree[0].q, tree[0].qd)
            else:
                copy_state(tree, states, world, at - size, work, slot, tree[0].q, tree[0].qd)
            controls, loads = t * tree[0].actuators, t * tree[0].bodies * 6
            # Forth, keeping the states of the substeps, and back, finding the middle of each again.
            for turn in range(2 * substeps - 1):
                kept = tree[0].history + wp.min(turn, 2 * substeps - 2 - turn) * size
                if turn < substeps:
                    rows.copy(work, slot, tree[0].q, kept, tree[0].coordinates)
                    rows.copy(work, slot, tree[0].qd, kept + tree[0].coordinates, tree[0].freedoms)
                else:
                    rows.copy(work, slot, kept, tree[0].q, tree[0].coordinates)
                    rows.copy(work, slot, kept + tree[0].coordinates, tree[0].qd, tree[0].freedoms)
                midpoint.halfway(tree, params, row, work, slot, time, control, controls, wrench, loads, world)
                if turn + 1 < substeps:
                    midpoint.finish(tree, work, slot, time)
                else:
                    midpoint.reverse(
                        tree, params, row, work, slot, time, control, controls, wrench, loads, world,
                        grad_params, grad_control, grad_wrench,
                    )  # fmt: skip
        for k in range(tree[0].coordinates):
            grad_state[world, k] = work[slot, tree[0].grad_q + k]
        for k in range(tree[0].freedoms):
            grad_state[world, tree[0].coordinates + k] = work[slot, tree[0].grad_qd + k]

    return SimpleNamespace(move=_move, move_adjoint=_move_adjoint)


def build_joint_forces(scalar, module):
    """Return the kernels of joint forces, and of their gradient."""
    floats = wp.array2d(dtype=scalar)
    rows, memory, joint = build_rows(scalar), make_memory(scalar), make_joint_forces(scalar)

    @wp.kernel(module=module, enable_backward=False)
    def _sum_joint_forces(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv)
        control: floats,  # (B, nu)
        # Out:
        work: floats,  # (B, scratch)
        force: floats,  # (B, nv)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        joint.sum(tree, params, row, work, slot, tree[0].q, tree[0].qd, control, world, 0, tree[0].force)
        joint.damping(tree, params, row, work, slot, tree[0].qd, tree[0].force)
        rows.store(work, slot, tree[0].force, force, world, tree[0].freedoms)

    @wp.kernel(module=module, enable_backward=False)
    def _sum_joint_forces_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv)
        control: floats,  # (B, nu)
        grad_force: floats,  # (B, nv)
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, P), or without rows
        grad_q: floats,  # (B, nq)
        grad_qd: floats,  # (B, nv)
        grad_control: floats,  # (B, nu)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        rows.load(grad_force, world, work, slot, tree[0].seed, tree[0].freedoms)
        memory.clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_qd, tree[0].freedoms)
        joint.sum_adjoint(
            tree, params, row, work, slot, tree[0].q, tree[0].qd, control, world, 0, tree[0].seed, tree[0].grad_q,
            tree[0].grad_qd,
            grad_params, grad_control,
        )  # fmt: skip
        joint.damping_adjoint(
            tree, params, row, work, slot, tree[0].qd, tree[0].seed, tree[0].grad_qd, grad_params, world
        )
        rows.store(work, slot, tree[0].grad_q, grad_q, world, tree[0].coordinates)
        rows.store(work, slot, tree[0].grad_qd, grad_qd, world, tree[0].freedoms)

    return SimpleNamespace(joint_forces=_sum_joint_forces, joint_forces_adjoint=_sum_joint_forces_adjoint)
