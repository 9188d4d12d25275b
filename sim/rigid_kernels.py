"""Kernels of `gradpath.sim.rigid_bodies`, as factories over the float type."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp

from gradpath.warp_geometry import make_quat_exp


@functools.cache
def make_turned(scalar):
    """Return the Warp function that applies a tensor given in the axes of a body to a vector of the world."""
    vec3, mat33, quat = (
        wp.types.vector(3, scalar),
        wp.types.matrix((3, 3), scalar),
        wp.types.quaternion(scalar),
    )

    @wp.func
    def turned(q: quat, tensor: mat33, v: vec3):
        return wp.quat_rotate(q, tensor * wp.quat_rotate_inv(q, v))

    return turned


def make_begin_bodies(scalar):
    """Return the kernel of the first half of a step: poses in its middle, and velocities at its end without contact.

    Launched over (B, N).
    """
    vec3, mat33 = wp.types.vector(3, scalar), wp.types.matrix((3, 3), scalar)
    transform = wp.types.transformation(scalar)
    quat_exp, turned = make_quat_exp(scalar), make_turned(scalar)

    @wp.kernel(module="unique")
    def _begin_bodies(
        # In:
        pose: wp.array2d(dtype=transform),  # (B, N)
        linear: wp.array2d(dtype=vec3),  # (B, N) world [m/s]
        angular: wp.array2d(dtype=vec3),  # (B, N) world [rad/s]
        force: wp.array2d(dtype=vec3),  # (B, N) world [N]
        torque: wp.array2d(dtype=vec3),  # (B, N) world, about the centre of mass [N m]
        # Model:
        mass: wp.array2d(dtype=scalar),  # (B, N) [kg]
        inertia: wp.array2d(dtype=mat33),  # (B, N) body axes [kg m^2]
        inverse_inertia: wp.array2d(dtype=mat33),  # (B, N)
        dt: scalar,  # [s]
        # Out:
        middle: wp.array2d(dtype=transform),
        linear_free: wp.array2d(dtype=vec3),
        angular_free: wp.array2d(dtype=vec3),
    ):
        world, body = wp.tid()
        p = wp.transform_get_translation(pose[world, body])
        q = wp.transform_get_rotation(pose[world, body])
        v, w = linear[world, body], angular[world, body]
        half = scalar(0.5) * dt
        q_middle = wp.normalize(quat_exp(w * half) * q)
        # The momentum is what is carried, so that free rotation keeps it exactly.
        momentum = turned(q, inertia[world, body], w) + torque[world, body] * dt
        middle[world, body] = transform(p + v * half, q_middle)
        linear_free[world, body] = v + force[world, body] * (dt / mass[world, body])
        angular_free[world, body] = turned(q_middle, inverse_inertia[world, body], momentum)

    return _begin_bodies


def make_finish_bodies(scalar):
    """Return the kernel of the second half of a step, with the velocities at its end; launched over (B, N).

    The first half turns at the rate at the start, so the second turns at that at the end, where momentum leads to it.
    """
    vec3, mat33 = wp.types.vector(3, scalar), wp.types.matrix((3, 3), scalar)
    transform = wp.types.transformation(scalar)
    quat_exp, turned = make_quat_exp(scalar), make_turned(scalar)

    @wp.kernel(module="unique")
    def _finish_bodies(
        # In:
        middle: wp.array2d(dtype=transform),  # (B, N)
        linear: wp.array2d(dtype=vec3),  # (B, N) world [m/s]
        angular: wp.array2d(dtype=vec3),  # (B, N) world, of the body at its attitude in the middle [rad/s]
        # Model:
        inertia: wp.array2d(dtype=mat33),  # (B, N) body axes [kg m^2]
        inverse_inertia: wp.array2d(dtype=mat33),  # (B, N)
        dt: scalar,  # [s]
        # Out:
        pose_out: wp.array2d(dtype=transform),
        angular_out: wp.array2d(dtype=vec3),
    ):
        world, body = wp.tid()
        p = wp.transform_get_translation(middle[world, body])
        q = wp.transform_get_rotation(middle[world, body])
        w, half = angular[world, body], scalar(0.5) * dt
        inverse = inverse_inertia[world, body]
        momentum = turned(q, inertia[world, body], w)
        rate = turned(quat_exp(w * half) * q, inverse, momentum)
        q_out = wp.normalize(quat_exp(rate * half) * q)
        pose_out[world, body] = transform(p + linear[world, body] * half, q_out)
        angular_out[world, body] = turned(q_out, inverse, momentum)

    return _finish_bodies
