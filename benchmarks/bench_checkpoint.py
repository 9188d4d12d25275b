"""How much memory does a time loop need, and what does it cost? Budgets of `scan` beside torch.utils.checkpoint.

python benchmarks/bench_checkpoint.py [--steps 100] [--size 64] [--problems fluid flight] [--out checkpoint]

At full size: --steps 1000 --size 512 --budgets 160MiB 320MiB 1GB. Writes OUT.json and OUT.svg.
"""

import argparse
import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _fluid import fluid_start, fluid_step
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gradpath as gp
from gradpath import tree
from gradpath.examples import flight
from gradpath.meter import Meter


@dataclasses.dataclass
class Problem:
    """A loop to differentiate: a step, where it starts, and what to differentiate with respect to."""

    name: str
    step: Callable[[Any, Any], tuple[Any, None]]
    start: Any
    wanted: list[Tensor]
    steps: int


Run = Callable[[Problem], Any]


def fluid(size: int, steps: int) -> Problem:
    """Smoke on a grid; the gradient to the first density and velocity."""
    start = tuple(field.requires_grad_() for field in fluid_start(size))
    return Problem(f"fluid {size}x{size}", fluid_step, start, list(start), steps)


def flying(worlds: int, steps: int) -> Problem:
    """The flight pipeline; the gradient to the weights of the policy."""
    task = flight.FlightTask(flight.FlightOptions(worlds=worlds, noise=0.0))
    pipeline = task.build().step
    (state,), inputs = task.sample(0)
    memory = torch.zeros(worlds, task.options.features)

    def step(carry: Any, x: None) -> tuple[Any, None]:
        values = pipeline.run({**carry, **inputs}, outputs=["body.state", "encode.memory"])
        return {"state": values["body.state"], "memory": values["encode.memory"]}, None

    start = {"state": state, "memory": memory}
    return Problem(
        f"flight {worlds} worlds", step, start, [p for p in pipeline.parameters() if p.requires_grad], steps
    )


def plain(problem: Problem) -> Any:
    """One autograd graph."""
    carry = problem.start
    for _ in range(problem.steps):
        carry, _ = problem.step(carry, None)
    return carry


def per_step(problem: Problem) -> Any:
    """torch.utils.checkpoint around each step."""
    carry = problem.start
    for _ in range(problem.steps):
        carry, _ = checkpoint(problem.step, carry, None, use_reentrant=False)
    return carry


def nested(problem: Problem) -> Any:
    """torch.utils.checkpoint around each sqrt(T) steps."""
    carry, span = problem.start, math.isqrt(problem.steps)

    def several(carry: Any, count: int) -> Any:
        for _ in range(count):
            carry, _ = problem.step(carry, None)
        return carry

    for first in range(0, problem.steps, span):
        carry = checkpoint(several, carry, min(span, problem.steps - first), use_reentrant=False)
    return carry


def scanned(memory: gp.Memory) -> Run:
    """The time loop of gradpath."""
    return lambda problem: gp.scan(problem.step, problem.start, length=problem.steps, memory=memory)[0]


def gradient(problem: Problem, run: Run) -> list[Tensor]:
    """Run a loop and differentiate the sum of squares of where it ends."""
    ends = [leaf for leaf in tree.flatten(run(problem))[0] if isinstance(leaf, Tensor) and leaf.requires_grad]
    return list(
        torch.autograd.grad(sum((end.square().sum() for end in ends), torch.zeros(())), problem.wanted)
    )


def measured(problem: Problem, run: Run, repeats: int) -> tuple[list[Tensor], int, float]:
    """The gradient, the peak in bytes, and the best time of some repeats without counting bytes."""
    gc.collect()
    with Meter() as meter:
        grads = gradient(problem, run)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        gradient(problem, run)
        best = min(best, time.perf_counter() - start)
    return grads, meter.peak, best


def rows_of(problem: Problem, budgets: list[str], repeats: int) -> list[dict[str, Any]]:
    """One row per way to run the loop; budgets are sizes, or shares of the memory of one graph such as 0.1."""
    exact, full, once = measured(problem, plain, repeats)
    runs: list[tuple[str, Run, gp.Memory | None]] = [
        ("one graph", plain, None),
        ("checkpoint per step", per_step, None),
        ("checkpoint sqrt(T)", nested, None),
    ]
    for budget in ["all", *budgets]:
        is_share = budget.replace(".", "").isdigit()
        memory = gp.Memory(f"{int(float(budget) * full)}B" if is_share else budget)
        runs.append((f"scan {budget}", scanned(memory), memory))
    rows = []
    for name, run, memory in runs:
        try:
            grads, peak, seconds = (exact, full, once) if run is plain else measured(problem, run, repeats)
        except gp.BudgetError as error:
            print(f"{problem.name}, {name}: {error}")
            continue
        error = max(
            float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(grads, exact, strict=True)
        )
        plan, tally = (None, None) if memory is None else (memory.plan, memory.tally)
        rows.append(
            {
                "problem": problem.name,
                "run": name,
                "budget": None if plan is None else plan.limit,
                "peak": peak,
                "predicted": None if plan is None else plan.peak,
                "time": seconds / once,
                "extra": None if tally is None else tally.extra_steps,
                "slots": None if plan is None else plan.slots,
                "chunk": None if plan is None else plan.chunk,
                "error": error,
            }
        )
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row; sizes in MB, the error relative to one graph."""
    sizes = "".join(
        "         -" if row[k] is None else f"{row[k] / 1e6:10.2f}" for k in ("budget", "peak", "predicted")
    )
    counts = "".join("      -" if row[k] is None else f"{row[k]:7d}" for k in ("extra", "slots", "chunk"))
    print(
        f"{row['problem']:18}{row['run']:22}{sizes}{row['time']:8.2f}{counts}{row['error']:10.1e}", flush=True
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time over memory, one panel per problem."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(5 * len(problems), 4), layout="constrained")
    for axes, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        here = [row for row in rows if row["problem"] == problem]
        line = sorted((row["peak"] / 1e6, row["time"]) for row in here if row["run"].startswith("scan"))
        axes.plot(*zip(*line, strict=True), "o-", label="scan")
        for row in here:
            if not row["run"].startswith("scan"):
                axes.plot(row["peak"] / 1e6, row["time"], "s", label=row["run"])
        axes.set(title=problem, xscale="log", xlabel="peak memory [MB]", ylabel="time / one graph")
        axes.legend()
    figure.savefig(path)


def main() -> None:
    """Run all problems, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="cells of the fluid along each side")
    parser.add_argument("--worlds", type=int, default=2, help="worlds of the flight")
    parser.add_argument("--problems", nargs="+", default=["fluid", "flight"], choices=["fluid", "flight"])
    parser.add_argument(
        "--budgets", nargs="+", default=["0.5", "0.2", "0.1"], help="sizes, or shares of one graph"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("checkpoint"))
    options = parser.parse_args()
    print(f"{'problem':18}{'run':22}{'budget MB':>10}{'peak MB':>10}{'predicted':>10}{'time':>8}"
          f"{'extra':>7}{'slots':>7}{'chunk':>7}{'error':>10}")  # fmt: skip
    rows = []
    for name in options.problems:
        size = options.size if name == "fluid" else options.worlds
        problem = {"fluid": fluid, "flight": flying}[name](size, options.steps)
        gradient(dataclasses.replace(problem, steps=2), plain)  # compiles kernels
        rows += rows_of(problem, options.budgets, options.repeats)
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    plot(rows, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
