"""One substep of `gradpath.sim.Bicycle` and its adjoint by hand, as Warp functions."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.lags import make_lag
from gradpath.sim.plane_functions import make_plane


@functools.cache
def make_bicycle(scalar):
    """Return the functions and the sizes of their vectors, as attributes.

    State: x, y, yaw, speed, steer. Control: acceleration, rate of steering. Parameters, which are the coefficients:
    wheelbase, distance from rear axle to reference point, limits: acceleration, braking, lowest and highest speed,
    steering angle, rate of steering.
    """
    vec2, vec5, vec8 = (wp.types.vector(size, scalar) for size in (2, 5, 8))
    plane, lag = make_plane(scalar), make_lag(scalar)

    @wp.func
    def bicycle_prepare(p: vec8, time: scalar):
        return p

    @wp.func
    def bicycle_unprepare(p: vec8, time: scalar, g: vec8):
        return g

    @wp.func
    def bicycle_ramps(x: vec5, u: vec2, k: vec8, time: scalar):
        """Speed at the end and distance; steering angle at the end and its mean."""
        acceleration, rate = lag.limit(u[0], -k[3], k[2]), lag.limit(u[1], -k[7], k[7])
        drive = plane.ramp(x[3], acceleration, k[4], k[5], time)
        steer = plane.ramp(x[4], rate, -k[6], k[6], time)
        return drive, vec2(steer[0], steer[1] / time)

    @wp.func
    def bicycle_advance(x: vec5, u: vec2, k: vec8, time: scalar):
        drive, steer = bicycle_ramps(x, u, k, time)
        tangent = wp.tan(steer[1])
        sideways = k[1] / k[0] * tangent  # tangent of the slip angle of the reference point
        curvature = tangent / (k[0] * wp.sqrt(scalar(1.0) + sideways * sideways))
        turn = drive[1] * curvature
        moved = plane.arc(x[2] + wp.atan(sideways), drive[1], turn)
        return vec5(x[0] + moved[0], x[1] + moved[1], x[2] + turn, drive[0], steer[0])

    @wp.func
    def bicycle_reverse(x: vec5, u: vec2, k: vec8, time: scalar, g: vec5):
        drive, steer = bicycle_ramps(x, u, k, time)
        tangent, ratio = wp.tan(steer[1]), k[1] / k[0]
        sideways = ratio * tangent
        stretch = scalar(1.0) + sideways * sideways
        root = wp.sqrt(stretch)
        curvature = tangent / (k[0] * root)
        by_arc = plane.arc_gradient(
            x[2] + wp.atan(sideways), drive[1], drive[1] * curvature, vec2(g[0], g[1])
        )
        by_turn = by_arc[2] + g[2]
        by_curvature = by_turn * drive[1] / (k[0] * stretch * root)
        by_tangent = by_curvature + by_arc[0] * ratio / stretch
        by_ratio = by_arc[0] * tangent / stretch - by_curvature * sideways * tangent * tangent
        by_mean = by_tangent * (scalar(1.0) + tangent * tangent) / time
        acceleration, rate = lag.limit(u[0], -k[3], k[2]), lag.limit(u[1], -k[7], k[7])
        by_drive = plane.ramp_gradient(
            x[3], acceleration, k[4], k[5], time, vec2(g[3], by_arc[1] + by_turn * curvature)
        )
        by_steer = plane.ramp_gradient(x[4], rate, -k[6], k[6], time, vec2(g[4], by_mean))
        by_push = lag.limit_gradient(u[0], -k[3], k[2], by_drive[1])
        by_rate = lag.limit_gradient(u[1], -k[7], k[7], by_steer[1])
        by_base = -(by_turn * drive[1] * curvature + by_ratio * ratio) / k[0]
        by_x = vec5(g[0], g[1], g[2] + by_arc[0], by_drive[0], by_steer[0])
        by_k = vec8(
            by_base, by_ratio / k[0], by_push[2], -by_push[1], by_drive[2], by_drive[3],
            by_steer[3] - by_steer[2], by_rate[2] - by_rate[1],
        )  # fmt: skip
        return by_x, vec2(by_push[0], by_rate[0]), by_k

    return SimpleNamespace(
        state=5,
        control=2,
        parameters=8,
        coefficients=8,
        prepare=bicycle_prepare,
        unprepare=bicycle_unprepare,
        advance=bicycle_advance,
        reverse=bicycle_reverse,
    )
