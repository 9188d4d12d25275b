"""When a time loop keeps states, recomputes steps and reverses them: a plan as data, apart from running it.

With `s` snapshots and `r` such that `C(s+r-1, s) < T <= C(s+r, s)`, reversing `T` steps needs at least
`r*T - C(s+r, s+1)` steps beyond the `T` that are taped (Griewank and Walther 2000, algorithm 799, with
the initial state counted as a snapshot). The schedules here need exactly that, and one step more: the
loop must return its last state before the backward pass begins.

Where memory is left, several consecutive steps (a chunk) are taped together: the same schedule over chunks,
with the last chunk taped on the way forward.

Where there is a second, slower place for states (files, the host of a GPU), one is stored there at even
distances, and what lies between two is reversed as above. Even distances are close to the best that two levels
allow (Aupy and Herrmann 2017, Periodicity in optimal hierarchical checkpointing schemes).

How many steps there are may also turn out on the way: see `gradpath.online`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import comb
from typing import TYPE_CHECKING, Literal, NamedTuple

from gradpath.errors import BudgetError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["snapshot", "advance", "hold", "restore", "tape", "reverse", "free", "store", "load", "drop"]


class Action(NamedTuple):
    """One thing to do, to the steps `start <= t < stop` or to the state that enters step `start`.

    snapshot: keep the state. free: drop it. restore: make it the working state again.
    hold: leave the working state as it is for the backward pass to begin with.
    advance: run the steps without a tape. tape: run them with one. reverse: turn the tapes into gradients,
    last step first, and drop them.
    store: write the state to the second place. load: make it the working state again. drop: delete it there.
    """

    kind: Kind
    start: int
    stop: int

    def __str__(self) -> str:
        span = self.stop - self.start
        return f"{self.kind} {self.start}" + (f"..{self.stop - 1}" if span > 1 else "")


@dataclass(frozen=True)
class Schedule:
    """The actions of a forward and of a backward pass through `length` steps.

    Attributes:
        length: Time steps T.
        snapshots: States that memory has room for; None where every tape is kept.
        forward, backward: What is done in the two passes.
        chunk: Steps that are taped together.
    """

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

    def figure(self) -> Figure:
        """Return a matplotlib figure: time steps over the course of the work, and what is kept meanwhile."""
        from gradpath.schedule_figure import draw

        return draw(self)

    @property
    def peak_snapshots(self) -> int:
        """The largest number of snapshots that exist at one time."""
        return self._peak("snapshot", "free")

    @property
    def stored(self) -> int:
        """The largest number of states in the second place at one time."""
        return self._peak("store", "drop")

    def _peak(self, begin: Kind, end: Kind) -> int:
        held = peak = 0
        for action in self.actions:
            held += (action.kind == begin) - (action.kind == end)
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
        kept += f", storing {self.stored} states" if self.stored else ""
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
    forward: list[Action] = []
    held = _run_ahead(forward, 0, length, snapshots)
    backward: list[Action] = []
    reverse_from(backward, held, length, snapshots, at=length - 1)
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
    edges = _edges(length, chunk)
    last = count - 1
    forward = [_scaled(a, edges) for a in over_chunks.forward if a.kind != "hold" and not _keeps(a, last)]
    forward[-1] = Action("tape", edges[last], length)
    actions = (a for a in over_chunks.backward if not _keeps(a, last) and (a.kind, a.start) != ("tape", last))
    return Schedule(length, snapshots, tuple(forward), tuple(_scaled(a, edges) for a in actions), chunk)


@lru_cache(maxsize=64)
def in_periods(length: int, period: int, snapshots: int) -> Schedule:
    """The schedule that stores a state every `period` steps and reverses each period from `snapshots` states.

    With `snapshots=0` the steps of a period are taped together. The first period is the short one, and the last
    one needs no stored state. One period alone is `binomial` or `keep_all`.

    Raises:
        InputError: a period without steps.
    """
    if period < 1:
        raise InputError(f"period={period}: states are stored every so many steps; pass period >= 1")
    edges = _edges(length, period)
    if len(edges) == 2:
        return binomial(length, snapshots) if snapshots else keep_all(length)
    *earlier, last = pairwise(edges)
    forward: list[Action] = []
    backward: list[Action] = []
    for start, stop in earlier:
        forward += [Action("store", start, start + 1), Action("advance", start, stop)]
    if snapshots:
        held = _run_ahead(forward, *last, snapshots)
        reverse_from(backward, held, length, snapshots, at=length - 1)
    else:
        forward.append(Action("tape", *last))
        backward.append(Action("reverse", *last))
    for start, stop in reversed(earlier):
        backward.append(Action("load", start, start + 1))
        if snapshots:
            held = []
            _advance(backward, held, start, stop - 1, snapshots)
            reverse_from(backward, held, stop, snapshots, at=stop - 1)
        else:
            backward += [Action("tape", start, stop), Action("reverse", start, stop)]
        backward.append(Action("drop", start, start + 1))
    return Schedule(length, snapshots, tuple(forward), tuple(backward), 1 if snapshots else period)


def cost_of_periods(length: int, period: int, snapshots: int) -> tuple[int, int]:
    """The extra steps of `in_periods` and the states it stores, without writing it out."""
    edges = _edges(length, period)
    *earlier, last = [stop - start for start, stop in pairwise(edges)]
    if not snapshots:
        return length - last, len(earlier)
    reversing = sum(n * (fewest_extra_steps(size, snapshots) + size) for size, n in Counter(earlier).items())
    return reversing + fewest_extra_steps(last, snapshots) + 1, len(earlier)


def _edges(length: int, period: int) -> list[int]:
    """Where periods or chunks begin, and where the last one ends; the first one may be short."""
    _check_length(length)
    count = -(-length // period)
    return [0, *range(length - (count - 1) * period, length + 1, period)]


def _keeps(action: Action, at: int) -> bool:
    """Whether an action is about the snapshot of one state."""
    return action.start == at and action.kind in ("snapshot", "restore", "free")


def _scaled(action: Action, edges: list[int]) -> Action:
    """An action on chunks, as one on the steps in them."""
    start = edges[action.start]
    single = action.kind in ("snapshot", "restore", "free")
    return Action(action.kind, start, start + 1 if single else edges[action.stop])


def _run_ahead(actions: list[Action], start: int, stop: int, snapshots: int) -> list[int]:
    """Run the steps from `start` on without tapes, as the forward pass does; returns which states are kept then."""
    held: list[int] = []
    _advance(actions, held, start, stop - 1, snapshots)
    if held[-1] != stop - 1:
        actions.append(Action("hold", stop - 1, stop))
    actions.append(Action("advance", stop - 1, stop))
    return held


def _advance(actions: list[Action], held: list[int], start: int, step: int, snapshots: int) -> None:
    """Go from the working state `start` to `step`, spending free slots where they save most recomputation."""
    position = start
    if not held:
        actions.append(Action("snapshot", start, start + 1))
        held.append(start)
    while position < step:
        free = snapshots - len(held)
        target = position + _split(step + 1 - position, free + 1) if free else step
        actions.append(Action("advance", position, target))
        position = target
        if free:
            actions.append(Action("snapshot", position, position + 1))
            held.append(position)


def reverse_from(actions: list[Action], held: list[int], stop: int, snapshots: int, at: int) -> None:
    """Tape and reverse, one by one, the steps before `stop` down to the first state that is held.

    Args:
        actions: Takes what is to be done.
        held: The states that are kept, in their order, used up.
        stop: The step after the last one.
        snapshots: States that there is room for.
        at: The working state.
    """
    first = held[0]
    for step in reversed(range(first, stop)):
        if step != at or held[-1] == step:
            actions.append(Action("restore", held[-1], held[-1] + 1))
            _advance(actions, held, held[-1], step, snapshots)
        actions += [Action("tape", step, step + 1), Action("reverse", step, step + 1)]
        if held[-1] == step:
            actions.append(Action("free", step, step + 1))
            held.pop()


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
