"""The recursions of rigid-body dynamics over a tree, as Warp functions that keep their state in scratch memory.

Everything works on one world: `row` is its row of the packed parameters, `slot` its row of the scratch. Arguments
named `*_at` are places in the scratch, where a vector of coordinates or velocities begins.

References: Featherstone, Rigid Body Dynamics Algorithms (2008): recursive Newton-Euler (5.1).
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.model import JointKind
from gradpath.sim.spatial import make_memory, make_spatial
from gradpath.sim.tree import (
    BODY_NUMBERS,
    BODY_OFFSETS,
    JOINT_NUMBERS,
    JOINT_OFFSETS,
    SCRATCH_NUMBERS,
    SCRATCH_OFFSETS,
    Trees,
)

HINGE = wp.constant(int(JointKind.HINGE))
SLIDE = wp.constant(int(JointKind.SLIDE))
BALL = wp.constant(int(JointKind.BALL))
FREE = wp.constant(int(JointKind.FREE))

BODY = wp.constant(BODY_NUMBERS)
PLACEMENT = wp.constant(BODY_OFFSETS["placement"])
TURNED = wp.constant(BODY_OFFSETS["placement"] + 3)  # the quaternion of the placement
AXIS = wp.constant(BODY_OFFSETS["axis"])
ANCHOR = wp.constant(BODY_OFFSETS["anchor"])
MASS = wp.constant(BODY_OFFSETS["mass"])
COM = wp.constant(BODY_OFFSETS["com"])
INERTIA = wp.constant(BODY_OFFSETS["inertia"])
RATIO = wp.constant(BODY_OFFSETS["ratio"])
SHIFT = wp.constant(BODY_OFFSETS["offset"])
DOF = wp.constant(JOINT_NUMBERS)
ARMATURE = wp.constant(JOINT_OFFSETS["armature"])
DAMPING = wp.constant(JOINT_OFFSETS["damping"])

SCRATCH = wp.constant(SCRATCH_NUMBERS)
ROTATION = wp.constant(SCRATCH_OFFSETS["rotation"])
OFFSET = wp.constant(SCRATCH_OFFSETS["offset"])
ATTITUDE = wp.constant(SCRATCH_OFFSETS["attitude"])
TWIST = wp.constant(SCRATCH_OFFSETS["twist"])
ACCELERATION = wp.constant(SCRATCH_OFFSETS["acceleration"])
WRENCH = wp.constant(SCRATCH_OFFSETS["wrench"])
LOAD = wp.constant(SCRATCH_OFFSETS["load"])


@functools.cache
def make_joints(scalar):
    """Return the functions of single joints and bodies, as attributes."""
    vec3, vec6 = wp.types.vector(3, scalar), wp.types.vector(6, scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory = make_spatial(scalar), make_memory(scalar)

    @wp.func
    def joint_position(tree: Trees, params: floats, row: int, work: floats, slot: int, i: int, q_at: int):
        """Angle or displacement of a hinge or slide."""
        at = i * BODY
        return params[row, at + RATIO] * work[slot, q_at + tree[0].q_start[i]] + params[row, at + SHIFT]

    @wp.func
    def joint_motion(tree: Trees, params: floats, row: int, work: floats, slot: int, i: int, q_at: int):
        """Rotation and offset of the body in its joint frame."""
        kind = tree[0].kind[i]
        at = i * BODY
        rotation = wp.identity(n=3, dtype=scalar)
        offset = vec3()
        if kind == HINGE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            anchor = memory.read_vec3(params, row, at + ANCHOR)
            rotation = space.rotation_about(axis, joint_position(tree, params, row, work, slot, i, q_at))
            offset = anchor - rotation * anchor
        elif kind == SLIDE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            offset = axis * joint_position(tree, params, row, work, slot, i, q_at)
        elif kind == BALL:
            anchor = memory.read_vec3(params, row, at + ANCHOR)
            rotation = wp.quat_to_matrix(
                wp.normalize(memory.read_quat(work, slot, q_at + tree[0].q_start[i]))
            )
            offset = anchor - rotation * anchor
        elif kind == FREE:
            rotation = wp.quat_to_matrix(
                wp.normalize(memory.read_quat(work, slot, q_at + tree[0].q_start[i] + 3))
            )
            offset = memory.read_vec3(work, slot, q_at + tree[0].q_start[i])
        return rotation, offset

    @wp.func
    def joint_freedoms(kind: int):
        if kind == HINGE or kind == SLIDE:
            return 1
        if kind == BALL:
            return 3
        if kind == FREE:
            return 6
        return 0

    @wp.func
    def joint_twist(tree: Trees, params: floats, row: int, work: floats, slot: int, i: int, v_at: int):
        """Twist of the body in its joint frame, or its rate, for the velocities or accelerations at `v_at`."""
        kind = tree[0].kind[i]
        at = i * BODY
        v = v_at + tree[0].v_start[i]
        if kind == HINGE:
            w = wp.normalize(memory.read_vec3(params, row, at + AXIS)) * (
                params[row, at + RATIO] * work[slot, v]
            )
            return space.join(wp.cross(memory.read_vec3(params, row, at + ANCHOR), w), w)
        if kind == SLIDE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            return space.join(axis * (params[row, at + RATIO] * work[slot, v]), vec3())
        if kind == BALL:
            w = memory.read_vec3(work, slot, v)
            return space.join(wp.cross(memory.read_vec3(params, row, at + ANCHOR), w), w)
        if kind == FREE:
            return memory.read_vec6(work, slot, v)
        return vec6()

    @wp.func
    def joint_force(params: floats, row: int, kind: int, i: int, k: int, f: vec6):
        """Force of freedom k of the joint that transmits the wrench f: the transpose of `joint_twist`."""
        at = i * BODY
        if kind == FREE:
            return f[k]
        if kind == SLIDE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            return params[row, at + RATIO] * wp.dot(axis, space.linear(f))
        torque = space.angular(f) + wp.cross(space.linear(f), memory.read_vec3(params, row, at + ANCHOR))
        if kind == HINGE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            return params[row, at + RATIO] * wp.dot(axis, torque)
        return torque[k]

    @wp.func
    def joint_column(params: floats, row: int, kind: int, i: int, k: int):
        """Twist for the rate one of freedom k."""
        at = i * BODY
        unit = vec3()
        if kind == FREE:
            column = vec6()
            column[k] = scalar(1.0)
            return column
        if kind == SLIDE:
            return space.join(
                params[row, at + RATIO] * wp.normalize(memory.read_vec3(params, row, at + AXIS)), vec3()
            )
        if kind == HINGE:
            unit = params[row, at + RATIO] * wp.normalize(memory.read_vec3(params, row, at + AXIS))
        else:
            unit[k] = scalar(1.0)
        return space.join(wp.cross(memory.read_vec3(params, row, at + ANCHOR), unit), unit)

    @wp.func
    def body_inertia(params: floats, row: int, i: int):
        """Its symmetric part: a rotational inertia has no other."""
        inertia = memory.read_mat33(params, row, i * BODY + INERTIA)
        return scalar(0.5) * (inertia + wp.transpose(inertia))

    @wp.func
    def body_momentum(params: floats, row: int, i: int, v: vec6):
        at = i * BODY
        return space.inertia_times(
            params[row, at + MASS], memory.read_vec3(params, row, at + COM), body_inertia(params, row, i), v
        )

    return SimpleNamespace(
        position=joint_position,
        motion=joint_motion,
        freedoms=joint_freedoms,
        twist=joint_twist,
        force=joint_force,
        column=joint_column,
        inertia=body_inertia,
        momentum=body_momentum,
    )


@functools.cache
def make_recursions(scalar):
    """Return the recursions over a tree, as attributes."""
    vec3 = wp.types.vector(3, scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory, joints = make_spatial(scalar), make_memory(scalar), make_joints(scalar)

    @wp.func(inline=False)
    def place_bodies(tree: Trees, params: floats, row: int, work: floats, slot: int, q_at: int):
        """Write the rotation and offset of every body in its parent."""
        for i in range(tree[0].bodies):
            placed = wp.quat_to_matrix(wp.normalize(memory.read_quat(params, row, i * BODY + TURNED)))
            rotation, offset = joints.motion(tree, params, row, work, slot, i, q_at)
            memory.write_mat33(work, slot, i * SCRATCH + ROTATION, placed * rotation)
            memory.write_vec3(
                work,
                slot,
                i * SCRATCH + OFFSET,
                memory.read_vec3(params, row, i * BODY + PLACEMENT) + placed * offset,
            )

    @wp.func(inline=False)
    def load_bodies(tree: Trees, work: floats, slot: int, wrench: floats, world: int, first: int):
        """Turn the wrenches from outside, in world axes about the origins of the bodies, into the bodies' axes."""
        if wrench.shape[1] == 0:
            for i in range(tree[0].bodies):
                memory.clear_row(work, slot, i * SCRATCH + LOAD, 6)
            return
        for i in range(tree[0].bodies):
            at = i * SCRATCH
            attitude = memory.read_mat33(work, slot, at + ROTATION)
            if tree[0].parent[i] >= 0:
                attitude = memory.read_mat33(work, slot, tree[0].parent[i] * SCRATCH + ATTITUDE) * attitude
            memory.write_mat33(work, slot, at + ATTITUDE, attitude)
            back = wp.transpose(attitude)
            force = back * memory.read_vec3(wrench, world, first + 6 * i)
            memory.write_vec6(
                work,
                slot,
                at + LOAD,
                space.join(force, back * memory.read_vec3(wrench, world, first + 6 * i + 3)),
            )

    @wp.func(inline=False)
    def newton_euler(
        tree: Trees, params: floats, row: int, work: floats, slot: int, v_at: int, a_at: int, tau_at: int
    ):
        """Write the joint forces of a motion; accelerations are zero where `a_at` is negative. No armature."""
        for i in range(tree[0].bodies):
            at = i * SCRATCH
            rotation, offset = (
                memory.read_mat33(work, slot, at + ROTATION),
                memory.read_vec3(work, slot, at + OFFSET),
            )
            parent = tree[0].parent[i] * SCRATCH
            s = joints.twist(tree, params, row, work, slot, i, v_at)
            v = s
            above = space.join(-memory.read_vec3(params, row, tree[0].gravity), vec3())
            if parent >= 0:
                v = space.twist_to_child(rotation, offset, memory.read_vec6(work, slot, parent + TWIST)) + s
                above = memory.read_vec6(work, slot, parent + ACCELERATION)
            a = space.twist_to_child(rotation, offset, above) + space.cross_motion(v, s)
            if a_at >= 0:
                a += joints.twist(tree, params, row, work, slot, i, a_at)
            memory.write_vec6(work, slot, at + TWIST, v)
            memory.write_vec6(work, slot, at + ACCELERATION, a)
            momentum = joints.momentum(params, row, i, v)
            rate = joints.momentum(params, row, i, a) + space.cross_force(v, momentum)
            memory.write_vec6(work, slot, at + WRENCH, rate - memory.read_vec6(work, slot, at + LOAD))
        memory.clear_row(work, slot, tau_at, tree[0].freedoms)
        for reverse in range(tree[0].bodies):
            i = tree[0].bodies - 1 - reverse
            at = i * SCRATCH
            f = memory.read_vec6(work, slot, at + WRENCH)
            kind = tree[0].kind[i]
            for k in range(joints.freedoms(kind)):
                dof = tau_at + tree[0].v_start[i] + k
                work[slot, dof] = work[slot, dof] + joints.force(params, row, kind, i, k, f)
            if tree[0].parent[i] >= 0:
                rotation, offset = (
                    memory.read_mat33(work, slot, at + ROTATION),
                    memory.read_vec3(work, slot, at + OFFSET),
                )
                above = space.wrench_to_parent(rotation, offset, f)
                memory.add_vec6(work, slot, tree[0].parent[i] * SCRATCH + WRENCH, above)

    @wp.func(inline=False)
    def add_armature(tree: Trees, params: floats, row: int, work: floats, slot: int, a_at: int, tau_at: int):
        for dof in range(tree[0].freedoms):
            armature = params[row, tree[0].joint_parameters + dof * DOF + ARMATURE]
            work[slot, tau_at + dof] = work[slot, tau_at + dof] + armature * work[slot, a_at + dof]

    return SimpleNamespace(
        place=place_bodies, load=load_bodies, newton_euler=newton_euler, add_armature=add_armature
    )
