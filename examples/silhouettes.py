"""Find the shape of a solid from 24 silhouettes: a sphere is deformed until its images fit, as in SoftRas."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import gradpath as gp
from gradpath import geometry, render
from gradpath.meshes import TriangleMesh
from gradpath.render import Topology, losses
from gradpath.runs import next_folder, write_json

DISTANCE = 2.9  # of the cameras from the centre [m]
FIELD_OF_VIEW = 1.0  # [rad]


def blob(level: int) -> TriangleMesh:
    """The solid to find: three lobes and a dent, so that it is not convex."""
    sphere = TriangleMesh.icosphere(level)
    x, y, z = sphere.vertices.unbind(-1)
    radius = 0.75 + 0.22 * torch.cos(3.0 * torch.atan2(y, x)) * (1.0 - z * z) + 0.12 * torch.sin(2.5 * z)
    return TriangleMesh(sphere.vertices * radius[:, None], sphere.faces)


def look_around(points: Tensor, views: int) -> Tensor:
    """Vertices (V, 3) in the frames of cameras on two rings around them, (views, V, 3)."""
    number = torch.arange(views)
    azimuth = number * (2.0 * math.pi / views)
    elevation = torch.where(number % 2 == 0, -0.5, 0.6)
    flat = DISTANCE * elevation.cos()
    eye = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), DISTANCE * elevation.sin()], -1)
    into = geometry.pose_inverse(geometry.look_at(eye, torch.zeros(3)))
    return geometry.pose_apply(into[:, None], points)


def silhouettes(points: Tensor, topology: Topology, views: int, size: int) -> Tensor:
    """Alpha of all views, (views, size, size)."""
    K = render.pinhole(size, size, FIELD_OF_VIEW)
    seen = look_around(points, views)
    return render.rasterize(seen, topology, K=K, height=size, width=size, channels="alpha")["alpha"]


def main(
    iterations: int = 400,
    views: int = 24,
    size: int = 64,
    level: int = 3,
    learning_rate: float = 0.015,
    smooth: float = 30.0,
    run: Path | None = None,
) -> dict[str, Any]:
    """Deform a sphere to the silhouettes of a solid, report the overlap of hard images, write pictures.

    Args:
        iterations: Steps of Adam.
        views: Cameras around the solid.
        size: Rows and columns of the images.
        level: Fineness of the sphere: 20 * 4**level faces.
        learning_rate: Of Adam; falls to a tenth.
        smooth: Weight of the regularizers.
        run: The run folder; runs/silhouettes-001 and so on by default.
    """
    folder = run or next_folder("silhouettes")
    folder.mkdir(parents=True, exist_ok=True)
    target, sphere = blob(5), TriangleMesh.icosphere(level)
    topology = Topology.of(sphere.faces)
    with torch.no_grad(), gp.mode("hard"):
        wanted = silhouettes(target.vertices, Topology.of(target.faces), views, size)

    start = 0.7 * sphere.vertices
    offset = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1.0 / iterations))
    began = time.perf_counter()
    for _ in range(iterations):
        optimizer.zero_grad()
        points = start + offset
        overlap = losses.silhouette_iou(silhouettes(points, topology, views, size), wanted)
        bending = losses.laplacian(points, topology) + 1e-3 * losses.flattening(points, topology)
        (overlap + smooth * bending).backward()
        optimizer.step()
        schedule.step()
    seconds = (time.perf_counter() - began) / iterations

    with torch.no_grad(), gp.mode("hard"):
        first, found = (silhouettes(p, topology, views, size) for p in (start, start + offset))
    metrics = {
        "hard_iou_of_the_sphere": 1.0 - float(losses.silhouette_iou(first, wanted)),
        "hard_iou": 1.0 - float(losses.silhouette_iou(found, wanted)),
        "seconds_per_iteration": seconds,
    }
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):24} {value:.4g}")
    write_json(folder / "metrics.json", metrics)
    draw(start + offset.detach(), topology, target, folder / "silhouettes.png")
    print(f"\n{folder / 'silhouettes.png'}")
    return metrics


def draw(points: Tensor, topology: Topology, target: TriangleMesh, path: Path) -> None:
    """Four views of what was found, above the same views of the solid."""
    size, rows = 192, []
    K = render.pinhole(size, size, FIELD_OF_VIEW)
    sun = render.DirectionalLight((0.4, 0.5, 0.8), (0.7, 0.68, 0.6))
    lights = (render.AmbientLight((0.25, 0.25, 0.3)), sun)
    for vertices, faces in ((points, topology), (target.vertices, Topology.of(target.faces))):
        seen = look_around(vertices, 4)
        with torch.no_grad():
            pieces = render.fragments(seen, faces, K=K, height=size, width=size)
            image = render.picture(pieces, seen, lights=lights, background=1.0).clamp(0.0, 1.0)
        rows.append(torch.cat(list(image), dim=1))
    Image.fromarray((torch.cat(rows).numpy() * 255).astype(np.uint8)).save(path)
