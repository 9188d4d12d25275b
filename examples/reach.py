"""A robot arm brings its hand to a red ball: colour and depth from a camera in the hand to joint torques, by MPC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import perception, tree
from gradpath.ablation import Ablation
from gradpath.errors import InputError
from gradpath.examples.reach_arm import Arm
from gradpath.examples.reach_scene import FAR, HandCamera, Scenes, draw_scenes
from gradpath.examples.reach_stages import (
    REFERENCE,
    Aim,
    Told,
    Track,
    finder,
    planner,
    start_belief,
    without_torque,
)
from gradpath.examples.view import View
from gradpath.intervals import median_interval
from gradpath.losses import auxiliary
from gradpath.task import Task, TrainOptions, rate

if TYPE_CHECKING:
    from gradpath.figures import Figure

EVALUATION_SEED = 20_000  # no training scene is drawn from it
CLOSE = 0.03  # from the centre of the ball: what counts as reached [m]
DT, SUBSTEPS = 0.05, 4  # of a control step [s]
RECORD = ("body.state", "body.hand", "body.torque", "track.belief", "planner.control", "error.distance")


@dataclass(frozen=True, kw_only=True)
class ReachOptions(TrainOptions):
    """Options of the reaching task."""

    iterations: int = 200
    worlds: int = 16
    learning_rate: float = 4e-3
    final_learning_rate: float = 0.02
    clip_norm: float | None = 1.0
    threads: int | None = 1
    """CPU threads of torch. One: the networks are small, and the kernels use all cores by themselves."""
    seconds: float = 0.6
    """Length of a motion in training, which starts anywhere on the way to the ball [s]."""
    evaluation_seconds: float = 1.25
    """Length of a motion in the evaluation, which starts far from the ball [s]."""
    height: int = 48
    """Rows of the images."""
    width: int = 48
    """Columns of the images."""
    encoder: Literal["keypoint", "conv", "vit"] = "keypoint"
    """What finds the ball in the images."""
    planner: Literal["mpc", "pd"] = "mpc"
    """What commands the torques."""
    planner_learns: bool = True
    """Whether the planner's weights are trained too."""
    loss: Literal["both", "task", "perception"] = "both"
    """Loss: of the motion, of the measured positions alone, or both."""
    camera: Literal["on", "blank"] = "on"
    """A blank camera shows nothing."""
    renderer_gradient: Literal["full", "off"] = "full"
    """Gradient through the image to the pose of the hand."""
    noise: float = 0.02
    """Standard deviation of the depth sensor's noise in inverse depth, relative to that of 0.4 m."""
    evaluation_worlds: int = 200
    """Unseen scenes in the evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seconds", "evaluation_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise InputError(f"option {name}: expected a positive number, got {value}")
        if not (math.isfinite(self.noise) and self.noise >= 0.0):
            raise InputError(f"option noise: expected 0 or more, got {self.noise}")
        for name in ("height", "width", "evaluation_worlds"):
            if getattr(self, name) < 1:
                raise InputError(f"option {name}: expected at least 1, got {getattr(self, name)}")

    @property
    def length(self) -> int:
        """Control steps of a motion in training."""
        return max(2, round(self.seconds / DT))

    @property
    def evaluation_length(self) -> int:
        """Control steps of a motion in the evaluation."""
        return max(2, round(self.evaluation_seconds / DT))


class Blank(gp.Stage):
    """Images in which there is nothing to see, in the place of those in which there is.

    Inputs: `rgb` (B, 3, H, W), `depth` (B, 1, H, W). Outputs: the same, constant. Gradients: none.
    """

    contract = gp.Contract(
        inputs={"rgb": "B 3 H W", "depth": "B 1 H W"},
        outputs={"rgb": "B 3 H W", "depth": "B 1 H W"},
        gradient="none",
    )

    def forward(self, rgb: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Show a grey image, and nothing within reach."""
        return torch.full_like(rgb, 0.5), torch.full_like(depth, FAR)


class Error(gp.Stage):
    """How far the point between the fingertips is from the ball.

    Inputs: `tool`, the two points, (B, 6) [m]; `target` (B, 3) [m]. Outputs: `distance` (B,) [m]. Gradients: exact.
    """

    contract = gp.Contract(inputs={"tool": "B 6", "target": "B 3"}, outputs={"distance": "B"})

    def forward(self, tool: Tensor, target: Tensor) -> Tensor:
        """Measure each world."""
        return ((tool[:, :3] - target).square().sum(-1) + 1e-8).sqrt()


def build_step(
    options: ReachOptions, *, stages: Mapping[str, gp.Stage] | None = None, blind: bool = False
) -> gp.Pipeline:
    """One control step: see, find, remember, aim, plan, move.

    Args:
        options: Sizes and choices.
        stages: Stages to use in place of fresh ones, by name.
        blind: Blank the images.
    """
    height, width = options.height, options.width
    fresh: dict[str, gp.Stage] = {
        "view": View(1.0 if options.renderer_gradient == "full" else 0.0),
        "camera": HandCamera(height, width),
        "colour": perception.RgbSensor(),
        "depth": perception.DepthSensor(0.05, FAR, reference=REFERENCE, noise=options.noise),
        "find": finder(options.encoder, height, width),
        "track": Track(),
        "aim": Aim(),
        "planner": planner(options.planner, options.planner_learns),
        "body": Arm(DT, SUBSTEPS),
        "error": Error(),
    }
    wires = {
        "error.tool": "body.state.tool",
        "view.pose": "hand",
        "camera.hand": "view.pose",
        "colour.image": "camera.rgb",
        "depth.depth": "camera.depth",
        "find.rgb": "colour.image",
        "find.image": "depth.image",
        "aim.belief": "track.belief",
        "track.belief": "belief",
        "track.hand": "hand",
        "aim.tool": "state.tool",
        "planner.state": "state",
        "body.state": "state",
    }
    if blind or options.camera == "blank":
        fresh["blank"] = Blank()
        wires |= {
            "blank.rgb": "camera.rgb",
            "blank.depth": "camera.depth",
            "colour.image": "blank.rgb",
            "depth.depth": "blank.depth",
        }
    fresh.update({name: stage for name, stage in (stages or {}).items() if name in fresh})
    if "plan" in fresh["planner"].contract.outputs:
        wires["planner.plan"] = "plan"
    return gp.Pipeline(
        wires=wires, check_finite=False, outputs=["error.distance", "track.measured", "find.log_std"], **fresh
    )


def build_told(stages: Mapping[str, gp.Stage]) -> gp.Pipeline:
    """A control step that is told where the ball is: aim, plan, move."""
    fresh = {"told": Told(), "aim": Aim(), **stages, "error": Error()}
    wires = {
        "aim.tool": "state.tool",
        "planner.state": "state",
        "body.state": "state",
        "error.tool": "body.state.tool",
    }
    if "plan" in fresh["planner"].contract.outputs:
        wires["planner.plan"] = "plan"
    return gp.Pipeline(wires=wires, outputs=["error.distance"], check_finite=False, **fresh)


def build_rollout(step: gp.Pipeline, length: int, cut: int | None = None) -> gp.Rollout:
    """The control step over a whole motion; with `cut=1` no gradient goes from one step to another."""
    carry = {"state": "body.state", "hand": "body.hand", "belief": "track.belief", "plan": "planner.plan"}
    external = step.contract.inputs
    carry = {name: source for name, source in carry.items() if name in external}
    record = [name for name in RECORD if name.partition(".")[0] in step.stages]
    return gp.Rollout(step, length=length, carry=carry, record=record, dt=DT, cut=cut)


def reach_loss(distance: Tensor) -> Tensor:
    """Distance along the motion, ten times as heavy at its end as at its start; (T, B) to (T, B)."""
    weight = torch.linspace(0.1, 1.0, len(distance), dtype=distance.dtype, device=distance.device)
    return weight[:, None] / weight.mean() * distance


def measure_loss(measured: Tensor, log_std: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of the target under each measurement; (T, B, 3) to (T, B)."""
    return perception.gaussian_nll(
        measured, log_std[..., None].expand_as(measured), target.expand_as(measured)
    )


def reach_losses(which: str) -> gp.Losses:
    """The objective: of the motion, of the measurements, or both."""
    motion = (10.0, reach_loss, "error.distance")
    measured = auxiliary(0.3, measure_loss, "track.measured", "find.log_std", "target")
    if which == "task":
        return gp.Losses(reach=motion)
    if which == "perception":
        return gp.Losses(measure=(0.3, measure_loss, "track.measured", "find.log_std", "target"))
    return gp.Losses(reach=motion, measure=measured)


class ReachTask(Task):
    """Trains and evaluates reaching."""

    name: ClassVar[str] = "reach"
    description: ClassVar[str] = (
        "a robot arm reaches for a ball: pixels of a camera in the hand to joint torques, by MPC"
    )
    Options: ClassVar[type[TrainOptions]] = ReachOptions
    ablations: ClassVar[tuple[Ablation, ...]] = (
        Ablation("camera blanked", {"camera": "blank"}, "trained and evaluated with nothing to see"),
        Ablation("planner frozen", {"planner_learns": False}, "the weights of its cost stay as they are"),
        Ablation("renderer's gradient off", {"renderer_gradient": "off"}, "the camera's pose is a constant"),
        Ablation(
            "perception trained alone",
            {"loss": "perception", "planner_learns": False},
            "by the likelihood of the ball's position, without gradient through time",
        ),
    )
    compared: ClassVar[tuple[str, ...]] = ("trained", "trained_median_mm")

    def build(self) -> gp.Rollout:
        """Return the rollout with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            cut = 1 if self.options.loss == "perception" else None
            return build_rollout(build_step(self.options), self.options.length, cut)

    def losses(self) -> gp.Losses:
        """Return the objective."""
        return reach_losses(self.options.loss)

    def sample(self, iteration: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the scenes, starts and noise of one iteration."""
        scenes = on_the_way(draw_scenes(self.options.worlds, (self.options.seed, iteration)), iteration)
        return (), arguments(scenes, self.options, self.options.seed * 1_000_003 + iteration)

    def measure(self, trajectory: Mapping[str, Any]) -> dict[str, float]:
        """Return the error at the end and that of the last measurement, both in the middle of the scenes [m]."""
        apart = (trajectory["track.measured"] - trajectory["target"]).norm(dim=-1)
        return {
            "error": float(trajectory["error.distance"][-1].median()),
            "measured_error": float(apart.median()),
        }

    def doctor_options(self) -> Mapping[str, Any]:
        """What the camera sees has to matter."""
        return {"relevant": ("camera.rgb", "camera.depth")}

    def evaluate(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """Reach for balls in unseen scenes with hard rendering, beside baselines."""
        from gradpath.examples.reach_figures import write_evaluation

        assert isinstance(model, gp.Rollout)
        options = self.options
        scenes = draw_scenes(options.evaluation_worlds, (EVALUATION_SEED,))
        trained = dict(model.step.stages.items())
        told = {"body": trained["body"]}
        ways = {
            "trained": model.step,
            "blindfolded": build_step(options, stages=trained, blind=True),
            "pd_with_pose": build_told({**told, "planner": planner("pd")}),
            "mpc_with_pose": build_told({**told, "planner": planner("mpc")}),
        }
        motions: dict[str, Mapping[str, Any]] = {}
        for name, step in ways.items():
            given = arguments(scenes, options, EVALUATION_SEED, step)
            with gp.mode("hard"), torch.no_grad():
                motions[name] = build_rollout(step, options.evaluation_length)(**given)
        errors = {name: motion["error.distance"] for name, motion in motions.items()}
        with torch.no_grad():
            limp = without_torque(scenes.q, options.evaluation_length, DT)
        errors["zero_torque"] = (limp[..., :3] - scenes.target).norm(dim=-1)
        metrics: dict[str, Any] = {}
        for name, over_time in errors.items():
            error = over_time[-1]
            metrics[name] = rate(int((error < CLOSE).sum()), len(error))
            metrics[f"{name}_median_mm"] = median_interval(1e3 * error).measured()
        write_evaluation(folder, scenes, errors, motions["trained"], DT)
        return metrics

    def figures(self, folder: Path) -> list[Figure]:
        """Return the error over time, a video, and one motion with what the hand saw."""
        from gradpath.examples.reach_figures import reach_figures

        return reach_figures(folder)


def on_the_way(scenes: Scenes, seed: int) -> Scenes:
    """The scenes with starts on the way to the ball: from none of it to nine tenths, a little aside."""
    generator = torch.Generator().manual_seed(seed)
    arm, batch = Arm(DT), len(scenes.q)
    _, tool = arm.places(scenes.q)
    share = 0.9 * torch.rand(batch, 1, generator=generator)
    aside = 0.03 * torch.randn(batch, 3, generator=generator)
    point = tool[:, :3] + share * (scenes.target + aside - tool[:, :3])
    return replace(scenes, q=arm.angles(scenes.q, point))


def arguments(
    scenes: Scenes, options: ReachOptions, noise_seed: int, step: gp.Pipeline | None = None
) -> dict[str, Any]:
    """What a rollout is called with: scenes, the first carry, and noise; only what `step` takes, where it is given."""
    device = torch.device(options.device)
    arm, batch = Arm(DT), len(scenes.q)
    state = arm.rest(scenes.q)
    hand, _ = arm.places(scenes.q)
    values: dict[str, Any] = {
        "state": state,
        "hand": hand,
        "belief": start_belief(batch),
        "scene": scenes.inputs,
        "exposure": scenes.exposure,
        "target": scenes.target,
    }
    values = {name: tree.map_leaves(lambda leaf: leaf.to(device), value) for name, value in values.items()}
    values["generator"] = torch.Generator(device).manual_seed(noise_seed)
    if step is not None:
        values = {name: value for name, value in values.items() if name in step.contract.inputs}
    return values


def main(
    iterations: int = 200,
    worlds: int = 16,
    evaluation_worlds: int = 200,
    encoder: Literal["keypoint", "conv", "vit"] = "keypoint",
    planner: Literal["mpc", "pd"] = "mpc",
    seed: int = 0,
    run: Path = Path("runs/reach"),
) -> dict[str, Any]:
    """Train reaching, and measure it in unseen scenes beside baselines; what is done already is not done again.

    Args:
        iterations: Optimizer steps.
        worlds: Scenes per step.
        evaluation_worlds: Unseen scenes.
        encoder: What finds the ball in the images.
        planner: What commands the torques.
        seed: Of weights, scenes and noise.
        run: The folder; the training, its video and its report's data are in `training` there.
    """
    from gradpath.train import evaluate, train

    options = ReachOptions(
        iterations=iterations, worlds=worlds, evaluation_worlds=evaluation_worlds, encoder=encoder, planner=planner,
        seed=seed,
    )  # fmt: skip
    folder = Path(run) / "training"
    result = train(ReachTask(options), folder)
    if not result.finished:
        raise InputError(f"interrupted after {result.iterations} iterations; the same command goes on")
    return evaluate(folder)
