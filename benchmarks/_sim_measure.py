"""One measurement of `bench_sim.py`, in a process of its own: one engine, one system, one number of worlds.

Prints a line of JSON: steps per CPU second forward, and forward and backward; the relative error of the gradient.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from _sim_systems import SYSTEMS, System

ENGINES = {
    "gradpath": "_sim_gradpath",
    "newton": "_sim_newton",
    "brax": "_sim_brax",
    "mjx": "_sim_mjx",
    "torch": "_sim_torch",
    "mujoco": "_sim_mujoco",
}


class Engine(Protocol):
    """What an engine's file gives from `build(system, file, worlds, steps, precise)`, or None where it has no such.

    The loss of a world is `weights` times its state after the last step. `precise` asks for float64; an engine that has
    none sets `spacing`, the distance of its differences, larger.
    """

    spacing: float
    differentiable: bool

    def set_controls(self, controls: np.ndarray) -> None:
        """Take commands (worlds, steps, nu); not part of what is timed."""

    def forward(self) -> None:
        """Run all steps from the start."""

    def gradient(self) -> None:
        """Run all steps, and the gradient of the sum of all losses with respect to all commands."""

    def losses(self) -> np.ndarray:
        """The loss of each world, after `forward`."""

    def gradients(self) -> np.ndarray:
        """Shape (worlds, steps, nu), after `gradient`."""


Build = Callable[[System, Path, int, int, bool], Engine | None]


def weights(count: int) -> np.ndarray:
    """Of the numbers of a state in its loss."""
    return np.cos(np.arange(count))


def rate(run: Callable[[], None], steps: int, seconds: float) -> float:
    """Steps per second of processor time: the best of three spells."""
    run()
    found = 0.0
    for _ in range(3):
        start, count = time.process_time(), 0
        while time.process_time() - start < seconds / 3:
            run()
            count += 1
        found = max(found, steps * count / (time.process_time() - start))
    return found


def gradient_error(build: Build, system: System, file: Path, steps: int) -> float:
    """The gradient of one world against central differences of the engine's own forward, relative, over all commands.

    Differences of fourth order: forwards at four distances, all as worlds of one batch.
    """
    controls = system.controls(1, steps)
    single = build(system, file, 1, steps, False)
    assert single is not None
    single.set_controls(controls)
    single.gradient()
    own = single.gradients()[0].ravel()
    count = controls.size
    stencil = np.array([1, -1, 2, -2])
    precise = build(system, file, len(stencil) * count, steps, True)
    assert precise is not None
    scale = np.repeat(np.asarray(system.spread)[None], steps, 0).ravel() * precise.spacing
    moved = controls.ravel() + (stencil[:, None, None] * np.diag(scale)).reshape(-1, count)
    precise.set_controls(moved.reshape(-1, *controls.shape[1:]))
    precise.forward()
    near, nearer, far, farther = precise.losses().astype(np.float64).reshape(len(stencil), count)
    true = (8 * (near - nearer) - (far - farther)) / (12 * scale)
    return float(np.linalg.norm(own - true) / np.linalg.norm(true))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--worlds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument(
        "--error-steps", type=int, default=0, help="measure the error of the gradient over these"
    )
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # one core, so that processor time is that of one thread
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        build: Build = importlib.import_module(ENGINES[options.engine]).build
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    system = SYSTEMS[options.system]
    engine = build(system, options.file, options.worlds, options.steps, False)
    if engine is None:
        print(json.dumps({}))
        return
    engine.set_controls(system.controls(options.worlds, options.steps))
    result: dict[str, Any] = {}
    total = options.worlds * options.steps
    result["forward"] = rate(engine.forward, total, options.seconds)
    if engine.differentiable:
        result["both"] = rate(engine.gradient, total, options.seconds)
        if options.error_steps:
            result["error"] = gradient_error(build, system, options.file, options.error_steps)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
