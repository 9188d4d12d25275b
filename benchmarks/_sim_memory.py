"""Peak memory of one rollout for `bench_sim.py --memory`: 256 cartpoles that fall, under feedback with learned gains.

Prints JSON: bytes of the resident set beyond what it was before the rollout, and seconds.
"""

import json
import resource
import sys
import time

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import sim

WORLDS = 256


class Balance(nn.Module):
    """One step under linear feedback; the carry holds the state and the cost so far."""

    def __init__(self, file: str):
        super().__init__()
        self.model = sim.load(file)
        self.gain = nn.Parameter(torch.tensor([-0.01, 0.0, -0.01, 0.0]))

    def forward(self, carry: dict[str, Tensor], _: None) -> tuple[dict[str, Tensor], None]:
        """Advance."""
        x = torch.cat([carry["q"], carry["qd"]], 1)
        state = {"q": carry["q"], "qd": carry["qd"]}
        after = sim.step(self.model, state, (x * self.gain).sum(1, keepdim=True), 0.01, 5)
        return {**after, "cost": carry["cost"] + after["q"].square().sum()}, None


def main() -> None:
    """Measure and print."""
    file, steps, budget = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    step = Balance(file)
    start = {"q": 0.05 * torch.randn(WORLDS, 2, generator=torch.Generator().manual_seed(0))}
    start |= {"qd": torch.zeros(WORLDS, 2), "cost": torch.zeros(())}

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
