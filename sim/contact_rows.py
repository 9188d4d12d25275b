"""The contacts of a world that can be felt within a step, in scratch memory: numbers, velocities and Jacobians."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.spatial import make_memory
from gradpath.sim.tree import Trees
from gradpath.sim.tree_functions import make_joints

REACH = 20.0
"""Widths apart beyond which nothing is felt: the force is 2e-9 of what it is in touch."""

# A contact as a row of numbers: point, normal, depth, weight, then stiffness, damping and friction.
CONTACT_NUMBERS = 11
CONTACT = wp.constant(CONTACT_NUMBERS)
NORMAL, DEPTH, WEIGHT, LAW = wp.constant(3), wp.constant(6), wp.constant(7), wp.constant(8)

# A contact that is felt, in scratch: its number, how many entries its Jacobian has, vectors, and the entries.
SLOT_HEAD = 20
NUMBER, ENTRIES, START, END, CHANGE = (
    wp.constant(0),
    wp.constant(1),
    wp.constant(2),
    wp.constant(5),
    wp.constant(8),
)
BY_START, IMPULSE = wp.constant(11), wp.constant(14)
HEAD = wp.constant(SLOT_HEAD)


@wp.struct
class Touch:
    """Where the scratch of the contacts of a world begins; entries of a Jacobian are a velocity and three numbers."""

    slots: int
    slot: int  # numbers of one felt contact
    columns: (
        int  # (N, 6, 6) twist of each body about its origin, in world axes, for each freedom of its joint
    )
    twist: int  # (N, 6) linear, angular
    wrench: int  # (N, 6)
    inertia: int  # (nv, nv) A, lower half
    matrix: int  # (nv, nv) what is eliminated
    start: int  # (nv,) velocities, each of these
    free: int
    end: int
    change: int
    rest: int
    product: int
    seed: int
    grad_start: int
    grad_q: int  # (nq,)


Touches = wp.array(dtype=Touch)


def count_scratch(
    bodies: int, freedoms: int, coordinates: int, contacts: int, entries: int, first: int
) -> tuple:
    """Return the offsets of the scratch, which begins at `first`, and where it ends."""
    touch = Touch()
    touch.slot = SLOT_HEAD + 4 * entries
    sizes = {
        "columns": 36 * bodies,
        "twist": 6 * bodies,
        "wrench": 6 * bodies,
        "inertia": freedoms * freedoms,
        "matrix": freedoms * freedoms,
        **dict.fromkeys(
            ("start", "free", "end", "change", "rest", "product", "seed", "grad_start"), freedoms
        ),
        "grad_q": coordinates,
        "slots": contacts * touch.slot,
    }
    for name, size in sizes.items():
        setattr(touch, name, first)
        first += size
    return touch, first


@functools.cache
def make_contact_rows(scalar):
    """Return the functions that find the felt contacts of a world and their Jacobians, as attributes."""
    vec3 = wp.types.vector(3, scalar)
    floats = wp.array2d(dtype=scalar)
    memory, joints = make_memory(scalar), make_joints(scalar)

    @wp.func(inline=False)
    def world_twists(
        tree: Trees, touch: Touches, work: floats, slot: int, pose: floats, world: int, x: int, out: int
    ):
        """Write the twists of the bodies, each about its origin and in world axes, for the velocities at x."""
        for i in range(tree[0].bodies):
            linear, angular = vec3(), vec3()
            parent = tree[0].parent[i]
            if parent >= 0:
                angular = memory.read_vec3(work, slot, out + 6 * parent + 3)
                arm = memory.read_vec3(pose, world, 7 * i) - memory.read_vec3(pose, world, 7 * parent)
                linear = memory.read_vec3(work, slot, out + 6 * parent) + wp.cross(angular, arm)
            for k in range(joints.freedoms(tree[0].kind[i])):
                rate = work[slot, x + tree[0].v_start[i] + k]
                column = touch[0].columns + 36 * i + 6 * k
                linear += rate * memory.read_vec3(work, slot, column)
                angular += rate * memory.read_vec3(work, slot, column + 3)
            memory.write_vec3(work, slot, out + 6 * i, linear)
            memory.write_vec3(work, slot, out + 6 * i + 3, angular)

    @wp.func
    def point_rate(work: floats, slot: int, pose: floats, world: int, twists: int, body: int, point: vec3):
        """Velocity of a point of a body."""
        if body < 0:
            return vec3()
        arm = point - memory.read_vec3(pose, world, 7 * body)
        at = twists + 6 * body
        return memory.read_vec3(work, slot, at) + wp.cross(memory.read_vec3(work, slot, at + 3), arm)

    @wp.func
    def write_entries(
        tree: Trees, touch: Touches, work: floats, slot: int, pose: floats, world: int, body: int, point: vec3,
        sign: scalar, at: int,
    ):  # fmt: skip
        """Add to a slot how the velocity of a point of a body depends on each velocity."""
        j, entries = int(body), int(work[slot, at + ENTRIES])
        while j >= 0:
            arm = point - memory.read_vec3(pose, world, 7 * j)
            for k in range(joints.freedoms(tree[0].kind[j])):
                column = touch[0].columns + 36 * j + 6 * k
                angular = memory.read_vec3(work, slot, column + 3)
                rate = memory.read_vec3(work, slot, column) + wp.cross(angular, arm)
                entry = at + HEAD + 4 * entries
                work[slot, entry] = scalar(tree[0].v_start[j] + k)
                memory.write_vec3(work, slot, entry + 1, sign * rate)
                entries += 1
            j = tree[0].parent[j]
        work[slot, at + ENTRIES] = scalar(entries)

    @wp.func(inline=False)
    def gather(
        tree: Trees, touch: Touches, work: floats, slot: int, pose: floats, contacts: floats,
        bodies: wp.array3d(dtype=wp.int32), world: int, width: scalar, time: scalar,
    ):  # fmt: skip
        """Write the contacts that can be felt within the step, with their Jacobians; return how many."""
        twists, free_twists = touch[0].twist, touch[0].wrench
        world_twists(tree, touch, work, slot, pose, world, touch[0].start, twists)
        world_twists(tree, touch, work, slot, pose, world, touch[0].free, free_twists)
        count, row = int(0), wp.min(world, bodies.shape[0] - 1)
        for c in range(bodies.shape[1]):
            source = CONTACT * c
            if contacts[world, source + WEIGHT] > scalar(0.0):
                a, b = bodies[row, c, 0], bodies[row, c, 1]
                point = memory.read_vec3(contacts, world, source)
                normal = memory.read_vec3(contacts, world, source + NORMAL)
                start = point_rate(work, slot, pose, world, twists, a, point)
                start = start - point_rate(work, slot, pose, world, twists, b, point)
                free = point_rate(work, slot, pose, world, free_twists, a, point)
                free = free - point_rate(work, slot, pose, world, free_twists, b, point)
                speed = wp.max(wp.abs(wp.dot(normal, start)), wp.abs(wp.dot(normal, free)))
                depth = contacts[world, source + DEPTH] + scalar(0.5) * time * speed
                if depth > -scalar(wp.static(REACH)) * width:
                    at = touch[0].slots + touch[0].slot * count
                    work[slot, at + NUMBER] = scalar(c)
                    work[slot, at + ENTRIES] = scalar(0.0)
                    memory.write_vec3(work, slot, at + START, start)
                    write_entries(tree, touch, work, slot, pose, world, a, point, scalar(1.0), at)
                    write_entries(tree, touch, work, slot, pose, world, b, point, scalar(-1.0), at)
                    count += 1
        return count

    @wp.func(inline=False)
    def entries_times(work: floats, slot: int, at: int, x: int):
        """Velocity at a felt contact for the velocities at x."""
        result = vec3()
        for e in range(int(work[slot, at + ENTRIES])):
            entry = at + HEAD + 4 * e
            result += work[slot, x + int(work[slot, entry])] * memory.read_vec3(work, slot, entry + 1)
        return result

    @wp.func(inline=False)
    def add_entries(work: floats, slot: int, at: int, force: vec3, out: int):
        """Add the forces on the velocities that a force at a felt contact causes."""
        for e in range(int(work[slot, at + ENTRIES])):
            entry = at + HEAD + 4 * e
            place = out + int(work[slot, entry])
            work[slot, place] = work[slot, place] + wp.dot(force, memory.read_vec3(work, slot, entry + 1))

    return SimpleNamespace(
        twists=world_twists, rate=point_rate, times=entries_times, add=add_entries, gather=gather
    )
