"""Hard bounces: bodies fly freely to the time of impact, where an impulse with restitution and friction turns them.

The time of impact is found without gradient and then refined by one step of Newton's method whose derivative is that of
the implicit equation `depth(t) = 0`, so that what happens after a bounce depends on when it happened, as it should.

References: Hu et al. 2020, DiffTaichi, section 4 (why a bounce at the end of the step has a wrong gradient);
Newton's law of restitution with Coulomb's law for the impulse.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.sim.contact import Contact, ContactPoints, relative_velocity

EVENTS = 8
"""Impacts that one world may have within one substep; later ones wait for the next."""

_SAMPLES = 4  # times at which a substep is looked at for the first impact
_ROOT_STEPS = 14
_TOUCH = 1e-9  # [m] depths below this are none

_CROSSING = 1e-7  # [m] depth at the beginning of a step at which bodies are just meeting

REST_SPEED = 0.1
"""Closing speed [m/s] below which bodies do not bounce but push each other by the smooth forces."""


@dataclass(frozen=True)
class Bodies:
    """What moves: mass (B, N), inertia and its inverse in the axes of the body (B, N, 3, 3)."""

    mass: Tensor
    inertia: Tensor
    inverse_inertia: Tensor


@dataclass(frozen=True)
class Motion:
    """Poses (B, N, 7); in the world, velocity and acceleration of the centre of mass, angular momentum (B, N, 3)."""

    pose: Tensor
    linear: Tensor
    momentum: Tensor
    acceleration: Tensor


def _rotate_tensor(q: Tensor, tensor: Tensor, v: Tensor) -> Tensor:
    local = geometry.quat_rotate(geometry.quat_conjugate(q), v)
    return geometry.quat_rotate(q, (tensor @ local[..., None])[..., 0])


def angular_velocity(motion: Motion, bodies: Bodies) -> Tensor:
    """Angular velocity in the world [rad/s], shape (B, N, 3)."""
    return _rotate_tensor(motion.pose[..., 3:], bodies.inverse_inertia, motion.momentum)


def fly(motion: Motion, bodies: Bodies, time: Tensor) -> Motion:
    """Move on without contact for `time` [s], shape (B,): a parabola, and the turn of a free body."""
    t = time[:, None, None]
    q = motion.pose[..., 3:]
    rate = _rotate_tensor(q, bodies.inverse_inertia, motion.momentum)
    half = geometry.quat_multiply(geometry.quat_exp(0.5 * t * rate), q)
    rate = _rotate_tensor(half, bodies.inverse_inertia, motion.momentum)
    q = geometry.quat_multiply(geometry.quat_exp(t * rate), q)
    q = q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    position = motion.pose[..., :3] + motion.linear * t + 0.5 * motion.acceleration * t * t
    linear = motion.linear + motion.acceleration * t
    return Motion(geometry.pose(position, q), linear, motion.momentum, motion.acceleration)


def bounce(contact: Contact, motion: Motion, bodies: Bodies, restitution: Tensor, duration: float) -> Motion:
    """Move bodies for `duration` [s] with up to `EVENTS` impacts in each world.

    Args:
        contact: What touches; its friction is used, its stiffness and damping are not.
        motion: The start.
        bodies: Masses and inertias.
        restitution: Of each shape, shape (G,) or (B, G); of an impact the mean of both.
        duration: Of the substep [s].
    Returns:
        The end.
    Gradients: exact in everything, the times of impact included, while the order of impacts stays.
    """
    left = torch.full_like(motion.linear[:, 0, 0], duration)
    for _ in range(EVENTS):
        found = _first_impact(contact, motion, bodies, left.detach())
        if found is None:
            break
        table, which, when, hits = found
        when = _refined(contact, motion, bodies, table, which, when, hits)
        motion = fly(motion, bodies, when)
        left = left - when
        points = _chosen(contact.points(motion.pose, table), which)
        motion = _impulse(contact, motion, bodies, points, restitution, hits)
    return fly(motion, bodies, left)


def _first_impact(
    contact: Contact, motion: Motion, bodies: Bodies, left: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Table of contacts, contact and time (B,) of the first impact, and the worlds that have one (B,); None if none."""
    with torch.no_grad():
        end = fly(motion, bodies, left)
        table = contact.find(end.pose)
        last = contact.points(end.pose, table)
        if last.depth.shape[1] == 0:
            return None
        comes = (last.depth > _TOUCH) & (last.weight > 0.5) & (_closing_speed(end, bodies, last) > REST_SPEED)
        if not bool(comes.any()):
            return None

        def deepest(share: Tensor) -> Tensor:
            depth = contact.points(fly(motion, bodies, share * left).pose, table).depth
            return torch.where(comes, depth, -torch.inf).amax(-1)

        shares = torch.arange(_SAMPLES, dtype=left.dtype, device=left.device) / _SAMPLES
        depths = torch.stack([deepest(share.expand_as(left)) for share in shares])
        apart = depths < 0
        # From the last sample that is apart to the end the depth changes its sign; where none is, it begins in touch.
        index = (apart * torch.arange(1, _SAMPLES + 1, device=left.device)[:, None]).amax(0) - 1
        bracketed = index >= 0
        low = shares[index.clamp(min=0)]
        high = torch.ones_like(low)
        at_low = depths.gather(0, index.clamp(min=0)[None])[0]
        at_high = deepest(high)
        for _ in range(_ROOT_STEPS):  # regula falsi, halving the weight of the end that stays
            middle = (low * at_high - high * at_low) / (at_high - at_low)
            middle = torch.where(torch.isfinite(middle), middle, 0.5 * (low + high)).clamp(0.0, 1.0)
            at_middle = deepest(middle)
            before = at_middle < 0
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
            at_low, at_high = (
                torch.where(before, at_middle, 0.5 * at_low),
                torch.where(before, 0.5 * at_high, at_middle),
            )
        when = torch.where(bracketed, high, torch.zeros_like(high)) * left
        points = contact.points(fly(motion, bodies, when).pose, table)
        which = torch.where(comes, points.depth, -torch.inf).argmax(-1)
        closing = _closing_speed(fly(motion, bodies, when), bodies, points)
        closing = closing.gather(1, which[:, None])[:, 0]
        hits = comes.any(-1) & (left > 0) & (closing > 0)
        return (table, which, when, hits) if bool(hits.any()) else None


def _chosen(points: ContactPoints, which: Tensor) -> ContactPoints:
    """One contact of each world, with shapes (B, 2), (B, 3) and (B,)."""
    world = torch.arange(len(which), device=which.device)
    row = world.clamp(max=points.shapes.shape[0] - 1)
    return ContactPoints(
        points.shapes[row, which],
        points.bodies[row, which].long(),
        points.point[world, which],
        points.normal[world, which],
        points.depth[world, which],
        points.weight[world, which],
    )


def _refined(
    contact: Contact,
    motion: Motion,
    bodies: Bodies,
    table: Tensor,
    which: Tensor,
    when: Tensor,
    hits: Tensor,
) -> Tensor:
    """The time of impact with its derivative: a step of Newton's method on depth(t) = 0, whose slope is held fixed.

    Bodies that begin inside each other are turned at once, and that time does not depend on the state.
    """
    there = fly(motion, bodies, when)
    points = _chosen(contact.points(there.pose, table), which)
    closing = -(points.normal * _relative_velocity(there, bodies, points)).sum(-1).detach()
    crosses = (when > 0) | (points.depth.abs() < _CROSSING)
    moves = hits & crosses & (closing > 0)
    correction = points.depth / torch.where(moves, closing, torch.ones_like(closing))
    refined = when - torch.where(moves, correction, torch.zeros_like(when))
    return torch.where(hits, refined, torch.zeros_like(when))


def _levers(motion: Motion, points: ContactPoints) -> tuple[Tensor, Tensor]:
    """Lever of each of the two bodies (B, 2, 3), and whether it moves (B, 2, 1), as a number."""
    world = torch.arange(len(points.depth), device=points.depth.device)[:, None]
    moves = (points.bodies >= 0)[..., None].to(points.depth)
    return points.point[:, None] - motion.pose[world, points.bodies.clamp(min=0), :3], moves


def _relative_velocity(motion: Motion, bodies: Bodies, points: ContactPoints) -> Tensor:
    world = torch.arange(len(points.depth), device=points.depth.device)[:, None]
    arm, moves = _levers(motion, points)
    body = points.bodies.clamp(min=0)
    angular = angular_velocity(motion, bodies)[world, body]
    velocity = (motion.linear[world, body] + torch.linalg.cross(angular, arm)) * moves
    return velocity[:, 0] - velocity[:, 1]


def _closing_speed(motion: Motion, bodies: Bodies, points: ContactPoints) -> Tensor:
    """Of all contacts, shape (B, C)."""
    velocity = torch.cat([motion.linear, angular_velocity(motion, bodies)], -1)
    return -(points.normal * relative_velocity(points, motion.pose, velocity)).sum(-1)


def _impulse(
    contact: Contact,
    motion: Motion,
    bodies: Bodies,
    points: ContactPoints,
    restitution: Tensor,
    hits: Tensor,
) -> Motion:
    """Turn the velocities of the bodies that hit."""
    worlds = len(points.depth)
    world = torch.arange(worlds, device=points.depth.device)[:, None]
    arm, moves = _levers(motion, points)
    body = points.bodies.clamp(min=0)
    mobility = _mobility(motion, bodies, arm, moves, body)
    u = _relative_velocity(motion, bodies, points)
    friction, elastic = (
        _per_contact(value, points.shapes, worlds).to(points.depth)
        for value in (contact.friction, restitution)
    )
    impulse = _impulse_of(points.normal, u, mobility, friction, elastic)
    impulse = torch.where(hits[:, None], impulse, torch.zeros_like(impulse))
    both = torch.stack([impulse, -impulse], 1) * moves
    linear = motion.linear.index_put((world, body), both / bodies.mass[world, body, None], accumulate=True)
    momentum = motion.momentum.index_put((world, body), torch.linalg.cross(arm, both), accumulate=True)
    return Motion(motion.pose, linear, momentum, motion.acceleration)


def _per_contact(value: Tensor, shapes: Tensor, worlds: int) -> Tensor:
    """Mean over the two shapes of each world's contact, (G,) or (B, G) to (B,)."""
    return value.expand(worlds, value.shape[-1]).gather(1, shapes).mean(-1)


def _mobility(motion: Motion, bodies: Bodies, arm: Tensor, moves: Tensor, body: Tensor) -> Tensor:
    """Velocity of the contact per impulse [1/kg], shape (B, 3, 3)."""
    world = torch.arange(len(arm), device=arm.device)[:, None]
    turn = geometry.quat_to_matrix(motion.pose[world, body, 3:])
    inverse = turn @ bodies.inverse_inertia[world, body] @ turn.mT
    x, y, z = arm.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    unit = torch.eye(3, dtype=arm.dtype, device=arm.device)
    each = unit / bodies.mass[world, body, None, None] + skew @ inverse @ skew.mT
    return (each * moves[..., None]).sum(1)


def _impulse_of(normal: Tensor, u: Tensor, mobility: Tensor, friction: Tensor, restitution: Tensor) -> Tensor:
    """The impulse on the first body: sticking where Coulomb's law allows it, else sliding; shape (B, 3)."""
    apart = (normal * u).sum(-1)
    sliding = u - normal * apart[:, None]
    goal = torch.where(apart < 0, -restitution * apart, apart)  # bodies that part are left alone
    stick = torch.linalg.solve(mobility, (normal * goal[:, None] - u)[..., None])[..., 0]
    press = (normal * stick).sum(-1)
    across = stick - normal * press[:, None]
    square = (across * across).sum(-1)
    sticks = square <= (friction * press) ** 2
    speed_square = (sliding * sliding).sum(-1)
    moves = speed_square > 0
    speed = torch.where(moves, speed_square, torch.ones_like(speed_square)).sqrt()
    way = normal - friction[:, None] * sliding / speed[:, None]
    share = (normal * (mobility @ way[..., None])[..., 0]).sum(-1)
    slide = way * ((goal - apart) / share.clamp(min=1e-12))[:, None]
    return torch.where((sticks | ~moves)[:, None], stick, slide)


def start_motion(pose: Tensor, velocity: Tensor, bodies: Bodies, torque: Tensor, step: float) -> Motion:
    """The motion from poses (B, N, 7) and velocities (B, N, 6), after the impulse of a torque [N m]."""
    momentum = _rotate_tensor(pose[..., 3:], bodies.inertia, velocity[..., 3:]) + step * torque
    return Motion(pose, velocity[..., :3], momentum, torch.zeros_like(torque))


def give(motion: Motion, bodies: Bodies, change: Tensor, acceleration: Tensor) -> Motion:
    """Change the velocities (B, N, 6) of a motion, and give it an acceleration (B, N, 3)."""
    momentum = motion.momentum + _rotate_tensor(motion.pose[..., 3:], bodies.inertia, change[..., 3:])
    return Motion(motion.pose, motion.linear + change[..., :3], momentum, acceleration)


def bodies_from(values: Mapping[str, Tensor]) -> Bodies:
    """Pick masses and inertias."""
    return Bodies(values["mass"], values["inertia"], values["inverse_inertia"])
