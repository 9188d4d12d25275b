"""The time loop behind `scan`: runs steps with and without a tape, keeps states, and reverses by a schedule."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradpath import capture, tree
from gradpath.errors import ContractError, GradpathError, ShapeError
from gradpath.recording import Recorder, Recording
from gradpath.replay import Ambient, DrawGuard, Effects, Repeats, Snapshot, VersionGuard
from gradpath.reverse import Segment, Sums
from gradpath.schedule import Schedule, keep_all
from gradpath.stacked import Stacked
from gradpath.tally import Tally

_HELD = -1
"""The key of the state that the forward pass leaves for the backward pass to begin with."""


class Result(NamedTuple):
    """What one step returned, flat."""

    carry: list[Any]
    ys: list[Any]
    ys_spec: tree.TreeSpec

    def detached_carry(self) -> list[Any]:
        """The carry for the next step."""
        return [tree.detach(leaf) for leaf in self.carry]


class Loop:
    """One call of `scan`: what goes in, how it runs forward, and how it turns gradients back."""

    def __init__(
        self,
        step: Callable[..., tuple[Any, Any]],
        carry: tree.Tree,
        xs: tree.Tree,
        constants: tree.Tree,
        *,
        length: int,
        generators: Iterable[torch.Generator],
        decay: float | None,
        cut: int | None,
        recorder: Recorder | None,
        on_step: Callable[[int], None] | None,
    ):
        self.step = step
        self.length = length
        self.schedule = keep_all(length)
        self.tally = Tally(length)
        self.decay = decay
        self.cut = cut
        self.recorder = recorder
        self.recording: Recording | None = None
        self.on_step = on_step
        self.carry = tree.Flat.of(carry, "carry")
        self.xs = tree.Flat.of(xs, "xs")
        self.constants = None if constants is None else tree.Flat.of(constants, "constants")
        self.constant_leaves = [] if self.constants is None else self.constants.leaves
        self.constant_index = [] if self.constants is None else self.constants.index
        others = [leaf for leaf in self.constant_leaves if not isinstance(leaf, Tensor)]
        self.captured = capture.find(step, *others)
        self.histories = self.captured.histories
        self.leaves = self.captured.leaves
        self.leaf_ids = {id(leaf) for leaf in self.leaves}
        found = [*generators, *self.captured.generators.values(), *tree.generators(self.constant_leaves)]
        self.effects = Effects(self.captured.modules.values(), found)
        self.ambient = Ambient()
        self.repeats = Repeats()
        self.ys = Stacked(length)
        self.used: set[int] = set()
        self.unused: list[weakref.ref[Tensor]] = []
        self.snapshots: dict[int, Snapshot] = {}
        self.segments: list[Segment] = []
        self.released = False

    @property
    def recomputes(self) -> bool:
        """Whether steps are run again in the backward pass."""
        return self.schedule.snapshots is not None

    def needs_gradient(self) -> bool:
        """Whether anything that goes in requires a gradient."""
        return bool(self.carry.index or self.xs.index or self.constant_index or self.histories or self.leaves)

    def inputs(self) -> list[Tensor]:
        """The tensors that `backward` returns gradients for, in its order; complete after `forward`."""
        given = [self.carry.leaves[i] for i in self.carry.index] + [self.xs.leaves[i] for i in self.xs.index]
        return [
            *given,
            *(self.constant_leaves[i] for i in self.constant_index),
            *self.histories,
            *self.leaves,
        ]

    def unshared(self, last: list[Any]) -> list[Any]:
        """The last carry without the memory of anything that was given: writing into it must change nothing else."""
        named = [*self.carry.tensors, *self.xs.tensors, *(self.constants.tensors if self.constants else ())]
        given = {_memory(tensor) for _, tensor in named}
        return [
            leaf.clone() if isinstance(leaf, Tensor) and _memory(leaf) in given else leaf for leaf in last
        ]

    # Forward.

    def run(self) -> list[Any]:
        """Run all steps and keep nothing, for when no gradient is needed; returns the last carry."""
        carry = self.carry.leaves
        with self.ambient.entered():
            for step in range(self.length):
                result = self._call(step, carry, self._x(step), self.constant_leaves)
                if torch.is_grad_enabled():
                    capture.check_graph(tree.tensors([*result.carry, *result.ys]), set(), [], step)
                carry = result.carry
                self._write(step, result)
        return carry

    def forward(self, schedule: Schedule, tally: Tally) -> list[Any]:
        """Run the forward actions of a schedule, and count them; returns the last carry, detached."""
        self.schedule, self.tally = schedule, tally
        carry = [tree.detach(leaf) for leaf in self.carry.leaves]
        self.guard = VersionGuard(self.watched() if self.recomputes else ())
        draws = DrawGuard(self.effects.generators) if self.recomputes else None
        if self.recorder is not None:
            self.recording = self.recorder.begin(
                self.length, self.carry.leaves, self.leaves, self.decay, self.cut
            )
        with self.ambient.entered(), tally.metered():
            for action in self.schedule.forward:
                if action.kind == "snapshot":
                    self.snapshots[action.start] = self._keep(carry)
                    continue
                if action.kind == "hold":
                    self.snapshots[_HELD] = self._keep(carry)
                    continue
                for step in range(action.start, action.stop):
                    carry = self._forward_step(step, carry, keep=action.kind == "tape")
                    if draws is not None:
                        draws.check(step)
        self.guard.check("by a step")
        self._forget_unused()
        return carry

    def _forget_unused(self) -> None:
        """Let go of captured tensors with a history that no step used: the loss of the last iteration, say.

        Holding them would tie the graphs of all iterations together. Where steps are recomputed, one that a
        later step did use is refused then; so they are remembered, weakly.
        """
        kept = [id(history) in self.used for history in self.histories]
        first = len(self.constant_index)
        for segment in self.segments:
            unused = {first + i for i, keep in enumerate(kept) if not keep}
            segment.shared_leaves = [t for i, t in enumerate(segment.shared_leaves) if i not in unused]
        self.unused = [weakref.ref(t) for t, keep in zip(self.histories, kept, strict=True) if not keep]
        self.histories = [t for t, keep in zip(self.histories, kept, strict=True) if keep]
        self.guard.forget({id(t) for t in (ref() for ref in self.unused) if t is not None})
        self.captured.tensors.clear()

    def _forward_step(self, step: int, carry: list[Any], keep: bool) -> list[Any]:
        """Run one step, the first with a tape in any case, to see what it captures; returns the next carry."""
        if keep or step == 0:
            segment, result = self.tape(step, carry)
            if keep:
                segment.kept = True
                self.segments.append(segment)
        else:
            result = self._advance(step, carry)
        self._write(step, result)
        return self._checked(step, result)

    def _checked(self, step: int, result: Result | Segment) -> list[Any]:
        """The carry for the next step, once it is known that this one gives what it gave before, if it ran before."""
        if self.recomputes or step in self.repeats:
            with self.tally.uncounted():
                self.repeats.check(step, [*result.carry, *result.ys])
        return result.detached_carry()

    def _keep(self, carry: list[Any]) -> Snapshot:
        snapshot = self.effects.snapshot(carry)
        self.tally.count(state for _, state in snapshot.generators)
        return snapshot

    def _write(self, step: int, result: Result) -> None:
        with self.tally.uncounted():
            self.ys.write(step, result.ys, result.ys_spec)
        if self.on_step is not None:
            self.on_step(step)

    # One step.

    def _advance(self, step: int, carry: list[Any]) -> Result:
        with torch.no_grad(), self.tally.working("advance"):
            return self._call(step, carry, self._x(step), self.constant_leaves)

    def tape(self, step: int, carry: list[Any], as_later: bool = False) -> tuple[Segment, Result]:
        """Run one step on fresh leaves, with its graph, and hold that graph against what the loop knows.

        From the second step on all differentiable leaves of the carry need an adjoint, whatever the first one was
        given: what is computed must not depend on which steps a schedule tapes. `as_later` has it so for the first.
        """
        with self.tally.working("tape"):
            index = self.carry.index if step == 0 and not as_later else _differentiable(carry)
            return self._tape(step, carry, index)

    def _tape(self, step: int, carry: list[Any], index: list[int]) -> tuple[Segment, Result]:
        carry, carry_leaves = _fresh(carry, index)
        xs, xs_leaves = _fresh(self._x(step), self.xs.index)
        constants, constant_leaves = _fresh(self.constant_leaves, self.constant_index)
        _, history_leaves = _fresh(self.histories, range(len(self.histories)))
        listening = nullcontext() if self.recording is None else self.recording.taping(step)
        with torch.enable_grad(), listening, self.captured.substituted(self.histories, history_leaves):
            result = self._call(step, carry, xs, constants)
        fresh = (*carry_leaves, *xs_leaves, *constant_leaves, *history_leaves)
        known = self.leaf_ids | {id(leaf) for leaf in fresh}
        replaced = [*self.histories, *(t for t in (ref() for ref in self.unused) if t is not None)]
        used = capture.check_graph(tree.tensors([*result.carry, *result.ys]), known, replaced, step)
        pairs = zip(self.histories, history_leaves, strict=True)
        self.used.update(id(history) for history, leaf in pairs if id(leaf) in used)
        shared_leaves = [*constant_leaves, *history_leaves, *self.leaves]
        return Segment(step, index, carry_leaves, xs_leaves, shared_leaves, result.carry, result.ys), result

    def _x(self, step: int) -> list[Any]:
        with torch.no_grad():
            return [x[step] if isinstance(x, Tensor) else x for x in self.xs.leaves]

    def _call(self, step: int, carry: list[Any], xs: list[Any], constants: list[Any]) -> Result:
        """Call the step on trees and check what it returns."""
        versions = [leaf._version for leaf in _watchable(carry)]
        arguments = [tree.unflatten(carry, self.carry.spec), tree.unflatten(xs, self.xs.spec)]
        if self.constants is not None:
            arguments.append(tree.unflatten(constants, self.constants.spec))
        result = self.step(*arguments)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ContractError(
                f"step {step} returned a {type(result).__name__}; a step returns the pair (carry, y), with y None "
                "where there is nothing to stack"
            )
        after, spec = tree.flatten(result[0])
        if spec != self.carry.spec:
            raise ContractError(
                f"step {step} was given the carry {self.carry.spec} and returned {spec}; "
                "a carry keeps its structure from step to step"
            )
        for leaf, version in zip(_watchable(carry), versions, strict=True):
            if leaf._version != version:
                name = next(n for n, other in zip(self.carry.names, carry, strict=True) if other is leaf)
                raise ContractError(
                    f"step {step} changed {name} in place; a recomputed step would start from the changed value, "
                    "so return a new tensor instead"
                )
        self._check_shapes(step, carry, after)
        return Result(after, *tree.flatten(result[1]))

    def _check_shapes(self, step: int, before: list[Any], after: list[Any]) -> None:
        for name, old, new in zip(self.carry.names, before, after, strict=True):
            if not isinstance(old, Tensor):
                continue
            if (
                not isinstance(new, Tensor)
                or new.shape != old.shape
                or tree.is_differentiable(new) != tree.is_differentiable(old)
            ):
                got = capture.describe(new) if isinstance(new, Tensor) else f"a {type(new).__name__}"
                raise ShapeError(
                    f"step {step} was given {name} as {capture.describe(old)} and returned it as {got}; "
                    "a carry keeps its shapes from step to step"
                )

    def watched(self) -> list[tuple[str, Tensor]]:
        """What must not be written into between the first run of a step and its recomputation."""
        captured, buffers = self.captured, {id(buffer) for buffer in self.effects.buffers}
        named = [*self.carry.tensors, *self.xs.tensors]
        named += [] if self.constants is None else self.constants.tensors
        for key, tensor in captured.tensors.items():
            if key not in buffers and (tensor.requires_grad or key not in captured.scratch):
                named.append((captured.names[key], tensor))
        return named

    # Backward.

    def backward(
        self, carry_grads: list[Tensor | None], y_grads: list[Tensor | None], keep: bool
    ) -> list[Tensor | None]:
        """Run the backward actions of the schedule.

        Args:
            carry_grads: Gradients of the leaves of the last carry.
            y_grads: Gradients of the stacked leaves of y.
            keep: Leave tapes and snapshots for another backward pass.

        Returns:
            A gradient for each of `inputs()`, None where nothing flows.
        """
        if self.released:
            raise GradpathError(
                "backward ran a second time through a scan whose tapes and snapshots are gone; give the first "
                "backward retain_graph=True"
            )
        self.guard.check("between forward and backward")
        before = self.effects.snapshot(tree.generators(self.carry.leaves)) if self.recomputes else None
        snapshots, segments = dict(self.snapshots), list(self.segments)
        if not keep:  # so that each is let go as soon as it is used
            self.snapshots, self.segments = {}, []
            self.released = True
        sums = Sums(carry_grads, y_grads, self.length, self.decay, self.cut, self.tally.uncounted)
        if self.recording is not None:
            self.recording.reversing()
        try:
            with self.ambient.entered(), self.tally.metered():
                self._run_backward(snapshots, segments, sums, keep)
            self.repeats.finish()
        finally:
            if before is not None:
                before.restore()
        self.tally.complete = True
        if self.recording is not None:
            self.recording.finish()
        results = self._results(sums)
        if not keep:
            for flat in (self.carry, self.xs):
                flat.leaves.clear()
        return results

    def _run_backward(
        self, snapshots: dict[int, Snapshot], segments: list[Segment], sums: Sums, keep: bool
    ) -> None:
        carry = snapshots.pop(_HELD).restore() if _HELD in snapshots else []
        for action in self.schedule.backward:
            if action.kind == "restore":
                carry = snapshots[action.start].restore()
            elif action.kind == "snapshot":
                snapshots[action.start] = self._keep(carry)
            elif action.kind == "free":
                del snapshots[action.start]
            else:
                for step in range(action.start, action.stop):
                    if action.kind == "advance":
                        carry = self._checked(step, self._advance(step, carry))
                    elif action.kind == "tape":
                        # Nothing here may hold on to the tape: the next step would be run beside it.
                        segments.append(self.tape(step, carry)[0])
                        carry = self._checked(step, segments[-1])
                    else:
                        carry = []
                        with self.tally.working("reverse"):
                            self.reverse(segments.pop(), sums, keep)

    def reverse(self, segment: Segment, sums: Sums, keep: bool = False) -> None:
        """Turn the tape of one step into gradients; `keep` those that were made on the way forward."""
        shared = sums.add(segment, keep and segment.kept)
        if self.recording is not None:
            captured = shared[len(shared) - len(self.leaves) :]
            self.recording.reversed(segment.step, sums.adjoint, captured)

    def _results(self, sums: Sums) -> list[Tensor | None]:
        """The gradients of `inputs()`, from the sums of all steps; zeros where a cut lets nothing through."""
        results = [*(sums.adjoint[i] for i in self.carry.index), *sums.xs, *sums.shared]
        if self.cut is None:
            return results
        pairs = zip(results, self.inputs(), strict=True)
        return [torch.zeros_like(given) if grad is None else grad for grad, given in pairs]


def _fresh(leaves: list[Any], index: Iterable[int]) -> tuple[list[Any], list[Tensor]]:
    """Detach all leaves; let those of an index require a gradient, and return these apart too."""
    leaves = [tree.detach(leaf) for leaf in leaves]
    return leaves, [leaves[i].requires_grad_() for i in index]


def _differentiable(leaves: list[Any]) -> list[int]:
    return [i for i, leaf in enumerate(leaves) if tree.is_differentiable(leaf)]


def _memory(tensor: Tensor) -> int:
    """The address of the storage; tensors without one, or without elements, are on their own."""
    dense = tensor.layout == torch.strided and tensor.numel() > 0
    return tensor.untyped_storage().data_ptr() if dense else -id(tensor)


def _watchable(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]
