"""Functions that kernels share, as factories over the float type; their adjoints are finite everywhere."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp


@functools.cache
def make_safe_length(scalar):
    """Return the Warp function (x, y) -> sqrt(x**2 + y**2), whose gradient at zero is zero instead of NaN."""

    @wp.func
    def safe_length(x: scalar, y: scalar):
        square = x * x + y * y
        if square == scalar(0.0):
            return scalar(0.0)
        return wp.sqrt(square)

    return safe_length


@functools.cache
def make_quat_exp(scalar):
    """Return the Warp function rotation vector [rad] -> unit quaternion, with a series below 1e-3 rad."""
    vec3, quat = wp.types.vector(3, scalar), wp.types.quaternion(scalar)

    @wp.func
    def quat_exp(rotation: vec3):
        square = wp.dot(rotation, rotation)
        if square < scalar(1.0e-6):
            s = scalar(0.5) - square / scalar(48.0) + square * square / scalar(3840.0)
            c = scalar(1.0) - square / scalar(8.0) + square * square / scalar(384.0)
            return quat(s * rotation[0], s * rotation[1], s * rotation[2], c)
        angle = wp.sqrt(square)
        s = wp.sin(scalar(0.5) * angle) / angle
        return quat(s * rotation[0], s * rotation[1], s * rotation[2], wp.cos(scalar(0.5) * angle))

    return quat_exp
