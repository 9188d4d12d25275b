"""The law of one contact over one time step: the impulse it gives, and every derivative of that, as Warp functions.

The impulse depends on the velocities at the contact when the step begins and when it ends, and is found together with
the latter. In between the depth changes at the mean of both, from end to end of the step; the elastic force is averaged
over the depths that are passed, so that a bounce returns the energy it took, however few steps it lasts (the method of
average vector fields). Friction follows Coulomb's law at the end of the step, with the impulse that presses there.

References: Quispel and McLaren 2008, A new class of energy-preserving numerical integration methods; Hunt and Crossley
1975, Coefficient of restitution interpreted as damping in vibroimpact.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
import math
from types import SimpleNamespace

import warp as wp

_NODES = (0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15))  # Gauss's rule on [0, 1]
_SHARES = (5.0 / 18.0, 8.0 / 18.0, 5.0 / 18.0)


@functools.cache
def make_contact_law(scalar):
    """Return the functions of the law of a contact, as attributes."""
    vec2, vec3, vec5 = wp.types.vector(2, scalar), wp.types.vector(3, scalar), wp.types.vector(5, scalar)
    mat33 = wp.types.matrix((3, 3), scalar)

    @wp.func
    def soft_ramp(x: scalar):
        """Softplus and its derivative."""
        e = wp.exp(-wp.abs(x))
        if x > scalar(0.0):
            return vec2(x + wp.log(scalar(1.0) + e), scalar(1.0) / (scalar(1.0) + e))
        return vec2(wp.log(scalar(1.0) + e), e / (scalar(1.0) + e))

    @wp.func
    def press_law(depth: scalar, start: scalar, end: scalar, damping: scalar, width: scalar, time: scalar):
        """Normal impulse per stiffness, and its derivatives by end, depth, start and damping.

        `depth` is that of half the step, were the velocity along the normal `start`; `end` is that after the step.
        """
        half = scalar(0.5) * time
        first = depth + half * start
        change = -half * (start + end)
        ramp, by_depth, by_end = scalar(0.0), scalar(0.0), scalar(0.0)
        for k in range(3):
            share, node = scalar(wp.static(_SHARES[k])), scalar(wp.static(_NODES[k]))
            point = soft_ramp((first + node * change) / width)
            ramp += share * width * point[0]
            by_depth += share * point[1]
            by_end -= half * share * node * point[1]
        by_start = half * by_depth + by_end
        # 1 + x while the bodies approach; exp(x) > 0 while they part, because contact never pulls.
        parting = scalar(0.5) * (start + end)
        x = -damping * parting
        factor, slope = scalar(1.0) + x, scalar(1.0)
        if x <= scalar(0.0):
            factor = wp.exp(x)
            slope = factor
        drag = scalar(0.5) * ramp * slope * damping
        return time * vec5(
            ramp * factor,
            by_end * factor - drag,
            by_depth * factor,
            by_start * factor - drag,
            -ramp * slope * parting,
        )

    @wp.func
    def slip_direction(normal: vec3, velocity: vec3, scale: scalar):
        """Tangential velocity over its length, smoothed below `scale`; and that length."""
        slip = velocity - normal * wp.dot(normal, velocity)
        speed = wp.sqrt(wp.dot(slip, slip) + scale * scale)
        return slip / speed, speed

    @wp.func
    def contact_impulse(normal: vec3, velocity: vec3, pressed: scalar, friction: scalar, scale: scalar):
        way, _speed = slip_direction(normal, velocity, scale)
        return pressed * (normal - friction * way)

    @wp.func
    def contact_resistance(
        normal: vec3,
        velocity: vec3,
        pressed: scalar,
        by_end: scalar,
        friction: scalar,
        scale: scalar,
        coupling: scalar,
    ):
        """Minus the derivative of the impulse by the velocity; without `coupling`, as if friction had a given load."""
        way, speed = slip_direction(normal, velocity, scale)
        flat = wp.identity(n=3, dtype=scalar) - wp.outer(normal, normal) - wp.outer(way, way)
        along = normal - (coupling * friction) * way
        return wp.outer(along, -by_end * normal) + (pressed * friction / speed) * flat

    return SimpleNamespace(
        vec5=vec5,
        mat33=mat33,
        press=press_law,
        way=slip_direction,
        impulse=contact_impulse,
        resistance=contact_resistance,
    )
