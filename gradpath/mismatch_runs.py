"""Repeatable runs of a model and its losses: each from the same start, in a mode, seen by a watcher.

Part of `gradpath.mismatch`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradpath import tree
from gradpath.errors import NonFiniteError, ShapeError
from gradpath.losses import Losses
from gradpath.mode import mode
from gradpath.pipeline import Pipeline
from gradpath.relaxation import Call, Watcher, scaled, watched
from gradpath.rollout import Rollout
from gradpath.stage import Stage

LossLike = Losses | Callable[[Any], Tensor]


class Key(NamedTuple):
    """Which call of which operation."""

    stage: str
    operation: str
    site: str


class Runs:
    """Runs a model from the same start each time, and leaves it as it was."""

    def __init__(self, model: Callable[..., Any], batch: Mapping[str, Any], losses: LossLike | None):
        self.model, self.batch, self.losses = model, batch, losses
        self.module = model if isinstance(model, nn.Module) else None
        self._stages: list[str] = []
        self._random = torch.random.get_rng_state()

    def key(self, call: Call) -> Key:
        """Say which call this is, while it runs."""
        return Key(self._stages[-1] if self._stages else "", call.name, call.site)

    def only(self, key: Key) -> Watcher:
        """Return a watcher that has one operation hard and the others soft."""
        return lambda call: call.run("hard" if self.key(call) == key else "soft")

    @contextlib.contextmanager
    def run(
        self, watcher: Watcher | None, name: str, factor: float, batch: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[Any, Tensor | None]]:
        """Run the model and its losses from the start, on a copy of the batch unless one is given.

        Within the block, which may run a backward pass, the model is as the run has left it; then as it was before.
        """
        batch = fresh(self.batch) if batch is None else batch
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            torch.random.set_rng_state(self._random)
            stack.enter_context(mode(name))
            stack.enter_context(scaled(factor))
            stack.enter_context(_buffers_kept(self.module))
            stack.enter_context(_stage_names(self.module, self._stages))
            if watcher is not None:
                stack.enter_context(watched(watcher))
            result = self.model(**batch)
            loss = None if self.losses is None else _by_world(self.losses, result)
            if loss is not None and not bool(loss.isfinite().all()):
                raise NonFiniteError(
                    f"mismatch: the loss of the {name} run at factor {factor:g} on the temperatures is NaN or "
                    "infinite, so nothing can be compared; run within gp.check_finite() to find the stage where it "
                    "begins"
                )
            yield result, loss


def fresh(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with its own tensors and generators, these in the same state; what is one thing stays one."""
    made: dict[int, Any] = {}

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor | torch.Generator):
            return leaf
        if id(leaf) not in made:
            made[id(leaf)] = leaf.detach().clone() if isinstance(leaf, Tensor) else leaf.clone_state()
        return made[id(leaf)]

    return {name: tree.map_leaves(copy, value) for name, value in batch.items()}


def _by_world(losses: LossLike, result: Any) -> Tensor:
    if isinstance(losses, Losses):
        return losses.by_world(result)
    loss = losses(result)
    if not isinstance(loss, Tensor) or loss.ndim > 1 or not loss.numel():
        got = tuple(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ShapeError(
            f"mismatch: the losses returned {got}; expected one number per world, (B,), or one number"
        )
    return loss


@contextlib.contextmanager
def _buffers_kept(module: nn.Module | None) -> Iterator[None]:
    """Put buffers back that a run has written into."""
    saved = [] if module is None else [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)


@contextlib.contextmanager
def last_recording_kept(module: nn.Module | None) -> Iterator[None]:
    """Keep the last recording of gradients of each rollout."""
    rollouts = [] if module is None else [m for m in module.modules() if isinstance(m, Rollout)]
    recorders = [rollout.recorder for rollout in rollouts if rollout.recorder is not None]
    last = [recorder.last for recorder in recorders]
    try:
        yield
    finally:
        for recorder, recording in zip(recorders, last, strict=True):
            recorder.last = recording


@contextlib.contextmanager
def _stage_names(module: nn.Module | None, stack: list[str]) -> Iterator[None]:
    """Keep the names of the stages that are running on a stack."""
    handles = []
    for path, stage in [] if module is None else module.named_modules():
        if not isinstance(stage, Stage) or isinstance(stage, Pipeline | Rollout):
            continue
        name = path.removeprefix("step.") if isinstance(module, Rollout) else path

        def enter(_: nn.Module, arguments: Any, name: str = name) -> None:
            stack.append(name)

        def leave(_: nn.Module, arguments: Any, result: Any) -> None:
            stack.pop()

        handles.append(stage.register_forward_pre_hook(enter))
        handles.append(stage.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        stack.clear()
        for handle in handles:
            handle.remove()
