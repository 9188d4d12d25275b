"""Spatial vector algebra as Warp functions: twists and wrenches of six numbers, linear part first.

A transform (rotation R, offset r) places a child frame in its parent: a point x of the child is at R x + r. Every
spatial vector is about the origin of the frame it is written in.

References: Featherstone, Rigid Body Dynamics Algorithms (2008), chapter 2, with linear before angular parts.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp


@functools.cache
def make_spatial(scalar):
    """Return the types and functions of spatial algebra for one float type, as attributes."""
    vec3, vec6 = wp.types.vector(3, scalar), wp.types.vector(6, scalar)
    mat33, quat = wp.types.matrix((3, 3), scalar), wp.types.quaternion(scalar)

    @wp.func(inline=True)
    def spatial_join(linear: vec3, angular: vec3):
        return vec6(linear[0], linear[1], linear[2], angular[0], angular[1], angular[2])

    @wp.func(inline=True)
    def spatial_linear(a: vec6):
        return vec3(a[0], a[1], a[2])

    @wp.func(inline=True)
    def spatial_angular(a: vec6):
        return vec3(a[3], a[4], a[5])

    @wp.func(inline=True)
    def cross_motion(v: vec6, m: vec6):
        """Rate of a twist m that is fixed in a frame moving with the twist v."""
        w = spatial_angular(v)
        linear = wp.cross(w, spatial_linear(m)) + wp.cross(spatial_linear(v), spatial_angular(m))
        return spatial_join(linear, wp.cross(w, spatial_angular(m)))

    @wp.func(inline=True)
    def cross_force(v: vec6, f: vec6):
        """Rate of a wrench f that is fixed in a frame moving with the twist v: minus `cross_motion` transposed."""
        w = spatial_angular(v)
        angular = wp.cross(w, spatial_angular(f)) + wp.cross(spatial_linear(v), spatial_linear(f))
        return spatial_join(wp.cross(w, spatial_linear(f)), angular)

    @wp.func(inline=True)
    def twist_to_child(rotation: mat33, offset: vec3, m: vec6):
        w = spatial_angular(m)
        back = wp.transpose(rotation)
        return spatial_join(back * (spatial_linear(m) + wp.cross(w, offset)), back * w)

    @wp.func(inline=True)
    def wrench_to_parent(rotation: mat33, offset: vec3, f: vec6):
        """The transpose of `twist_to_child`."""
        force = rotation * spatial_linear(f)
        return spatial_join(force, rotation * spatial_angular(f) + wp.cross(offset, force))

    @wp.func(inline=True)
    def inertia_times(mass: scalar, com: vec3, inertia: mat33, v: vec6):
        """Momentum of a body with the twist v; the inertia is about the centre of mass."""
        w = spatial_angular(v)
        p = mass * (spatial_linear(v) + wp.cross(w, com))
        return spatial_join(p, inertia * w + wp.cross(com, p))

    @wp.func(inline=True)
    def rotation_about(axis: vec3, angle: scalar):
        """Rotation matrix of a turn about a unit axis (Rodrigues)."""
        s, c = wp.sin(angle), wp.cos(angle)
        return wp.diag(vec3(c, c, c)) + s * wp.skew(axis) + (scalar(1.0) - c) * wp.outer(axis, axis)

    @wp.func(inline=True)
    def quat_turned(q: quat, turn: vec3):
        """The product q (turn, 0): twice the derivative of q along a rotation `turn` in its own frame."""
        return q * quat(turn[0], turn[1], turn[2], scalar(0.0))

    @wp.func(inline=True)
    def quat_turn_gradient(q: quat, gradient: quat):
        """Gradient with respect to a small rotation in q's own frame, from that with respect to the unit q."""
        g = wp.quat_inverse(q) * gradient
        return scalar(0.5) * vec3(g[0], g[1], g[2])

    @wp.func(inline=True)
    def turn_jacobian_transpose(turn: vec3, gradient: vec3):
        """Gradient with respect to a rotation vector, from that with respect to a turn in the rotated frame.

        exp(turn + d) = exp(turn) exp(J d) with the right Jacobian J of SO(3); this is J^T times the gradient.
        """
        square = wp.dot(turn, turn)
        b = scalar(0.5) - square / scalar(24.0) + square * square / scalar(720.0)
        c = scalar(1.0) / scalar(6.0) - square / scalar(120.0) + square * square / scalar(5040.0)
        if square > scalar(1.0e-4):
            angle = wp.sqrt(square)
            b = (scalar(1.0) - wp.cos(angle)) / square
            c = (angle - wp.sin(angle)) / (square * angle)
        once = wp.cross(turn, gradient)
        return gradient + b * once + c * wp.cross(turn, once)

    return SimpleNamespace(
        vec3=vec3,
        vec6=vec6,
        mat33=mat33,
        quat=quat,
        join=spatial_join,
        linear=spatial_linear,
        angular=spatial_angular,
        cross_motion=cross_motion,
        cross_force=cross_force,
        twist_to_child=twist_to_child,
        wrench_to_parent=wrench_to_parent,
        inertia_times=inertia_times,
        rotation_about=rotation_about,
        quat_turned=quat_turned,
        quat_turn_gradient=quat_turn_gradient,
        turn_jacobian_transpose=turn_jacobian_transpose,
    )


@functools.cache
def make_memory(scalar):
    """Return functions that read and write vectors and matrices in a row of a flat array, as attributes."""
    vec3, vec6 = wp.types.vector(3, scalar), wp.types.vector(6, scalar)
    mat33, quat = wp.types.matrix((3, 3), scalar), wp.types.quaternion(scalar)

    @wp.func(inline=True)
    def read_vec3(array: wp.array2d(dtype=scalar), row: int, at: int):
        return vec3(array[row, at], array[row, at + 1], array[row, at + 2])

    @wp.func(inline=True)
    def read_vec6(array: wp.array2d(dtype=scalar), row: int, at: int):
        return vec6(
            array[row, at],
            array[row, at + 1],
            array[row, at + 2],
            array[row, at + 3],
            array[row, at + 4],
            array[row, at + 5],
        )

    @wp.func(inline=True)
    def read_mat33(array: wp.array2d(dtype=scalar), row: int, at: int):
        return mat33(
            array[row, at],
            array[row, at + 1],
            array[row, at + 2],
            array[row, at + 3],
            array[row, at + 4],
            array[row, at + 5],
            array[row, at + 6],
            array[row, at + 7],
            array[row, at + 8],
        )

    @wp.func(inline=True)
    def read_quat(array: wp.array2d(dtype=scalar), row: int, at: int):
        """A quaternion, not normalized."""
        return quat(array[row, at], array[row, at + 1], array[row, at + 2], array[row, at + 3])

    @wp.func(inline=True)
    def write_vec3(array: wp.array2d(dtype=scalar), row: int, at: int, value: vec3):
        for k in range(3):
            array[row, at + k] = value[k]

    @wp.func(inline=True)
    def write_vec6(array: wp.array2d(dtype=scalar), row: int, at: int, value: vec6):
        for k in range(6):
            array[row, at + k] = value[k]

    @wp.func(inline=True)
    def write_mat33(array: wp.array2d(dtype=scalar), row: int, at: int, value: mat33):
        for k in range(3):
            for j in range(3):
                array[row, at + 3 * k + j] = value[k, j]

    @wp.func(inline=True)
    def write_quat(array: wp.array2d(dtype=scalar), row: int, at: int, value: quat):
        for k in range(4):
            array[row, at + k] = value[k]

    @wp.func(inline=True)
    def add_vec3(array: wp.array2d(dtype=scalar), row: int, at: int, value: vec3):
        for k in range(3):
            array[row, at + k] = array[row, at + k] + value[k]

    @wp.func(inline=True)
    def add_vec6(array: wp.array2d(dtype=scalar), row: int, at: int, value: vec6):
        for k in range(6):
            array[row, at + k] = array[row, at + k] + value[k]

    @wp.func(inline=True)
    def add_mat33(array: wp.array2d(dtype=scalar), row: int, at: int, value: mat33):
        for k in range(3):
            for j in range(3):
                array[row, at + 3 * k + j] = array[row, at + 3 * k + j] + value[k, j]

    @wp.func(inline=True)
    def add_quat(array: wp.array2d(dtype=scalar), row: int, at: int, value: quat):
        for k in range(4):
            array[row, at + k] = array[row, at + k] + value[k]

    @wp.func(inline=True)
    def clear_row(array: wp.array2d(dtype=scalar), row: int, at: int, count: int):
        for k in range(count):
            array[row, at + k] = scalar(0.0)

    return SimpleNamespace(
        read_vec3=read_vec3,
        read_vec6=read_vec6,
        read_mat33=read_mat33,
        read_quat=read_quat,
        write_vec3=write_vec3,
        write_vec6=write_vec6,
        write_mat33=write_mat33,
        write_quat=write_quat,
        add_vec3=add_vec3,
        add_vec6=add_vec6,
        add_mat33=add_mat33,
        add_quat=add_quat,
        clear_row=clear_row,
    )
