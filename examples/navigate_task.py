"""The navigation job as a task of `gradpath train` and `gradpath ablate`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath.ablation import Ablation
from gradpath.errors import InputError
from gradpath.examples.navigate import (
    COSTS,
    POOL,
    PathPlanner,
    Robot,
    encoder,
    evaluate,
    next_goal,
    random_places,
)
from gradpath.examples.navigate_maps import Maps, draw_maps
from gradpath.intervals import Interval
from gradpath.task import Task, TrainOptions, rate


@dataclass(frozen=True, kw_only=True)
class NavigateOptions(TrainOptions):
    """Options of the navigation task."""

    iterations: int = 3000
    worlds: int = 64
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    save_every: int = 100
    profile_every: int = 100
    encoder: Literal["conv", "vit"] = "conv"
    """What reads the depth image."""
    planner_learns: bool = True
    """Whether the layers from feature to keypoints are trained; otherwise an ablation."""
    camera: Literal["on", "blank"] = "on"
    """A blank camera shows nothing; an ablation."""
    maps: int = 200
    """Unseen maps in the evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps < 1:
            raise InputError(f"option maps: expected at least 1, got {self.maps}")


@functools.lru_cache(maxsize=1)
def _pool(seed: int) -> tuple[Maps, Tensor]:
    """The maps to train on, and their distance fields."""
    maps = draw_maps(POOL, (seed, 0))
    return maps, maps.field()


class NavigateTask(Task):
    """Trains and evaluates finding a way in depth images."""

    name: ClassVar[str] = "navigate"
    description: ClassVar[str] = "a ground robot finds its way among pillars: depth images to paths"
    Options: ClassVar[type[TrainOptions]] = NavigateOptions
    ablations: ClassVar[tuple[Ablation, ...]] = (
        Ablation("camera blanked", {"camera": "blank"}, "trained and evaluated with nothing to see"),
        Ablation(
            "planner frozen",
            {"planner_learns": False},
            "the layers behind the encoder stay as they were drawn",
        ),
        Ablation(
            "renderer's gradient off",
            note="images are drawn without a gradient: where the robot stands is not decided by what is trained",
        ),
        Ablation(
            "perception trained alone",
            note="the encoder has no loss of its own: only the planner gives its feature a meaning",
        ),
    )
    compared: ClassVar[tuple[str, ...]] = ("trained", "weighted_by_path_length")

    def build(self) -> PathPlanner:
        """Return the planner with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            planner = PathPlanner(encoder(self.options.encoder))
        planner.head.requires_grad_(self.options.planner_learns)
        return planner

    def losses(self) -> gp.Losses:
        """Return the terms of the cost of the planned paths, which have their weights already."""
        return gp.Losses(**{name: (1.0, _itself, name) for name in COSTS.terms})

    def sample(self, iteration: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return what the robots see in one iteration, and where they should go."""
        robot, place, yaw, _, generator = self._robots(iteration)
        image = robot.look(place, yaw, generator)
        return (), {"image": image, "goal": robot.local(robot.maps.goal, place, yaw)}

    def forward(self, model: gp.Stage, iteration: int) -> Mapping[str, Tensor]:
        """Return the terms of the cost of the planned paths, (B,) each."""
        robot, place, yaw, field, generator = self._robots(iteration)
        curve = robot.path(model, robot.look(place, yaw, generator), place, yaw, robot.maps.goal)
        return COSTS.shares(curve.sample(40, derivatives=2), goal=next_goal(robot.maps, place), field=field)

    def _robots(self, iteration: int) -> tuple[Robot, Tensor, Tensor, Tensor, torch.Generator]:
        """Robots at places and headings of one iteration, and the fields of their maps."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + iteration)
        index = torch.randint(POOL, (self.options.worlds,), generator=generator)
        pool, fields = _pool(self.options.seed)
        maps = pool.pick(index)
        robot = Robot(maps, blind=self.options.camera == "blank")
        return robot, *random_places(maps, generator), fields[index], generator

    def doctor_options(self) -> Mapping[str, Any]:
        """What the camera sees has to matter."""
        return {"relevant": ("image",)}

    def evaluate(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """Drive through unseen maps, beside the baselines."""
        assert isinstance(model, gp.Stage)
        options = self.options
        scores = evaluate(model, options.maps, options.seed, blind=options.camera == "blank")
        drawn = scores["maps"] - scores["without_free_path"]
        metrics: dict[str, Any] = {"maps": scores["maps"], "without_free_path": scores["without_free_path"]}
        for name, prefix in (("planner", ""), ("blindfolded", "blindfolded_"), ("straight", "straight_")):
            row = scores[name]
            metrics[prefix.rstrip("_") or "trained"] = rate(round(row["success"] * drawn), drawn)
            interval = Interval(row["spl"], row["low"], row["high"])
            metrics[f"{prefix}weighted_by_path_length"] = interval.measured()
        return metrics


def _itself(cost: Tensor) -> Tensor:
    return cost
