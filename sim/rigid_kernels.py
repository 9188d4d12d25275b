"""Kernel of `gradpath.sim.rigid_bodies`, as a factory over the float type."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import warp as wp

from gradpath.warp_geometry import make_quat_exp


def make_advance_bodies(scalar):
    """Return the kernel of one symplectic step of free bodies under given forces; launched over (B, N)."""
    vec3, mat33 = wp.types.vector(3, scalar), wp.types.matrix((3, 3), scalar)
    quat, transform = wp.types.quaternion(scalar), wp.types.transformation(scalar)
    quat_exp = make_quat_exp(scalar)

    @wp.func
    def turned(q: quat, tensor: mat33, v: vec3):
        """Apply a tensor that is given in the axes of the body to a vector of the world."""
        return wp.quat_rotate(q, tensor * wp.quat_rotate_inv(q, v))

    @wp.kernel(module="unique")
    def _advance_bodies(
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
        pose_out: wp.array2d(dtype=transform),
        linear_out: wp.array2d(dtype=vec3),
        angular_out: wp.array2d(dtype=vec3),
    ):
        world, body = wp.tid()
        p = wp.transform_get_translation(pose[world, body])
        q = wp.transform_get_rotation(pose[world, body])
        v = linear[world, body] + force[world, body] * (dt / mass[world, body])
        # The momentum is what is carried, so that free rotation keeps it exactly; the rate at half the turn moves.
        momentum = turned(q, inertia[world, body], angular[world, body]) + torque[world, body] * dt
        inverse = inverse_inertia[world, body]
        half = quat_exp(turned(q, inverse, momentum) * (scalar(0.5) * dt)) * q
        q_out = wp.normalize(quat_exp(turned(half, inverse, momentum) * dt) * q)
        pose_out[world, body] = transform(p + v * dt, q_out)
        linear_out[world, body] = v
        angular_out[world, body] = turned(q_out, inverse, momentum)

    return _advance_bodies
