"""What does a differentiable image cost? Forward and backward, beside DEODR, PyTorch3D and a dense torch version.

python benchmarks/bench_render.py [--only silhouettes flight large scaling] [--repeats 5] [--json render.json]

Times are the best of the repeats, in milliseconds for one image, forward and backward together. DEODR (C++, hard images
with antialiased edges, `pip install deodr`) is left out where it is not installed; its work starts from vertices in
pixels with the silhouette edges given, and ends there, which is less than is asked of the others. PyTorch3D on the CPU
(built from its sources, `pip install git+https://github.com/facebookresearch/pytorch3d`) is left out likewise; it draws
the softras alpha of one view at 64 x 64 with at most 50 faces per pixel.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradpath import geometry, kernels
from gradpath.examples.flight import FlightOptions, FlightTask
from gradpath.meshes import TriangleMesh
from gradpath.render import Topology, pinhole, rasterize

SIGMA = {64: 1e-4 * 32**2, 256: 1e-4 * 128**2}  # of the softras rule [pixels^2]: 1e-4 in squared NDC


def best(function: Callable[[], Any], repeats: int) -> float:
    """Shortest of several runs [ms], after one that compiles and warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def ball(level: int, views: int, distance: float = 2.7) -> tuple[Tensor, Topology]:
    """An icosphere from several sides, in the camera frame."""
    mesh = TriangleMesh.icosphere(level)
    azimuth = torch.arange(views) * (2 * math.pi / views)
    eye = distance * torch.stack([azimuth.cos(), azimuth.sin(), torch.full_like(azimuth, 0.3)], -1)
    into = geometry.pose_inverse(geometry.look_at(eye, torch.zeros(3)))
    return geometry.pose_apply(into[:, None], mesh.vertices), Topology.of(mesh.faces)


def ours(points: Tensor, topology: Topology, size: int, repeats: int, **options: Any) -> float:
    """Milliseconds per image of `rasterize` and its backward pass."""
    K = pinhole(size, size, math.radians(60)).float()

    def run() -> None:
        x = points.clone().requires_grad_()
        image = rasterize(x, topology, K=K, height=size, width=size, validate=False, **options)
        sum(value.sum() for value in image.values()).backward()

    return best(run, repeats) / len(points)


def dense(points: Tensor, topology: Topology, size: int, sigma: float, repeats: int) -> float:
    """Milliseconds per image of SoftRas' alpha over all pixels and faces in torch, row by row to fit into memory."""
    K = pinhole(size, size, math.radians(60)).float()

    def row(corners: Tensor, y: int) -> Tensor:
        u = torch.arange(size) + 0.5
        pixel = torch.stack([u, torch.full_like(u, y + 0.5)], -1)[:, None]
        flat = corners[..., :2] / corners[..., 2:] * K[0, 0] + K[0, 2]
        inside, distance = torch.ones(size, len(corners), dtype=torch.bool), None
        a, b, c = flat.unbind(1)
        turn = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sign()
        for start, end in ((a, b), (b, c), (c, a)):
            along, away = end - start, pixel - start
            t = ((away * along).sum(-1) / (along * along).sum(-1)).clamp(0, 1)
            square = (away - t[..., None] * along).square().sum(-1)
            distance = square if distance is None else torch.minimum(distance, square)
            inside &= (along[:, 0] * away[..., 1] - along[:, 1] * away[..., 0]) * turn > 0
        return 1 - (1 - torch.sigmoid(torch.where(inside, distance, -distance) / sigma)).prod(-1)

    def run() -> None:
        x = points[:1].clone().requires_grad_()
        for y in range(size):
            row(x[0, topology.faces.long()], y).sum().backward()

    return best(run, repeats)


def deodr(points: Tensor, topology: Topology, size: int, repeats: int) -> float | None:
    """Milliseconds per image of DEODR's silhouette of the first view."""
    try:
        from deodr.differentiable_renderer import Scene2D
    except ImportError:
        return None
    K = pinhole(size, size, math.radians(60))
    x, faces = points[0].double(), topology.faces.long()
    flat = (x[:, :2] / x[:, 2:] * K[0, 0] + K[0, 2]).numpy()
    a, b, c = x[faces].unbind(1)
    front = (torch.linalg.cross(b - a, c - a) * a).sum(-1) < 0
    beside: dict[tuple[int, int], list[bool]] = {}
    for face, faces_camera in zip(faces.tolist(), front.tolist(), strict=True):
        for k in range(3):
            beside.setdefault(tuple(sorted((face[k], face[(k + 1) % 3]))), []).append(faces_camera)
    flags = [
        [len(set(beside[tuple(sorted((f[k], f[(k + 1) % 3])))])) == 2 for k in range(3)]
        for f in faces.tolist()
    ]
    count, none = len(x), np.zeros(len(faces), dtype=bool)
    scene = Scene2D(
        faces=faces.numpy().astype(np.uint32), faces_uv=faces.numpy().astype(np.uint32), ij=flat,
        depths=x[:, 2].numpy().copy(), textured=none, uv=np.zeros((count, 2)), shade=np.zeros(count),
        colors=np.ones((count, 1)), shaded=none, edgeflags=np.array(flags), height=size, width=size, nb_colors=1,
        texture=np.zeros((0, 0, 1)), background_color=np.zeros(1), clockwise=False, backface_culling=True,
        integer_pixel_centers=False,
    )  # fmt: skip
    covered = {}
    for clockwise in (False, True):  # the handedness of its images is found by trying
        scene.clockwise = clockwise
        covered[clockwise] = float(scene.render()[0].sum())
    scene.clockwise = covered[True] > covered[False]
    seed = np.ones((size, size, 1))

    def run() -> None:
        scene.clear_gradients()
        scene.render()
        scene.render_backward(seed)

    return best(run, repeats)


def pytorch3d(points: Tensor, topology: Topology, size: int, sigma: float) -> float | None:
    """Milliseconds per image of PyTorch3D's silhouette of the first view; sigma in squared pixels."""
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError:
        return None
    focal, squared_ndc = 1.0 / math.tan(math.radians(30)), sigma / (0.5 * size) ** 2

    def run() -> None:
        x = points[:1].clone().requires_grad_()
        ndc = torch.cat([-focal * x[..., :2] / x[..., 2:], x[..., 2:]], dim=-1)
        mesh = Meshes(ndc, topology.faces.long()[None])
        blur = math.log(1.0 / 1e-4 - 1.0) * squared_ndc
        face, _, _, square = rasterize_meshes(mesh, size, blur, faces_per_pixel=50, bin_size=0)
        (1.0 - (1.0 - torch.sigmoid(-square / squared_ndc) * (face >= 0)).prod(-1)).sum().backward()

    return best(run, 1)


def silhouettes(repeats: int) -> list[dict[str, Any]]:
    """The icosphere of 1280 faces, 8 views and one: the case of the literature."""
    points, topology = ball(3, 8)
    rows = []
    for size in (64, 256):
        soft = {"silhouette": "softras", "sigma": SIGMA[size], "channels": "alpha"}
        for threads in (1, kernels.get_threads()):
            kernels.set_threads(threads)
            torch.set_num_threads(threads)
            row: dict[str, Any] = {"size": size, "threads": threads}
            row["edge alpha"] = ours(points, topology, size, repeats, channels="alpha")
            row["edge alpha, depth"] = ours(points, topology, size, repeats)
            row["edge alpha, one view"] = ours(points[:1], topology, size, repeats, channels="alpha")
            row["softras alpha"] = ours(points, topology, size, repeats, **soft)
            row["softras alpha, depth"] = ours(
                points, topology, size, repeats, **{**soft, "channels": ("alpha", "depth")}
            )
            if threads == 1:
                row["DEODR alpha"] = deodr(points, topology, size, repeats)
            if size == 64 and threads == 1:
                row["PyTorch3D alpha"] = pytorch3d(points, topology, size, SIGMA[size])
            if size == 64:
                row["dense torch alpha"] = dense(points, topology, size, SIGMA[size], 1)
            kernels.set_threads(None)
            rows.append(row)
    return rows


def flight(repeats: int) -> list[dict[str, Any]]:
    """The depth camera of the flight job: 64 worlds, 64 x 48 pixels, gradient to the body's pose."""
    task = FlightTask(FlightOptions(worlds=64))
    camera = task.build().step.stages["camera"]
    (state,), inputs = task.sample(0)
    camera.height, camera.width = 48, 64
    camera.intrinsics = pinhole(64, 48, math.pi / 2).to(camera.intrinsics)
    rows = []
    for threads in (1, kernels.get_threads()):
        kernels.set_threads(threads)

        def run() -> None:
            pose = state["pose"].clone().requires_grad_()
            depth, alpha = camera(pose, inputs["obstacles"])
            (depth.sum() + alpha.sum()).backward()

        faces = len(camera.topology.faces)
        rows.append(
            {"worlds": 64, "faces": faces, "threads": threads, "ms per world": best(run, repeats) / 64}
        )
        kernels.set_threads(None)
    return rows


def large(repeats: int) -> list[dict[str, Any]]:
    """One image of 512 x 512 pixels of a ball of 81920 faces."""
    points, topology = ball(6, 1)
    return [
        {"rule": "edge", "ms": ours(points, topology, 512, repeats)},
        {
            "rule": "softras, alpha",
            "ms": ours(points, topology, 512, repeats, silhouette="softras", channels="alpha"),
        },
    ]


def scaling(repeats: int) -> list[dict[str, Any]]:
    """Cost of the edge rule, alpha and depth, against faces, pixels and worlds; all threads."""
    cases = [(level, 64, 8) for level in (1, 2, 3, 4, 5)] + [(3, size, 8) for size in (32, 128, 256)]
    cases += [(3, 64, worlds) for worlds in (1, 2, 32)]
    rows = []
    for level, size, worlds in cases:
        points, topology = ball(level, worlds)
        found = ours(points, topology, size, repeats)
        rows.append({"faces": 20 * 4**level, "size": size, "worlds": worlds, "ms per image": found})
    return rows


PARTS = {"silhouettes": silhouettes, "flight": flight, "large": large, "scaling": scaling}


def main() -> None:
    """Run the parts that are asked for, print each as a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    found = {}
    for name in options.only:
        rows = PARTS[name](options.repeats)
        found[name] = rows
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print(f"\n{name}\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            cells = [row.get(column) for column in columns]
            shown = ("" if c is None else f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells)
            print(f"| {' | '.join(shown)} |")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
