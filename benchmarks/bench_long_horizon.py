"""Does a policy with a camera train through ten thousand steps? Memory of the process, predicted and measured.

python benchmarks/bench_long_horizon.py [--steps 10000] [--worlds 64] [--memory 500MB] [--iterations 1] [--folder DIR]

The flight pipeline (camera, convolutions, recurrent memory, policy, quadrotor) with its cost inside the step, so that
what is returned is one number per step and world. The growth of the process is that of its resident memory over what
it was before the first loop, as the operating system counts it; the loop that compiles kernels comes before.
"""

import argparse
import resource
import time
from typing import Any

import torch
from torch import Tensor

import gradpath as gp
from gradpath.budget import format_size
from gradpath.examples import flight
from gradpath.plan import Plan


class FlightStep(torch.nn.Module):
    """One control step of a flight, and its cost: distance to obstacles, wanted velocity, height."""

    def __init__(self, task: flight.FlightTask, inputs: dict[str, Any]):
        super().__init__()
        self.pipeline = task.build().step
        self.inputs = inputs

    def forward(self, carry: dict[str, Any], x: None) -> tuple[dict[str, Any], Tensor]:
        """Return the next carry and the cost of each world, (B,)."""
        outputs = ["body.state", "encode.memory", "clearance.distance", "target.target_velocity"]
        values = self.pipeline.run({**self.inputs, **carry}, outputs=outputs)
        state = values["body.state"]
        near = torch.relu(0.6 - values["clearance.distance"]).square().sum(-1)
        error = (state["velocity"] - values["target.target_velocity"]).square().sum(-1)
        height = (state["pose"][:, 2] - 1.5).square()
        return {"state": state, "memory": values["encode.memory"]}, 10.0 * near + 0.1 * error + 0.2 * height


def resident() -> int:
    """The largest resident memory of the process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Train for some iterations; print memory and time of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--worlds", type=int, default=64)
    parser.add_argument("--memory", default="500MB")
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--folder", help="where states may be stored in files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = flight.FlightTask(flight.FlightOptions(worlds=options.worlds, height=12, width=16))
    (state,), inputs = task.sample(0)
    step = FlightStep(task, dict(inputs))
    start = {"state": state, "memory": torch.zeros(options.worlds, task.options.features)}
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3)

    def iterate(length: int, memory: gp.Memory, title: str) -> float:
        _, costs = gp.scan(
            step, start, length=length, memory=memory, decay=0.4, dt=1.0 / 15.0, progress=title
        )
        optimizer.zero_grad()
        costs.mean().backward()
        optimizer.step()
        return float(costs.detach().mean())

    iterate(3, gp.Memory("all"), "warm-up")
    before = resident()
    for iteration in range(options.iterations):
        memory = gp.Memory(options.memory, measure=True, folder=options.folder)
        begin = time.perf_counter()
        cost = iterate(options.steps, memory, f"iteration {iteration}")
        seconds = time.perf_counter() - begin
        assert memory.plan is not None and memory.tally is not None
        print(Plan(memory.plan.schedule, memory, options.worlds, budget=memory.plan, tally=memory.tally))
        growth = format_size(resident() - before)
        print(
            f"iteration {iteration}: cost {cost:.4f}, {seconds:.0f} s, the process grew by {growth}",
            flush=True,
        )


if __name__ == "__main__":
    main()
