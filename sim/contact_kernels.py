"""Kernels of contact forces, as factories over the float type."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp

from gradpath.warp_geometry import make_safe_length


@functools.cache
def make_point_velocity(scalar):
    """Return the Warp functions for the velocity of a point of a body, and its inverse: a wrench from a force."""
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


def make_press_contacts(scalar):
    """Return the kernel of normal forces and slip velocities; launched over (B, C).

    It also sums the normal forces on each body, weighted by friction, which the friction kernel needs.
    """
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)
    _, point_velocity = make_point_velocity(scalar)

    @wp.func
    def softplus(x: scalar):
        return wp.max(x, scalar(0.0)) + wp.log(scalar(1.0) + wp.exp(-wp.abs(x)))

    @wp.func
    def mean_softplus(x: scalar, change: scalar):
        """Mean of softplus from x - change / 2 to x + change / 2, by Gauss's rule with three points."""
        off = scalar(0.3872983346207417) * change  # sqrt(3 / 5) / 2
        ends = softplus(x - off) + softplus(x + off)
        return (scalar(5.0) * ends + scalar(8.0) * softplus(x)) / scalar(18.0)

    @wp.func
    def dissipation(x: scalar):
        """1 + x while the bodies approach; exp(x) > 0 while they part, because contact never pulls."""
        if x > scalar(0.0):
            return scalar(1.0) + x
        return wp.exp(x)

    @wp.kernel(module="unique")
    def _press_contacts(
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
        dt: scalar,  # over which the force is averaged [s]
        # Out:
        force: wp.array2d(dtype=scalar),  # (B, C) normal force [N]
        slip: wp.array2d(dtype=vec3),  # (B, C) tangential velocity [m/s]
        load: wp.array2d(
            dtype=scalar
        ),  # (B, N) friction times normal force, summed over the contacts of a body
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
        pressed = width * mean_softplus(depth[world, contact] / width, -apart * dt / width)
        f = share * stiffness * pressed * dissipation(-damping * apart)
        force[world, contact] = f
        slip[world, contact] = velocity - away * apart
        if a >= 0:
            wp.atomic_add(load, world, a, friction * f)
        if b >= 0:
            wp.atomic_add(load, world, b, friction * f)

    return _press_contacts


@functools.cache
def make_slip_speed(scalar):
    """Return the Warp function (speed, change, scale) -> s, the root of s + change s / sqrt(s^2 + scale^2) = speed.

    It is the speed at the end of a step of implicit friction that can take `change` [m/s] out of it.
    """

    @wp.func
    def slip_speed(speed: scalar, change: scalar, scale: scalar):
        # The left side is concave in s and both values are below its root: Newton's method climbs to it.
        s = wp.max(speed - change, speed * scale / (scale + change))
        for _ in range(8):
            norm = wp.sqrt(s * s + scale * scale)
            slope = scalar(1.0) + change * scale * scale / (norm * norm * norm)
            s = wp.min(s + (speed - s - change * s / norm) / slope, speed)
        return s

    @wp.func_grad(slip_speed)
    def slip_speed_grad(speed: scalar, change: scalar, scale: scalar, gradient: scalar):
        s = slip_speed(speed, change, scale)
        norm = wp.sqrt(s * s + scale * scale)
        cube = norm * norm * norm
        share = gradient / (scalar(1.0) + change * scale * scale / cube)
        wp.adjoint[speed] += share
        wp.adjoint[change] -= share * s / norm
        wp.adjoint[scale] += share * change * s * scale / cube

    return slip_speed


def make_rub_contacts(scalar):
    """Return the kernel of friction and of the wrenches on bodies; launched over (B, C)."""
    vec3, mat33 = wp.types.vector(3, scalar), wp.types.matrix((3, 3), scalar)
    transform = wp.types.transformation(scalar)
    lever, _ = make_point_velocity(scalar)
    slip_speed, safe_length = make_slip_speed(scalar), make_safe_length(scalar)

    @wp.func
    def mobility(
        pose: wp.array2d(dtype=transform),
        inverse_mass: wp.array2d(dtype=scalar),
        inverse_inertia: wp.array2d(dtype=mat33),
        centre: wp.array2d(dtype=vec3),
        world: int,
        body: int,
        at: vec3,
        away: vec3,
    ):
        """Velocity per impulse at a point of a free body, as the mean over the directions across `away` [1/kg]."""
        back = wp.quat_inverse(wp.transform_get_rotation(pose[world, body]))
        arm = wp.quat_rotate(back, lever(pose, world, body, at)) - centre[world, body]
        turn = wp.skew(arm)
        inertia = inverse_inertia[world, body]
        about = wp.cross(arm, wp.quat_rotate(back, away))
        angular = wp.trace(wp.transpose(turn) * inertia * turn) - wp.dot(about, inertia * about)
        return inverse_mass[world, body] + scalar(0.5) * angular

    @wp.kernel(module="unique")
    def _rub_contacts(
        # In:
        point: wp.array2d(dtype=vec3),  # (B, C) world
        normal: wp.array2d(dtype=vec3),  # (B, C)
        force: wp.array2d(dtype=scalar),  # (B, C) normal force [N]
        slip: wp.array2d(dtype=vec3),  # (B, C) [m/s]
        law: wp.array2d(dtype=vec3),  # (B, C) stiffness, damping, friction
        load: wp.array2d(dtype=scalar),  # (B, N) [N]
        pose: wp.array2d(dtype=transform),  # (B, N)
        inverse_mass: wp.array2d(dtype=scalar),  # (B, N) [1/kg]
        inverse_inertia: wp.array2d(dtype=mat33),  # (B, N) in the body's axes [1/(kg m^2)]
        centre: wp.array2d(dtype=vec3),  # (B, N) centre of mass in the body's frame [m]
        bodies: wp.array3d(dtype=wp.int32),  # (1 or B, C, 2)
        # Model:
        scale: scalar,  # speed below which friction creeps [m/s]
        dt: scalar,  # of the implicit step; zero for friction at the present velocity [s]
        # Out:
        push: wp.array2d(dtype=vec3),  # (B, N) force on each body, world [N]
        twist: wp.array2d(dtype=vec3),  # (B, N) torque about the body's origin, world [N m]
    ):
        world, contact = wp.tid()
        f = force[world, contact]
        if f == scalar(0.0):
            return
        row = wp.min(world, bodies.shape[0] - 1)
        a, b = bodies[row, contact, 0], bodies[row, contact, 1]
        at, away, sliding = point[world, contact], normal[world, contact], slip[world, contact]
        change = scalar(0.0)
        if dt > scalar(0.0):
            if a >= 0:
                move = mobility(pose, inverse_mass, inverse_inertia, centre, world, a, at, away)
                change += dt * load[world, a] * move
            if b >= 0:
                move = mobility(pose, inverse_mass, inverse_inertia, centre, world, b, at, away)
                change += dt * load[world, b] * move
        speed = safe_length(safe_length(sliding[0], sliding[1]), sliding[2])
        left = slip_speed(speed, change, scale)
        drag = law[world, contact][2] * f / (wp.sqrt(left * left + scale * scale) + change)
        total = away * f - sliding * drag
        if a >= 0:
            wp.atomic_add(push, world, a, total)
            wp.atomic_add(twist, world, a, wp.cross(lever(pose, world, a, at), total))
        if b >= 0:
            wp.atomic_add(push, world, b, -total)
            wp.atomic_add(twist, world, b, -wp.cross(lever(pose, world, b, at), total))

    return _rub_contacts
