"""Random directions in the space of parameters or inputs, and what a loss does along them.

Part of `gradpath.mismatch`: the cosine between two gradients needs no more than their products with a few directions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError
from gradpath.mismatch_runs import Runs, fresh, last_recording_kept
from gradpath.relaxation import Watcher
from gradpath.specs import tensors
from gradpath.stage import close_match


class Directions:
    """Random directions in the space of what is differentiated, and what the loss does along them."""

    def __init__(self, runs: Runs, targets: dict[str, Tensor], inputs: bool, scale: float, seeds: list[int]):
        self.runs, self.targets, self.inputs = runs, targets, inputs
        self.scale, self.seeds = scale, seeds

    @classmethod
    def draw(
        cls,
        runs: Runs,
        wrt: Sequence[str] | None,
        samples: int,
        std: float,
        generator: torch.Generator | None,
    ) -> Directions | None:
        """Choose what to differentiate, and draw the directions; None where there is nothing."""
        module = runs.module
        parameters = [] if module is None else module.named_parameters()
        targets: dict[str, Tensor] = {name: value for name, value in parameters if value.requires_grad}
        inputs = wrt is not None or not targets
        if inputs:
            targets = _inputs(runs.batch, wrt)
        if not targets:
            return None
        count = sum(target.numel() for target in targets.values())
        squares = sum(float(target.detach().double().square().sum()) for target in targets.values())
        scale = std * (math.sqrt(squares / count) if squares > 0 else 1.0)
        generator = generator or torch.Generator().manual_seed(0)
        seeds = torch.randint(2**62, (samples,), generator=generator, device=generator.device).tolist()
        return cls(runs, targets, inputs, scale, seeds)

    def direction(self, seed: int) -> list[Tensor]:
        """Draw one direction, the same one each time: many of them would need the memory of as many models."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            torch.randn(target.shape, dtype=torch.float64, generator=generator)
            for target in self.targets.values()
        ]
        return [
            (self.scale * z).to(t.device, t.dtype) for z, t in zip(drawn, self.targets.values(), strict=True)
        ]

    def slopes(self, name: str, factor: float) -> Tensor:
        """Products of the gradient of a mode with each direction, (N,)."""
        runs = self.runs
        batch = fresh(runs.batch)
        if self.inputs:
            leaves = [target.detach().clone().requires_grad_() for target in self.targets.values()]
            batch = _replaced(batch, dict(zip(self.targets, leaves, strict=True)))
        else:
            leaves = list(self.targets.values())
        recorded = last_recording_kept(runs.module)
        with torch.enable_grad(), recorded, runs.run(None, name, factor, batch) as (_, loss):
            assert loss is not None
            if not loss.requires_grad:
                return torch.zeros(len(self.seeds), dtype=torch.float64)
            found = torch.autograd.grad(loss.mean(), leaves, allow_unused=True, materialize_grads=True)
        products = []
        for seed in self.seeds:
            pairs = zip(found, self.direction(seed), strict=True)
            products.append(sum(float((g.double() * z).sum()) for g, z in pairs))
        return torch.tensor(products, dtype=torch.float64)

    def changes(self, watcher: Watcher | None, name: str, factor: float) -> Tensor:
        """Half of the change of the loss from behind to ahead along each direction, (N,)."""
        found = []
        for seed in self.seeds:
            noise = self.direction(seed)
            ahead, behind = (self._loss_at(sign, noise, watcher, name, factor) for sign in (1.0, -1.0))
            found.append((ahead - behind) / 2)
        return torch.tensor(found, dtype=torch.float64)

    @torch.no_grad()
    def _loss_at(
        self, sign: float, noise: list[Tensor], watcher: Watcher | None, name: str, factor: float
    ) -> float:
        batch = fresh(self.runs.batch)
        moved = [target + sign * z for target, z in zip(self.targets.values(), noise, strict=True)]
        if self.inputs:
            batch = _replaced(batch, dict(zip(self.targets, moved, strict=True)))
        weights = [] if self.inputs else list(zip(self.targets.values(), moved, strict=True))
        with _moved(weights), self.runs.run(watcher, name, factor, batch) as (_, loss):
            assert loss is not None
            return float(loss.double().mean())


def _inputs(batch: Mapping[str, Any], wrt: Sequence[str] | None) -> dict[str, Tensor]:
    """The floating inputs by dotted name, all or some."""
    every = {
        path: value
        for name, item in batch.items()
        for path, value in tensors(item, name)
        if value.is_floating_point()
    }
    if wrt is None:
        return every
    chosen = {}
    for name in wrt:
        found = {path: value for path, value in every.items() if path == name or path.startswith(f"{name}.")}
        if not found:
            known = ", ".join(every) or "none"
            raise InputError(
                f'mismatch: no floating input "{name}"{close_match(name, every)}; inputs are {known}'
            )
        chosen.update(found)
    return chosen


def _replaced(value: Any, new: Mapping[str, Tensor], prefix: str = "") -> Any:
    """A nested dict with some tensors replaced by their dotted names."""
    if isinstance(value, Mapping):
        return {name: _replaced(item, new, f"{prefix}{name}.") for name, item in value.items()}
    return new.get(prefix[:-1], value)


@contextlib.contextmanager
def _moved(weights: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give parameters other values for a while, in place: what a stage has wrapped stays the same memory."""
    before = [target.detach().clone() for target, _ in weights]
    try:
        for target, value in weights:
            target.copy_(value)
        yield
    finally:
        for (target, _), value in zip(weights, before, strict=True):
            target.copy_(value)
