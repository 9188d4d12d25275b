"""What does it cost to measure gradients during training? The flight pipeline at its default batch, with and without.

python benchmarks/bench_gradient_report.py [--seconds 2] [--pairs 10] [--json report_cost.json]

One iteration is forward, loss, backward, the report read and summed up per stage, clipping and the optimizer's step.
Iterations with and without take turns, on the same worlds; printed is the ratio of processor time, with its 95 %
interval, and that of wall time. Below 1.05 is what a report that stays on may cost.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch

from gradpath.examples.flight import FlightOptions, FlightTask
from gradpath.intervals import mean_interval
from gradpath.training_gradients import clip_gradients, report_of, stage_gradients


class Training:
    """A training of the flight pipeline, one iteration at a time."""

    def __init__(self, worlds: int, seconds: float) -> None:
        self.task = FlightTask(FlightOptions(worlds=worlds, seconds=seconds))
        self.model, self.losses = self.task.build(), self.task.losses()
        self.recorder = self.model.recorder
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)

    def iterate(self, number: int, measured: bool) -> tuple[float, float]:
        """Run one iteration; return its processor time and its wall time [s]."""
        self.model.recorder = self.recorder if measured else None
        wall, processor = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        self.losses(self.task.forward(self.model, number)).total.backward()
        stage_gradients(self.model, report_of(self.model, None if number % 10 == 0 else {}))
        clip_gradients(list(self.model.parameters()), 1.0)
        self.optimizer.step()
        return time.process_time() - processor, time.perf_counter() - wall


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a flight [s]")
    parser.add_argument("--worlds", type=int, default=FlightOptions().worlds)
    parser.add_argument("--pairs", type=int, default=10, help="iterations of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(options.worlds, options.seconds)
    training.iterate(0, True)  # compiles kernels
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for pair in range(options.pairs):
        for measured in (True, False) if pair % 2 else (False, True):
            times[measured].append(training.iterate(pair, measured))
    logs = [math.log(a[0] / b[0]) for a, b in zip(times[True], times[False], strict=True)]
    ratio = [math.exp(x) for x in mean_interval(torch.tensor(logs, dtype=torch.float64))]
    walls = {kind: statistics.median(wall for _, wall in values) for kind, values in times.items()}
    figures = {
        "worlds": options.worlds,
        "steps": training.task.options.length,
        "processor_ratio": dict(zip(("value", "low", "high"), ratio, strict=True)),
        "wall_ratio": walls[True] / walls[False],
        "seconds_per_iteration": walls[True],
    }
    print(
        f"{options.worlds} worlds, {figures['steps']} steps: processor time with / without "
        f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}), wall time {figures['wall_ratio']:.3f}"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
