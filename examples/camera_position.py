"""Find where a camera stood from one silhouette: PyTorch3D's tutorial, by its softras rule and by the edge rule."""

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
from gradpath.render import Topology
from gradpath.runs import next_folder, write_json

DISTANCE, ELEVATION = 3.0, math.radians(50.0)  # of the camera to find; the tutorial's numbers
START = (3.0, -2.5, 6.9)  # the tutorial's, with z up
FIELD_OF_VIEW = math.radians(60.0)
SIGMA = 1e-4  # of the softras rule, in squared NDC


def vessel() -> tuple[Tensor, Topology]:
    """A pot with a spout, a handle and a knob: no two views of it look the same."""
    body = TriangleMesh.icosphere(3)
    parts = [
        (body, (0.0, 0.0, 0.0), (0.8, 0.8, 0.6)),
        (TriangleMesh.icosphere(2), (0.95, 0.0, 0.15), (0.35, 0.13, 0.13)),
        (TriangleMesh.icosphere(2), (-0.9, 0.0, 0.1), (0.22, 0.1, 0.33)),
        (TriangleMesh.icosphere(2), (0.0, 0.0, 0.65), (0.15, 0.15, 0.15)),
    ]
    moved = [
        TriangleMesh(mesh.vertices * torch.tensor(scale) + torch.tensor(place), mesh.faces)
        for mesh, place, scale in parts
    ]
    joined = TriangleMesh.merge(moved)
    return joined.vertices, Topology.of(joined.faces)


def silhouette(eye: Tensor, points: Tensor, topology: Topology, size: int, **options: Any) -> Tensor:
    """Alpha (size, size) of a camera at `eye` (3,) that looks at the origin."""
    pose = geometry.look_at(eye[None], torch.zeros(3))
    seen = geometry.pose_apply(geometry.pose_inverse(pose)[:, None], points)
    K = render.pinhole(size, size, FIELD_OF_VIEW)
    return render.rasterize(seen, topology, K=K, height=size, width=size, channels="alpha", **options)[
        "alpha"
    ][0]


def search(rule: str, wanted: Tensor, iterations: int, learning_rate: float) -> tuple[Tensor, float]:
    """Descend with Adam from `START`; the place found [m], and seconds per iteration."""
    points, topology = vessel()
    size = wanted.shape[-1]
    options: dict[str, Any] = {"sigma": 2.0}
    if rule == "softras":
        options = {"silhouette": rule, "sigma": SIGMA * (0.5 * size) ** 2}
    eye = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.Adam([eye], lr=learning_rate)
    began = time.perf_counter()
    for _ in range(iterations):
        optimizer.zero_grad()
        (silhouette(eye, points, topology, size, **options) - wanted).square().sum().backward()
        optimizer.step()
    return eye.detach(), (time.perf_counter() - began) / iterations


def main(
    iterations: int = 200, size: int = 256, learning_rate: float = 0.05, run: Path | None = None
) -> dict[str, Any]:
    """Search with both rules, report the errors of the camera's place, write the silhouettes as a picture.

    Args:
        iterations: Steps of Adam; the tutorial takes 200.
        size: Rows and columns of the image.
        learning_rate: Of Adam.
        run: The run folder; runs/camera_position-001 and so on by default.
    """
    folder = run or next_folder("camera_position")
    folder.mkdir(parents=True, exist_ok=True)
    points, topology = vessel()
    truth = DISTANCE * torch.tensor([0.0, -math.cos(ELEVATION), math.sin(ELEVATION)])
    with torch.no_grad(), gp.mode("hard"):
        wanted = silhouette(truth, points, topology, size)
        first = silhouette(torch.tensor(START), points, topology, size)
    metrics: dict[str, Any] = {"error_at_the_start": float((torch.tensor(START) - truth).norm())}
    pictures = [wanted, first]
    for rule in ("softras", "edge"):
        found, seconds = search(rule, wanted, iterations, learning_rate)
        metrics[f"error_{rule}"] = float((found - truth).norm())
        metrics[f"seconds_per_iteration_{rule}"] = seconds
        with torch.no_grad(), gp.mode("hard"):
            pictures.append(silhouette(found, points, topology, size))
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):30} {value:.4g}")
    write_json(folder / "metrics.json", metrics)
    shown = torch.cat([0.5 * wanted + 0.5 * picture for picture in pictures], dim=1)
    Image.fromarray((shown.numpy() * 255).astype(np.uint8)).save(folder / "silhouettes.png")
    print(
        f"\n{folder / 'silhouettes.png'}: the silhouette wanted, and over it those of the start, softras and edge"
    )
    return metrics
