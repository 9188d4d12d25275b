"""Kernel of contact forces at one instant, as a factory over the float type."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp


@functools.cache
def make_point_velocity(scalar):
    """Return the Warp functions for the lever of a point of a body, and its velocity."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)

    @wp.func
    def lever(pose: wp.array2d(dtype=transform), world: int, body: int, at: vec3):
        return at - wp.transform_get_translation(pose[world, body])

    @wp.func
    def point_velocity(
        pose: wp.array2d(dtype=transform),
        linear: wp.array2d(dtype=vec3),
        angular: wp.array2d(dtype=vec3),
        world: int,
        body: int,
        at: vec3,
    ):
        if body < 0:
            return vec3(scalar(0.0), scalar(0.0), scalar(0.0))
        return linear[world, body] + wp.cross(angular[world, body], lever(pose, world, body, at))

    return lever, point_velocity


def make_push_bodies(scalar):
    """Return the kernel of contact forces and of the wrenches on bodies; launched over (B, C)."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)
    lever, point_velocity = make_point_velocity(scalar)

    @wp.func
    def softplus(x: scalar):
        return wp.max(x, scalar(0.0)) + wp.log(scalar(1.0) + wp.exp(-wp.abs(x)))

    @wp.func
    def dissipation(x: scalar):
        """1 + x while the bodies approach; exp(x) > 0 while they part, because contact never pulls."""
        if x > scalar(0.0):
            return scalar(1.0) + x
        return wp.exp(x)

    @wp.kernel(module="unique")
    def _push_bodies(
        # In:
        point: wp.array2d(dtype=vec3),  # (B, C) world
        normal: wp.array2d(dtype=vec3),  # (B, C) from the second body to the first
        depth: wp.array2d(dtype=scalar),  # (B, C)
        weight: wp.array2d(dtype=scalar),  # (B, C)
        pose: wp.array2d(dtype=transform),  # (B, N)
        linear: wp.array2d(dtype=vec3),  # (B, N) world
        angular: wp.array2d(dtype=vec3),  # (B, N) world
        law: wp.array2d(dtype=vec3),  # (B, C) stiffness [N/m], damping [s/m], friction
        bodies: wp.array3d(dtype=wp.int32),  # (1 or B, C, 2)
        # Model:
        width: scalar,  # of the softplus [m]
        scale: scalar,  # slip below which friction creeps [m/s]
        # Out:
        push: wp.array2d(dtype=vec3),  # (B, N) force on each body, world [N]
        twist: wp.array2d(dtype=vec3),  # (B, N) torque about the body's origin, world [N m]
    ):
        world, contact = wp.tid()
        share = weight[world, contact]
        if share == scalar(0.0):
            return
        row = wp.min(world, bodies.shape[0] - 1)
        a, b = bodies[row, contact, 0], bodies[row, contact, 1]
        at, away = point[world, contact], normal[world, contact]
        velocity = point_velocity(pose, linear, angular, world, a, at)
        velocity = velocity - point_velocity(pose, linear, angular, world, b, at)
        apart = wp.dot(away, velocity)
        stiffness, damping, friction = law[world, contact][0], law[world, contact][1], law[world, contact][2]
        pressed = width * softplus(depth[world, contact] / width)
        force = share * stiffness * pressed * dissipation(-damping * apart)
        slip = velocity - away * apart
        total = away * force - slip * (friction * force / wp.sqrt(wp.dot(slip, slip) + scale * scale))
        if a >= 0:
            wp.atomic_add(push, world, a, total)
            wp.atomic_add(twist, world, a, wp.cross(lever(pose, world, a, at), total))
        if b >= 0:
            wp.atomic_add(push, world, b, -total)
            wp.atomic_add(twist, world, b, -wp.cross(lever(pose, world, b, at), total))

    return _push_bodies
