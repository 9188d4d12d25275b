"""Warp functions that actuators share: limits of a command, and a first-order lag solved exactly."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp


@functools.cache
def make_lag(scalar):
    """Return the functions and their adjoints for one float type, as attributes."""
    vec2, vec3 = wp.types.vector(2, scalar), wp.types.vector(3, scalar)

    @wp.func
    def limit(value: scalar, low: scalar, high: scalar):
        if not wp.isfinite(value):  # min and max would make a full command of it, and nobody would know
            return value
        return wp.max(wp.min(value, high), low)

    @wp.func
    def limit_gradient(value: scalar, low: scalar, high: scalar, gradient: scalar):
        """Gradients of value, lower and upper limit: one of them has all of it."""
        if value > high:
            return vec3(scalar(0.0), scalar(0.0), gradient)
        if value < low:
            return vec3(scalar(0.0), gradient, scalar(0.0))
        return vec3(gradient, scalar(0.0), scalar(0.0))

    @wp.func
    def lag_prepare(constant: scalar, time: scalar):
        """What is left of an error after `time`, and its mean during it, both relative to the error at the start."""
        ratio = time / constant
        decay = wp.exp(-ratio)
        return vec2(decay, (scalar(1.0) - decay) / ratio)

    @wp.func
    def lag_unprepare(constant: scalar, time: scalar, gradient: vec2):
        """Gradient of the time constant."""
        ratio = time / constant
        decay = wp.exp(-ratio)
        mean = (scalar(1.0) - decay) / ratio
        return (decay * gradient[0] + (mean - decay) / ratio * gradient[1]) * ratio / constant

    return SimpleNamespace(
        limit=limit, limit_gradient=limit_gradient, prepare=lag_prepare, unprepare=lag_unprepare
    )
