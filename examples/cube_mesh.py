"""Find the corners and colours of a cube from images of 16 x 16 pixels, as in nvdiffrast's example."""

from __future__ import annotations

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
from gradpath.render import Attribute, Topology
from gradpath.runs import next_folder, write_json

DISTANCE, FOCAL, SHIFT = 3.5, 1.25, 0.25  # [m], per pixel of the image's width, [m]: the sample's numbers
CUBE = TriangleMesh.box()
CORNERS = 0.5 * CUBE.vertices
RAYS = 8  # along a pixel's side, in the hard images


def draw(corners: Tensor, colours: Tensor, pose: Tensor, size: int, **options: Any) -> Tensor:
    """Pictures (B, size, size, 3) of cubes with corners (B, 8, 3) and colours (B, 8, 3), at poses (B, 7)."""
    K = torch.tensor([[FOCAL * size, 0.0, 0.5 * size], [0.0, FOCAL * size, 0.5 * size], [0.0, 0.0, 1.0]])
    return render.rasterize(
        geometry.pose_apply(pose[:, None], corners),
        Topology.of(CUBE.faces),
        K=K,
        height=size,
        width=size,
        channels="colour",
        attributes={"colour": Attribute(colours)},
        **options,
    )["colour"]


def random_poses(count: int, generator: torch.Generator) -> Tensor:
    """Any rotation, and a shift by up to `SHIFT` along each axis."""
    turn = geometry.quat_normalize(torch.randn(count, 4, generator=generator))
    shift = SHIFT * (2.0 * torch.rand(count, 3, generator=generator) - 1.0)
    return geometry.pose(shift + torch.tensor([0.0, 0.0, DISTANCE]), turn)


def fit(
    hard: bool, size: int, sigma: float, iterations: int, repeats: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Descend with Adam, one new image of each cube per iteration.

    Args:
        hard: Whether the images given are hard ones, antialiased; else they are soft ones, as the images compared.
        size: Rows and columns of the images.
        sigma: Width of soft edges [pixels].
        iterations: Number of images of each cube.
        repeats: Cubes with colours of their own, each from a start of its own.
        seed: Of colours, starts and poses.
    Returns:
        Corners found and at the start, colours found and true, each (repeats, 8, 3).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (repeats, 8, 3)
    truth = torch.rand(shape, generator=generator)
    start = CORNERS + torch.rand(shape, generator=generator) - 0.5
    corners, colours = start.clone().requires_grad_(), torch.rand(shape, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([corners, colours], lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.01, 10 ** (-0.0005 * step)))
    for _ in range(iterations):
        pose = random_poses(repeats, generator)
        with torch.no_grad(), gp.mode("hard" if hard else "soft"):
            given = draw(CORNERS.expand(shape), truth, pose, size, sigma=sigma, supersample=RAYS)
        optimizer.zero_grad()
        drawn = draw(corners, colours, pose, size, sigma=sigma)
        (drawn - given).square().mean((1, 2, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    return corners.detach(), start, colours.detach(), truth


def main(
    iterations: int = 5000,
    repeats: int = 8,
    size: int = 16,
    sigma: float = 0.35,
    seed: int = 0,
    run: Path | None = None,
) -> dict[str, Any]:
    """Fit cubes to soft images, as the sample has them, and to hard ones; report the mean distance of the corners.

    Args:
        iterations: Steps of Adam; the sample's default is 5000.
        repeats: Cubes, each with its own colours and start, fitted side by side.
        size: Rows and columns of the images; the sample also has 4 and 8.
        sigma: Width of soft edges [pixels].
        seed: Of colours, starts and poses.
        run: The run folder; runs/cube_mesh-001 and so on by default.
    """
    folder = run or next_folder("cube_mesh")
    folder.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    view = geometry.look_at(torch.tensor([2.0, -2.2, 1.9]), torch.zeros(3))
    pose = geometry.pose_inverse(view).expand(repeats, 7)
    rows = []
    for given in ("soft", "hard"):
        began = time.perf_counter()
        corners, start, colours, truth = fit(given == "hard", size, sigma, iterations, repeats, seed)
        error = torch.linalg.vector_norm(corners - CORNERS, dim=-1).mean(-1)
        metrics["error_at_the_start"] = float(torch.linalg.vector_norm(start - CORNERS, dim=-1).mean())
        metrics[f"error_from_{given}_images"] = float(error.mean())
        metrics[f"worst_from_{given}_images"] = float(error.max())
        metrics[f"seconds_{given}"] = time.perf_counter() - began
        with torch.no_grad(), gp.mode("hard"):
            for shape, paint in ((start, truth), (corners, colours), (CORNERS.expand(start.shape), truth)):
                rows.append(torch.cat(list(draw(shape, paint, pose, 96, supersample=2)), dim=1))
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):26} {value:.2g}")
    print("to reach, in this set-up   0.01")
    write_json(folder / "metrics.json", metrics)
    picture = torch.cat(rows).clamp(0.0, 1.0).numpy()
    Image.fromarray((picture * 255).astype(np.uint8)).save(folder / "cubes.png")
    print(
        f"\n{folder / 'cubes.png'}: starts, what was found and the truth, from soft images and from hard ones"
    )
    return metrics
