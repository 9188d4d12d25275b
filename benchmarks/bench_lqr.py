"""How long does one step of learning through a linear-quadratic regulator take? `planners.lqr` beside a dense solve.

OMP_NUM_THREADS=1 python benchmarks/bench_lqr.py [--repeats 20]

Both solve the same batch and go backward to all matrices: `lqr` by recursion, the peer by one LU of the optimality
conditions in torch. Prints milliseconds and their ratio per size.
"""

import argparse
import time
from collections.abc import Callable

import torch
from _dense_kkt import dense_kkt
from torch import Tensor

from gradpath.planners import lqr

SIZES = [(3, 3, 5, 128), (3, 3, 20, 128), (12, 4, 20, 16)]  # n, m, horizon, batch


def problem(n: int, m: int, batch: int) -> list[Tensor]:
    """Matrices and first states that require a gradient."""
    generator = torch.Generator().manual_seed(0)
    A = torch.eye(n) + 0.1 * torch.randn(n, n, generator=generator)
    B = torch.randn(n, m, generator=generator)
    tensors = [A, B, torch.eye(n), torch.eye(m), torch.randn(batch, n, generator=generator)]
    return [x.double().requires_grad_() for x in tensors]


def seconds(run: Callable[[], tuple[Tensor, Tensor]], tensors: list[Tensor], repeats: int) -> float:
    """The best time of some iterations, forward and backward."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        states, controls = run()
        torch.autograd.grad(states.square().sum() + controls.square().sum(), tensors)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    print(f"{'n':>3}{'m':>3}{'T':>4}{'batch':>7}{'lqr ms':>10}{'dense ms':>10}{'dense / lqr':>13}")
    for n, m, horizon, batch in SIZES:
        tensors = problem(n, m, batch)

        def ours(tensors: list[Tensor] = tensors, horizon: int = horizon) -> tuple[Tensor, Tensor]:
            found = lqr(*tensors, horizon)
            return found.states, found.controls

        def theirs(tensors: list[Tensor] = tensors, horizon: int = horizon) -> tuple[Tensor, Tensor]:
            return dense_kkt(*tensors, horizon)

        one = seconds(ours, tensors, repeats)
        other = seconds(theirs, tensors, max(3, repeats // 4))
        print(f"{n:3}{m:3}{horizon:4}{batch:7}{1e3 * one:10.2f}{1e3 * other:10.2f}{other / one:13.1f}")


if __name__ == "__main__":
    main()
