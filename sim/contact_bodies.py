"""Free bodies in contact, as kernels: from velocities that other forces lead to, to those that contact allows."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.contact_adjoint import make_contact_adjoint
from gradpath.sim.contact_rows import BY_START, CHANGE, IMPULSE, Touches, make_contact_rows
from gradpath.sim.contact_solve import make_contact_solve
from gradpath.sim.dynamics_kernels import build_rows
from gradpath.sim.spatial import make_memory, make_spatial
from gradpath.sim.tree import Trees

SOLID = wp.constant(10)  # numbers of a body: mass, then inertia about the centre of mass in its axes


def build_settle(scalar, module):
    """Return the kernels of the velocities of free bodies in contact, and of their gradient.

    Velocities are those of the centres of mass and of turning, in world axes: linear, angular.
    """
    floats, ints = wp.array2d(dtype=scalar), wp.array3d(dtype=wp.int32)
    rows, memory, space = build_rows(scalar), make_memory(scalar), make_spatial(scalar)
    found, solve, adjoint = (
        make_contact_rows(scalar),
        make_contact_solve(scalar),
        make_contact_adjoint(scalar),
    )

    @wp.func
    def solid_attitude(pose: floats, world: int, i: int):
        return wp.normalize(memory.read_quat(pose, world, 7 * i + 3))

    @wp.func
    def solid_inertia(params: floats, row: int, i: int):
        """Its symmetric part: a rotational inertia has no other."""
        inertia = memory.read_mat33(params, row, SOLID * i + 1)
        return scalar(0.5) * (inertia + wp.transpose(inertia))

    @wp.func(inline=False)
    def begin_solids(
        tree: Trees, touch: Touches, params: floats, row: int, work: floats, slot: int, velocity: floats, free: floats,
        pose: floats, contacts: floats, bodies: ints, world: int, width: scalar, time: scalar,
    ):  # fmt: skip
        """Write velocities, inertias and Jacobians; return how many contacts can be felt."""
        n = tree[0].freedoms
        memory.clear_row(work, slot, touch[0].inertia, n * n)
        memory.clear_row(work, slot, touch[0].columns, 36 * tree[0].bodies)
        rows.load(velocity, world, work, slot, touch[0].start, n)
        rows.load(free, world, work, slot, touch[0].free, n)
        for i in range(tree[0].bodies):
            turn = wp.quat_to_matrix(solid_attitude(pose, world, i))
            inertia = turn * solid_inertia(params, row, i) * wp.transpose(turn)
            at = 6 * i
            for k in range(6):
                work[slot, touch[0].columns + 36 * i + 7 * k] = scalar(1.0)
            for k in range(3):
                place = touch[0].inertia + (at + k) * n + at + k
                work[slot, place] = params[row, SOLID * i]
                for j in range(3):
                    work[slot, touch[0].inertia + (at + 3 + k) * n + at + 3 + j] = inertia[k, j]
        return found.gather(tree, touch, work, slot, pose, contacts, bodies, world, width, time)

    @wp.func(inline=False)
    def reverse_solids(
        tree: Trees, touch: Touches, params: floats, row: int, work: floats, slot: int, pose: floats, world: int,
        grad_pose: floats, grad_params: floats,
    ):  # fmt: skip
        """Add the gradients of masses, inertias and attitudes, from l and the change by contact."""
        for i in range(tree[0].bodies):
            at = 6 * i
            attitude, given = solid_attitude(pose, world, i), memory.read_quat(pose, world, 7 * i + 3)
            left = memory.read_vec3(work, slot, touch[0].seed + at)
            turn = wp.quat_rotate_inv(attitude, memory.read_vec3(work, slot, touch[0].seed + at + 3))
            gained = memory.read_vec3(work, slot, touch[0].end + at) - memory.read_vec3(
                work, slot, touch[0].free + at
            )
            spun = memory.read_vec3(work, slot, touch[0].end + at + 3) - memory.read_vec3(
                work, slot, touch[0].free + at + 3
            )
            spun = wp.quat_rotate_inv(attitude, spun)
            inertia = solid_inertia(params, row, i)
            by_turn = -(wp.cross(inertia * spun, turn) + wp.cross(inertia * turn, spun))
            gradient = space.quat_turned(attitude, by_turn) * (scalar(2.0) / wp.length(given))
            memory.add_quat(grad_pose, world, 7 * i + 3, gradient)
            if grad_params.shape[0] > 0:
                grad_params[world, SOLID * i] = -wp.dot(left, gained)
                mixed = scalar(-0.5) * (wp.outer(turn, spun) + wp.outer(spun, turn))
                memory.write_mat33(grad_params, world, SOLID * i + 1, mixed)

    @wp.kernel(module=module, enable_backward=False)
    def _settle_bodies(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, N * 10)
        # In:
        velocity: floats,  # (B, N * 6) at the start of the step
        free: floats,  # (B, N * 6) at its end without contact
        pose: floats,  # (B, N * 7) in its middle
        contacts: floats,  # (B, C * 11) in its middle
        bodies: ints,  # (1 or B, C, 2)
        touch: Touches,
        time: scalar,  # [s]
        width: scalar,  # [m]
        scale: scalar,  # [m/s]
        # Out:
        work: floats,  # (B, scratch)
        after: floats,  # (B, N * 6)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        count = begin_solids(
            tree, touch, params, row, work, slot, velocity, free, pose, contacts, bodies, world, width, time
        )
        solve.solve(tree, touch, work, slot, contacts, world, count, width, time, scale)
        rows.store(work, slot, touch[0].end, after, world, tree[0].freedoms)

    @wp.kernel(module=module, enable_backward=False)
    def _settle_bodies_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, N * 10)
        # In:
        velocity: floats,  # (B, N * 6)
        free: floats,  # (B, N * 6)
        pose: floats,  # (B, N * 7)
        contacts: floats,  # (B, C * 11)
        after: floats,  # (B, N * 6)
        bodies: ints,  # (1 or B, C, 2)
        touch: Touches,
        time: scalar,
        width: scalar,
        scale: scalar,
        grad_after: floats,  # (B, N * 6)
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, N * 10), or without rows
        grad_velocity: floats,  # (B, N * 6)
        grad_free: floats,  # (B, N * 6)
        grad_pose: floats,  # (B, N * 7)
        grad_contacts: floats,  # (B, C * 11)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        n = tree[0].freedoms
        count = begin_solids(
            tree, touch, params, row, work, slot, velocity, free, pose, contacts, bodies, world, width, time
        )
        if count == 0:
            for k in range(n):
                grad_free[world, k] = grad_after[world, k]
            return
        rows.load(after, world, work, slot, touch[0].end, n)
        rows.load(grad_after, world, work, slot, touch[0].seed, n)
        adjoint.velocities(tree, touch, work, slot, contacts, world, count, width, time, scale, grad_contacts)
        reverse_solids(tree, touch, params, row, work, slot, pose, world, grad_pose, grad_params)
        x, which = int(touch[0].end), int(CHANGE)
        for k in range(tree[0].stages + 1):
            adjoint.rates(
                tree,
                touch,
                work,
                slot,
                pose,
                contacts,
                bodies,
                world,
                count,
                x,
                which,
                grad_pose,
                grad_contacts,
            )
            x, which = int(touch[0].start), int(BY_START)
            if k == 1:
                x, which = int(touch[0].seed), int(IMPULSE)
        rows.store(work, slot, touch[0].product, grad_free, world, n)
        rows.store(work, slot, touch[0].grad_start, grad_velocity, world, n)

    return SimpleNamespace(settle=_settle_bodies, settle_adjoint=_settle_bodies_adjoint)


@functools.cache
def _kernels(scalar):
    module = wp.get_module(f"gradpath_contact_bodies_{scalar.__name__}")
    module.options["enable_backward"] = False
    return build_settle(scalar, module)


def _kernel(scalar, name):
    return getattr(_kernels(scalar), name)


make_settle = functools.partial(_kernel, name="settle")
make_settle_adjoint = functools.partial(_kernel, name="settle_adjoint")
