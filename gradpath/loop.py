"""The time loop behind `scan`: runs steps with and without a tape, keeps states, and reverses by a schedule."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gradpath import capture, tree
from gradpath.errors import GradpathError, InputError
from gradpath.loop_progress import Watcher
from gradpath.loop_step import Result, StepCall
from gradpath.meter import storage_bytes
from gradpath.online import Online
from gradpath.recording import Recorder, Recording
from gradpath.replay import Ambient, DrawGuard, Effects, Repeats, Snapshot, VersionGuard
from gradpath.reverse import Segment, Sums
from gradpath.schedule import Action, Schedule
from gradpath.stacked import Stacked
from gradpath.store import Store
from gradpath.tally import Tally

_HELD = -1
"""The key of the state that the forward pass leaves for the backward pass to begin with."""


class Loop:
    """One call of `scan`: what goes in, how it runs forward, and how it turns gradients back.

    Attributes:
        length: Time steps T; with a condition, at most so many before the forward pass and the true number after it.
        begins: Whether the condition was asked about the first step already, and let it run.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Any, Any]],
        carry: tree.Tree,
        xs: tree.Tree,
        constants: tree.Tree,
        *,
        length: int,
        condition: Callable[[Any], Any] | None = None,
        generators: Iterable[torch.Generator] = (),
        decay: float | None = None,
        cut: int | None = None,
        recorder: Recorder | None = None,
        watcher: Watcher | None = None,
    ):
        self.length = self.most = length
        self.condition = condition
        self.begins = False
        self.schedule: Schedule | None = None
        self.recomputes = False
        self.store: Store | None = None
        self.tally = Tally(length)
        self.decay = decay
        self.cut = cut
        self.recorder = recorder
        self.recording: Recording | None = None
        self.watcher = watcher
        self.carry = tree.Flat.of(carry, "carry")
        self.xs = tree.Flat.of(xs, "xs")
        self.constants = None if constants is None else tree.Flat.of(constants, "constants")
        self.call = StepCall(step, self.carry, self.xs, self.constants)
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
        self.ys = Stacked(None if condition is not None else length)
        self.used: set[int] = set()
        self.unused: list[weakref.ref[Tensor]] = []
        self.snapshots: dict[int, Snapshot] = {}
        self.segments: list[Segment] = []
        self.released = False

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

    def goes_on(self, step: int, carry: list[Any]) -> bool:
        """Whether a step is to run from this carry.

        Raises:
            InputError: the condition gives no single truth value.
        """
        if step == self.most:
            return False
        if self.condition is None or (step == 0 and self.begins):
            return True
        with torch.no_grad():
            answer = self.condition(tree.unflatten(map(tree.detach, carry), self.carry.spec))
        if isinstance(answer, Tensor) and answer.numel() != 1:
            raise InputError(
                f"the condition gave {capture.describe(answer)} before step {step}; all worlds go on together, so "
                "give one truth value: .any() goes on while one of them does, .all() while all do"
            )
        self.begins = self.begins or bool(answer)
        return bool(answer)

    def run(self) -> list[Any]:
        """Run all steps and keep nothing, for when no gradient is needed; returns the last carry."""
        carry, step = self.carry.leaves, 0
        with self.ambient.entered():
            while self.goes_on(step, carry):
                result = self.call(step, carry, self._x(step), self.constant_leaves)
                if torch.is_grad_enabled():
                    capture.check_graph(tree.tensors([*result.carry, *result.ys]), set(), [], step)
                carry = result.carry
                self._write(step, result)
                step += 1
        self._finish_at(step)
        return carry

    def forward(self, plan: Schedule | Online, tally: Tally, store: Store | None = None) -> list[Any]:
        """Run the forward actions of a schedule, and count them; returns the last carry, detached."""
        self.recomputes = plan.snapshots is not None
        self.tally, self.store = tally, store
        carry = [tree.detach(leaf) for leaf in self.carry.leaves]
        self.guard = VersionGuard(self.watched() if self.recomputes else ())
        self.draws = DrawGuard(self.effects.generators) if self.recomputes else None
        if self.recorder is not None:
            self.recording = self.recorder.begin(
                self.length, self.carry.leaves, self.leaves, self.decay, self.cut
            )
        with self.ambient.entered(), tally.metered():
            step = 0
            while isinstance(plan, Online) and self.goes_on(step, carry):
                for action in plan.before(step):
                    carry = self._act(action, carry)
                step += 1
            for action in plan.forward if isinstance(plan, Schedule) else ():
                carry = self._act(action, carry)
        self._finish_at(step if isinstance(plan, Online) else self.length)
        self.schedule = plan.finish(step) if isinstance(plan, Online) else plan
        tally.ys_bytes = storage_bytes(self.ys.leaves)
        self.guard.check("by a step")
        self._forget_unused()
        return carry

    def _finish_at(self, length: int) -> None:
        """Take note of the number of steps, where it turned out on the way."""
        self.length = self.tally.length = length
        self.ys.finish(length)
        if self.watcher is not None:
            self.watcher.passed(length)

    def _act(self, action: Action, carry: list[Any]) -> list[Any]:
        """Do one thing of the forward pass; returns the working state after it."""
        if action.kind in ("snapshot", "hold"):
            self.snapshots[_HELD if action.kind == "hold" else action.start] = self._keep(carry)
        elif action.kind == "free":
            del self.snapshots[action.start]
        elif action.kind == "store":
            assert self.store is not None
            with self.tally.working("store"):
                self.store.put(action.start, self._keep(carry))
        else:
            for step in range(action.start, action.stop):
                carry = self._forward_step(step, carry, keep=action.kind == "tape")
                if self.draws is not None:
                    self.draws.check(step)
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
        if self.watcher is not None:
            self.watcher.ran(step)

    # One step.

    def _advance(self, step: int, carry: list[Any]) -> Result:
        with torch.no_grad(), self.tally.working("advance"):
            return self.call(step, carry, self._x(step), self.constant_leaves)

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
            result = self.call(step, carry, xs, constants)
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
        sums = Sums(carry_grads, y_grads, self.most, self.decay, self.cut, self.tally.uncounted)
        if self.recording is not None:
            self.recording.reversing()
        try:
            with self.ambient.entered(), self.tally.metered():
                self._run_backward(snapshots, segments, sums, keep)
            self.repeats.finish()
        finally:
            if before is not None:
                before.restore()
            if self.store is not None and not keep:
                self.store.close()
            if self.watcher is not None:
                self.watcher.stop()
        self.tally.complete = True
        self.tally.xs_bytes = storage_bytes(sums.xs)
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
        assert self.schedule is not None
        for action in self.schedule.backward:
            if action.kind == "restore":
                carry = snapshots[action.start].restore()
            elif action.kind == "snapshot":
                snapshots[action.start] = self._keep(carry)
            elif action.kind == "free":
                del snapshots[action.start]
            elif action.kind in ("load", "drop"):
                carry = self._from_store(action, carry, keep)
            else:
                for i in range(action.stop - action.start):
                    step = action.stop - 1 - i if action.kind == "reverse" else action.start + i
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
                        if self.watcher is not None:
                            self.watcher.reversed(step)

    def _from_store(self, action: Action, carry: list[Any], keep: bool) -> list[Any]:
        """Read a stored state, or delete it unless another backward pass will want it."""
        assert self.store is not None
        if action.kind == "load":
            with self.tally.working("load"):
                return self.store.get(action.start).restore()
        if not keep:
            self.store.drop(action.start)
        return carry

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
