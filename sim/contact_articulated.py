"""One integration step of an articulated model in contact, as kernels: one world per thread, adjoints by hand.

The step is that of `gradpath.sim.step_kernels`, with the velocities at its end changed by the contacts that are found
where the bodies are in its middle.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.contact_adjoint import make_contact_adjoint
from gradpath.sim.contact_rows import BY_START, CHANGE, IMPULSE, Touches, make_contact_rows
from gradpath.sim.contact_solve import make_contact_solve
from gradpath.sim.dynamics_kernels import build_rows
from gradpath.sim.kinematics_functions import ORIENTATION, POSITION, make_drift, make_kinematics
from gradpath.sim.spatial import make_memory, make_spatial
from gradpath.sim.step_kernels import make_midpoint
from gradpath.sim.tree import Trees
from gradpath.sim.tree_adjoints import make_joint_adjoints
from gradpath.sim.tree_functions import SCRATCH, make_joints, make_recursions


@functools.cache
def make_articulated_contact(scalar):
    """Return the functions that lead from a tree to its contacts and back, as attributes."""
    floats = wp.array2d(dtype=scalar)
    memory, space, joints = make_memory(scalar), make_spatial(scalar), make_joints(scalar)
    joint_adjoints = make_joint_adjoints(scalar)

    @wp.func
    def body_attitude(pose: floats, world: int, i: int):
        return wp.normalize(memory.read_quat(pose, world, 7 * i + 3))

    @wp.func(inline=False)
    def write_columns(
        tree: Trees,
        touch: Touches,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        pose: floats,
        world: int,
    ):
        for i in range(tree[0].bodies):
            attitude, kind = body_attitude(pose, world, i), tree[0].kind[i]
            for k in range(joints.freedoms(kind)):
                column = joints.column(params, row, kind, i, k)
                at = touch[0].columns + 36 * i + 6 * k
                memory.write_vec3(work, slot, at, wp.quat_rotate(attitude, space.linear(column)))
                memory.write_vec3(work, slot, at + 3, wp.quat_rotate(attitude, space.angular(column)))

    @wp.func(inline=False)
    def write_inertia(tree: Trees, touch: Touches, work: floats, slot: int):
        """The lower half of L^T L, from the factorized mass matrix."""
        n = tree[0].freedoms
        memory.clear_row(work, slot, touch[0].inertia, n * n)
        for k in range(n):
            i = int(k)
            while i >= 0:
                factor = work[slot, tree[0].matrix + k * n + i]
                j = int(i)
                while j >= 0:
                    place = touch[0].inertia + i * n + j
                    work[slot, place] = work[slot, place] + factor * work[slot, tree[0].matrix + k * n + j]
                    j = tree[0].dof_parent[j]
                i = tree[0].dof_parent[i]

    @wp.func(inline=False)
    def reverse_columns(
        tree: Trees, touch: Touches, params: floats, row: int, work: floats, slot: int, pose: floats, world: int,
        x: int, grad_pose: floats, grad_params: floats,
    ):  # fmt: skip
        """Add the gradients of the joints' twists, which have the wrenches: of attitudes, axes and anchors."""
        for i in range(tree[0].bodies):
            at = touch[0].wrench + 6 * i
            attitude = body_attitude(pose, world, i)
            force = wp.quat_rotate_inv(attitude, memory.read_vec3(work, slot, at))
            torque = wp.quat_rotate_inv(attitude, memory.read_vec3(work, slot, at + 3))
            s = joints.twist(tree, params, row, work, slot, i, x)
            turn = wp.cross(space.linear(s), force) + wp.cross(space.angular(s), torque)
            given = memory.read_quat(pose, world, 7 * i + 3)
            gradient = space.quat_turned(attitude, turn) * (scalar(2.0) / wp.length(given))
            memory.add_quat(grad_pose, world, 7 * i + 3, gradient)
            if grad_params.shape[0] > 0:
                joint_adjoints.column(
                    tree, params, row, work, slot, i, x, space.join(force, torque), grad_params, world
                )

    return SimpleNamespace(columns=write_columns, inertia=write_inertia, reverse_columns=reverse_columns)


def build_middle(scalar, module):
    """Return the kernels of the poses of bodies in the middle of a step, and of their gradient."""
    floats = wp.array2d(dtype=scalar)
    rows, memory, recursions = build_rows(scalar), make_memory(scalar), make_recursions(scalar)
    kinematics, motion = make_kinematics(scalar), make_drift(scalar)

    @wp.func
    def place_in_middle(
        tree: Trees,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        state: floats,
        world: int,
        time: scalar,
    ):
        for k in range(tree[0].coordinates):
            work[slot, tree[0].q + k] = state[world, k]
        for k in range(tree[0].freedoms):
            work[slot, tree[0].qd + k] = state[world, tree[0].coordinates + k]
        motion.drift(tree, work, slot, tree[0].q, tree[0].qd, scalar(0.5) * time, tree[0].q_middle)
        recursions.place(tree, params, row, work, slot, tree[0].q_middle)
        kinematics.locate(tree, params, row, work, slot, tree[0].q_middle, tree[0].qd, 0)

    @wp.kernel(module=module, enable_backward=False)
    def _find_middle(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, nq + nv)
        none: floats,  # without columns
        time: scalar,  # [s] of the step
        # Out:
        work: floats,  # (B, scratch)
        pose: floats,  # (B, N * 7)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        place_in_middle(tree, params, row, work, slot, state, world, time)
        for i in range(tree[0].bodies):
            memory.write_vec3(pose, world, 7 * i, memory.read_vec3(work, slot, i * SCRATCH + POSITION))
            memory.write_quat(pose, world, 7 * i + 3, memory.read_quat(work, slot, i * SCRATCH + ORIENTATION))

    @wp.kernel(module=module, enable_backward=False)
    def _find_middle_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, nq + nv)
        none: floats,  # without columns
        time: scalar,
        grad_pose: floats,  # (B, N * 7)
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, P), or without rows
        grad_state: floats,  # (B, nq + nv)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        place_in_middle(tree, params, row, work, slot, state, world, time)
        memory.clear_row(work, slot, tree[0].grad_q_middle, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_qd, tree[0].freedoms)
        kinematics.locate_adjoint(
            tree, params, row, work, slot, tree[0].q_middle, tree[0].qd, tree[0].grad_q_middle, tree[0].grad_qd,
            grad_pose, none, grad_params, world,
        )  # fmt: skip
        motion.drift_adjoint(
            tree, work, slot, tree[0].q, tree[0].qd, scalar(0.5) * time,
            tree[0].grad_q_middle, tree[0].grad_q, tree[0].grad_qd,
        )  # fmt: skip
        rows.store(work, slot, tree[0].grad_q, grad_state, world, tree[0].coordinates)
        for k in range(tree[0].freedoms):
            grad_state[world, tree[0].coordinates + k] = work[slot, tree[0].grad_qd + k]

    return SimpleNamespace(middle=_find_middle, middle_adjoint=_find_middle_adjoint)


def build_touch(scalar, module):
    """Return the kernels of a step in contact, and of its gradient."""
    floats, ints = wp.array2d(dtype=scalar), wp.array3d(dtype=wp.int32)
    rows, memory, midpoint = build_rows(scalar), make_memory(scalar), make_midpoint(scalar)
    motion, found, solve = make_drift(scalar), make_contact_rows(scalar), make_contact_solve(scalar)
    adjoint, articulated = make_contact_adjoint(scalar), make_articulated_contact(scalar)

    @wp.func(inline=False)
    def begin_touch(
        tree: Trees, touch: Touches, params: floats, row: int, work: floats, slot: int, time: scalar, width: scalar,
        state: floats, control: floats, wrench: floats, pose: floats, contacts: floats, bodies: ints, world: int,
    ):  # fmt: skip
        """From the state to velocities without contact; return how many contacts can be felt."""
        for k in range(tree[0].coordinates):
            work[slot, tree[0].q + k] = state[world, k]
        for k in range(tree[0].freedoms):
            work[slot, tree[0].qd + k] = state[world, tree[0].coordinates + k]
        midpoint.halfway(tree, params, row, work, slot, time, control, 0, wrench, 0, world)
        rows.copy(work, slot, tree[0].qd, touch[0].start, tree[0].freedoms)
        rows.copy(work, slot, tree[0].qd_end, touch[0].free, tree[0].freedoms)
        articulated.columns(tree, touch, params, row, work, slot, pose, world)
        count = found.gather(tree, touch, work, slot, pose, contacts, bodies, world, width, time)
        if count > 0:
            articulated.inertia(tree, touch, work, slot)
        return count

    @wp.kernel(module=module, enable_backward=False)
    def _step_in_contact(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, nq + nv)
        control: floats,  # (B, nu)
        wrench: floats,  # (B, N * 6), or without columns
        pose: floats,  # (B, N * 7) in the middle of the step
        contacts: floats,  # (B, C * 11) in the middle of the step
        bodies: ints,  # (1 or B, C, 2)
        touch: Touches,
        time: scalar,  # [s]
        width: scalar,  # [m] of the softplus
        scale: scalar,  # [m/s] slip below which friction creeps
        # Out:
        work: floats,  # (B, scratch)
        after: floats,  # (B, nq + nv)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        count = begin_touch(
            tree, touch, params, row, work, slot, time, width, state, control, wrench, pose, contacts, bodies, world
        )  # fmt: skip
        solve.solve(tree, touch, work, slot, contacts, world, count, width, time, scale)
        rows.copy(work, slot, touch[0].end, tree[0].qd_end, tree[0].freedoms)
        midpoint.finish(tree, work, slot, time)
        rows.store(work, slot, tree[0].q, after, world, tree[0].coordinates)
        for k in range(tree[0].freedoms):
            after[world, tree[0].coordinates + k] = work[slot, tree[0].qd + k]

    @wp.kernel(module=module, enable_backward=False)
    def _step_in_contact_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        state: floats,  # (B, nq + nv)
        control: floats,  # (B, nu)
        wrench: floats,  # (B, N * 6), or without columns
        pose: floats,  # (B, N * 7)
        contacts: floats,  # (B, C * 11)
        after: floats,  # (B, nq + nv)
        bodies: ints,  # (1 or B, C, 2)
        touch: Touches,
        time: scalar,
        width: scalar,
        scale: scalar,
        grad_after: floats,  # (B, nq + nv)
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, P), or without rows
        grad_state: floats,  # (B, nq + nv)
        grad_control: floats,  # (B, nu)
        grad_wrench: floats,  # (B, N * 6), or without columns
        grad_pose: floats,  # (B, N * 7)
        grad_contacts: floats,  # (B, C * 11)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        nq, nv = tree[0].coordinates, tree[0].freedoms
        count = begin_touch(
            tree, touch, params, row, work, slot, time, width, state, control, wrench, pose, contacts, bodies, world
        )  # fmt: skip
        for k in range(nq):
            work[slot, tree[0].grad_q + k] = grad_after[world, k]
        for k in range(nv):
            end = after[world, nq + k]
            work[slot, touch[0].end + k] = end
            work[slot, touch[0].seed + k] = grad_after[world, nq + k]
            work[slot, touch[0].grad_start + k] = scalar(0.0)
            # Inverse dynamics at the accelerations that contact allows has the gradient of the mass matrix.
            work[slot, tree[0].qdd_middle + k] = (end - state[world, nq + k]) / time
        memory.clear_row(work, slot, touch[0].grad_q, nq)
        motion.drift_adjoint(
            tree, work, slot, tree[0].q_middle, touch[0].end, scalar(0.5) * time,
            tree[0].grad_q, touch[0].grad_q, touch[0].seed,
        )  # fmt: skip
        rows.copy(work, slot, touch[0].seed, touch[0].product, nv)
        if count > 0:
            adjoint.velocities(
                tree, touch, work, slot, contacts, world, count, width, time, scale, grad_contacts
            )
            x, which = int(touch[0].end), int(CHANGE)
            for k in range(tree[0].stages + 1):
                adjoint.rates(
                    tree, touch, work, slot, pose, contacts, bodies, world, count, x, which, grad_pose, grad_contacts
                )  # fmt: skip
                articulated.reverse_columns(
                    tree, touch, params, row, work, slot, pose, world, x, grad_pose, grad_params
                )
                x, which = int(touch[0].start), int(BY_START)
                if k == 1:
                    x, which = int(touch[0].seed), int(IMPULSE)
        # What is left is the step without contact, whose last half drift is behind us.
        rows.copy(work, slot, touch[0].product, tree[0].grad_qd, nv)
        memory.clear_row(work, slot, tree[0].grad_q, nq)
        midpoint.reverse(
            tree,
            params,
            row,
            work,
            slot,
            time,
            control,
            0,
            wrench,
            0,
            world,
            grad_params,
            grad_control,
            grad_wrench,
        )
        motion.drift_adjoint(
            tree, work, slot, tree[0].q, tree[0].qd, scalar(0.5) * time,
            touch[0].grad_q, tree[0].grad_q, tree[0].grad_qd,
        )  # fmt: skip
        rows.store(work, slot, tree[0].grad_q, grad_state, world, nq)
        for k in range(nv):
            through = work[slot, tree[0].grad_qd + k] + work[slot, touch[0].grad_start + k]
            grad_state[world, nq + k] = through

    return SimpleNamespace(touch=_step_in_contact, touch_adjoint=_step_in_contact_adjoint)


@functools.cache
def _kernels(scalar):
    module = wp.get_module(f"gradpath_contact_{scalar.__name__}")
    module.options["enable_backward"] = False
    parts = [build(scalar, module) for build in (build_middle, build_touch)]
    return SimpleNamespace(**{name: kernel for part in parts for name, kernel in vars(part).items()})


def _kernel(scalar, name):
    return getattr(_kernels(scalar), name)


make_middle = functools.partial(_kernel, name="middle")
make_middle_adjoint = functools.partial(_kernel, name="middle_adjoint")
make_touch = functools.partial(_kernel, name="touch")
make_touch_adjoint = functools.partial(_kernel, name="touch_adjoint")
