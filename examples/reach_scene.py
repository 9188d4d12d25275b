"""What the arm sees in the reaching task: a red ball among other things on posts, drawn from a seed."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import gradpath as gp
from gradpath import geometry, render
from gradpath.examples.reach_arm import HOME, JOINTS
from gradpath.meshes import TriangleMesh

RADIUS = 0.03  # of the ball [m]
LOW, HIGH = (0.35, -0.22, 0.08), (0.60, 0.22, 0.33)  # where the ball may be [m]
APART = 0.09  # between things, seen from above, at least [m]
MOUNT = (0.06, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # of the camera in the hand: beside it, looking where it points
FIELD_OF_VIEW = math.pi / 2
FAR = 1.5  # farthest depth drawn [m]
THINGS = {"ball": 1, "balls": 2, "boxes": 2}  # the first one is the target
COUNT = sum(THINGS.values())
POST = 0.006  # radius [m]
SKY = (0.6, 0.65, 0.7)  # colour of the background


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        pose: Of things, their posts and the table, (B, I, 7).
        scale: [m], (B, I, 3).
        colour: (B, I, 3).
        light: Direction in which the light travels, (B, 3).
        exposure: Of the camera, (B,).
        target: Centre of the red ball [m], (B, 3).
        q: Joint angles at the start [rad], (B, 7).
    """

    pose: Tensor
    scale: Tensor
    colour: Tensor
    light: Tensor
    exposure: Tensor
    target: Tensor
    q: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The scenes as `HandCamera` takes them."""
        return {"pose": self.pose, "scale": self.scale, "colour": self.colour, "light": self.light}


def scene_meshes() -> tuple[list[TriangleMesh], list[int]]:
    """Meshes and counts for the renderer: the target, balls, boxes, a post for each of them, and the table."""
    things = [TriangleMesh.icosphere(2), TriangleMesh.icosphere(1), TriangleMesh.box()]
    return [*things, TriangleMesh.cylinder(6), TriangleMesh.box()], [*THINGS.values(), COUNT, 1]


class HandCamera(gp.Stage):
    """A colour and depth camera on the hand, over scenes whose colours and light differ.

    Args:
        height: Rows of the images.
        width: Columns of the images.

    Inputs: `hand`, its pose in the world (B, 7); `scene` with `pose` (B, I, 7), `scale` (B, I, 3), `colour` (B, I, 3)
    and `light`, the direction in which it travels, (B, 3).
    Outputs: `rgb`, linear, (B, 3, H, W); `depth` along the axis [m] (B, 1, H, W).
    Gradients: exact for the soft image; `gp.mode` chooses between soft and hard ones.
    """

    contract = gp.Contract(
        inputs={
            "hand": "B 7",
            "scene": {"pose": "B I 7", "scale": "B I 3", "colour": "B I 3", "light": "B 3"},
        },
        outputs={"rgb": "B 3 H W", "depth": "B 1 H W"},
        gradient="relaxed",
    )
    vertices: Tensor
    owner: Tensor
    intrinsics: Tensor

    def __init__(self, height: int = 48, width: int = 48):
        super().__init__()
        scene = render.Scene(*scene_meshes())
        self.height, self.width, self.topology = height, width, scene.topology
        self.register_buffer("vertices", scene.vertices.float(), persistent=False)
        self.register_buffer("owner", scene.owner, persistent=False)
        self.register_buffer("intrinsics", render.pinhole(width, height, FIELD_OF_VIEW).float())

    def forward(self, hand: Tensor, scene: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Draw what each hand sees."""
        geometry.check_poses(hand, "hand camera")
        camera = geometry.pose_compose(hand, hand.new_tensor(MOUNT))
        return draw(
            self.vertices.to(hand), self.owner, self.topology, camera, scene,
            self.intrinsics, self.height, self.width,
        )  # fmt: skip


def draw(
    vertices: Tensor,
    owner: Tensor,
    topology: render.Topology,
    camera: Tensor,
    scene: Mapping[str, Tensor],
    K: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """Linear colour (B, 3, H, W) and depth (B, 1, H, W) [m] of scenes from camera poses (B, 7)."""
    from gradpath.render.instances import place

    points = place(vertices, owner, scene["pose"], scene["scale"], camera)
    pieces = render.fragments(points, topology, K=K, height=height, width=width, near=0.02, far=FAR)
    lights = (
        render.AmbientLight((0.5, 0.5, 0.5)),
        render.DirectionalLight(scene["light"], (0.5, 0.5, 0.5)),
    )
    world = geometry.pose_apply(camera[:, None], points)
    look = render.Look(scene["colour"][:, owner.long()])
    image = render.picture(
        pieces, world, look, lights, eye=camera[:, :3], shading="flat", background=world.new_tensor(SKY)
    )
    _, depth = pieces.alpha_depth()
    return image.movedim(-1, 1), depth[:, None]


def draw_scenes(batch: int, seed: tuple[int, ...]) -> Scenes:
    """Draw scenes; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    parts = [_one(rng) for _ in range(batch)]
    pose, scale, colour = (
        torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*parts, strict=True)
    )
    light = np.concatenate([rng.uniform(-0.6, 0.6, (batch, 2)), -np.ones((batch, 1))], -1)
    start = np.array(HOME) + rng.normal(0.0, 0.08, (batch, JOINTS))
    return Scenes(
        pose, scale, colour,
        torch.tensor(light, dtype=torch.float32),
        torch.tensor(np.exp(rng.uniform(-0.35, 0.35, batch)), dtype=torch.float32),
        pose[:, 0, :3].clone(),
        torch.tensor(start, dtype=torch.float32),
    )  # fmt: skip


def _one(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses, scales and colours of one scene's things, posts and table."""
    places: list[np.ndarray] = []
    while len(places) < COUNT:
        place = rng.uniform(LOW, HIGH)
        if all(np.linalg.norm(place[:2] - other[:2]) > APART for other in places):
            places.append(place)
    centre = np.stack(places)
    yaw = rng.uniform(0.0, np.pi, COUNT)
    boxes = np.arange(COUNT) >= COUNT - THINGS["boxes"]
    size = np.where(boxes, rng.uniform(0.02, 0.03, COUNT), rng.uniform(0.022, 0.038, COUNT))
    size[0] = RADIUS
    hue = np.concatenate([rng.uniform(-0.03, 0.03, 1), rng.uniform(0.1, 0.9, COUNT - 1)]) % 1.0
    bright = [colorsys.hsv_to_rgb(h, rng.uniform(0.75, 1.0), rng.uniform(0.6, 1.0)) for h in hue]
    grey = np.clip(rng.uniform(0.2, 0.8) + rng.uniform(-0.08, 0.08, 3), 0.0, 1.0)

    pose = np.zeros((2 * COUNT + 1, 7))
    scale = np.ones((2 * COUNT + 1, 3))
    pose[:COUNT, :3], scale[:COUNT] = centre, size[:, None]
    pose[:COUNT, 5], pose[:COUNT, 6] = np.sin(yaw / 2), np.cos(yaw / 2)
    half = 0.5 * centre[:, 2]  # posts reach from the table to the centres
    pose[COUNT:-1, :2], pose[COUNT:-1, 2], pose[COUNT:-1, 6] = centre[:, :2], half, 1.0
    scale[COUNT:-1] = np.stack([np.full(COUNT, POST), np.full(COUNT, POST), half], -1)
    pose[-1], scale[-1] = (0.45, 0.0, -0.01, 0.0, 0.0, 0.0, 1.0), (0.6, 0.6, 0.01)
    colour = np.concatenate([np.array(bright), np.full((COUNT, 3), 0.35), grey[None]])
    return pose, scale, colour
