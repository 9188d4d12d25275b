"""One substep of `gradpath.sim.DifferentialDrive` and its adjoint by hand, as Warp functions."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.lags import make_lag
from gradpath.sim.plane_functions import make_plane


@functools.cache
def make_differential_drive(scalar):
    """Return the functions and the sizes of their vectors, as attributes.

    State: x, y, yaw, speeds of the left and right wheel. Control: commanded wheel speeds. Parameters: radius, track,
    lag of the motors, limit of wheel speeds. Coefficients: radius, track, decay and mean of the lag, limit.
    """
    vec2, vec4, vec5 = (wp.types.vector(size, scalar) for size in (2, 4, 5))
    plane, lag = make_plane(scalar), make_lag(scalar)

    @wp.func
    def drive_prepare(p: vec4, time: scalar):
        motor = lag.prepare(p[2], time)
        return vec5(p[0], p[1], motor[0], motor[1], p[3])

    @wp.func
    def drive_unprepare(p: vec4, time: scalar, g: vec5):
        return vec4(g[0], g[1], lag.unprepare(p[2], time, vec2(g[2], g[3])), g[4])

    @wp.func
    def wheel_goals(u: vec2, k: vec5):
        return vec2(lag.limit(u[0], -k[4], k[4]), lag.limit(u[1], -k[4], k[4]))

    @wp.func
    def drive_advance(x: vec5, u: vec2, k: vec5, time: scalar):
        goal = wheel_goals(u, k)
        error = vec2(x[3], x[4]) - goal
        mean, end = goal + error * k[3], goal + error * k[2]
        length = scalar(0.5) * k[0] * time * (mean[0] + mean[1])
        turn = k[0] / k[1] * time * (mean[1] - mean[0])
        moved = plane.arc(x[2], length, turn)
        return vec5(x[0] + moved[0], x[1] + moved[1], x[2] + turn, end[0], end[1])

    @wp.func
    def drive_reverse(x: vec5, u: vec2, k: vec5, time: scalar, g: vec5):
        goal = wheel_goals(u, k)
        error = vec2(x[3], x[4]) - goal
        mean = goal + error * k[3]
        forward, apart = scalar(0.5) * time * (mean[0] + mean[1]), time * (mean[1] - mean[0]) / k[1]
        by_arc = plane.arc_gradient(x[2], k[0] * forward, k[0] * apart, vec2(g[0], g[1]))
        by_turn = by_arc[2] + g[2]
        drive, spin = scalar(0.5) * k[0] * time * by_arc[1], k[0] / k[1] * time * by_turn
        by_mean, by_end = vec2(drive - spin, drive + spin), vec2(g[3], g[4])
        by_wheel = by_end * k[2] + by_mean * k[3]
        by_goal = by_end + by_mean - by_wheel
        left = lag.limit_gradient(u[0], -k[4], k[4], by_goal[0])
        right = lag.limit_gradient(u[1], -k[4], k[4], by_goal[1])
        by_k = vec5(
            by_arc[1] * forward + by_turn * apart, -by_turn * k[0] * apart / k[1], wp.dot(error, by_end),
            wp.dot(error, by_mean), left[2] - left[1] + right[2] - right[1],
        )  # fmt: skip
        by_x = vec5(g[0], g[1], g[2] + by_arc[0], by_wheel[0], by_wheel[1])
        return by_x, vec2(left[0], right[0]), by_k

    return SimpleNamespace(
        state=5,
        control=2,
        parameters=4,
        coefficients=5,
        prepare=drive_prepare,
        unprepare=drive_unprepare,
        advance=drive_advance,
        reverse=drive_reverse,
    )
