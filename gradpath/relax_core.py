"""What all relaxed operations share: the mode, the temperature, its schedule, the registry. See `gradpath.relax`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError
from gradpath.kernel_registry import register
from gradpath.mode import current_mode
from gradpath.relaxation import positive


@dataclass(eq=False, repr=False)
class Anneal:
    """A temperature that falls from one value to another, step by step of the training.

    Args:
        start: The first temperature.
        end: The last one, above zero; it stays there.
        steps: Calls of `step` from the first to the last.
        position: How many were made.

    A relaxed operation takes it as `tau=`; on a logarithmic scale, it falls evenly. As an argument of a stage it is
    saved with the stage, where it stands.
    Raises:
        InputError: a temperature is not above zero, or there are no steps.
    """

    start: float
    end: float
    steps: int
    position: int = 0

    def __post_init__(self) -> None:
        positive(self.start, "Anneal", "start")
        positive(self.end, "Anneal", "end")
        if self.steps < 1:
            raise InputError(f"Anneal: steps is at least 1, got {self.steps}")

    def step(self) -> None:
        """Go to the next temperature."""
        self.position += 1

    def __float__(self) -> float:
        share = min(self.position / self.steps, 1.0)
        return self.start ** (1.0 - share) * self.end**share

    def __repr__(self) -> str:
        return f"Anneal({self.start:g}, {self.end:g}, {self.steps}, now {float(self):g})"


Temperature = float | Anneal


def choose(soft: Callable[[], Tensor], hard: Callable[[], Tensor]) -> Tensor:
    """Return what the mode asks for: the soft value, the hard one, or the hard one with the gradient of the soft."""
    mode = current_mode()
    if mode == "soft":
        return soft()
    if mode == "hard":
        return hard()
    with torch.no_grad():
        value = hard()
    return _StraightThrough.apply(soft(), value)


class _StraightThrough(torch.autograd.Function):
    """The second argument forward, the gradient to the first backward; exact, unlike s + (h - s).detach()."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.to(soft.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def above_half(value: Tensor, **arguments: Any) -> Tensor:
    """Read a decision between 0 and 1 off a value."""
    return value > 0.5


def rounded(value: Tensor, **arguments: Any) -> Tensor:
    """Read a whole number off a value."""
    return torch.floor(value + 0.5)


def chosen(value: Tensor, **arguments: Any) -> Tensor:
    """Read a choice along the last axis off its weights; -1 where none has more than half of the weight."""
    weight, index = value.max(-1)
    return torch.where(weight > 0.5, index, -1)


def soft_step(fraction: Tensor, tau: float) -> Tensor:
    """A step at 1/2 that is 0 at 0 and 1 at 1 for every tau: a line for large tau, a jump for small."""
    edge = math.tanh(0.25 / tau)  # a sigmoid, shifted and scaled: tanh(x / 2) = 2 sigmoid(x) - 1
    return 0.5 + 0.5 * torch.tanh((fraction - 0.5) / (2.0 * tau)) / edge


def register_relaxation(fn: Callable[..., Any], samples: Callable[[int], dict[str, Any]]) -> None:
    """Have the soft version of an operation checked like every other gradient, as `relax.NAME`."""
    register(f"relax.{fn.__name__}", kernels=(), fn=fn, samples=samples)


def draw(batch: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Return repeatable normal numbers in float64, (batch, *shape)."""
    generator = torch.Generator().manual_seed(batch)
    return scale * torch.randn(batch, *shape, dtype=torch.float64, generator=generator)
