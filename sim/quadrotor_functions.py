"""One substep of `gradpath.sim.Quadrotor` and its adjoint by hand, as Warp functions."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.lags import make_lag
from gradpath.sim.spatial import make_spatial
from gradpath.warp_geometry import make_quat_exp

GRAVITY = 9.81  # [m/s^2]


@functools.cache
def make_quadrotor(scalar):
    """Return the functions and the sizes of their vectors, as attributes.

    State: position, quaternion, velocity, rates, thrust. Control: thrust, rates. Parameters: mass, drag (3), lags of
    thrust and of rates, limits of thrust and of rates (3), wind (3). Coefficients: mass, drag, decay and mean of
    both lags, limits, wind.
    """
    vec3, vec4, quat = wp.types.vector(3, scalar), wp.types.vector(4, scalar), wp.types.quaternion(scalar)
    vec13, vec14, vec15 = (wp.types.vector(size, scalar) for size in (13, 14, 15))
    vec2 = wp.types.vector(2, scalar)
    quat_exp, space, lag = make_quat_exp(scalar), make_spatial(scalar), make_lag(scalar)

    @wp.func
    def quadrotor_prepare(p: vec13, time: scalar):
        thrust, rates = lag.prepare(p[4], time), lag.prepare(p[5], time)
        return vec15(
            p[0], p[1], p[2], p[3], thrust[0], thrust[1], rates[0], rates[1],
            p[6], p[7], p[8], p[9], p[10], p[11], p[12],
        )  # fmt: skip

    @wp.func
    def quadrotor_unprepare(p: vec13, time: scalar, g: vec15):
        return vec13(
            g[0], g[1], g[2], g[3],
            lag.unprepare(p[4], time, vec2(g[4], g[5])), lag.unprepare(p[5], time, vec2(g[6], g[7])),
            g[8], g[9], g[10], g[11], g[12], g[13], g[14],
        )  # fmt: skip

    @wp.func
    def rates_goal(u: vec4, k: vec15):
        return vec3(
            lag.limit(u[1], -k[9], k[9]), lag.limit(u[2], -k[10], k[10]), lag.limit(u[3], -k[11], k[11])
        )

    @wp.func
    def body_force(air: vec3, thrust: scalar, k: vec15):
        """Thrust, and drag that is quadratic in the velocity relative to the air, in body axes."""
        return vec3(scalar(0.0), scalar(0.0), thrust) - wp.length(air) * wp.cw_mul(
            vec3(k[1], k[2], k[3]), air
        )

    @wp.func
    def quadrotor_advance(x: vec14, u: vec4, k: vec15, time: scalar):
        p, v = vec3(x[0], x[1], x[2]), vec3(x[7], x[8], x[9])
        w, q = vec3(x[10], x[11], x[12]), wp.normalize(quat(x[3], x[4], x[5], x[6]))
        goal, turn_goal = lag.limit(u[0], scalar(0.0), k[8]), rates_goal(u, k)
        # A first-order lag decays exponentially; over a substep its mean is what moves the body.
        half_turn = quat_exp((turn_goal + (w - turn_goal) * k[7]) * (scalar(0.5) * time))
        middle = q * half_turn
        air = wp.quat_rotate_inv(middle, v - vec3(k[12], k[13], k[14]))
        force = body_force(air, goal + (x[13] - goal) * k[5], k)
        a = wp.quat_rotate(middle, force) / k[0] - vec3(scalar(0.0), scalar(0.0), scalar(GRAVITY))
        p = p + v * time + a * (scalar(0.5) * time * time)
        v = v + a * time
        q = middle * half_turn
        w = turn_goal + (w - turn_goal) * k[6]
        thrust = goal + (x[13] - goal) * k[4]
        return vec14(p[0], p[1], p[2], q[0], q[1], q[2], q[3], v[0], v[1], v[2], w[0], w[1], w[2], thrust)

    @wp.func
    def drag_gradient(air: vec3, k: vec15, g: vec3):
        """Gradient of the air-relative velocity from that of the force; zero in still air."""
        speed = wp.length(air)
        scaled = wp.cw_mul(vec3(k[1], k[2], k[3]), g)
        if speed == scalar(0.0):
            return vec3()
        return -speed * scaled - air * (wp.dot(air, scaled) / speed)

    @wp.func
    def quadrotor_reverse(x: vec14, u: vec4, k: vec15, time: scalar, g: vec14):
        raw, w = quat(x[3], x[4], x[5], x[6]), vec3(x[10], x[11], x[12])
        q = wp.normalize(raw)
        goal, turn_goal = lag.limit(u[0], scalar(0.0), k[8]), rates_goal(u, k)
        error, turn_error = x[13] - goal, w - turn_goal
        turn = (turn_goal + turn_error * k[7]) * (scalar(0.5) * time)
        half_turn = quat_exp(turn)
        middle = q * half_turn
        air = wp.quat_rotate_inv(middle, vec3(x[7] - k[12], x[8] - k[13], x[9] - k[14]))
        force = body_force(air, goal + error * k[5], k)

        grad_p, grad_w = vec3(g[0], g[1], g[2]), vec3(g[10], g[11], g[12])
        grad_v = vec3(g[7], g[8], g[9])
        pull = grad_v * time + grad_p * (scalar(0.5) * time * time)
        grad_force = wp.quat_rotate_inv(middle, pull) / k[0]
        grad_air = drag_gradient(air, k, grad_force)
        blown = wp.quat_rotate(middle, grad_air)
        grad_v = grad_v + grad_p * time + blown
        # Gradients with respect to small turns in the body's own axes: at the end, in the middle, at the start.
        turned = space.quat_turn_gradient(middle * half_turn, quat(g[3], g[4], g[5], g[6]))
        turned_middle = (
            wp.cross(force, grad_force) + wp.cross(grad_air, air) + wp.quat_rotate(half_turn, turned)
        )
        grad_mean = space.turn_jacobian_transpose(turn, turned + turned_middle) * (scalar(0.5) * time)
        start = space.quat_turned(q, wp.quat_rotate(half_turn, turned_middle)) * (
            scalar(2.0) / wp.length(raw)
        )

        by_w = grad_w * k[6] + grad_mean * k[7]
        by_turn_goal = grad_w + grad_mean - by_w
        by_thrust = g[13] * k[4] + grad_force[2] * k[5]
        by_goal = g[13] + grad_force[2] - by_thrust
        command = lag.limit_gradient(u[0], scalar(0.0), k[8], by_goal)
        roll = lag.limit_gradient(u[1], -k[9], k[9], by_turn_goal[0])
        pitch = lag.limit_gradient(u[2], -k[10], k[10], by_turn_goal[1])
        yaw = lag.limit_gradient(u[3], -k[11], k[11], by_turn_goal[2])
        speed = wp.length(air)
        by_x = vec14(
            grad_p[0], grad_p[1], grad_p[2], start[0], start[1], start[2], start[3],
            grad_v[0], grad_v[1], grad_v[2], by_w[0], by_w[1], by_w[2], by_thrust,
        )  # fmt: skip
        by_k = vec15(
            -wp.dot(force, grad_force) / k[0], -speed * air[0] * grad_force[0], -speed * air[1] * grad_force[1],
            -speed * air[2] * grad_force[2], error * g[13], error * grad_force[2], wp.dot(turn_error, grad_w),
            wp.dot(turn_error, grad_mean), command[2], roll[2] - roll[1], pitch[2] - pitch[1], yaw[2] - yaw[1],
            -blown[0], -blown[1], -blown[2],
        )  # fmt: skip
        return by_x, vec4(command[0], roll[0], pitch[0], yaw[0]), by_k

    return SimpleNamespace(
        state=14,
        control=4,
        parameters=13,
        coefficients=15,
        prepare=quadrotor_prepare,
        unprepare=quadrotor_unprepare,
        advance=quadrotor_advance,
        reverse=quadrotor_reverse,
    )
