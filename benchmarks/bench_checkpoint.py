"""How much memory does a time loop need, and what does it cost? Budgets of `scan` beside torch.utils.checkpoint.

python benchmarks/bench_checkpoint.py [--steps 100] [--size 128] [--problems fluid flight] [--out checkpoint]

Each way of torch.utils.checkpoint is followed by `scan` with the memory that it took as its budget. Time is that of
the processor, of all threads, which other programs disturb less than the clock does; "x peer" is the ratio to the
row above. At the size of Warp's own example, which stands beside it then, in about an hour; leave out --peers for all:

python benchmarks/bench_checkpoint.py --problems fluid --steps 1000 --size 512 \\
    --peers "sqrt(T)" --budgets 160MiB --repeats 0

Writes OUT.json and OUT.svg.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _fluid import WarpExample, fluid_start, fluid_step, fluid_target
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gradpath as gp
from gradpath import tree
from gradpath.budget import parse_size
from gradpath.examples import flight
from gradpath.meter import Meter


@dataclasses.dataclass
class Problem:
    """A loop to differentiate: a step, where it starts, its loss, and what to differentiate with respect to."""

    name: str
    step: Callable[[Any, Any], tuple[Any, None]]
    start: Any
    loss: Callable[[Any], Tensor]
    wanted: list[Tensor]
    steps: int


Run = Callable[[Problem], Any]


def fluid(size: int, steps: int, iterations: int) -> Problem:
    """Smoke on a grid that should end up elsewhere; the gradient to the first velocity."""
    start, target = fluid_start(size), fluid_target(size)
    wanted = [field.requires_grad_() for field in start[:2]]

    def loss(end: Any) -> Tensor:
        return (end[2] - target).square().mean()

    return Problem(f"fluid {size}x{size}", fluid_step(iterations), start, loss, wanted, steps)


def flying(worlds: int, steps: int) -> Problem:
    """The flight pipeline; the gradient to the weights of the policy."""
    task = flight.FlightTask(flight.FlightOptions(worlds=worlds, noise=0.0))
    pipeline = task.build().step
    (state,), inputs = task.sample(0)
    memory = torch.zeros(worlds, task.options.features)

    def step(carry: Any, x: None) -> tuple[Any, None]:
        values = pipeline.run({**carry, **inputs}, outputs=["body.state", "encode.memory"])
        return {"state": values["body.state"], "memory": values["encode.memory"]}, None

    def loss(end: Any) -> Tensor:
        ends = [leaf for leaf in tree.flatten(end)[0] if isinstance(leaf, Tensor) and leaf.requires_grad]
        return sum((leaf.square().sum() for leaf in ends), torch.zeros(()))

    start = {"state": state, "memory": memory}
    wanted = [p for p in pipeline.parameters() if p.requires_grad]
    return Problem(f"flight {worlds} worlds", step, start, loss, wanted, steps)


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


PEERS: dict[str, Run] = {"per step": per_step, "sqrt(T)": nested}


def scanned(memory: gp.Memory) -> Run:
    """The time loop of gradpath."""
    return lambda problem: gp.scan(problem.step, problem.start, length=problem.steps, memory=memory)[0]


def gradient(problem: Problem, run: Run) -> list[Tensor]:
    """Run a loop and differentiate its loss."""
    return list(torch.autograd.grad(problem.loss(run(problem)), problem.wanted))


@dataclasses.dataclass
class Measured:
    """What one way to run a loop gave and took: the gradient, the peak in bytes, processor seconds."""

    grads: list[Tensor]
    peak: int
    seconds: float = math.inf


def counted(problem: Problem, run: Run) -> Measured:
    """Run once and count bytes; the time with the counting is kept where no other is taken."""
    gc.collect()
    start = time.process_time()
    with Meter() as meter:
        grads = gradient(problem, run)
    return Measured(grads, meter.peak, time.process_time() - start)


def timed(problem: Problem, runs: dict[str, tuple[Run, Measured]], repeats: int) -> None:
    """Take the best time of some repeats, of several ways in turn, so that all meet the same conditions."""
    best = dict.fromkeys(runs, math.inf)
    for _ in range(repeats):
        for name, (run, _) in runs.items():
            start = time.process_time()
            gradient(problem, run)
            best[name] = min(best[name], time.process_time() - start)
    for name, (_, measured) in runs.items() if repeats else ():
        measured.seconds = best[name]


def baseline(problem: Problem, largest: int, repeats: int) -> tuple[Measured, int]:
    """One graph: whole, or where it would be too large, the first steps of it; and for how many steps."""
    short = dataclasses.replace(problem, steps=min(4, problem.steps))
    per_step = counted(short, plain).peak / short.steps
    steps = problem.steps if per_step * problem.steps <= largest else max(4, int(largest / per_step) // 4)
    part = dataclasses.replace(problem, steps=steps)
    measured = counted(part, plain)
    timed(part, {"one graph": (plain, measured)}, repeats)
    scale = problem.steps / steps
    return Measured(measured.grads, int(measured.peak * scale), measured.seconds * scale), steps


def rows_of(problem: Problem, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per way to run the loop; budgets are sizes, or shares of the memory of one graph such as 0.1."""
    once, steps = baseline(problem, parse_size(options.largest), options.repeats)
    rows: list[dict[str, Any]] = []
    exact = once.grads if steps == problem.steps else None

    def add(name: str, took: Measured, memory: gp.Memory | None = None, peer: Measured | None = None) -> None:
        nonlocal exact
        exact = exact or took.grads
        errors = [
            float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(took.grads, exact, strict=True)
        ]
        plan, tally = (None, None) if memory is None else (memory.plan, memory.tally)
        row = {
            "problem": problem.name,
            "run": name,
            "budget": None if plan is None else plan.limit,
            "peak": took.peak,
            "predicted": None if plan is None else plan.peak,
            "time": took.seconds / once.seconds,
            "peer": None if peer is None else took.seconds / peer.seconds,
            "extra": None if tally is None else tally.extra_steps,
            "slots": None if plan is None else plan.slots,
            "chunk": None if plan is None else plan.chunk,
            "error": max(errors),
        }
        rows.append(row)
        show(row)

    whole = steps == problem.steps
    if whole:
        add("one graph", once)
        memory = gp.Memory("all")
        run = scanned(memory)
        took, again = counted(problem, run), counted(problem, plain)
        timed(problem, {"one graph": (plain, again), "all": (run, took)}, options.repeats)
        add("scan all", took, memory, again)
    else:
        print(f"one graph would take {once.peak / 1e9:.1f} GB; its time is that of {steps} steps, scaled")
    for name in options.peers:
        run = PEERS[name]
        peer = counted(problem, run)
        memory = gp.Memory(f"{peer.peak}B")
        took = within_budget(problem, memory)
        runs = {"peer": (run, peer)} | ({} if took is None else {"scan": (scanned(memory), took)})
        timed(problem, runs, options.repeats)
        add(f"checkpoint {name}", peer)
        if took is not None:
            add("scan, same memory", took, memory, peer)
    if problem.name == "fluid 512x512":
        add("warp example", of_warp(problem, options.iterations))
    for budget in options.budgets:
        is_share = budget.replace(".", "").isdigit()
        memory = gp.Memory(f"{int(float(budget) * once.peak)}B" if is_share else budget)
        took = within_budget(problem, memory)
        if took is not None:
            timed(problem, {"scan": (scanned(memory), took)}, options.repeats)
            add(f"scan {budget}", took, memory)
    return rows


def within_budget(problem: Problem, memory: gp.Memory) -> Measured | None:
    """Run the time loop once; say so where the budget is too small for it."""
    try:
        return counted(problem, scanned(memory))
    except gp.BudgetError as error:
        print(f"{problem.name}, {memory!r}: {error}")
        return None


def of_warp(problem: Problem, iterations: int) -> Measured:
    """Warp's own example of the same loop; its memory is that of all its arrays."""
    example = WarpExample(problem.steps, iterations)
    start = time.process_time()
    return Measured(example.gradient(), example.bytes, time.process_time() - start)


COLUMNS = {"budget": "budget MB", "peak": "peak MB", "predicted": "predicted", "time": "time", "peer": "x peer",
           "extra": "extra", "slots": "slots", "chunk": "chunk", "error": "error"}  # fmt: skip


def show(row: dict[str, Any]) -> None:
    """Print one row; sizes in MB, time relative to one graph, the error relative to the first row."""

    def text(key: str) -> str:
        value = row[key]
        if value is None:
            return "-"
        if key in ("budget", "peak", "predicted"):
            return f"{value / 1e6:.2f}"
        return f"{value:.1e}" if key == "error" else f"{value:.2f}" if key in ("time", "peer") else str(value)

    print(f"{row['problem']:18}{row['run']:22}" + "".join(f"{text(key):>10}" for key in COLUMNS), flush=True)


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
        axes.set(title=problem, xscale="log", xlabel="peak memory [MB]", ylabel="processor time / one graph")
        axes.legend()
    figure.savefig(path)


def give_large_tensors_back() -> None:
    """Let the C library return freed tensors to the system, so that the process is as large as what it holds.

    Before its version 2.38, glibc often does not reuse aligned memory from its heap (bug 14581), where it puts tensors
    of up to 32 MB by and by: checkpoints of a megabyte then take several times their size. A fixed threshold keeps
    large tensors out of the heap. Where there is no such function, nothing needs to be done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_mmap_threshold = -3
        mallopt(m_mmap_threshold, 128 * 1024)


def main() -> None:
    """Run all problems, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=128, help="cells of the fluid along each side")
    parser.add_argument(
        "--iterations", type=int, default=50, help="of the pressure in each step of the fluid"
    )
    parser.add_argument("--worlds", type=int, default=40, help="worlds of the flight")
    parser.add_argument("--problems", nargs="+", default=["fluid", "flight"], choices=["fluid", "flight"])
    parser.add_argument(
        "--budgets", nargs="+", default=["0.5", "0.2", "0.1", "0.05"], help="sizes, or shares of one graph"
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument(
        "--largest", default="4GB", help="memory that one graph may take to be measured whole"
    )
    parser.add_argument("--repeats", type=int, default=2, help="0: one run each, with the counting of bytes")
    parser.add_argument("--out", type=Path, default=Path("checkpoint"))
    options = parser.parse_args()
    give_large_tensors_back()
    torch.set_num_threads(1)  # what torch's idle threads spin would be counted
    print(f"{'problem':18}{'run':22}" + "".join(f"{title:>10}" for title in COLUMNS.values()))
    rows = []
    for name in options.problems:
        if name == "fluid":
            problem = fluid(options.size, options.steps, options.iterations)
        else:
            problem = flying(options.worlds, options.steps)
        gradient(dataclasses.replace(problem, steps=2), plain)  # compiles kernels
        rows += rows_of(problem, options)
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    plot(rows, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
