"""Find how a coloured cube is turned from one image of it, from starts up to 75 degrees away, as in SoftRas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import gradpath as gp
from gradpath import geometry, render
from gradpath.losses import Ramp
from gradpath.meshes import TriangleMesh
from gradpath.render import Attribute, Topology
from gradpath.runs import next_folder, write_json

DISTANCE = 4.0  # of the cube's centre from the camera [m]
FIELD_OF_VIEW = 0.7  # [rad]
AWAY = (15.0, 30.0, 45.0, 60.0, 75.0)  # of the starts [degrees]


def draw(turn: Tensor, size: int, sigma: float = 1.0) -> Tensor:
    """Pictures (B, size, size, 3) of the cube turned by quaternions (B, 4)."""
    cube = TriangleMesh.box()
    points = geometry.quat_rotate(turn[:, None], 0.7 * cube.vertices) + torch.tensor([0.0, 0.0, DISTANCE])
    corners = Attribute(0.5 + 0.4 * cube.vertices, background=1.0)  # each corner has a colour of its own
    return render.rasterize(
        points,
        Topology.of(cube.faces),
        K=render.pinhole(size, size, FIELD_OF_VIEW),
        height=size,
        width=size,
        sigma=sigma,
        channels="colour",
        attributes={"colour": corners},
    )["colour"]


def degrees_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle [degrees] between rotations (..., 4)."""
    error = geometry.quat_log(geometry.quat_multiply(geometry.quat_conjugate(a), b))
    return torch.linalg.vector_norm(error, dim=-1) * (180.0 / math.pi)


def main(
    iterations: int = 120,
    starts: int = 8,
    size: int = 64,
    learning_rate: float = 0.05,
    seed: int = 0,
    run: Path | None = None,
) -> dict[str, Any]:
    """Search from starts 15 to 75 degrees away, each towards a pose of its own; report how many come within 5 degrees.

    Args:
        iterations: Steps of Adam.
        starts: Random starts for each distance.
        size: Rows and columns of the images.
        learning_rate: Of Adam [rad]; falls to a tenth.
        seed: Of poses and starts.
        run: The run folder; runs/cube_pose-001 and so on by default.
    """
    folder = run or next_folder("cube_pose")
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    truth = geometry.quat_normalize(torch.randn(len(AWAY) * starts, 4, generator=generator))
    axis = torch.nn.functional.normalize(torch.randn(len(truth), 3, generator=generator), dim=-1)
    angle = torch.tensor(AWAY).repeat_interleave(starts) * (math.pi / 180.0)
    start = geometry.quat_multiply(truth, geometry.quat_from_axis_angle(axis, angle))
    with torch.no_grad(), gp.mode("hard"):
        wanted = draw(truth, size)

    rotation = torch.zeros(len(truth), 3, requires_grad=True)
    optimizer = torch.optim.Adam([rotation], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1.0 / iterations))
    width = Ramp(size / 16.0, 1.0, max(1, iterations // 2))  # wide edges first: they reach further
    for step in range(iterations):
        optimizer.zero_grad()
        drawn = draw(geometry.quat_multiply(start, geometry.quat_exp(rotation)), size, sigma=width(step))
        (drawn - wanted).square().sum().backward()
        optimizer.step()
        schedule.step()

    with torch.no_grad(), gp.mode("hard"):
        found = geometry.quat_multiply(start, geometry.quat_exp(rotation))
        error = degrees_between(found, truth).reshape(len(AWAY), starts)
        pictures = [wanted, draw(start, size), draw(found, size)]
    metrics: dict[str, Any] = {
        f"share_within_5_degrees_from_{int(away)}": float((row < 5.0).double().mean())
        for away, row in zip(AWAY, error, strict=True)
    }
    metrics["share_within_5_degrees"] = float((error < 5.0).double().mean())
    metrics["median_error"] = float(error.median())
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):32} {value:.3g}")
    write_json(folder / "metrics.json", metrics)
    columns = torch.arange(len(AWAY)) * starts
    rows = torch.cat([torch.cat(list(picture[columns]), dim=1) for picture in pictures])
    Image.fromarray((rows.clamp(0, 1).numpy() * 255).astype(np.uint8)).save(folder / "cubes.png")
    print(
        f"\n{folder / 'cubes.png'}: the images given, the starts and what was found, from {AWAY} degrees away"
    )
    return metrics
