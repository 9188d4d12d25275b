"""Learn an unknown linear system by watching its optimal controller, with the gradient through the controller."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from gradpath.planners import lqr

BATCH = 128
SIZE = 3  # states, and controls
SPREAD = 0.2  # of A around the identity
# Of the first guess of B. It starts near zero: a B of the wrong orientation, det(B) < 0 where the expert's is not, is a
# local minimum of its own, which descent does not leave because a singular B lies between.
GUESS = 0.1
ENOUGH = 5e-5  # model error at which a run ends


def system(seed: int, effect: float = 1.0) -> tuple[Tensor, Tensor]:
    """A random linear system x' = A x + B u; B has entries of the size `effect`."""
    generator = torch.Generator().manual_seed(seed)
    drift = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    return (
        torch.eye(SIZE, dtype=torch.float64) + SPREAD * drift,
        effect * torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator),
    )


def imitate(
    seed: int, iterations: int, learning_rate: float, horizon: int, expert_seed: int
) -> dict[str, Any]:
    """Fit A and B to the states and controls of the expert; stop when the model is found."""
    expert_a, expert_b = system(expert_seed)
    a, b = (x.requires_grad_() for x in system(seed, GUESS))
    optimizer = torch.optim.RMSprop([a, b], lr=learning_rate)
    cost = torch.eye(SIZE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    start, error, done = time.perf_counter(), float("nan"), 0
    for _ in range(iterations):
        x0 = torch.randn(BATCH, SIZE, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            wanted = lqr(expert_a, expert_b, cost, cost, x0, horizon)
        found = lqr(a, b, cost, cost, x0, horizon)
        loss = (found.states - wanted.states).square().mean() + (
            found.controls - wanted.controls
        ).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gap = (a - expert_a).detach().square().mean() + (b - expert_b).detach().square().mean()
        error = float(gap)
        done += 1
        if error < ENOUGH:
            break
    seconds = (time.perf_counter() - start) / done
    return {"seed": seed, "iterations": done, "model_error": error, "milliseconds": 1e3 * seconds}


def main(
    seeds: int = 8,
    iterations: int = 8000,
    learning_rate: float = 1e-2,
    horizon: int = 5,
    expert_seed: int = 42,
) -> dict[str, Any]:
    """Imitate one expert from several first guesses, and print how close each comes to the expert's system.

    Args:
        seeds: First guesses of the system.
        iterations: The most steps of RMSprop from each.
        learning_rate: Of RMSprop.
        horizon: Steps of the controller.
        expert_seed: Which system.
    """
    runs = []
    for seed in range(seeds):
        runs.append(imitate(seed, iterations, learning_rate, horizon, expert_seed))
        row = runs[-1]
        print(
            f"seed {seed}: {row['iterations']} iterations of {row['milliseconds']:.1f} ms, "
            f"model error {row['model_error']:.1e}"
        )
    found = sum(row["model_error"] < 1e-4 for row in runs)
    print(f"{found} of {seeds} find the system to 1e-4")
    return {"found": found, "seeds": seeds, "runs": runs}
