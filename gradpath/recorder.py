"""Measures gradients while a time loop runs backward: norms per stage, time step and world.

Nothing waits for the device until somebody reads: norms go into buffers on the device of the carry. A gradient is
measured when it arrives and is not held: keeping those of a whole step would cost more than measuring them.
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
        cut: No adjoint crosses from a step whose number is a multiple of this to the one before; None for no cut.
        carry: Norm of the adjoint of the carry that enters each step, (T, B), after decay.
        first_step: The first step whose carry needs a gradient: 1 where the initial carry requires none.
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
        cut: int | None = None,
    ):
        self._owner = owner
        self.length, self.decay, self.cut = length, decay, cut
        floating = [leaf for leaf in carry if tree.is_differentiable(leaf)]
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in floating}
        self.worlds = sizes.pop() if len(sizes) == 1 and 0 not in sizes else 1
        self.first_step = 0 if any(leaf.requires_grad for leaf in floating) else 1
        like = [*floating, *captured]
        self._device = like[0].device if like else torch.device("cpu")
        self.carry = self._buffer(self.worlds)
        stages = owner.wiring.stages
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
        self._measured: dict[str, Tensor] = {}
        self._rows: dict[str, tuple[Tensor, ...]] = {}
        self._filled: set[tuple[str, int]] = set()

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Norm of the gradient that reaches each stage output, by `"stage.output"`, (T, B) or (T, 1)."""
        return {name: norms for name, norms in self._by_name().items() if not name.endswith("<")}

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
                value.register_hook(partial(self._arrive, f"{stage}.{path}", step))

        handles = [
            module.register_forward_pre_hook(partial(self._attach_inputs, stage, step), with_kwargs=True)
            for stage, module in (self._owner.wiring.stages if self._owner.check_finite else {}).items()
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
            own.register_hook(partial(self._arrive, f"{stage}<", step))
            return own

        return tree.map_leaves(alias, args), tree.map_leaves(alias, kwargs)

    def reversing(self) -> None:
        """Forget an earlier backward pass."""
        if self._paused:
            return
        self.complete = False
        self._filled.clear()
        for buffer in (self.carry, *self.parameters.values(), *self._measured.values()):
            buffer.zero_()

    def reversed(self, step: int, adjoint: list[Tensor | None], captured: list[Tensor | None]) -> None:
        """Measure the adjoint of a carry and the gradients of captured leaves."""
        if self._paused:
            return
        flowing = [grad for grad in adjoint if grad is not None and grad.numel()]
        if flowing:
            self.carry[step] = _norms(flowing, self.worlds)
        for stage, owned in self._owned.items():
            grads = [grad for grad in (captured[i] for i in owned) if grad is not None and grad.numel()]
            if grads:
                self.parameters[stage][step] = _norms(grads, 1)[0]

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
        everything = {CARRY: self.carry, **self._by_name()}
        everything |= {f"{stage}.": norms for stage, norms in self.parameters.items()}
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

    def _arrive(self, name: str, step: int, grad: Tensor | None) -> None:
        """Measure a gradient; torch calls this also where none arrives. What has one name is added up."""
        if grad is None or not grad.numel() or self._paused:
            return
        if name not in self._rows:
            self._measured[name] = self._buffer(self.worlds if _has_worlds(grad, self.worlds) else 1)
            self._rows[name] = self._measured[name].unbind(0)
        row = self._rows[name][step]
        worlds = len(row) if _has_worlds(grad, len(row)) else 1
        if (name, step) not in self._filled and worlds == len(row):
            _norm(grad, worlds, out=row)
        else:  # a value of one world counts in each
            row.copy_(torch.hypot(row, _norm(grad, worlds)))
        self._filled.add((name, step))

    def _by_name(self) -> dict[str, Tensor]:
        """What was measured, along time; zero where no gradient arrived in the latest pass."""
        return {name: norms.clone() for name, norms in self._measured.items()}

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

    def begin(
        self,
        length: int,
        carry: list[Any],
        captured: list[Tensor],
        decay: float | None,
        cut: int | None = None,
    ) -> Recording:
        """Start to record one time loop."""
        return Recording(self, length, carry, captured, decay, cut)


def _has_worlds(grad: Tensor, worlds: int) -> bool:
    return grad.ndim > 0 and grad.shape[0] == worlds


def _norm(grad: Tensor, worlds: int, out: Tensor | None = None) -> Tensor:
    """Norm of a gradient for each world, (worlds,); in double precision, so that no square overflows."""
    grad = grad.detach()
    real = torch.view_as_real(grad) if grad.is_complex() else grad
    return torch.linalg.vector_norm(real.reshape(worlds, -1), dim=1, dtype=torch.float64, out=out)


def _norms(grads: list[Tensor], worlds: int) -> Tensor:
    """Common norm of some gradients for each world, (worlds,)."""
    return torch.linalg.vector_norm(torch.stack([_norm(grad, worlds) for grad in grads]), dim=0)


def _covers(taken: str, name: str) -> bool:
    """Whether a name is what is taken, a field of it, or holds it."""
    return name == taken or name.startswith(f"{taken}.") or taken.startswith(f"{name}.")
