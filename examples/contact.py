"""Bounce balls: what a contact model does to gradients, and which model has them right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradpath import geometry, sim
from gradpath.runs import next_folder, write_json

RADIUS = 0.1  # [m]
STIFFNESS = 5e4  # of balls of 1 kg [N/m]
GRAVITY = 9.81  # [m/s^2]
MODELS = ("pointwise", "smooth", "impact")


class Pointwise:
    """The same law, taken at the beginning of each step as if it had no length: what a naive simulator does."""

    def __init__(self, contact: sim.Contact, mass: Tensor, inertia: Tensor, dt: float, gravity: Tensor):
        self.contact, self.mass, self.inertia, self.dt, self.gravity = contact, mass, inertia, dt, gravity

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Advance balls, whose inertia is the same about every axis."""
        pose, velocity = state["pose"], state["velocity"]
        wrench = self.contact.wrenches(pose, velocity)
        linear = velocity[..., :3] + self.dt * (self.gravity + wrench[..., :3] / self.mass[:, None])
        angular = velocity[..., 3:] + self.dt * wrench[..., 3:] / self.inertia[:, 0, :1]
        moved = geometry.pose(pose[..., :3] + self.dt * linear, pose[..., 3:])
        return {"pose": moved, "velocity": torch.cat([linear, angular], -1)}


Simulator = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def balls(model: str, count: int, dt: float, *, gravity: float, ground: bool, friction: float) -> Simulator:
    """Return elastic balls of 1 kg and radius 0.1 m under one of the three models."""
    kinds = [sim.ShapeKind.SPHERE] * count + [sim.ShapeKind.PLANE] * ground
    shapes = sim.Shapes.of(
        kinds,
        body=[*range(count), *[sim.WORLD] * ground],
        size=[[RADIUS, 0.0, 0.0]] * len(kinds),
        friction=friction,
    )
    contact = sim.Contact(shapes, STIFFNESS, damping=0.0)
    mass = torch.ones(count, dtype=torch.float64)
    inertia = sim.solid_inertia(sim.ShapeKind.SPHERE, shapes.size[:count], mass)
    down = torch.tensor([0.0, 0.0, -gravity], dtype=torch.float64)
    if model == "pointwise":
        return Pointwise(contact, mass, inertia, dt, down)
    return sim.RigidBodies(
        contact,
        mass,
        inertia,
        dt,
        gravity=down,
        restitution=1.0 if model == "impact" else None,
    )


@dataclass(frozen=True)
class Throw:
    """Balls let go: positions and velocities (B, N, 3), duration, and what is measured at the end."""

    position: Tensor
    velocity: Tensor
    duration: float
    measured: tuple[int, int]
    gravity: float = 0.0
    ground: bool = True
    friction: float = 0.0
    spin: Tensor | None = None


def fly(throw: Throw, model: str, steps: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return what is measured (B,), and its gradient to positions, velocities and spins (B, N, 3)."""
    spin = torch.zeros_like(throw.velocity) if throw.spin is None else throw.spin
    inputs = [value.clone().requires_grad_() for value in (throw.position, throw.velocity, spin)]
    position, velocity, spin = inputs
    unit = geometry.quat_identity(*position.shape[:2], dtype=position.dtype)
    state: Mapping[str, Tensor] = {
        "pose": geometry.pose(position, unit),
        "velocity": torch.cat([velocity, spin], -1),
    }
    body = balls(
        model,
        position.shape[1],
        throw.duration / steps,
        gravity=throw.gravity,
        ground=throw.ground,
        friction=throw.friction,
    )
    for _ in range(steps):
        state = body(state)
    ball, axis = throw.measured
    value = state["pose"][:, ball, axis]
    to_position, to_velocity, to_spin = torch.autograd.grad(value.sum(), inputs)
    return value.detach(), (to_position, to_velocity, to_spin)


def at(*rows: list[list[float]]) -> Tensor:
    """Vectors of balls, one row per world."""
    return torch.tensor(rows, dtype=torch.float64)


def bounce_once() -> tuple[Throw, Tensor, Tensor]:
    """(a) Off the ground without gravity: the final height, to (x, z) of position and velocity."""
    throw = Throw(at([[-1.0, 0.0, 1.0]]), at([[2.0, 0.0, -2.0]]), 1.0, measured=(0, 2))
    return throw, torch.tensor([[0.0, -1.0]]).double(), torch.tensor([[0.0, -1.0]]).double()


def bounce_from_many_heights() -> tuple[Throw, Tensor]:
    """(b) The same from many heights: minus one, where a step that ends inside the ground gives plus one."""
    heights = [0.5 + 0.3 * i / 12 for i in range(12)]
    throw = Throw(
        at(*[[[0.0, 0.0, h]] for h in heights]), at(*[[[-1.0, 0.0, -2.0]]] * 12), 203 * 0.002, measured=(0, 2)
    )
    return throw, torch.full((12,), -1.0).double()


def collide() -> tuple[Throw, Tensor, Tensor]:
    """(c) A ball hits another: where that ends, to both positions and velocities along x."""
    throw = Throw(
        at([[0.0, 0.0, 0.0], [0.52, 0.0, 0.0]]),
        at([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        1.0,
        measured=(1, 0),
        ground=False,
    )
    return throw, torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()


def drop(worlds: int = 21) -> tuple[Throw, Tensor]:
    """(d) Under gravity from heights in [0.8, 1.2]: the height after 0.7 s, to the height at first."""
    height = torch.linspace(0.8, 1.2, worlds).double()
    position = torch.zeros(worlds, 1, 3).double()
    position[:, 0, 2] = height
    throw = Throw(position, torch.zeros_like(position), 0.7, measured=(0, 2), gravity=GRAVITY)
    fall = (2 * (height - RADIUS) / GRAVITY).sqrt()
    return throw, 2 * (0.7 - fall) / fall - 1


def drop_spinning(worlds: int = 21, friction: float = 0.2) -> tuple[Throw, dict[str, Tensor]]:
    """(d) with friction and spin: how far the ball gets, to height, speed and spin, by the laws of rigid impact.

    While the ball slides, the ground takes `2 friction speed` out of its motion, whatever its spin; where that is more
    than 2/7 of the slip, it takes just those 2/7 and the ball rolls.
    """
    rate = torch.linspace(-80.0, 80.0, worlds).double()
    zero = torch.zeros(worlds, 1, 3).double()
    position, velocity, spin = zero.clone(), zero.clone(), zero.clone()
    position[:, 0, 2], velocity[:, 0, 0], spin[:, 0, 1] = 1.0, 1.0, rate
    throw = Throw(position, velocity, 0.7, measured=(0, 0), gravity=GRAVITY, friction=friction, spin=spin)
    fall = math.sqrt(2 * (1.0 - RADIUS) / GRAVITY)
    impact = GRAVITY * fall
    slip = velocity[:, 0, 0] - RADIUS * rate  # of the lowest point
    rolls = 2 * friction * impact > 2 / 7 * slip.abs()
    taken = torch.where(rolls, 2 / 7 * slip, 2 * friction * impact * slip.sign())
    after = 0.7 - fall
    later = 1 / impact  # of the fall, per height
    pushed = torch.where(rolls, torch.zeros_like(slip), 2 * friction * slip.sign() * GRAVITY * later)
    return throw, {
        "distance": fall + (1.0 - taken) * after,
        "height": taken * later - pushed * after,
        "speed": torch.where(rolls, fall + 5 / 7 * after, 0.7),
        "spin": torch.where(rolls, 2 / 7 * RADIUS * after, 0.0),
    }


def worst(found: Tensor, exact: Tensor) -> float:
    """Largest difference."""
    return float((found - exact).abs().max())


def errors(model: str, steps: int, worlds: int) -> dict[str, float]:
    """Return the errors of the gradients of (a) to (d) under one model with one number of steps."""
    throw, to_position, to_velocity = bounce_once()
    _, (position, velocity, _) = fly(throw, model, steps)
    found = {
        "a": max(worst(position[:, 0, ::2], to_position), worst(velocity[:, 0, ::2], to_velocity)),
    }
    throw, to_height = bounce_from_many_heights()
    _, (position, _, _) = fly(throw, model, round(steps * 203 / 480))
    found["b"] = worst(position[:, 0, 2], to_height)
    throw, to_position, to_velocity = collide()
    _, (position, velocity, _) = fly(throw, model, steps)
    found["c"] = max(worst(position[..., 0], to_position), worst(velocity[..., 0], to_velocity))
    throw, to_height = drop(worlds)
    _, (position, _, _) = fly(throw, model, steps)
    found["d"] = worst(position[:, 0, 2], to_height)
    return found


def spinning_errors(model: str, steps: int, worlds: int) -> tuple[dict[str, float], Tensor]:
    """Return the errors of (d) with friction and spin, away from where sliding turns to rolling, and the distances."""
    throw, exact = drop_spinning(worlds)
    distance, (position, velocity, spin) = fly(throw, model, steps)
    found = {
        "distance": distance,
        "height": position[:, 0, 2],
        "speed": velocity[:, 0, 0],
        "spin": spin[:, 0, 1],
    }
    return {name: worst(found[name], exact[name]) for name in exact}, found["spin"]


def main(steps: int = 480, finer: int = 4, worlds: int = 21, run: Path | None = None) -> dict[str, Any]:
    """Compare the gradients of three contact models with the exact ones; write metrics.json and contact.png.

    Args:
        steps: Time steps of the coarse run.
        finer: Times as many of the fine run.
        worlds: Drops that are compared in (d).
        run: The run folder; runs/contact-001 and so on by default.
    """
    folder = run or next_folder("contact")
    folder.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {"errors": {}, "spinning": {}}
    spins: dict[str, Tensor] = {}
    print(f"largest errors of gradients{'':17}(a)     (b)     (c)     (d)")
    for model in MODELS:
        for count in (steps, steps * finer):
            found = errors(model, count, worlds)
            metrics["errors"].setdefault(model, {})[str(count)] = found
            print(
                f"{model:10} {count:6} steps            "
                + "".join(f"{value:10.4f}" for value in found.values())
            )
    for model in MODELS:
        metrics["spinning"][model], spins[model] = spinning_errors(model, steps, worlds)
        print(f"(d) with friction and spin, {model:10} {metrics['spinning'][model]}")
    write_json(folder / "metrics.json", metrics)
    plot(steps, worlds, spins, folder / "contact.png")
    print(folder / "contact.png")
    return metrics


def plot(steps: int, worlds: int, spins: Mapping[str, Tensor], path: Path) -> None:
    """Draw the gradients of (d), without and with friction and spin, beside the exact ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    throw, exact = drop(worlds)
    height = throw.position[:, 0, 2]
    left.plot(height, exact, color="0.7", linewidth=4, label="exact")
    for model in MODELS:
        _, (position, _, _) = fly(throw, model, steps)
        left.plot(height, position[:, 0, 2], ".-", label=model)
    left.set(xlabel="height at first [m]", ylabel="gradient of the height after 0.7 s", ylim=(-2.0, 2.5))
    left.legend(fontsize="small")
    spinning, wanted = drop_spinning(worlds)
    assert spinning.spin is not None
    rate = spinning.spin[:, 0, 1]
    right.plot(rate, wanted["spin"], color="0.7", linewidth=4)
    for model in MODELS:
        right.plot(rate, spins[model], ".-")
    limit = 2.0 * float(wanted["spin"].abs().max())
    right.set(
        xlabel="spin [rad/s]", ylabel="gradient of the distance to the spin [m s]", ylim=(-limit, limit)
    )
    figure.savefig(path, dpi=120)
