"""When a time loop keeps states, recomputes steps and reverses them: a plan as data, apart from running it.

With `s` snapshots and `r` such that `C(s+r-1, s) < T <= C(s+r, s)`, reversing `T` steps needs at least
`r*T - C(s+r, s+1)` steps beyond the `T` that are taped (Griewank and Walther 2000, algorithm 799, with
the initial state counted as a snapshot). The schedules here need exactly that, and one step more: the
loop must return its last state before the backward pass begins.

Where memory is left, several consecutive steps (a chunk) are taped together: the same schedule over chunks,
with the last chunk taped on the way forward.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Literal, NamedTuple

from gradpath.errors import BudgetError, InputError

Kind = Literal["snapshot", "advance", "hold", "restore", "tape", "reverse", "free"]


class Action(NamedTuple):
    """One thing to do, to the steps `start <= t < stop` or to the state that enters step `start`.

    snapshot: keep the state. free: drop it. restore: make it the working state again.
    hold: leave the working state as it is for the backward pass to begin with.
    advance: run the steps without a tape. tape: run them with one. reverse: turn the tapes into gradients,
    last step first, and drop them.
    """

    kind: Kind
    start: int
    stop: int

    def __str__(self) -> str:
        span = self.stop - self.start
        return f"{self.kind} {self.start}" + (f"..{self.stop - 1}" if span > 1 else "")


@dataclass(frozen=True)
class Schedule:
    """The actions of a forward and of a backward pass through `length` steps."""

    length: int
    snapshots: int | None
    forward: tuple[Action, ...]
    backward: tuple[Action, ...]
    chunk: int = 1

    @property
    def actions(self) -> tuple[Action, ...]:
        """All actions, forward then backward."""
        return self.forward + self.backward

    @property
    def step_calls(self) -> int:
        """How often the step is run, forward and backward together."""
        return sum(a.stop - a.start for a in self.actions if a.kind in ("advance", "tape"))

    @property
    def extra_steps(self) -> int:
        """Step calls beyond one per step: the price of keeping less than everything."""
        return self.step_calls - self.length

    @property
    def peak_snapshots(self) -> int:
        """The largest number of snapshots that exist at one time."""
        held = peak = 0
        for action in self.actions:
            held += (action.kind == "snapshot") - (action.kind == "free")
            peak = max(peak, held)
        return peak

    def counts(self) -> dict[str, int]:
        """How many actions there are of each kind."""
        return dict(Counter(action.kind for action in self.actions))

    def __str__(self) -> str:
        kept = (
            "every tape" if self.snapshots is None else f"{self.peak_snapshots} of {self.snapshots} snapshots"
        )
        if self.snapshots is not None and self.chunk > 1:
            kept += f" and up to {self.chunk} tapes"
        return (
            f"{self.length} steps, keeping {kept}: {self.step_calls} step calls, "
            f"{self.extra_steps} of them extra ({self.extra_steps / self.length:.2f} per step)"
        )


def fewest_extra_steps(length: int, snapshots: int) -> int:
    """The fewest steps beyond the taped ones that reverse `length` steps from `snapshots` states."""
    sweeps = _sweeps(length, snapshots)
    return sweeps * length - comb(snapshots + sweeps, snapshots + 1)


@lru_cache(maxsize=4096)
def extra_steps(length: int, snapshots: int, chunk: int) -> int:
    """The extra steps of `chunked`, without writing it out.

    The steps that the short first chunk has less than the others are saved each time it is run before its tape.
    """
    count = -(-length // chunk)
    if chunk == 1:
        return fewest_extra_steps(length, snapshots) + 1
    return chunk * fewest_extra_steps(count, snapshots) - (count * chunk - length) * _sweeps(count, snapshots)


@lru_cache(maxsize=64)
def keep_all(length: int) -> Schedule:
    """The schedule that tapes every step on the way forward."""
    _check_length(length)
    return Schedule(length, None, (Action("tape", 0, length),), (Action("reverse", 0, length),), length)


@lru_cache(maxsize=64)
def binomial(length: int, snapshots: int) -> Schedule:
    """The schedule with the fewest extra steps for `snapshots` states, the initial one among them.

    Raises:
        BudgetError: fewer than one snapshot. One works, with length * (length - 1) / 2 + 1 extra steps.
    """
    _check_length(length)
    if snapshots < 1:
        raise BudgetError(
            f"memory={snapshots}: a time loop needs at least 1 snapshot, the initial state, to recompute "
            'its steps from; pass memory=1 or more, or memory="all"'
        )
    forward: list[Action] = [Action("snapshot", 0, 1)]
    held = [0]
    last = length - 1
    _advance(forward, held, last, snapshots)
    if held[-1] != last:
        forward.append(Action("hold", last, length))
    forward.append(Action("advance", last, length))
    backward: list[Action] = []
    for step in reversed(range(length)):
        if step != last or held[-1] == last:
            backward.append(Action("restore", held[-1], held[-1] + 1))
            _advance(backward, held, step, snapshots)
        backward.append(Action("tape", step, step + 1))
        backward.append(Action("reverse", step, step + 1))
        if held[-1] == step:
            backward.append(Action("free", step, step + 1))
            held.pop()
    return Schedule(length, snapshots, tuple(forward), tuple(backward))


@lru_cache(maxsize=64)
def chunked(length: int, snapshots: int, chunk: int) -> Schedule:
    """The schedule that tapes up to `chunk` consecutive steps together, from `snapshots` states between chunks.

    The first chunk is the short one where `chunk` does not divide the length. The tape of the last chunk is made
    on the way forward and kept. With `chunk=1` this is `binomial`, with `chunk >= length` it is `keep_all`.

    Raises:
        BudgetError: fewer than one snapshot where one is needed.
        InputError: a chunk without steps.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk}: steps are taped one by one or more at a time; pass chunk >= 1")
    if chunk == 1:
        return binomial(length, snapshots)
    count = -(-length // chunk)
    if count <= 1:
        return keep_all(length)
    over_chunks = binomial(count, snapshots)
    edges = [0, *range(length - (count - 1) * chunk, length + 1, chunk)]
    last = count - 1
    forward = [_scaled(a, edges) for a in over_chunks.forward if a.kind != "hold" and not _keeps(a, last)]
    forward[-1] = Action("tape", edges[last], length)
    actions = (a for a in over_chunks.backward if not _keeps(a, last) and (a.kind, a.start) != ("tape", last))
    return Schedule(length, snapshots, tuple(forward), tuple(_scaled(a, edges) for a in actions), chunk)


def _keeps(action: Action, at: int) -> bool:
    """Whether an action is about the snapshot of one state."""
    return action.start == at and action.kind in ("snapshot", "restore", "free")


def _scaled(action: Action, edges: list[int]) -> Action:
    """An action on chunks, as one on the steps in them."""
    start = edges[action.start]
    single = action.kind in ("snapshot", "restore", "free")
    return Action(action.kind, start, start + 1 if single else edges[action.stop])


def _advance(actions: list[Action], held: list[int], step: int, snapshots: int) -> None:
    """Go from the newest snapshot to `step`, spending free slots where they save most recomputation."""
    position = held[-1]
    while position < step:
        free = snapshots - len(held)
        target = position + _split(step + 1 - position, free + 1) if free else step
        actions.append(Action("advance", position, target))
        position = target
        if free:
            actions.append(Action("snapshot", position, position + 1))
            held.append(position)


def _split(length: int, snapshots: int) -> int:
    """How far to go before the next snapshot, from `snapshots` >= 2 counting this one, `length` >= 2 ahead.

    With r sweeps needed, going m steps is optimal when C(s+r-2, s) <= m <= C(s+r-1, s) and
    C(s+r-2, s-1) <= length - m <= C(s+r-1, s-1); this is the largest such m, so that snapshots lie late.
    """
    sweeps = _sweeps(length, snapshots)
    return min(comb(snapshots + sweeps - 1, snapshots), length - comb(snapshots + sweeps - 2, snapshots - 1))


def _sweeps(length: int, snapshots: int) -> int:
    """The least r with length <= C(snapshots + r, snapshots): how often a step is run before its tape."""
    sweeps = 0
    while comb(snapshots + sweeps, snapshots) < length:
        sweeps += 1
    return sweeps


def _check_length(length: int) -> None:
    if length < 1:
        raise InputError(
            f"length={length}: a time loop needs at least one step; pass length >= 1 or a longer xs"
        )
