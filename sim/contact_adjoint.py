"""The adjoint of the velocities in contact, by hand: from the gradient of the velocities to that of everything else.

With l the solution of the transposed linear equation for the gradient of the velocities, and Phi = (J l) . p(J v, J v0,
...), the gradient of Phi at fixed l is that of the contact; l itself is the gradient of A v*, and of A with -(v - v*).
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.contact_law import make_contact_law
from gradpath.sim.contact_rows import (
    BY_START,
    CHANGE,
    CONTACT,
    DEPTH,
    END,
    LAW,
    NORMAL,
    NUMBER,
    START,
    WEIGHT,
    Touches,
    make_contact_rows,
)
from gradpath.sim.contact_solve import make_contact_solve, make_elimination
from gradpath.sim.spatial import make_memory
from gradpath.sim.tree import Trees


@functools.cache
def make_contact_adjoint(scalar):
    """Return the functions of the adjoint, as attributes."""
    vec3 = wp.types.vector(3, scalar)
    floats = wp.array2d(dtype=scalar)
    memory, law = make_memory(scalar), make_contact_law(scalar)
    rows, solve, elimination = make_contact_rows(scalar), make_contact_solve(scalar), make_elimination(scalar)

    @wp.func
    def reverse_law(
        touch: Touches, work: floats, slot: int, at: int, contacts: floats, world: int,
        width: scalar, time: scalar, scale: scalar, grad_contacts: floats,
    ):  # fmt: skip
        """Write the gradients of one contact by its numbers but the point, and by its velocities into the slot."""
        source = CONTACT * int(work[slot, at + NUMBER])
        normal = memory.read_vec3(contacts, world, source + NORMAL)
        start, end = memory.read_vec3(work, slot, at + START), memory.read_vec3(work, slot, at + END)
        weight, stiffness = contacts[world, source + WEIGHT], contacts[world, source + LAW]
        damping, friction = contacts[world, source + LAW + 1], contacts[world, source + LAW + 2]
        seed = rows.times(work, slot, at, touch[0].seed)
        pressed = law.press(
            contacts[world, source + DEPTH], wp.dot(normal, start), wp.dot(normal, end), damping, width, time
        )
        way, speed = law.way(normal, end, scale)
        whole = weight * stiffness
        along = wp.dot(seed, normal) - friction * wp.dot(seed, way)
        by_end, by_start = along * whole * pressed[1], along * whole * pressed[3]
        press = whole * pressed[0]
        turned = -(friction * press / speed) * (seed - way * wp.dot(way, seed))
        across = wp.dot(normal, turned)
        by_normal = (
            press * seed + by_end * end + by_start * start - across * end - wp.dot(normal, end) * turned
        )
        memory.write_vec3(grad_contacts, world, source + NORMAL, by_normal)
        grad_contacts[world, source + DEPTH] = along * whole * pressed[2]
        grad_contacts[world, source + WEIGHT] = along * stiffness * pressed[0]
        grad_contacts[world, source + LAW] = along * weight * pressed[0]
        grad_contacts[world, source + LAW + 1] = along * whole * pressed[4]
        grad_contacts[world, source + LAW + 2] = -press * wp.dot(seed, way)
        memory.write_vec3(work, slot, at + CHANGE, turned - normal * across + normal * by_end)
        memory.write_vec3(work, slot, at + BY_START, normal * by_start)

    @wp.func(inline=False)
    def reverse_velocities(
        tree: Trees, touch: Touches, work: floats, slot: int, contacts: floats, world: int, count: int,
        width: scalar, time: scalar, scale: scalar, grad_contacts: floats,
    ):  # fmt: skip
        """Turn `seed`, the gradient of the velocities at the end, into l.

        Write the gradients of the velocities without contact into `product`, and of those at the start.
        """
        n = tree[0].freedoms
        for i in range(n):
            work[slot, touch[0].product + i] = work[slot, touch[0].seed + i]
            work[slot, touch[0].grad_start + i] = scalar(0.0)
        solve.assemble(tree, touch, work, slot, contacts, world, count, width, time, scale, scalar(1.0))
        elimination.eliminate(work, slot, touch[0].matrix, n)
        elimination.solve_transposed(work, slot, touch[0].matrix, n, touch[0].seed)
        for s in range(count):
            at = touch[0].slots + touch[0].slot * s
            reverse_law(touch, work, slot, at, contacts, world, width, time, scale, grad_contacts)
            rows.add(work, slot, at, memory.read_vec3(work, slot, at + CHANGE), touch[0].product)
            rows.add(work, slot, at, memory.read_vec3(work, slot, at + BY_START), touch[0].grad_start)

    @wp.func
    def pull_body(
        work: floats, slot: int, twists: int, wrenches: int, pose: floats, world: int, body: int, point: vec3,
        force: vec3, grad_pose: floats,
    ):  # fmt: skip
        """Add a force at a point of a body to its wrench; return what it gives the gradient of the point."""
        if body < 0:
            return vec3()
        arm = point - memory.read_vec3(pose, world, 7 * body)
        memory.add_vec3(work, slot, wrenches + 6 * body, force)
        memory.add_vec3(work, slot, wrenches + 6 * body + 3, wp.cross(arm, force))
        gradient = wp.cross(force, memory.read_vec3(work, slot, twists + 6 * body + 3))
        memory.add_vec3(grad_pose, world, 7 * body, -gradient)
        return gradient

    @wp.func(inline=False)
    def reverse_rates(
        tree: Trees, touch: Touches, work: floats, slot: int, pose: floats, contacts: floats,
        bodies: wp.array3d(dtype=wp.int32), world: int, count: int, x: int, which: int,
        grad_pose: floats, grad_contacts: floats,
    ):  # fmt: skip
        """For velocities at x and the gradient that each contact has for what they do there, in its slot:

        add the gradients of points and of the positions of bodies, and write the wrench that each body then has for
        the twist of its joint, with all that is behind it.
        """
        twists, wrenches = touch[0].twist, touch[0].wrench
        rows.twists(tree, touch, work, slot, pose, world, x, twists)
        memory.clear_row(work, slot, wrenches, 6 * tree[0].bodies)
        row = wp.min(world, bodies.shape[0] - 1)
        for s in range(count):
            at = touch[0].slots + touch[0].slot * s
            c = int(work[slot, at + NUMBER])
            point = memory.read_vec3(contacts, world, CONTACT * c)
            force = memory.read_vec3(work, slot, at + which)
            gradient = pull_body(
                work, slot, twists, wrenches, pose, world, bodies[row, c, 0], point, force, grad_pose
            )
            gradient += pull_body(
                work, slot, twists, wrenches, pose, world, bodies[row, c, 1], point, -force, grad_pose
            )
            memory.add_vec3(grad_contacts, world, CONTACT * c, gradient)
        for reverse in range(tree[0].bodies):
            i = tree[0].bodies - 1 - reverse
            parent = tree[0].parent[i]
            if parent >= 0:
                force = memory.read_vec3(work, slot, wrenches + 6 * i)
                torque = memory.read_vec3(work, slot, wrenches + 6 * i + 3)
                arm = memory.read_vec3(pose, world, 7 * i) - memory.read_vec3(pose, world, 7 * parent)
                gradient = wp.cross(force, memory.read_vec3(work, slot, twists + 6 * parent + 3))
                memory.add_vec3(grad_pose, world, 7 * i, gradient)
                memory.add_vec3(grad_pose, world, 7 * parent, -gradient)
                memory.add_vec3(work, slot, wrenches + 6 * parent, force)
                memory.add_vec3(work, slot, wrenches + 6 * parent + 3, torque + wp.cross(arm, force))

    return SimpleNamespace(velocities=reverse_velocities, rates=reverse_rates)
