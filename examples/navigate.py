"""A ground robot finds its way among pillars from depth images, trained by nothing but a differentiable cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import geometry, perception, planners, render
from gradpath.examples.navigate_maps import (
    ORIGIN,
    ROBOT,
    SPACING,
    Maps,
    draw_maps,
    path_length,
    shortest_path,
)
from gradpath.intervals import mean_interval
from gradpath.meshes import TriangleMesh

HEIGHT, WIDTH = 24, 48  # of the image [px]
FIELD_OF_VIEW = math.radians(110.0)
CAMERA_HEIGHT = 0.4  # above ground [m]
LOOK_AHEAD = 4.0  # longest distance that is planned [m]
KEYPOINTS = 5
STEP = 0.4  # driven before the next image [m]
REACHED = 0.5  # from the goal [m]
DECISIONS = 60  # at most
SEGMENTS = 12  # of a drawn pillar
POOL = 512  # maps to train on


class PathPlanner(gp.Stage):
    """From what the robot sees to keypoints of its path, in its own frame: an offset from the straight line.

    Args:
        encoder: Any stage from `image` (B, 1, H, W) to `feature` (B, features).
        features: Size of the feature.

    Inputs: `image` (B, 1, H, W); `goal` in the robot's frame (B, 2) [m]. Outputs: `keypoints` (B, K, 2) [m].
    """

    contract = gp.Contract(
        inputs={"image": "B 1 H W", "goal": "B 2"}, outputs={"keypoints": f"B {KEYPOINTS} 2"}
    )

    def __init__(self, encoder: gp.Stage, features: int = 64):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(features + 3, 128), nn.ReLU(), nn.Linear(128, 2 * KEYPOINTS))

    def forward(self, image: Tensor, goal: Tensor) -> Tensor:
        """Plan for each robot."""
        distance = (goal.square().sum(-1, keepdim=True) + 1e-9).sqrt()
        ahead = distance.clamp_max(LOOK_AHEAD)
        direction = goal / distance
        known = torch.cat([self.encoder(image), direction, ahead / LOOK_AHEAD], -1)
        straight = torch.arange(1, KEYPOINTS + 1).to(goal)[:, None] / KEYPOINTS * (ahead * direction)[:, None]
        return straight + self.head(known).unflatten(-1, (KEYPOINTS, 2))


def encoder(name: str) -> gp.Stage:
    """Return an encoder by name: swapping this stage is one argument."""
    if name == "vit":
        return perception.VisionTransformer(HEIGHT, WIDTH, channels_in=1, size=48, depth=2)
    if name == "conv":
        return perception.ConvEncoder(
            HEIGHT, WIDTH, channels_in=1, features=64, channels=(32, 32, 64), norm=False
        )
    raise gp.InputError(f'no encoder "{name}"; there are conv and vit')


class Robot:
    """What all robots see, and where their plans lead.

    Args:
        maps: Where they are.
        blind: Shows them nothing.
    """

    def __init__(self, maps: Maps, blind: bool = False):
        around = math.cos(math.pi / SEGMENTS)
        pillar = TriangleMesh.cylinder(SEGMENTS)
        # Flat faces lie inside of the round surface; drawn larger, nothing looks smaller than it is.
        pillar = TriangleMesh(pillar.vertices / torch.tensor([around, around, 1.0]), pillar.faces)
        scene = render.Scene([pillar], [maps.radii.shape[1]])
        self.camera = render.DepthCamera(scene, HEIGHT, WIDTH, FIELD_OF_VIEW, far=12.0)
        self.sensor = perception.DepthSensor(reference=1.0, noise=0.02)
        self.blind = perception.Blindfold() if blind else None
        self.maps = maps

    @torch.no_grad()
    def look(self, place: Tensor, yaw: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, 1, H, W) from places (B, 2) and headings (B,), with noise."""
        position = torch.cat([place, torch.full_like(place[:, :1], CAMERA_HEIGHT)], -1)
        pose = geometry.pose(position, geometry.quat_from_axis_angle(torch.tensor([0.0, 0.0, 1.0]), yaw))
        with gp.mode("hard"):
            depth, _ = self.camera(pose, self.maps.obstacles)
        if self.blind is not None:
            depth = self.blind(depth)
        return self.sensor(depth, generator)

    def local(self, goal: Tensor, place: Tensor, yaw: Tensor) -> Tensor:
        """Goals (B, 2) in the frames of the robots."""
        return ((goal - place)[:, None] @ _turn(yaw))[:, 0]

    def path(
        self, planner: gp.Stage, image: Tensor, place: Tensor, yaw: Tensor, goal: Tensor
    ) -> planners.Curve:
        """The planned curves in the world, each one second long."""
        keypoints = planner.run({"image": image, "goal": self.local(goal, place, yaw)})["keypoints"]
        points = (
            torch.cat([torch.zeros_like(keypoints[:, :1]), keypoints], 1) @ _turn(yaw).mT + place[:, None]
        )
        return planners.bspline(points, torch.ones(len(place)))


def _turn(yaw: Tensor) -> Tensor:
    """Rotations from the frame of a robot to the world, (B, 2, 2)."""
    return torch.stack(
        [torch.stack([yaw.cos(), -yaw.sin()], -1), torch.stack([yaw.sin(), yaw.cos()], -1)], -2
    )


COSTS = planners.Costs(
    goal=planners.Goal(terminal=1.0),
    clear=planners.Collision(planners.ToField(ORIGIN, SPACING), margin=ROBOT + 0.3, running=150.0),
    length=planners.Effort("velocity", running=0.03),
    smooth=planners.Effort("acceleration", running=0.002),
)


def train(planner: PathPlanner, iterations: int, batch: int, learning_rate: float, seed: int) -> list[float]:
    """Minimize the cost of the planned paths at random places of random maps; return the cost per iteration."""
    optimizer = torch.optim.Adam(planner.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    generator = torch.Generator().manual_seed(seed)
    pool, history = draw_maps(POOL, (seed, 0)), []
    fields = pool.field()
    for _ in range(iterations):
        index = torch.randint(POOL, (batch,), generator=generator)
        maps = pool.pick(index)
        place, yaw = random_places(maps, generator)
        robot = Robot(maps)
        curve = robot.path(planner, robot.look(place, yaw, generator), place, yaw, maps.goal)
        loss = COSTS(curve.sample(40, derivatives=2), goal=next_goal(maps, place), field=fields[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(planner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    return history


def next_goal(maps: Maps, place: Tensor) -> Tensor:
    """The goal, or the point towards it that is as far as a plan reaches, (B, 2)."""
    ahead = maps.goal - place
    return place + ahead * (LOOK_AHEAD / ahead.norm(dim=-1, keepdim=True)).clamp_max(1.0)


def random_places(maps: Maps, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Free places (B, 2), and headings (B,) more or less towards the goal."""
    batch = len(maps.goal)
    candidates = torch.rand(50, batch, 2, generator=generator) * torch.tensor([11.0, 8.0]) - torch.tensor(
        [0.0, 4.0]
    )
    free = maps.clearance(candidates) > ROBOT + 0.05
    place = candidates[free.to(torch.uint8).argmax(0), torch.arange(batch)]
    ahead = maps.goal - place
    return place, torch.atan2(ahead[:, 1], ahead[:, 0]) + 0.7 * torch.randn(batch, generator=generator)


@dataclass
class Drive:
    """How robots fared: whether they reached the goal without touching anything, and how far they drove [m], (B,)."""

    success: Tensor
    length: Tensor


@torch.no_grad()
def drive(planner: gp.Stage, maps: Maps, seed: int, blind: bool = False) -> Drive:
    """Look, plan, drive a little along the plan, and again, until the goal is reached."""
    robot, generator = Robot(maps, blind), torch.Generator().manual_seed(seed)
    place = maps.start.clone()
    yaw = torch.atan2(*(maps.goal - place).flip(-1).unbind(-1))
    length = torch.zeros(len(place))
    touched, reached = torch.zeros(len(place), dtype=torch.bool), torch.zeros(len(place), dtype=torch.bool)
    for _ in range(DECISIONS):
        points = robot.path(planner, robot.look(place, yaw, generator), place, yaw, maps.goal).sample(60, 0)[
            "position"
        ]
        driven = points.diff(dim=0).norm(dim=-1).cumsum(0)
        last = (driven < STEP).sum(0).clamp_max(len(driven) - 1)  # the end of the last piece that is driven
        index = torch.arange(len(driven))[:, None]
        moving = ~(touched | reached)
        close = (maps.clearance(points[1:]) < ROBOT) & (index <= last)
        touched |= moving & close.any(0)
        sample = torch.arange(len(place))
        after, before = points[last + 1, sample], points[last, sample]
        length += torch.where(moving, driven[last, sample], 0.0)
        place = torch.where(moving[:, None], after, place)
        yaw = torch.where(moving, torch.atan2(*(after - before).flip(-1).unbind(-1)), yaw)
        reached |= moving & ~touched & ((place - maps.goal).norm(dim=-1) < REACHED)
        if (touched | reached).all():
            break
    return Drive(reached, length)


def straight(maps: Maps) -> Drive:
    """The baseline that drives to the goal in a straight line."""
    share = torch.linspace(0.0, 1.0, 400)[:, None, None]
    points = (1 - share) * maps.start + share * maps.goal
    return Drive((maps.clearance(points) >= ROBOT).all(0), (maps.goal - maps.start).norm(dim=-1))


def score(result: Drive, shortest: Tensor) -> dict[str, float]:
    """Success, and success weighted by path length (Anderson et al. 2018), with its 95 % interval."""
    # Stopping short of the goal by what counts as reached must not be rewarded.
    best = shortest - REACHED
    weighted = result.success * best / torch.maximum(result.length, best)
    spl, low, high = mean_interval(weighted)
    return {"success": result.success.float().mean().item(), "spl": spl, "low": low, "high": high}


def evaluate(planner: gp.Stage, count: int, seed: int, blind: bool = False) -> dict[str, Any]:
    """Compare with A*, the straight line, and the same planner blindfolded, on unseen maps that have a free path.

    With `blind`, the planner's own camera shows nothing either.
    """
    maps = draw_maps(count, (seed, 1))
    fields = maps.field()
    paths = [shortest_path(*each) for each in zip(fields, maps.start, maps.goal, strict=True)]
    free = torch.tensor([path is not None for path in paths])
    if not free.any():
        raise gp.InputError(
            f"none of the {count} maps has a free path, so there is nothing to drive; draw others"
        )
    maps = maps.pick(free)
    shortest = torch.tensor([path_length(path) for path in paths if path is not None])
    results = {
        "planner": drive(planner, maps, seed, blind),
        "blindfolded": drive(planner, maps, seed, blind=True),
        "straight": straight(maps),
        "A*": Drive(torch.ones(len(shortest), dtype=torch.bool), shortest - REACHED),
    }
    scores: dict[str, Any] = {name: score(result, shortest) for name, result in results.items()}
    return {"maps": count, "without_free_path": int((~free).sum()), **scores}


def main(
    iterations: int = 3000,
    batch: int = 64,
    learning_rate: float = 2e-3,
    maps: int = 200,
    encoder_name: str = "conv",
    seed: int = 0,
) -> dict[str, Any]:
    """Train a planner by the cost of its own paths, and drive it through unseen maps.

    Args:
        iterations: Steps of training.
        batch: Images per step.
        learning_rate: Of Adam, at first.
        maps: Unseen maps to evaluate on.
        encoder_name: "conv" or "vit".
        seed: Of weights, maps and noise.
    """
    torch.manual_seed(seed)
    planner = PathPlanner(encoder(encoder_name))
    start = time.perf_counter()
    history = train(planner, iterations, batch, learning_rate, seed)
    seconds = time.perf_counter() - start
    metrics: dict[str, Any] = {
        "cost_first": sum(history[:20]) / 20,
        "cost_last": sum(history[-20:]) / 20,
        "training_seconds": seconds,
    }
    metrics |= evaluate(planner, maps, seed)
    print(f"cost {metrics['cost_first']:.2f} -> {metrics['cost_last']:.2f} in {seconds:.0f} s")
    for name in ("planner", "blindfolded", "straight", "A*"):
        row = metrics[name]
        print(
            f"{name:12} success {row['success']:6.1%}   weighted by path length {row['spl']:.3f} "
            f"({row['low']:.3f} to {row['high']:.3f})"
        )
    return metrics
