"""Measures gradients while a time loop runs backward: norms per stage, time step and world.

Nothing waits for the device until somebody reads: norms go into buffers on the device of the carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradpath import tree
from gradpath.errors import NonFiniteError
from gradpath.stage import observe

CARRY = "carry"
"""What the adjoint of the carry is called among the gradients of a step."""


@dataclass(frozen=True)
class Wiring:
    """What the recorder must know of a pipeline.

    Attributes:
        stages: The stages in the order of execution.
        takes: What each stage takes: names of outputs, and `"carry"` for what comes from the step before.
    """

    stages: Mapping[str, nn.Module] = field(default_factory=dict)
    takes: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Where a gradient first became NaN or infinite on its way back: later steps are still finite.

    Attributes:
        step: The time step that turned finite gradients into others.
        world: The first world with such a gradient, None where only gradients of parameters are.
        stages: The stages that can have done it, judged by what comes in and goes out.
        values: The outputs, or `"carry"`, at which such a gradient arrived.
    """

    step: int
    world: int | None
    stages: tuple[str, ...]
    values: tuple[str, ...]

    def __str__(self) -> str:
        names = " or ".join(f'stage "{name}"' for name in self.stages) or "the step"
        world = "" if self.world is None else f", world {self.world}"
        arrived = f" (it arrives at {', '.join(self.values)})" if self.values else ""
        return f"{names}, time step {self.step}{world}{arrived}"


class Recording:
    """The gradients of one forward pass and its latest backward pass.

    Attributes:
        length: Time steps T.
        worlds: Worlds B; 1 where the carry has no common first axis.
        decay: The factor on the carry's adjoint per step, None for 1.
        carry: Norm of the adjoint of the carry that enters each step, (T, B), after decay.
        outputs: Norm of the gradient that reaches each stage output, by `"stage.output"`, (T, B) or (T, 1).
        parameters: Norm of the gradient that each step gives to the parameters of each stage, (T,).
        complete: Whether a backward pass has run through.
    """

    def __init__(
        self,
        owner: GradientRecorder,
        length: int,
        carry: list[Any],
        captured: list[Tensor],
        decay: float | None,
    ):
        self._owner = owner
        self.length, self.decay = length, decay
        floating = [leaf for leaf in carry if tree.is_differentiable(leaf)]
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in floating}
        self.worlds = sizes.pop() if len(sizes) == 1 and 0 not in sizes else 1
        like = [*floating, *captured]
        self._device = like[0].device if like else torch.device("cpu")
        self.carry = self._buffer(self.worlds)
        self.outputs: dict[str, Tensor] = {}
        stages = owner.wiring.stages
        self._given_back = (
            {stage: self._buffer(self.worlds) for stage in stages} if owner.check_finite else {}
        )
        index = {id(leaf): i for i, leaf in enumerate(captured)}
        self._owned = {
            stage: [index[id(p)] for p in module.parameters() if id(p) in index]
            for stage, module in stages.items()
        }
        if not stages:
            self._owned = {"step": list(range(len(captured)))}
        self._owned = {stage: owned for stage, owned in self._owned.items() if owned}
        self.parameters = {stage: self._buffer() for stage in self._owned}
        self.complete = False
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not measure the backward passes that run within."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def taping(self, step: int) -> Iterator[None]:
        """Attach to every output of every stage that runs within; with `check_finite`, to every input too."""

        def attach(stage: str, path: str, value: Tensor) -> None:
            if value.requires_grad:
                value.register_hook(partial(self._output, f"{stage}.{path}", step))

        handles = [
            self._owner.wiring.stages[stage].register_forward_pre_hook(
                partial(self._attach_inputs, stage, step), with_kwargs=True
            )
            for stage in self._given_back
        ]
        try:
            with observe(attach):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _attach_inputs(
        self, stage: str, step: int, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """Give a stage its own alias of each input, to see what gradient this stage alone gives to it."""

        def alias(leaf: Any) -> Any:
            if not (isinstance(leaf, Tensor) and leaf.requires_grad):
                return leaf
            own = leaf.view_as(leaf)
            own.register_hook(partial(self._input, stage, step))
            return own

        return tree.map_leaves(alias, args), tree.map_leaves(alias, kwargs)

    def reversing(self) -> None:
        """Forget an earlier backward pass."""
        if self._paused:
            return
        self.complete = False
        buffers = (self.carry, *self.outputs.values(), *self.parameters.values(), *self._given_back.values())
        for buffer in buffers:
            buffer.zero_()

    def reversed(self, step: int, adjoint: list[Tensor | None], captured: list[Tensor | None]) -> None:
        """Measure the adjoint of a carry and the gradients of captured leaves."""
        if self._paused:
            return
        flowing = [grad for grad in adjoint if grad is not None]
        if flowing:
            self.carry[step] = _norm(flowing, self.worlds)
        for stage, owned in self._owned.items():
            grads = [grad for grad in (captured[i] for i in owned) if grad is not None]
            if grads:
                self.parameters[stage][step] = _norm(grads, 1)[0]

    def finish(self) -> None:
        """Hand the recording over; with `check_finite`, look at it.

        Raises:
            NonFiniteError: names the stage, the time step and the world.
        """
        if self._paused:
            return
        self.complete = True
        self._owner.last = self
        if self._owner.check_finite and (fault := self.fault()) is not None:
            raise NonFiniteError(
                f"a gradient became NaN or infinite at {fault}; later steps are finite. Nothing was added to any "
                ".grad by this loop; look at the inputs of that stage there, for a square root or a quotient at zero"
            )

    def fault(self) -> Fault | None:
        """Find where a gradient stopped being finite; None where all are. Waits for the device."""
        everything = {CARRY: self.carry, **self.outputs}
        everything |= {f"{stage}.": norms for stage, norms in self.parameters.items()}
        everything |= {f"{stage}<": norms for stage, norms in self._given_back.items()}
        sums = torch.stack([buffer.sum() for buffer in everything.values()])
        if bool(sums.isfinite().all()):
            return None
        bad = {name: ~buffer.cpu().isfinite().reshape(self.length, -1) for name, buffer in everything.items()}
        steps = [int(flags.any(1).nonzero()[-1]) for flags in bad.values() if flags.any()]
        if not steps:
            return None
        step = max(steps)
        here = {name: flags[step] for name, flags in bad.items() if flags[step].any()}
        worlds = [int(f.nonzero()[0]) for f in here.values() if len(f) == self.worlds and self.worlds > 1]
        values = tuple(name for name in here if name[-1] not in ".<")
        return Fault(step, min(worlds, default=None), self._suspects(here, values), values)

    def _suspects(self, here: Mapping[str, Tensor], values: tuple[str, ...]) -> tuple[str, ...]:
        """The stages that received finite gradients only and gave others to what they own or take.

        What one stage gave is known with `check_finite`; otherwise only what all takers of a value gave together.
        """
        takes = self._owner.wiring.takes
        clean = [stage for stage in takes if not any(name.startswith(f"{stage}.") for name in values)]
        certain = tuple(stage for stage in clean if f"{stage}." in here or f"{stage}<" in here)
        if certain:
            return certain
        return tuple(s for s in clean if any(_covers(taken, name) for taken in takes[s] for name in values))

    def _output(self, name: str, step: int, grad: Tensor | None) -> None:
        if grad is None:  # torch calls the hook of a tensor that the loss does not reach, too
            return
        if self._paused:
            return
        worlds = self.worlds if grad.ndim and grad.shape[0] == self.worlds else 1
        buffer = self.outputs.get(name)
        if buffer is None:
            buffer = self.outputs[name] = self._buffer(worlds)
        buffer[step] = _norm([grad], worlds)

    def _input(self, stage: str, step: int, grad: Tensor | None) -> None:
        if grad is not None and not self._paused:
            worlds = self.worlds if grad.ndim and grad.shape[0] == self.worlds else 1
            self._given_back[stage][step] += _norm([grad], worlds)

    def _buffer(self, *shape: int) -> Tensor:
        return torch.zeros((self.length, *shape), dtype=torch.float64, device=self._device)


class GradientRecorder:
    """Measures the gradients of time loops; `last` is the recording of the latest backward pass.

    Args:
        wiring: The stages of the step; empty for a step that is no pipeline.
        check_finite: Refuse gradients that are NaN or infinite, and look at what each single stage gives back
            to name the one that turned finite gradients into others. One wait for the device per backward pass.
    """

    def __init__(self, wiring: Wiring | None = None, check_finite: bool = False):
        self.wiring = wiring or Wiring()
        self.check_finite = check_finite
        self.last: Recording | None = None

    def begin(self, length: int, carry: list[Any], captured: list[Tensor], decay: float | None) -> Recording:
        """Start to record one time loop."""
        return Recording(self, length, carry, captured, decay)


def _norm(grads: list[Tensor], worlds: int) -> Tensor:
    """The norm over some gradients, per world; in double precision, so that a large one does not overflow."""
    with torch.no_grad():
        norms = [
            torch.linalg.vector_norm(grad.reshape(worlds, -1), dim=1, dtype=torch.float64)
            for grad in grads
            if grad.numel()
        ]
        if not norms:
            return torch.zeros(worlds, dtype=torch.float64, device=grads[0].device)
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _covers(taken: str, name: str) -> bool:
    """Whether a name is what is taken, a field of it, or holds it."""
    return name == taken or name.startswith(f"{taken}.") or taken.startswith(f"{name}.")
