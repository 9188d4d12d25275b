"""Pictures and a video of evaluated reaching, drawn with the library's own renderer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure as Plot
from PIL import Image
from torch import Tensor

import gradpath as gp
from gradpath import geometry, perception, render, sim
from gradpath.examples.reach_arm import Arm, load_arm
from gradpath.examples.reach_scene import MOUNT, HandCamera, Scenes, scene_meshes
from gradpath.figures import Figure
from gradpath.geometry import look_at

SHOWN = 8  # scenes that are stored to be drawn
VIEW = (288, 384)  # rows and columns of the view from outside
EYE, CENTRE = (1.25, -0.85, 0.75), (0.32, 0.0, 0.32)  # of that view [m]
COLOURS = {
    "trained": "#2b7bba",
    "mpc_with_pose": "#3a9a57",
    "pd_with_pose": "#9467bd",
    "blindfolded": "#e2a03f",
    "zero_torque": "#8c8c8c",
}


def write_evaluation(
    folder: Path, scenes: Scenes, errors: Mapping[str, Tensor], motion: Mapping[str, Any], dt: float
) -> None:
    """Write `evaluation.npz` (errors of all motions; the first scenes) and `reach.mp4` into a run folder.

    Args:
        folder: The run folder.
        scenes: The evaluated scenes.
        errors: Distance to the ball [m] of each way to move, by name, (T, B).
        motion: Trajectory of the trained one.
        dt: Duration of a step [s].
    """
    shown = {name: getattr(scenes, name)[:SHOWN] for name in ("pose", "scale", "colour", "light", "target")}
    q = torch.cat([scenes.q[None], motion["body.state"]["q"]])[:, :SHOWN]
    data: dict[str, Any] = {"dt": np.array(dt), "q": q.cpu().numpy()}
    data["mean"] = motion["track.belief"]["mean"][:, :SHOWN].cpu().numpy()
    data |= {f"scene_{name}": value.numpy() for name, value in shown.items()}
    data |= {f"error_{name}": value.cpu().numpy() for name, value in errors.items()}
    np.savez_compressed(folder / "evaluation.npz", **data)
    write_video(folder)


def load_evaluation(folder: Path) -> dict[str, np.ndarray]:
    """Read `evaluation.npz`."""
    with np.load(folder / "evaluation.npz") as file:
        return dict(file)


def from_outside(data: Mapping[str, np.ndarray], world: int, q: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, 3) from 0 to 1 of a scene with the arm at joint angles (N, 7)."""
    model = load_arm(meshes=True)
    scene = render.Scene(*scene_meshes(), links=model.visuals)
    camera = render.Camera(
        scene, "rgb", *VIEW, field_of_view=0.95, mounts=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        look=scene.look(data["scene_colour"][world].tolist()), near=0.05, far=5.0,
    )  # fmt: skip
    eye = look_at(torch.tensor([EYE]), torch.tensor([CENTRE]))
    obstacles = {part: torch.tensor(data[f"scene_{part}"][world])[None] for part in ("pose", "scale")}
    pictures = []
    for angles in q:
        bodies = sim.forward_kinematics(model, torch.tensor(angles)[None])
        with torch.no_grad(), gp.mode("hard"):
            (image,) = camera.run({"pose": eye, "obstacles": obstacles, "bodies": bodies})["rgb"]
        pictures.append(_shown(image))
    return np.stack(pictures)


def from_the_hand(data: Mapping[str, np.ndarray], world: int, q: np.ndarray) -> np.ndarray:
    """Colour images (N, H, W, 3) from 0 to 1 of the camera in the hand, without the sensor's noise."""
    count = len(q)
    inputs = {
        name: torch.tensor(data[f"scene_{name}"][world]).expand(count, *data[f"scene_{name}"].shape[1:])
        for name in ("pose", "scale", "colour", "light")
    }
    hand, _ = Arm(float(data["dt"])).places(torch.tensor(q))
    with torch.no_grad(), gp.mode("hard"):
        rgb, _ = HandCamera(96, 96)(hand, inputs)
    return np.stack([_shown(image) for image in rgb])


def _shown(image: Tensor) -> np.ndarray:
    """Linear light (3, H, W) as it is shown, (H, W, 3)."""
    return (image.clamp(0.0, 1.0) ** (1 / 2.2)).movedim(0, -1).numpy()


def write_video(folder: Path) -> None:
    """Write `reach.mp4`: three scenes from outside, with what the hand sees in the corner."""
    data = load_evaluation(folder)
    writer: Any = imageio.get_writer(
        folder / "reach.mp4",
        fps=round(0.5 / float(data["dt"])),
        codec="libx264",
        quality=8,
        macro_block_size=16,
    )
    with writer as video:
        for world in range(min(3, data["q"].shape[1])):
            q = data["q"][:, world]
            pictures, seen = from_outside(data, world, q), from_the_hand(data, world, q)
            for picture, image in zip(pictures, seen, strict=True):
                frame = Image.fromarray((255 * picture).astype(np.uint8))
                frame.paste(Image.fromarray((255 * image).astype(np.uint8)), (VIEW[1] - 104, 8))
                video.append_data(np.asarray(frame))


def error_curves(data: Mapping[str, np.ndarray]) -> bytes:
    """Distance to the ball over time: the median and the middle 80 % of all scenes, for each way to move."""
    plot, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, colour in COLOURS.items():
        error = 1e3 * data[f"error_{name}"]
        time = float(data["dt"]) * (1 + np.arange(len(error)))
        axis.plot(time, np.median(error, axis=1), color=colour, label=name.replace("_", " "))
        axis.fill_between(time, *np.quantile(error, [0.1, 0.9], axis=1), color=colour, alpha=0.15, lw=0)
    axis.axhline(30.0, color="k", lw=0.8, ls=":")
    axis.set(yscale="log", xlabel="time [s]", ylabel="distance to the ball [mm]")
    axis.legend(fontsize=8, ncols=2)
    return _png(plot)


def film_strip(data: Mapping[str, np.ndarray], world: int = 0) -> bytes:
    """One motion from outside, and what the hand saw, with the ball where it was believed to be."""
    q = data["q"][:, world]
    steps = np.unique(np.linspace(0, len(q) - 2, 6).astype(int))
    outside, seen = from_outside(data, world, q[steps]), from_the_hand(data, world, q[steps])
    hand, _ = Arm(float(data["dt"])).places(torch.tensor(q[steps]))
    camera = geometry.pose_compose(hand, hand.new_tensor(MOUNT))
    local = geometry.pose_apply(geometry.pose_inverse(camera), torch.tensor(data["mean"][steps, world]))
    pixel = perception.project(local[:, None], HandCamera(96, 96).intrinsics)[:, 0].numpy()
    plot, axes = plt.subplots(
        2, len(steps), figsize=(2.1 * len(steps), 3.9), layout="constrained", squeeze=False
    )
    for column, step in enumerate(steps):
        axes[0, column].imshow(outside[column])
        axes[0, column].set_title(f"{step * float(data['dt']):.2f} s", fontsize=8)
        axes[1, column].imshow(seen[column])
        axes[1, column].plot(*pixel[column], "+", color="white", ms=12, mew=2)
        axes[1, column].set(xlim=(0, 96), ylim=(96, 0))
    for axis in axes.flat:
        axis.axis("off")
    return _png(plot)


def _png(plot: Plot) -> bytes:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110, facecolor="white")
    plt.close(plot)
    return buffer.getvalue()


def reach_figures(folder: Path) -> list[Figure]:
    """The task's figures for the report, from what `write_evaluation` wrote."""
    data = load_evaluation(folder)
    return [
        Figure(
            "Distance to the ball",
            "Median and the middle 80 % of the unseen scenes; dotted: what counts as reached.",
            png=error_curves(data),
        ),
        Figure(
            "The motion",
            "Three scenes; in the corner, what the hand sees.",
            mp4=(folder / "reach.mp4").read_bytes(),
        ),
        Figure(
            "One motion",
            "Above from outside, below what the hand sees; the cross is where the ball is believed to be.",
            png=film_strip(data),
            wide=True,
        ),
    ]
