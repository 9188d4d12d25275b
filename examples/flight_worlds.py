"""Worlds for the flight task: forests and rooms on a 24 m course, drawn from a seed."""

import functools
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradpath.distances import Shape
from gradpath.meshes import TriangleMesh

COURSE = 24.0  # the end zone begins at this x [m]
ALTITUDE = 1.5  # of start and goal [m]
HALF_WIDTH = 6.0  # of the part of the course that holds obstacles [m]
CEILING = 5.0  # as high as the highest obstacles [m]
HIDDEN = -100.0  # height of instances that a world does not use [m]
SEGMENTS = 12  # of a drawn cylinder

# How many instances of each shape a world has room for.
COUNTS = {"box": 8, "cylinder": 12, "sphere": 5, "rock": 4, "stump": 3}


@dataclass(frozen=True)
class Worlds:
    """A batch of worlds.

    Attributes:
        pose: Obstacle poses, shape (B, I, 7).
        scale: Obstacle scales, shape (B, I, 3) [m].
        start: Start positions, shape (B, 3) [m].
        goal: Goals, beyond the end zone, shape (B, 3) [m].
        rooms: True for a room, False for a forest, shape (B,).
    """

    pose: Tensor
    scale: Tensor
    start: Tensor
    goal: Tensor
    rooms: Tensor

    @property
    def obstacles(self) -> dict[str, Tensor]:
        """The obstacles as cameras and clearances take them."""
        return {"pose": self.pose, "scale": self.scale}


@functools.lru_cache(maxsize=1)
def asset_meshes() -> dict[str, TriangleMesh]:
    """The meshes that come from files, by name; about unit radius."""
    folder = Path(str(files("gradpath.examples"))) / "assets"
    return {name: TriangleMesh.load(folder / f"{name}.obj") for name in ("rock", "stump")}


def drawn_meshes() -> tuple[list[TriangleMesh], list[int]]:
    """Meshes and counts for the renderer, in the order of the instances."""
    # Flat faces lie inside of the round surface; drawn this much larger, nothing looks smaller than it is.
    around = math.cos(math.pi / SEGMENTS)
    cylinder, sphere = TriangleMesh.cylinder(SEGMENTS), TriangleMesh.icosphere(1)
    inner = (sphere.vertices[sphere.faces.long()].mean(1).norm(dim=-1)).min()
    primitives = {
        "box": TriangleMesh.box(),
        "cylinder": TriangleMesh(cylinder.vertices / torch.tensor([around, around, 1.0]), cylinder.faces),
        "sphere": TriangleMesh(sphere.vertices / inner, sphere.faces),
    }
    meshes = {**primitives, **asset_meshes()}
    return [meshes[name] for name in COUNTS], list(COUNTS.values())


def solid_shapes() -> tuple[list[int | TriangleMesh], list[int]]:
    """Shapes and counts for exact distances, in the order of the instances."""
    primitives = {"box": int(Shape.BOX), "cylinder": int(Shape.CYLINDER), "sphere": int(Shape.SPHERE)}
    shapes: dict[str, int | TriangleMesh] = {**primitives, **asset_meshes()}
    return [shapes[name] for name in COUNTS], list(COUNTS.values())


def draw_worlds(batch: int, seed: tuple[int, ...], density: float = 0.5) -> Worlds:
    """Draw worlds; the same seed gives the same worlds.

    Every other world is a room, with two walls that have a doorway each, the others are forests.

    Args:
        batch: Number of worlds.
        seed: Numbers that choose the worlds.
        density: Share of the instances that are in use, in (0, 1].
    """
    rng = np.random.default_rng(seed)
    worlds = [_room(rng, density) if index % 2 else _forest(rng, density) for index in range(batch)]
    pose, scale = (torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*worlds, strict=True))
    start = np.stack([np.zeros(batch), rng.uniform(-1.0, 1.0, batch), np.full(batch, ALTITUDE)], axis=1)
    goal = np.tile([COURSE + 6.0, 0.0, ALTITUDE], (batch, 1))
    return Worlds(
        pose=pose,
        scale=scale,
        start=torch.tensor(start, dtype=torch.float32),
        goal=torch.tensor(goal, dtype=torch.float32),
        rooms=torch.arange(batch) % 2 == 1,
    )


class _Slots:
    """Fills the instances of one world; what stays empty is hidden."""

    def __init__(self, rng: np.random.Generator):
        total = sum(COUNTS.values())
        self.rng = rng
        self.pose = np.zeros((total, 7))
        self.pose[:, 2], self.pose[:, 6] = HIDDEN, 1.0
        self.scale = np.full((total, 3), 0.1)
        ends = np.cumsum(list(COUNTS.values()))
        self.free = {
            name: list(range(end - COUNTS[name], end)) for name, end in zip(COUNTS, ends, strict=True)
        }

    def put(
        self,
        name: str,
        position: tuple[float, float, float],
        scale: tuple[float, float, float],
        yaw: float = 0.0,
    ):
        """Use one instance of a mesh, turned about the vertical."""
        index = self.free[name].pop(0)
        self.pose[index] = [*position, 0.0, 0.0, math.sin(0.5 * yaw), math.cos(0.5 * yaw)]
        self.scale[index] = scale

    def scatter(self, name: str, count: int, width: float) -> None:
        """Place obstacles of one kind at random along the course."""
        rng = self.rng
        for _ in range(min(count, len(self.free[name]))):
            x, y, yaw = (
                rng.uniform(3.5, COURSE - 2.0),
                rng.uniform(-width, width),
                rng.uniform(-math.pi, math.pi),
            )
            if name == "box":
                height = rng.uniform(1.2, 2.5)
                self.put(name, (x, y, height), (rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.5), height), yaw)
            elif name == "cylinder":
                radius = rng.uniform(0.15, 0.4)
                self.put(name, (x, y, 2.5), (radius, radius, 2.5))
            elif name == "sphere":
                radius = rng.uniform(0.3, 0.7)
                self.put(name, (x, y, ALTITUDE + rng.uniform(-0.5, 0.5)), (radius,) * 3)
            elif name == "rock":
                size = rng.uniform(0.5, 0.9)
                self.put(name, (x, y, ALTITUDE + rng.uniform(-0.7, 0.2)), (size,) * 3, yaw)
            else:
                self.put(name, (x, y, 1.4), (1.4,) * 3, yaw)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pose, self.scale


def _forest(rng: np.random.Generator, density: float) -> tuple[np.ndarray, np.ndarray]:
    slots = _Slots(rng)
    for name, count in COUNTS.items():
        slots.scatter(name, round(density * count), HALF_WIDTH)
    return slots.arrays()


def _room(rng: np.random.Generator, density: float) -> tuple[np.ndarray, np.ndarray]:
    slots = _Slots(rng)
    half_height, half_thickness = 2.5, 0.1
    for side in (-1.0, 1.0):
        slots.put(
            "box", (0.5 * COURSE, side * HALF_WIDTH, half_height), (0.5 * COURSE, half_thickness, half_height)
        )
    door = 0.0
    for middle in (8.5, 17.0):
        x = middle + rng.uniform(-1.0, 1.0)
        door = float(np.clip(door + rng.uniform(-2.5, 2.5), -2.5, 2.5))
        half_door = rng.uniform(1.2, 1.6)
        for low, high in ((-HALF_WIDTH, door - half_door), (door + half_door, HALF_WIDTH)):
            half = 0.5 * (high - low)
            slots.put("box", (x, low + half, half_height), (half_thickness, half, half_height))
    clutter = {"cylinder": 4, "sphere": 2, "rock": 1, "stump": 1}
    for name, count in clutter.items():
        slots.scatter(name, round(density * count), HALF_WIDTH - 1.0)
    return slots.arrays()
