"""Warp functions that vehicles on a plane share: the arc that they drive, and a ramp between limits; with adjoints."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp


@functools.cache
def make_plane(scalar):
    """Return the functions for one float type, as attributes."""
    vec2, vec3, vec4 = (wp.types.vector(size, scalar) for size in (2, 3, 4))

    @wp.func
    def sinc(angle: scalar):
        """sin(a) / a, and its derivative."""
        square = angle * angle
        if square < scalar(1.0e-4):
            return vec2(
                scalar(1.0) - square / scalar(6.0) + square * square / scalar(120.0),
                -angle / scalar(3.0)
                + angle * square / scalar(30.0)
                - angle * square * square / scalar(840.0),
            )
        s = wp.sin(angle) / angle
        return vec2(s, (wp.cos(angle) - s) / angle)

    @wp.func
    def arc(heading: scalar, length: scalar, turn: scalar):
        """Displacement along an arc of this length that begins in the direction `heading` and turns by `turn`."""
        half = scalar(0.5) * turn
        chord = length * sinc(half)[0]
        return vec2(chord * wp.cos(heading + half), chord * wp.sin(heading + half))

    @wp.func
    def arc_gradient(heading: scalar, length: scalar, turn: scalar, g: vec2):
        """Gradients of heading, length and turn."""
        half = scalar(0.5) * turn
        s = sinc(half)
        c, d = wp.cos(heading + half), wp.sin(heading + half)
        along, across = g[0] * c + g[1] * d, g[1] * c - g[0] * d
        by_heading = length * s[0] * across
        return vec3(by_heading, s[0] * along, scalar(0.5) * (by_heading + length * s[1] * along))

    @wp.func
    def ramp_time(value: scalar, rate: scalar, low: scalar, high: scalar, time: scalar):
        """How long a value that starts between the limits changes before it meets one."""
        if value + rate * time > high:
            return (high - value) / rate
        if value + rate * time < low:
            return (low - value) / rate
        return time

    @wp.func
    def ramp(start: scalar, rate: scalar, low: scalar, high: scalar, time: scalar):
        """A value that changes at a rate until it meets a limit: at the end, and its integral over the time."""
        value = wp.max(wp.min(start, high), low)
        moving = ramp_time(value, rate, low, high, time)
        end = wp.max(wp.min(value + rate * moving, high), low)
        if not wp.isfinite(start + rate):  # the limits would hide it
            end = start + rate
        return vec2(end, value * moving + scalar(0.5) * rate * moving * moving + end * (time - moving))

    @wp.func
    def ramp_gradient(start: scalar, rate: scalar, low: scalar, high: scalar, time: scalar, g: vec2):
        """Gradients of start, rate and both limits."""
        value = wp.max(wp.min(start, high), low)
        moving = ramp_time(value, rate, low, high, time)
        by_value, by_rate = g[1] * moving, g[1] * scalar(0.5) * moving * moving
        by_low, by_high = scalar(0.0), scalar(0.0)
        if value + rate * time > high:
            by_high = g[0] + g[1] * (time - moving)
        elif value + rate * time < low:
            by_low = g[0] + g[1] * (time - moving)
        else:
            by_value += g[0]
            by_rate += g[0] * time
        if start > high:
            return vec4(scalar(0.0), by_rate, by_low, by_high + by_value)
        if start < low:
            return vec4(scalar(0.0), by_rate, by_low + by_value, by_high)
        return vec4(by_value, by_rate, by_low, by_high)

    return SimpleNamespace(arc=arc, arc_gradient=arc_gradient, ramp=ramp, ramp_gradient=ramp_gradient)
