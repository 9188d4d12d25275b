"""Measures gradients while a time loop runs backward: norms per stage, time step and world.

Nothing waits for the device until somebody reads: norms go into buffers on the device of the carry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradpath import tree
from gradpath.errors import NonFiniteError
from gradpath.stage import observe

CARRY = "carry"
"""What the adjoint of the carry is called among the gradients of a step."""


@dataclass(frozen=True)
class Wiring:
    """What the recorder must know of a pipeline.

    Attributes:
        parameters: The parameters of each stage, in the order of execution.
        takes: What each stage takes: names of outputs, and `"carry"` for what comes from the step before.
    """

    parameters: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
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
        index = {id(leaf): i for i, leaf in enumerate(captured)}
        self._owned = {
            stage: [index[id(p)] for p in parameters if id(p) in index]
            for stage, parameters in owner.wiring.parameters.items()
        }
        if not owner.wiring.parameters:
            self._owned = {"step": list(range(len(captured)))}
        self._owned = {stage: owned for stage, owned in self._owned.items() if owned}
        self.parameters = {stage: self._buffer() for stage in self._owned}
        self.complete = False

    def taping(self, step: int) -> AbstractContextManager[None]:
        """Attach to every output of every stage that runs within."""

        def attach(stage: str, path: str, value: Tensor) -> None:
            if value.requires_grad:
                value.register_hook(partial(self._output, f"{stage}.{path}", step))

        return observe(attach)

    def reversing(self) -> None:
        """Forget an earlier backward pass."""
        self.complete = False
        for buffer in (self.carry, *self.outputs.values(), *self.parameters.values()):
            buffer.zero_()

    def reversed(self, step: int, adjoint: list[Tensor | None], captured: list[Tensor | None]) -> None:
        """Measure the adjoint of a carry and the gradients of captured leaves."""
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
        self.complete = True
        self._owner.last = self
        if self._owner.check_finite and (fault := self.fault()) is not None:
            raise NonFiniteError(
                f"a gradient became NaN or infinite at {fault}; later steps are finite. Nothing was added to any "
                ".grad by this loop; look at the inputs of that stage there, for a square root or a quotient at zero"
            )

    def fault(self) -> Fault | None:
        """Find where a gradient stopped being finite; None where all are. Waits for the device."""
        everything = {CARRY: self.carry, **self.outputs, **{f"{s}.": p for s, p in self.parameters.items()}}
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
        values = tuple(name for name in here if not name.endswith("."))
        return Fault(step, min(worlds, default=None), self._suspects(here, values), values)

    def _suspects(self, here: Mapping[str, Tensor], values: tuple[str, ...]) -> tuple[str, ...]:
        """The stages whose outputs got finite gradients only, and that gave others to what they take or own."""
        takes = self._owner.wiring.takes
        suspects = []
        for stage in takes:
            received = any(name.startswith(f"{stage}.") for name in values)
            gave = f"{stage}." in here or any(
                _covers(taken, name) for taken in takes[stage] for name in values
            )
            if gave and not received:
                suspects.append(stage)
        return tuple(suspects)

    def _output(self, name: str, step: int, grad: Tensor) -> None:
        worlds = self.worlds if grad.ndim and grad.shape[0] == self.worlds else 1
        buffer = self.outputs.get(name)
        if buffer is None:
            buffer = self.outputs[name] = self._buffer(worlds)
        buffer[step] = _norm([grad], worlds)

    def _buffer(self, *shape: int) -> Tensor:
        return torch.zeros((self.length, *shape), dtype=torch.float64, device=self._device)


class GradientRecorder:
    """Measures the gradients of time loops; `last` is the recording of the latest backward pass.

    Args:
        wiring: The stages of the step; empty for a step that is no pipeline.
        check_finite: Refuse gradients that are NaN or infinite. One wait for the device per backward pass.
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
