"""What a flight is trained for and how it is judged: losses, and the outcome of a trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import sim
from gradpath.examples.flight_worlds import ALTITUDE, CEILING, COURSE, HALF_WIDTH

RADIUS = 0.15  # of the drone [m]
CLEARANCE_MARGIN = 0.6  # distance from which the loss begins to push [m]


def clearance_loss(distance: Tensor) -> Tensor:
    """A barrier on the distance to every obstacle, heavier the faster it is approached; (T, B, I) to (B,)."""
    sharpness = 12.0
    near = nn.functional.softplus((CLEARANCE_MARGIN - distance) * sharpness) / sharpness
    before = torch.cat([distance[:1], distance[:-1]])
    approach = torch.relu(before - distance)
    return (near * (0.3 + 12.0 * approach)).sum(-1).mean(0)


def speed_loss(velocity: Tensor, wanted: Tensor) -> Tensor:
    """Deviation from the wanted velocity, mostly along it: dodging is cheap, braking is not; (T, B, 3) to (B,)."""
    ahead = wanted / (wanted.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    error = velocity - wanted
    along = (error * ahead).sum(-1)
    aside = error - along.unsqueeze(-1) * ahead
    return (
        nn.functional.huber_loss(along, torch.zeros_like(along), reduction="none")
        + 0.05 * aside.square().sum(-1)
    ).mean(0)


def effort_loss(command: Tensor) -> Tensor:
    """Squared acceleration and its change from step to step; (T, B, 3) to (B,)."""
    change = command[1:] - command[:-1]
    return command.square().mean(-1).mean(0) + change.square().mean(-1).mean(0)


def course_loss(pose: Tensor) -> Tensor:
    """Squared height error, and leaving the course sideways; (T, B, 7) to (B,)."""
    height = pose[..., 2] - ALTITUDE
    aside = torch.relu(pose[..., 1].abs() - 5.0)
    return (height.square() + 0.1 * aside.square()).mean(0)


def flight_losses() -> gp.Losses:
    """The objective of a flight."""
    return gp.Losses(
        clearance=(10.0, clearance_loss, "clearance.distance"),
        speed=(0.7, speed_loss, "body.state.velocity", "target.target_velocity"),
        effort=(0.01, effort_loss, "plan.command"),
        course=(0.2, course_loss, "body.state.pose"),
    )


def outcome(
    trajectory: Mapping[str, Any],
    clearance: sim.Clearance | None = None,
    dt: float = 1.0,
    spacing: float = 0.05,
) -> dict[str, Tensor]:
    """What happened in each world: reached the end zone, least clearance until then, success; each (B,).

    A flight that leaves the course (sideways, above the obstacles, below the ground) or that is not finite reaches
    nothing.

    Args:
        trajectory: States and distances over time.
        clearance: Measures the distances between the recorded states too, on the cubic through positions and
            velocities; without it, those at the control steps count.
        dt: Time between the recorded states [s].
        spacing: How far apart the measured points of a flight may be [m].
    """
    state, distance = trajectory["body.state"], trajectory["clearance.distance"].amin(-1)
    position = state["pose"][..., :3]
    inside = (
        (position[..., 1].abs() < HALF_WIDTH) & (position[..., 2] > RADIUS) & (position[..., 2] < CEILING)
    )
    left = (~inside).cumsum(0) > 0  # NaN is never inside
    arrived = (position[..., 0] >= COURSE) & ~left
    flying = (arrived.cumsum(0) <= 1) & ~left
    if clearance is not None:
        before, after = ({k: v[part] for k, v in state.items()} for part in (slice(None, -1), slice(1, None)))
        way = (after["pose"] - before["pose"])[..., :3].norm(dim=-1)[flying[1:]]
        count = math.ceil(float(way.max()) / spacing) if len(way) else 1
        for share in torch.linspace(0.0, 1.0, count + 1)[1:-1].tolist():
            poses = _between(before, after, share, dt)
            poses = torch.where(flying[1:, :, None], poses, before["pose"][:1])
            between = torch.stack([clearance(pose, trajectory["obstacles"]).amin(-1) for pose in poses])
            distance = torch.cat([distance[:1], torch.minimum(distance[1:], between)])
    least = torch.where(flying, distance, torch.inf).amin(0)
    reached = arrived.any(0)
    return {"reached": reached, "clearance": least, "success": reached & (least >= RADIUS)}


def _between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float, dt: float) -> Tensor:
    """Poses at a share of the way from state to state, (T - 1, B, 7), on the cubic that has their velocities."""
    u = share
    position = (
        (2 * u**3 - 3 * u**2 + 1) * before["pose"][..., :3]
        + (u**3 - 2 * u**2 + u) * dt * before["velocity"]
        + (3 * u**2 - 2 * u**3) * after["pose"][..., :3]
        + (u**3 - u**2) * dt * after["velocity"]
    )
    return torch.cat([position, before["pose"][..., 3:]], dim=-1)
