"""A task small enough for tests: a point mass with a little network that brings it to rest at the origin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath.ablation import Ablation
from gradpath.errors import InputError
from gradpath.figures import Figure
from gradpath.intervals import mean_interval
from gradpath.task import Task, TrainOptions, rate


class Policy(gp.Stage):
    contract = gp.Contract(
        inputs={"state": {"position": "B 2", "velocity": "B 2"}, "generator": "generator"},
        outputs={"force": "B 2"},
    )

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, state: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        force = self.net(torch.cat([state["position"], state["velocity"]], -1))
        return force + 0.05 * torch.randn(force.shape, generator=generator)


class Body(gp.Stage):
    contract = gp.Contract(
        inputs={"state": {"position": "B 2", "velocity": "B 2"}, "force": "B 2"},
        outputs={"state": {"position": "B 2", "velocity": "B 2"}},
    )

    def __init__(self, dt: float = 0.2, kink: bool = False, strict: bool = False) -> None:
        super().__init__()
        self.dt, self.kink, self.strict = dt, kink, strict

    def forward(self, state: dict[str, Tensor], force: Tensor) -> dict[str, dict[str, Tensor]]:
        if self.strict and not force.isfinite().all():
            raise InputError("the force is not finite")
        if self.strict and force.abs().max() > 1e6:
            raise InputError("the force is too large")
        velocity = state["velocity"] + self.dt * force
        if self.kink:
            velocity = velocity + (0.0 * velocity).sqrt()
        return {"state": {"position": state["position"] + self.dt * velocity, "velocity": velocity}}


@dataclass(frozen=True, kw_only=True)
class ToyOptions(TrainOptions):
    """Options of the toy task."""

    iterations: int = 12
    worlds: int = 4
    save_every: int = 4
    profile_every: int = 4
    length: int = 6
    """Time steps."""
    poison: int = -1
    """Iteration whose second world starts at NaN."""
    explode: int = -1
    """Iteration whose loss has an infinite gradient in world 1 at time step 3, and a finite value."""
    kink: bool = False
    """Give the body a square root at zero, whose value is fine and whose gradient is not."""
    strict: bool = False
    """Let the body refuse a force that is not finite or too large."""
    pause: float = 0.0
    """Seconds to wait in every iteration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length {self.length}")


class ToyTask(Task):
    name = "toy"
    description = "A point mass learns to rest at the origin."
    Options = ToyOptions
    options: ToyOptions
    ablations = (
        Ablation("one step", {"length": 1}, "no time to move"),
        Ablation("camera blanked", note="it has no camera"),
    )
    compared = ("trained", "distance")

    def build(self) -> gp.Stage:
        step = gp.Pipeline(
            policy=Policy(),
            body=Body(kink=self.options.kink, strict=self.options.strict),
            wires={"policy.state": "state", "body.state": "state"},
        )
        return gp.Rollout(step, length=self.options.length, carry={"state": "body.state"})

    def losses(self) -> gp.Losses:
        return gp.Losses(
            goal=(1.0, self._goal), smooth=(0.1, lambda t: t["body.state.velocity"].square().mean())
        )

    def _goal(self, trajectory: Any) -> Tensor:
        distance = trajectory["body.state.position"].square().sum(-1)
        if not self._exploding:
            return distance.mean()
        return distance.mean() + (0.0 * distance[3, 1]).sqrt()  # Infinite slope where the value is fine.

    _exploding = False

    def sample(self, iteration: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        import time

        time.sleep(self.options.pause)
        self._exploding = iteration == self.options.explode
        generator = torch.Generator().manual_seed(1000 * self.options.seed + iteration)
        position = torch.randn(self.options.worlds, 2, generator=generator)
        if iteration == self.options.poison:
            position[1] = torch.nan
        state = {"position": position, "velocity": torch.zeros_like(position)}
        return (state,), {"generator": generator}

    def measure(self, trajectory: Any) -> dict[str, float]:
        return {"success": float((trajectory["body.state.position"][-1].norm(dim=-1) < 1).float().mean())}

    def evaluate(self, model: gp.Stage, folder: Path) -> dict[str, Any]:
        with torch.no_grad():
            trajectory = self.forward(model, 10**6)
        distance = trajectory["body.state.position"][-1].norm(dim=-1)
        (folder / "evaluation.json").write_text(json.dumps(distance.tolist()))
        return {
            "trained": rate(int((distance < 1).sum()), len(distance)),
            "untrained": rate(1, len(distance)),
            "mean_distance": float(distance.mean()),
            "distance": mean_interval(distance).measured(),
        }

    def figures(self, folder: Path) -> list[Figure]:
        distances = json.loads((folder / "evaluation.json").read_text())
        return [Figure("Final distances", "One number per world.", html=f"<p>{distances}</p>")]
