"""Peak memory of one motion for `bench_sim.py --memory`: 4096 quadrotors that hold their height with a learned gain.

Prints JSON: bytes of the resident set beyond what it was before the motion, and seconds.
"""

import json
import resource
import sys
import time

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import sim

WORLDS = 4096


class Hold(nn.Module):
    """One step under feedback; the carry holds the state and the cost so far."""

    def __init__(self) -> None:
        super().__init__()
        self.body = sim.Quadrotor(0.02)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, carry: dict[str, Tensor], _: None) -> tuple[dict[str, Tensor], None]:
        """Advance."""
        state = {name: carry[name] for name in self.body.vehicle.state}
        height, speed = state["pose"][:, 2], state["velocity"][:, 2]
        thrust = self.body.mass * (sim.GRAVITY - self.gain * (height + speed))
        control = torch.cat([thrust.unsqueeze(1), torch.zeros(WORLDS, 3)], 1)
        return {**self.body(state, control), "cost": carry["cost"] + height.square().mean()}, None


def main() -> None:
    """Measure and print."""
    steps, budget = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    step = Hold()
    place = torch.randn(WORLDS, 3, generator=torch.Generator().manual_seed(0))
    start = {**step.body.hover_state(WORLDS, place), "cost": torch.zeros(())}

    def run(length: int) -> None:
        end, _ = gp.scan(step, start, length=length, memory=budget)
        end["cost"].backward()

    run(20)  # compiles, and loads what is loaded once
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    run(steps)
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps({"peak": peak, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
