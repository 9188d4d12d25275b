"""When a time loop keeps states, recomputes steps and reverses them: a plan as data, apart from running it.

With `s` snapshots and `r` such that `C(s+r-1, s) < T <= C(s+r, s)`, reversing `T` steps needs at least
`r*T - C(s+r, s+1)` steps beyond the `T` that are taped (Griewank and Walther 2000, algorithm 799, with
the initial state counted as a snapshot). The schedules here need exactly that, and one step more: the
loop must return its last state before the backward pass begins.
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
        return (
            f"{self.length} steps, keeping {kept}: {self.step_calls} step calls, "
            f"{self.extra_steps} of them extra ({self.extra_steps / self.length:.2f} per step)"
        )


def fewest_extra_steps(length: int, snapshots: int) -> int:
    """The fewest steps beyond the taped ones that reverse `length` steps from `snapshots` states."""
    sweeps = _sweeps(length, snapshots)
    return sweeps * length - comb(snapshots + sweeps, snapshots + 1)


@lru_cache(maxsize=64)
def keep_all(length: int) -> Schedule:
    """The schedule that tapes every step on the way forward."""
    _check_length(length)
    return Schedule(length, None, (Action("tape", 0, length),), (Action("reverse", 0, length),))


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
