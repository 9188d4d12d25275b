"""Determinism: the same numbers to the bit in every run, and the names of what still may differ."""

from __future__ import annotations

import os
import random
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from gradpath import kernel_launch
from gradpath.errors import InputError
from gradpath.stage import Stage

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


class Determinism:
    """What `deterministic` has set. As a context manager, it puts everything back at the end of the block.

    Attributes:
        seed: The seed.
        limits: What may still differ between two runs, one sentence each.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._before = _Settings()
        workspace_late = torch.cuda.is_initialized() and _WORKSPACE not in os.environ
        os.environ.setdefault(_WORKSPACE, ":4096:8")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        kernel_launch.set_deterministic(True)
        self.limits = tuple(_limits(workspace_late))

    def limits_of(self, model: nn.Module) -> list[str]:
        """Name the stages of a model whose results do not depend on the seed alone, by what their contracts declare."""
        found = []
        for name, stage in model.named_modules():
            if isinstance(stage, Stage) and not any(isinstance(child, Stage) for child in stage.children()):
                called = f'stage "{name or type(stage).__name__}"'
                if "io" in stage.contract.effects:
                    found.append(f"{called} reads or writes what is outside of the program (effect io)")
                if "rng" in stage.contract.effects:
                    found.append(
                        f"{called} draws from a global generator: its numbers depend on all draws before it"
                    )
        return found

    def __enter__(self) -> Determinism:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._before.restore()

    def __str__(self) -> str:
        lines = [f"seed {self.seed}; the same to the bit in every run, but for:"]
        return "\n".join([*lines, *(f"- {limit}" for limit in self.limits)])


def deterministic(seed: int) -> Determinism:
    """Make runs repeat to the bit: on the CPU, and on a GPU as far as torch and Warp can.

    ```python
    print(gp.deterministic(0))             # from here on; or for a while: with gp.deterministic(0): ...
    ```

    Seeds torch, numpy and `random`; has torch use deterministic algorithms only, and fill memory that is not
    initialized; has Warp sum atomic additions on a GPU in a fixed order (its mode run-to-run), in kernels that were
    built before, too. It costs time on a GPU. Call it before the first use of a GPU.

    Args:
        seed: From 0 to 2**32 - 1.
    Returns:
        An object whose `limits` name what may still differ, and which restores everything at the end of a `with`
        block; printed, it says so.
    Raises:
        InputError: a seed that is none.
        RuntimeError: later, from torch: an operation that has no deterministic version on a GPU; names it. From Warp,
            likewise, for a kernel.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"deterministic: a seed is a whole number from 0 to 2**32 - 1, got {seed!r}")
    return Determinism(seed)


class _Settings:
    """Everything that is changed, as it was."""

    def __init__(self) -> None:
        self.random: Any = random.getstate()
        self.numpy: Any = np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.algorithms = torch.are_deterministic_algorithms_enabled()
        self.warns = torch.is_deterministic_algorithms_warn_only_enabled()
        self.fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        self.benchmark = torch.backends.cudnn.benchmark
        self.atomics = kernel_launch.is_deterministic()
        self.workspace = os.environ.get(_WORKSPACE)

    def restore(self) -> None:
        random.setstate(self.random)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        torch.use_deterministic_algorithms(self.algorithms, warn_only=self.warns)
        torch.utils.deterministic.fill_uninitialized_memory = self.fills  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = self.benchmark
        kernel_launch.set_deterministic(self.atomics)
        if self.workspace is None:
            os.environ.pop(_WORKSPACE, None)


def _limits(workspace_late: bool) -> list[str]:
    threads = torch.get_num_threads()
    found = [
        f"the number of torch's threads, {threads} now, on which the order of sums depends: fix it with "
        "torch.set_num_threads",
        "another processor, GPU, or version of torch or Warp",
        "times, and whatever is read from clocks, files or devices",
    ]
    if os.environ.get("PYTHONHASHSEED") in (None, "random"):
        found.append("the order of sets of text, which Python shuffles: start it with PYTHONHASHSEED=0")
    if torch.cuda.is_available():
        found.append(
            "operations of torch without a deterministic version on a GPU: they raise an error that names them"
        )
        found.append("kernels whose atomic operations Warp cannot order: they raise an error that names them")
    if workspace_late:
        found.append(
            f"cuBLAS, which was in use before {_WORKSPACE} was set: call gp.deterministic before the first use of a GPU"
        )
    return found
