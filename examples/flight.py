"""Fly a quadrotor through clutter: depth pixels to thrust and body rates, trained through physics and renderer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import perception, planners, render, sim
from gradpath.ablation import Ablation
from gradpath.errors import InputError
from gradpath.examples.flight_objective import RADIUS, flight_losses, outcome
from gradpath.examples.flight_worlds import (
    COURSE,
    Worlds,
    draw_worlds,
    drawn_meshes,
    solid_shapes,
)
from gradpath.examples.view import View
from gradpath.task import Task, TrainOptions, rate

if TYPE_CHECKING:
    from gradpath.figures import Figure

EVALUATION_SEED = 20_000  # no training world is drawn from it
MASS = 1.0  # [kg]
RENDERER_GRADIENT = {"full": 1.0, "decayed": 0.5, "off": 0.0}  # factor on what the image gives to the pose
RECORD = ("body.state", "clearance.distance", "plan.command", "target.target_velocity")


@dataclass(frozen=True, kw_only=True)
class FlightOptions(TrainOptions):
    """Options of the flight task."""

    iterations: int = 140
    worlds: int = 40
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.02
    clip_norm: float | None = 1.0
    threads: int | None = 1
    """CPU threads of torch. One: the networks are small, and the kernels use all cores by themselves."""
    speed: float = 3.0
    """Speed along the course [m/s]."""
    seconds: float | None = None
    """Length of a flight in training [s]; None: the time in which 25.5 m are flown at full speed."""
    control_rate: float = 12.0
    """Images and commands per second [1/s]."""
    height: int = 24
    """Rows of the depth image."""
    width: int = 32
    """Columns of the depth image."""
    features: int = 96
    """Size of the policy's memory."""
    noise: float = 0.02
    """Standard deviation of the sensor's noise in inverse depth, relative to that of 3 m."""
    memory: str = "100"
    """What the time loop keeps: "all", a number of snapshots, or a size such as "200MB"."""
    decay: float = 0.4
    """Share of the gradient that is left after each second that it travels back in time; 1 is the exact gradient."""
    renderer_gradient: Literal["full", "decayed", "off"] = "full"
    """Gradient through the camera to the body's pose; anything but full is an ablation."""
    camera: Literal["on", "blank"] = "on"
    """A blank camera shows nothing; an ablation."""
    planner_learns: bool = True
    """Whether the policy's last layer is trained; otherwise an ablation."""
    evaluation_worlds: int = 200
    """Unseen worlds in the evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = {name: getattr(self, name) for name in ("speed", "control_rate", "seconds")}
        counts = {name: getattr(self, name) for name in ("height", "width", "features", "evaluation_worlds")}
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise InputError(f"option {name}: expected a positive number, got {value}")
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"option {name}: expected at least 1, got {value}")
        if not 0.0 < self.decay <= 1.0:
            raise InputError(
                f"option decay: expected a share in (0, 1], got {self.decay}; 1 is the exact gradient"
            )
        if not (math.isfinite(self.noise) and self.noise >= 0.0):
            raise InputError(f"option noise: expected 0 or more, got {self.noise}")
        try:
            gp.Memory(self.memory_setting)
        except gp.BudgetError:
            raise InputError(
                f'option memory: expected "all", a number of states or a size such as "200MB", got "{self.memory}"'
            ) from None

    @property
    def memory_setting(self) -> str | int:
        """The memory as a time loop takes it."""
        return int(self.memory) if self.memory.isdigit() else self.memory

    @property
    def length(self) -> int:
        """Control steps of a flight in training."""
        seconds = 25.5 / self.speed if self.seconds is None else self.seconds
        return max(2, round(seconds * self.control_rate))

    @property
    def time_limit(self) -> int:
        """Control steps within which a flight in the evaluation must arrive: a quarter more than straight flight."""
        return round(1.25 * COURSE / self.speed * self.control_rate)


def build_step(
    options: FlightOptions,
    *,
    blind: bool = False,
    stages: Mapping[str, gp.Stage] | None = None,
) -> gp.Pipeline:
    """One control step: see, encode, plan, control, fly, measure.

    Args:
        options: Sizes and rates.
        blind: Put a blindfold between camera and sensor.
        stages: Stages to use in place of fresh ones, by name.
    """
    meshes, counts = drawn_meshes()
    shapes, _ = solid_shapes()
    most = [2.0 * options.speed, 2.0 * options.speed, options.speed]  # accelerations [m/s^2]
    fresh: dict[str, gp.Stage] = {
        "view": View(RENDERER_GRADIENT[options.renderer_gradient]),
        "camera": render.DepthCamera(
            render.Scene(meshes, counts),
            options.height,
            options.width,
            field_of_view=math.radians(90.0),
            far=12.0,
        ),
        "sensor": perception.DepthSensor(min_range=0.3, max_range=12.0, noise=options.noise),
        "target": planners.FlyTowards(options.speed),
        "motion": perception.MotionEstimate(options.speed),
        "encode": perception.DepthEncoder(
            options.height, options.width, features=options.features, channels=(16, 32, 32)
        ),
        "plan": planners.Policy(options.features, low=[-a for a in most], high=most),
        "hold": planners.HoldVelocity(speed=options.speed),
        "control": planners.AttitudeController(MASS),
        "body": sim.Quadrotor(dt=1.0 / options.control_rate, substeps=4, mass=MASS),
        "clearance": sim.Clearance(shapes, counts),
    }
    wires = {
        "view.pose": "state.pose",
        "camera.pose": "view.pose",
        "target.pose": "state.pose",
        "motion.state": "state",
        "hold.correction": "plan.command",
        "control.pose": "state.pose",
        "body.state": "state",
        "clearance.pose": "body.state.pose",
    }
    fresh["plan"].requires_grad_(options.planner_learns)
    if blind or options.camera == "blank":
        fresh["blindfold"] = perception.Blindfold(max_range=12.0)
        wires["blindfold.depth"] = "camera.depth"
        wires["sensor.depth"] = "blindfold.depth"
    fresh.update(stages or {})
    return gp.Pipeline(wires=wires, outputs=["clearance.distance"], check_finite=False, **fresh)


def build_rollout(options: FlightOptions, step: gp.Pipeline, length: int | None = None) -> gp.Rollout:
    """The control step over a whole flight, as long as those in training unless told otherwise."""
    return gp.Rollout(
        step,
        length=length or options.length,
        carry={"state": "body.state", "memory": "encode.memory"},
        memory=options.memory_setting,
        decay=options.decay if options.decay < 1.0 else None,
        dt=1.0 / options.control_rate,
        record=RECORD,
    )


def initial_state(worlds: Worlds, speed: float) -> dict[str, Tensor]:
    """Level flight along the course at full speed."""
    batch = len(worlds.start)
    level = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(batch, 4)
    return {
        "pose": torch.cat([worlds.start, level], dim=-1),
        "velocity": torch.tensor([speed, 0.0, 0.0]).repeat(batch, 1),
        "rates": torch.zeros(batch, 3),
        "thrust": torch.full((batch,), MASS * 9.81),
    }


class FlightTask(Task):
    """Trains and evaluates the vision policy."""

    name: ClassVar[str] = "flight"
    description: ClassVar[str] = "vision-based flight through clutter: depth pixels to thrust and body rates"
    Options: ClassVar[type[TrainOptions]] = FlightOptions
    ablations: ClassVar[tuple[Ablation, ...]] = (
        Ablation("camera blanked", {"camera": "blank"}, "trained and evaluated with nothing to see"),
        Ablation(
            "planner frozen", {"planner_learns": False}, "the policy's last layer stays as it was drawn"
        ),
        Ablation("renderer's gradient off", {"renderer_gradient": "off"}, "the camera's pose is a constant"),
        Ablation(
            "perception trained alone",
            note="the encoder has no loss of its own: only the policy gives its memory a meaning",
        ),
    )
    compared: ClassVar[tuple[str, ...]] = ("trained", "trained_forests", "trained_rooms")

    def build(self) -> gp.Rollout:
        """Return the rollout with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            return build_rollout(self.options, build_step(self.options))

    def losses(self) -> gp.Losses:
        """Return the objective."""
        return flight_losses()

    def sample(self, iteration: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the worlds, starts and noise of one iteration."""
        worlds = draw_worlds(self.options.worlds, (self.options.seed, iteration))
        return self._arguments(worlds, self.options.seed * 1_000_003 + iteration)

    def _arguments(self, worlds: Worlds, noise_seed: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        device = torch.device(self.options.device)
        state = {name: value.to(device) for name, value in initial_state(worlds, self.options.speed).items()}
        obstacles = {name: value.to(device) for name, value in worlds.obstacles.items()}
        generator = torch.Generator(device).manual_seed(noise_seed)
        return (state,), {"obstacles": obstacles, "goal": worlds.goal.to(device), "generator": generator}

    def measure(self, trajectory: Mapping[str, Any]) -> dict[str, float]:
        """Return the share of worlds flown through."""
        return {"success": float(outcome(trajectory)["success"].float().mean())}

    def doctor_options(self) -> Mapping[str, Any]:
        """What the camera sees has to matter."""
        return {"relevant": ("camera.depth",)}

    def evaluate(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """Fly unseen worlds with hard rendering: the policy, the policy blindfolded, and straight flight."""
        from gradpath.examples.flight_figures import write_evaluation

        assert isinstance(model, gp.Rollout)
        worlds = draw_worlds(self.options.evaluation_worlds, (EVALUATION_SEED,))
        plain = dataclasses.replace(self.options, memory="all")
        trained = dict(model.step.stages.items())
        clearance = model.step.clearance
        assert isinstance(clearance, sim.Clearance)
        idle = {**trained, "plan": planners.Idle(plain.features)}
        flights = {
            "trained": build_step(plain, stages=trained),
            "blindfolded": build_step(plain, stages=trained, blind=True),
            "straight": build_step(plain, stages=idle),
        }
        metrics: dict[str, Any] = {}
        trajectories: dict[str, Mapping[str, Any]] = {}
        successes: dict[str, Tensor] = {}
        args, kwargs = self._arguments(worlds, EVALUATION_SEED)
        for name, step in flights.items():
            kwargs = {
                **kwargs,
                "generator": torch.Generator(self.options.device).manual_seed(EVALUATION_SEED),
            }
            with gp.mode("hard"), torch.no_grad():
                trajectories[name] = build_rollout(plain, step, plain.time_limit)(*args, **kwargs)
            result = outcome(trajectories[name], clearance, dt=1.0 / plain.control_rate)
            successes[name] = result["success"]
            metrics[name] = rate(int(result["success"].sum()), len(result["success"]))
            metrics[f"{name}_collided"] = float((result["clearance"] < RADIUS).float().mean())
            for kind, mask in (("forests", ~worlds.rooms), ("rooms", worlds.rooms)):
                metrics[f"{name}_{kind}"] = float(result["success"].cpu()[mask].float().mean())
        write_evaluation(folder, worlds, trajectories, successes, self.options)
        return metrics

    def figures(self, folder: Path) -> list[Figure]:
        """Return views of the flights among the obstacles, and what the drone saw."""
        from gradpath.examples.flight_figures import flight_figures

        return flight_figures(folder)


def main(
    iterations: int = 3, worlds: int = 4, seconds: float = 2.0, seed: int = 0, repeat: bool = False
) -> dict[str, float]:
    """Train for a few iterations on few worlds and print the losses: the smallest whole of the task.

    Args:
        iterations: Optimizer steps.
        worlds: Worlds per iteration.
        seconds: Length of a flight [s].
        seed: Seed of weights, worlds and noise.
        repeat: Fly the same worlds in every iteration, so that the losses compare.
    """
    options = FlightOptions(iterations=iterations, worlds=worlds, seconds=seconds, seed=seed)
    task = FlightTask(options)
    rollout, losses = task.build(), task.losses()
    optimizer = torch.optim.AdamW(rollout.parameters(), lr=options.learning_rate)
    totals = []
    for iteration in range(iterations):
        values = losses(task.forward(rollout, 0 if repeat else iteration))
        optimizer.zero_grad()
        values.total.backward()
        optimizer.step()
        totals.append(values.total.item())
        print(f"iteration {iteration}: loss {totals[-1]:.3f}")
    return {"first_loss": totals[0], "last_loss": totals[-1]}
