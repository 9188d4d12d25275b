"""Throw a ball over a wall: the first-order gradient sticks in front of it, a mixture of two orders gets over."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradpath import estimate
from gradpath.runs import next_folder, write_json

SPEED = 1.0  # [m/s]
GRAVITY = 9.81  # [m/s^2]
DISTANCE = 0.06  # from the start to the wall [m]
HEIGHT = 0.02  # of the wall [m]
NOISE = 0.1  # standard deviation of the angle [rad]
START = 0.1  # first angle [rad]
ESTIMATORS = {
    "first order": estimate.first_order,
    "zeroth order": estimate.zeroth_order,
    "alpha order": estimate.alpha_order,
}


def loss(angle: Tensor) -> Tensor:
    """Minus the squared distance [m^2] that a ball thrown at each angle [rad] comes, (N,) to (N,).

    It comes to the ground, or to the wall where it meets it: a jump of the distance at the angle that clears it.
    """
    landing = SPEED**2 * torch.sin(2.0 * angle) / GRAVITY
    rise = DISTANCE * torch.tan(angle) - GRAVITY * DISTANCE**2 / (2.0 * (SPEED * torch.cos(angle)) ** 2)
    stopped = (landing > DISTANCE) & (rise < HEIGHT)
    return -torch.where(stopped, DISTANCE, landing).square()


@functools.cache
def quantiles() -> Tensor:
    """Standard normal numbers that share out the probability evenly."""
    return torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)


def expected_loss(angle: float) -> float:
    """The mean of the loss over the noise, by a fine sum over quantiles."""
    return float(loss(angle + NOISE * quantiles()).mean())


def throw(name: str, iterations: int, samples: int, learning_rate: float, seed: int) -> list[float]:
    """Descend with one estimator; return the angle before each iteration and after the last."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.tensor(START, dtype=torch.float64)
    path = [float(angle)]
    for _ in range(iterations):
        found = ESTIMATORS[name](loss, angle, std=NOISE, samples=samples, generator=generator)
        angle = angle - learning_rate * found.gradient
        path.append(float(angle))
    return path


def main(
    iterations: int = 300,
    samples: int = 50,
    learning_rate: float = 0.33,
    seed: int = 0,
    run: Path | None = None,
) -> dict[str, Any]:
    """Compare three estimators of the gradient, report the bias of the first, write metrics.json and wall.png.

    Args:
        iterations: Steps of gradient descent.
        samples: Throws per step.
        learning_rate: Step size.
        seed: Of the noise.
        run: The run folder; runs/wall-001 and so on by default.
    """
    folder = run or next_folder("wall")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: throw(name, iterations, samples, learning_rate, seed) for name in ESTIMATORS}
    metrics: dict[str, Any] = {"estimators": {}}
    for name, path in paths.items():
        final = expected_loss(path[-1])
        metrics["estimators"][name] = {"angle": path[-1], "loss": final}
        print(f"{name:12}  angle {path[-1]:.3f} rad  loss {final:.5f} m^2")
    stuck = torch.tensor(paths["first order"][-1], dtype=torch.float64)
    report = estimate.bias_report(loss, stuck, std=NOISE, generator=torch.Generator().manual_seed(seed))
    metrics["report"] = report.json()
    print(f"\nwhere the first order ends, at {float(stuck):.3f} rad:\n{report}")
    write_json(folder / "metrics.json", metrics)
    plot(paths, folder / "wall.png")
    print(f"\n{folder / 'wall.png'}")
    return metrics


def plot(paths: dict[str, list[float]], path: Path) -> None:
    """Draw the loss over the angle with where each estimator ends, and the loss over the iterations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    angles = torch.linspace(0.0, 1.2, 241, dtype=torch.float64)
    left.plot(angles, 1e3 * loss(angles), color="0.75", label="one throw")
    left.plot(
        angles, [1e3 * expected_loss(float(a)) for a in angles], color="0.3", label="mean over the noise"
    )
    for name, angles_of in paths.items():
        left.plot(angles_of[-1], 1e3 * expected_loss(angles_of[-1]), "o", label=f"{name}, at the end")
        every = range(0, len(angles_of), max(1, len(angles_of) // 100))
        right.plot(list(every), [1e3 * expected_loss(angles_of[i]) for i in every], label=name)
    left.set(xlabel="angle [rad]", ylabel="loss [1e-3 m$^2$]")
    right.set(xlabel="iteration")
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)
