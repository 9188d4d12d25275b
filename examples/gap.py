"""Measure what soft rendering costs the flight policy: the gap to the hard images that a drone sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gradpath as gp
from gradpath.examples.flight import FlightOptions, FlightTask, build_rollout, build_step
from gradpath.runs import next_folder, open_run, write_json


def main(
    policy: Path | None = None,
    worlds: int = 16,
    seconds: float = 2.0,
    samples: int = 16,
    std: float = 0.01,
    seed: int = 0,
    run: Path | None = None,
) -> dict[str, Any]:
    """Fly soft and hard with edges of four widths, compare decisions, losses and gradients, write gap.png.

    Args:
        policy: The run folder of a trained policy; an untrained one flies otherwise.
        worlds: Worlds, of which none was trained on.
        seconds: Length of the flights [s].
        samples: Random directions in which the gradients are compared.
        std: How far the zeroth-order gradient looks, in root mean squares of the weights.
        seed: Of the worlds and the noise.
        run: The folder for metrics.json and gap.png; runs/gap-001 and so on by default.
    """
    folder = run or next_folder("gap")
    folder.mkdir(parents=True, exist_ok=True)
    trained = FlightOptions() if policy is None else open_run(policy).task.options
    options = dataclasses.replace(trained, worlds=worlds, seconds=seconds, seed=seed, memory="all", decay=1.0)
    task = FlightTask(options)
    step = build_step(options) if policy is None else gp.load(policy).get_submodule("step")
    assert isinstance(step, gp.Pipeline)
    rollout = build_rollout(options, step)
    (state,), inputs = task.sample(10_000_000)  # no training comes as far
    found = gp.mismatch(rollout, {"state": state, **inputs}, task.losses(), samples=samples, std=std)
    print(found.table())
    found.plot(folder / "gap.png")
    whole = found["end to end"]
    assert whole.loss is not None
    metrics = {"loss_difference": whole.loss.value, "decisions": whole.decisions, "mismatch": found.json()}
    write_json(folder / "metrics.json", metrics)
    print(f"\n{folder / 'gap.png'}")
    return metrics
