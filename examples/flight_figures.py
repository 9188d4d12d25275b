"""Pictures and video of an evaluated flight, drawn with the library's own renderer."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure as Plot
from PIL import Image, ImageDraw
from torch import Tensor

import gradpath as gp
from gradpath import geometry, render
from gradpath.examples.flight_worlds import ALTITUDE, COURSE, HALF_WIDTH, Worlds, drawn_meshes
from gradpath.figures import Figure
from gradpath.geometry import look_at, pose_apply
from gradpath.render.instances import place

SHOWN = 6  # worlds in the top view
CHASE = (288, 448)  # rows and columns of the chase view
FLIGHTS = {"trained": "#2b7bba", "blindfolded": "#e2a03f", "straight": "#8c8c8c"}


def write_evaluation(
    folder: Path,
    worlds: Worlds,
    trajectories: Mapping[str, Mapping[str, Any]],
    outcomes: Mapping[str, Tensor],
    options: Any,
) -> None:
    """Write `evaluation.npz` (all flights; obstacles of the first worlds) and `flight.mp4` into a run folder.

    Args:
        folder: The run folder.
        worlds: The evaluated worlds.
        trajectories: Trajectory of each way of flying, by name.
        outcomes: Success of each way of flying in each world, by name, (B,).
        options: The task's options.
    """
    data = {f"{name}_pose": t["body.state.pose"].cpu().numpy() for name, t in trajectories.items()}
    data |= {f"{name}_success": success.cpu().numpy() for name, success in outcomes.items()}
    np.savez_compressed(
        folder / "evaluation.npz",
        obstacle_pose=worlds.pose[: 4 * SHOWN].numpy(),
        obstacle_scale=worlds.scale[: 4 * SHOWN].numpy(),
        rooms=worlds.rooms.numpy(),
        size=np.array([options.height, options.width]),
        control_rate=np.array(options.control_rate),
        **data,
    )
    write_video(folder)


def load_evaluation(folder: Path) -> dict[str, np.ndarray]:
    """Read `evaluation.npz`."""
    with np.load(folder / "evaluation.npz") as file:
        return dict(file)


def _scene() -> render.Scene:
    return render.Scene(*drawn_meshes())


def view(
    camera: Tensor,
    data: Mapping[str, np.ndarray],
    world: int,
    K: Tensor,
    size: tuple[int, int],
    near: float,
    far: float,
) -> np.ndarray:
    """Depth images (N, H, W) of one world from camera poses (N, 7), hard."""
    scene, count = _scene(), len(camera)
    obstacles = [
        torch.tensor(data[f"obstacle_{part}"][world]).expand(count, -1, -1) for part in ("pose", "scale")
    ]
    with torch.no_grad(), gp.mode("hard"):
        points = place(scene.vertices.float(), scene.owner, *obstacles, camera)
        image = render.rasterize(
            points,
            scene.topology,
            K=K,
            height=size[0],
            width=size[1],
            near=near,
            far=far,
            channels=("depth",),
        )
    return image["depth"].numpy()


def shade(depth: np.ndarray, K: Tensor, far: float, ground: np.ndarray) -> np.ndarray:
    """Colour pictures (N, H, W, 3) in [0, 1] from depth: light from the upper left, haze, a plain floor."""
    v, u = np.mgrid[0 : depth.shape[1], 0 : depth.shape[2]] + 0.5
    f = K.numpy()
    rays = np.stack([(u - f[0, 2]) / f[0, 0], (v - f[1, 2]) / f[1, 1], np.ones_like(u)], -1)
    points = rays * depth[..., None]
    normal = np.cross(np.gradient(points, axis=2), np.gradient(points, axis=1))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    normal *= -np.sign((normal * rays).sum(-1, keepdims=True))
    light = np.array([-0.45, -0.75, -0.5]) / np.linalg.norm([0.45, 0.75, 0.5])
    lit = 0.35 + 0.65 * np.clip(normal @ light, 0.0, 1.0)
    haze = np.exp(-depth / 18.0)[..., None]
    solid = np.array([0.86, 0.66, 0.47]) * lit[..., None] * haze + np.array([0.80, 0.86, 0.92]) * (1 - haze)
    sky = np.linspace(0.92, 0.78, depth.shape[1])[:, None, None] * np.array([0.93, 0.97, 1.0])
    floor_haze = np.exp(-ground / 18.0)[..., None]
    floor = np.array([0.62, 0.69, 0.58]) * floor_haze + np.array([0.80, 0.86, 0.92]) * (1 - floor_haze)
    empty = np.where(np.isfinite(ground)[..., None], floor, np.broadcast_to(sky, (*depth.shape, 3)))
    hidden = (depth >= far) | (depth > ground)
    return np.where(hidden[..., None], empty, solid).clip(0, 1)


def _floor_depth(camera: np.ndarray, K: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Depth of the floor z = 0 in images from camera poses (N, 7); infinite above the horizon."""
    v, u = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    f = K.numpy()
    rays = np.stack([(u - f[0, 2]) / f[0, 0], (v - f[1, 2]) / f[1, 1], np.ones_like(u)], -1).reshape(1, -1, 3)
    tensor = torch.tensor(camera, dtype=torch.float64)[:, None]
    at = pose_apply(tensor, torch.tensor(rays)).numpy() - camera[:, None, :3]
    down = at[..., 2].reshape(len(camera), *size)
    with np.errstate(divide="ignore"):
        depth = -camera[:, 2, None, None] / down
    return np.where(down < -1e-6, depth, np.inf)


def _paint_depth(depth: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """What the drone saw, as a picture: near is bright."""
    colours = matplotlib.colormaps["magma"](np.clip(1.2 / depth, 0, 1))[..., :3]
    picture = Image.fromarray((255 * colours).astype(np.uint8))
    return picture.resize((size[1], size[0]), Image.Resampling.NEAREST)


def featured(data: Mapping[str, np.ndarray]) -> int:
    """The world to show: the first room that the trained policy flies through, or the first world."""
    shown = len(data["obstacle_pose"])
    good = np.flatnonzero(data["trained_success"][:shown] & data["rooms"][:shown])
    if len(good):
        return int(good[0])
    any_good = np.flatnonzero(data["trained_success"][:shown])
    return int(any_good[0]) if len(any_good) else 0


def _until_arrival(pose: np.ndarray) -> np.ndarray:
    """The flight of one world up to the end zone."""
    arrived = np.flatnonzero(pose[:, 0] >= COURSE)
    return pose[: arrived[0] + 1] if len(arrived) else pose


def _on_board(data: Mapping[str, np.ndarray], world: int, pose: np.ndarray) -> np.ndarray:
    height, width = (int(n) for n in data["size"])
    camera = geometry.pose_compose(torch.tensor(pose), torch.tensor([0.0, 0.0, 0.0, *render.LOOKING_AHEAD]))
    return view(camera, data, world, render.pinhole(width, height, math.pi / 2), (height, width), 0.05, 12.0)


def write_video(folder: Path) -> None:
    """Write `flight.mp4`: the featured flight from behind, with the drone's own depth image in the corner."""
    data = load_evaluation(folder)
    world = featured(data)
    pose = _until_arrival(data["trained_pose"][:, world])
    position = torch.tensor(pose[:, :3])
    # The camera glides: it follows a smoothed path, a little behind and above.
    kernel = np.hanning(15) / np.hanning(15).sum()
    smooth = np.stack([np.convolve(np.pad(c, 7, mode="edge"), kernel, "valid") for c in pose[:, :3].T], -1)
    eye = torch.tensor(smooth, dtype=torch.float32) + torch.tensor([-2.4, 0.0, 0.9])
    camera = look_at(eye, position + torch.tensor([2.0, 0.0, 0.0]))
    K = render.pinhole(CHASE[1], CHASE[0], math.radians(75))
    depth = view(camera, data, world, K, CHASE, 0.1, 60.0)
    ground = _floor_depth(camera.numpy().astype(np.float64), K, CHASE)
    pictures = (255 * shade(depth, K, 60.0, ground)).astype(np.uint8)
    seen = _on_board(data, world, pose)
    writer: Any = imageio.get_writer(
        folder / "flight.mp4",
        fps=float(data["control_rate"]),
        codec="libx264",
        quality=8,
        macro_block_size=16,
    )
    with writer as video:
        for index, picture in enumerate(pictures):
            frame = Image.fromarray(picture)
            _draw_drone(frame, pose[index], camera[index], K)
            inset = _paint_depth(seen[index], (96, 128))
            frame.paste(inset, (CHASE[1] - 128 - 8, CHASE[0] - 96 - 8))
            video.append_data(np.asarray(frame))


def _draw_drone(frame: Image.Image, pose: np.ndarray, camera: Tensor, K: Tensor) -> None:
    """Four arms and rotors, projected."""
    arms = 0.15 * np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0], [0, 0, 0]]) / math.sqrt(2)
    world = pose_apply(torch.tensor(pose)[None], torch.tensor(arms, dtype=torch.float32))
    local = pose_apply(geometry.pose_inverse(camera)[None], world).double().numpy()
    if local[:, 2].min() < 0.1:
        return
    f = K.numpy()
    pixels = np.stack(
        [f[0, 0] * local[:, 0] / local[:, 2] + f[0, 2], f[1, 1] * local[:, 1] / local[:, 2] + f[1, 2]], -1
    )
    draw = ImageDraw.Draw(frame)
    radius = 0.06 * f[0, 0] / local[4, 2]
    for x, y in pixels[:4]:
        draw.line([tuple(pixels[4]), (x, y)], fill=(30, 30, 36), width=2)
        draw.ellipse(
            [x - radius, y - 0.5 * radius, x + radius, y + 0.5 * radius],
            outline=(30, 30, 36),
            fill=(70, 120, 190),
        )


def _png(plot: Plot) -> bytes:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110, facecolor="white")
    plt.close(plot)
    return buffer.getvalue()


def _from_above(data: Mapping[str, np.ndarray], world: int) -> np.ndarray:
    """Height map of a world [m], rows along -y and columns along x; nan on the floor."""
    size, eye = (260, 560), 400.0
    span = 28.0
    K = render.pinhole(size[1], size[0], 2 * math.atan(0.5 * span / eye))
    camera = look_at(
        torch.tensor([[0.5 * COURSE, 0.0, eye]]),
        torch.tensor([[0.5 * COURSE, 0.0, 0.0]]),
        torch.tensor([0.0, 1.0, 0.0]),
    )
    height = eye - view(camera, data, world, K, size, 100.0, 450.0)[0]
    return np.where(height > 0.05, height, np.nan)


def top_view(data: Mapping[str, np.ndarray]) -> bytes:
    """Flights of the first worlds from above."""
    plot, axes = plt.subplots(
        SHOWN // 2, 2, figsize=(12, 1.05 * SHOWN + 1.2), sharex=True, sharey=True, layout="constrained"
    )
    for world, axis in enumerate(axes.flat):
        if world >= len(data["obstacle_pose"]):
            axis.axis("off")
            continue
        heights = _from_above(data, world)
        half = 14.0 * heights.shape[0] / heights.shape[1]
        axis.imshow(heights, extent=(-2, 26, -half, half), cmap="YlOrBr", vmin=-1.0, vmax=7.0, aspect="equal")
        for name, colour in reversed(FLIGHTS.items()):
            path = _until_arrival(data[f"{name}_pose"][:, world])
            good = bool(data[f"{name}_success"][world])
            axis.plot(
                path[:, 0],
                path[:, 1],
                color=colour,
                lw=2.2 if name == "trained" else 1.2,
                ls="-" if good else ":",
                label=name,
            )
        axis.axvspan(COURSE, 26, color="#7fbf7b", alpha=0.35, lw=0)
        axis.set(xlim=(-1, 26), ylim=(-HALF_WIDTH - 0.4, HALF_WIDTH + 0.4))
        axis.set_title(f"world {world}: {'room' if data['rooms'][world] else 'forest'}", fontsize=9)
    axes[0, 0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    plot.supxlabel("along the course [m]", fontsize=9)
    return _png(plot)


def chase_view(data: Mapping[str, np.ndarray]) -> bytes:
    """The featured flight from behind and above the start, with its path."""
    world, size = featured(data), (420, 760)
    K = render.pinhole(size[1], size[0], math.radians(60))
    eye, target = torch.tensor([[-6.0, -3.5, 8.5]]), torch.tensor([[11.0, 0.0, 0.0]])
    camera = look_at(eye, target)
    depth = view(camera, data, world, K, size, 0.1, 80.0)
    picture = shade(depth, K, 80.0, _floor_depth(camera.numpy().astype(np.float64), K, size))[0]
    plot, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    axis.imshow(picture)
    f = K.numpy()
    for name, colour in reversed(FLIGHTS.items()):
        path = _until_arrival(data[f"{name}_pose"][:, world])
        local = pose_apply(geometry.pose_inverse(camera), torch.tensor(path[:, :3])).double().numpy()
        u, v = f[0, 0] * local[:, 0] / local[:, 2] + f[0, 2], f[1, 1] * local[:, 1] / local[:, 2] + f[1, 2]
        axis.plot(u, v, color=colour, lw=2.4 if name == "trained" else 1.4, label=name)
    axis.set(xlim=(0, size[1]), ylim=(size[0], 0))
    axis.axis("off")
    axis.legend(loc="upper right", fontsize=8)
    return _png(plot)


def film_strip(data: Mapping[str, np.ndarray]) -> bytes:
    """What the drone saw along the featured flight."""
    world = featured(data)
    pose = _until_arrival(data["trained_pose"][:, world])
    steps = np.linspace(0, len(pose) - 1, 12).astype(int)
    seen = _on_board(data, world, pose[steps])
    plot, axes = plt.subplots(2, 6, figsize=(12, 3.6), layout="constrained")
    for axis, step, depth in zip(axes.flat, steps, seen, strict=True):
        axis.imshow(np.clip(1.2 / depth, 0, 1), cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"{step / float(data['control_rate']):.1f} s, x = {pose[step, 0]:.1f} m", fontsize=8)
        axis.axis("off")
    return _png(plot)


def clearance_text(folder: Path) -> str:
    """A sentence with the success by kind of world, from `metrics.json`."""
    path = folder / "metrics.json"
    if not path.is_file():
        return ""
    metrics = json.loads(path.read_text())
    if "trained_rooms" not in metrics:
        return ""
    return f" Success in forests {metrics['trained_forests']:.0%}, in rooms {metrics['trained_rooms']:.0%}."


def flight_figures(folder: Path) -> list[Figure]:
    """The task's figures for the report, from what `write_evaluation` wrote."""
    data = load_evaluation(folder)
    return [
        Figure(
            "Flights from above",
            "Unseen worlds, hard rendering, sensor noise on. Dotted: came closer to a surface than the drone's radius, "
            "or did not arrive in time. Green: the end zone." + clearance_text(folder),
            png=top_view(data),
            wide=True,
        ),
        Figure(
            "Chase view",
            "One unseen world; the paths of the policy and of its baselines.",
            png=chase_view(data),
        ),
        Figure(
            "The flight",
            "The same world from behind; in the corner, the drone's depth image.",
            mp4=(folder / "flight.mp4").read_bytes(),
        ),
        Figure(
            "What the drone saw",
            f"Depth along the flight, near is bright; flying height {ALTITUDE} m.",
            png=film_strip(data),
            wide=True,
        ),
    ]
