"""Byte budgets: how many states and tapes fit, what is stored elsewhere, and which plan costs the least."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gradpath.errors import BudgetError
from gradpath.schedule import (
    Schedule,
    chunked,
    cost_of_periods,
    extra_steps,
    in_periods,
    keep_all,
)

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class StepCost:
    """What one step costs, measured.

    Attributes:
        carry_bytes: One kept state: the carry, generator states and declared buffers.
        tape_bytes: What the tape of one more step keeps, its outputs among it.
        forward_bytes: The peak of one taped step beyond what was there before.
        reverse_bytes: The peak of reversing one step beyond its tape: adjoints, and the sums of the gradients of
            parameters.
        forward_seconds, reverse_seconds: Time to run and to reverse a taped step.
        store_seconds: Time to write a state to the second place and to read it back; None where there is none.
        working_bytes: The tensors of the carry alone; None for as much as a kept state.
    """

    carry_bytes: int
    tape_bytes: int
    forward_bytes: int
    reverse_bytes: int
    forward_seconds: float = 1.0
    reverse_seconds: float = 2.0
    store_seconds: float | None = None
    working_bytes: int | None = None

    def peak(self, snapshots: int, chunk: int) -> int:
        """The largest memory with so many states and tapes at a time.

        Beside the kept states there is one that a chunk starts from, or that the loop has got to.
        """
        reversing = chunk * self.tape_bytes + self.reverse_bytes
        last_tape = (chunk - 1) * self.tape_bytes + self.forward_bytes
        advancing = self.carry_bytes + self.forward_bytes
        if snapshots == 0:
            return max(reversing, last_tape)
        return (snapshots + 1) * self.carry_bytes + max(reversing, last_tape, advancing)

    def peak_of_period(self, period: int) -> int:
        """The largest memory where every period starts from a stored state and is taped as a whole.

        Beside the working state and the last one, which was returned, there are the tapes, or all of a state that is
        being read back while there are sums of gradients already.
        """
        working = self.carry_bytes if self.working_bytes is None else self.working_bytes
        running = 2 * working + max(self.peak(0, period), self.forward_bytes)
        return max(running, working + self.carry_bytes + self.reverse_bytes)


@dataclass(frozen=True)
class BudgetPlan:
    """How a time loop keeps within a budget.

    Attributes:
        limit: The budget in bytes.
        cost: What one step costs.
        slots: States that are kept in memory at most, 0 where every tape is, or every start of a chunk is stored.
        chunk: Steps that are taped together.
        schedule: All actions; says how many states are stored in the second place.
    """

    limit: int | None
    cost: StepCost
    slots: int
    chunk: int
    schedule: Schedule

    @property
    def peak(self) -> int:
        """The predicted peak in bytes, without `xs`, its gradient and the stacked `ys`."""
        if self.schedule.stored and not self.slots:
            return self.cost.peak_of_period(self.chunk)
        return self.cost.peak(self.slots, self.chunk)

    @property
    def slowdown(self) -> float:
        """The predicted time relative to keeping every tape."""
        once = self.schedule.length * (self.cost.forward_seconds + self.cost.reverse_seconds)
        more = self.schedule.extra_steps * self.cost.forward_seconds
        more += self.schedule.stored * (self.cost.store_seconds or 0.0)
        return 1.0 + more / once if once else 1.0


@dataclass(frozen=True)
class _Candidate:
    """A plan that has not been written out."""

    extra: int
    stored: int
    peak: int
    slots: int
    chunk: int
    period: int | None = None

    def price(self, cost: StepCost) -> tuple[float, int, int, int]:
        """What a plan costs in forward steps; of equals, the one that needs the least."""
        storing = 0.0
        if self.stored and cost.store_seconds is not None:
            storing = self.stored * cost.store_seconds / max(cost.forward_seconds, 1e-9)
        return self.extra + storing, self.peak, self.slots, self.chunk

    def schedule(self, length: int) -> Schedule:
        if self.period is None:
            return chunked(length, self.slots, self.chunk)
        return in_periods(length, self.period, self.slots)


def choose(length: int, limit: int, cost: StepCost) -> BudgetPlan:
    """Return the plan with the fewest extra steps within a budget; of equals, the one that needs the least.

    Where states can be stored in a second place, its time is counted too, in forward steps.

    Args:
        length: The number of steps T.
        limit: The budget in bytes.
        cost: What one step costs.

    Raises:
        BudgetError: no plan fits; tells the smallest budget that would do.
    """
    if cost.peak(0, length) <= limit:
        return BudgetPlan(limit, cost, 0, length, keep_all(length))
    found = [*_in_memory(length, limit, cost)]
    if cost.store_seconds is not None:
        found += _taped_periods(length, limit, cost)
        if cost.peak(1, 1) <= limit:
            found += _stored(length, cost, lambda period: _slots(period, 1, limit, cost))
    if not found:
        raise _too_small(length, limit, cost)
    best = min(found, key=lambda candidate: candidate.price(cost))
    return BudgetPlan(limit, cost, best.slots, best.chunk, best.schedule(length))


def choose_stored(length: int, snapshots: int, cost: StepCost) -> BudgetPlan:
    """Return the plan with so many states in memory, and as many in the second place as save time."""
    found = [_Candidate(extra_steps(length, snapshots, 1), 0, cost.peak(snapshots, 1), snapshots, 1)]
    found += _stored(length, cost, lambda period: min(period, snapshots))
    best = min(found, key=lambda candidate: candidate.price(cost))
    return BudgetPlan(None, cost, best.slots, 1, best.schedule(length))


def choose_slots(limit: int, cost: StepCost) -> int:
    """Return how many states fit where the number of steps is not known.

    Raises:
        BudgetError: not even one; tells the smallest budget that would do.
    """
    if cost.peak(1, 1) > limit:
        raise _too_small(None, limit, cost)
    return 1 + (limit - cost.peak(1, 1)) // max(1, cost.carry_bytes)


def _in_memory(length: int, limit: int, cost: StepCost) -> Iterator[_Candidate]:
    for chunk in range(1, length):
        if cost.peak(1, chunk) > limit:
            break
        slots = _slots(length, chunk, limit, cost)
        yield _Candidate(extra_steps(length, slots, chunk), 0, cost.peak(slots, chunk), slots, chunk)


def _taped_periods(length: int, limit: int, cost: StepCost) -> Iterator[_Candidate]:
    for period in range(1, length):
        if cost.peak_of_period(period) > limit:
            break
        yield _Candidate(*cost_of_periods(length, period, 0), cost.peak_of_period(period), 0, period, period)


def _stored(length: int, cost: StepCost, slots_of: Callable[[int], int]) -> Iterator[_Candidate]:
    for period in range(2, length):
        slots = slots_of(period)
        yield _Candidate(*cost_of_periods(length, period, slots), cost.peak(slots, 1), slots, 1, period)


def _too_small(length: int | None, limit: int, cost: StepCost) -> BudgetError:
    least = cost.peak(1, 1) if length is None else min(cost.peak(1, 1), cost.peak(0, length))
    if cost.store_seconds is not None:
        least = min(least, cost.peak_of_period(1))
    return BudgetError(
        f"a budget of {format_size(limit)} cannot work: one kept state is {format_size(cost.carry_bytes)}, the "
        f"tape of one step {format_size(cost.tape_bytes)}, and reversing it takes "
        f"{format_size(cost.reverse_bytes)} more; the smallest budget that works is {least} bytes "
        f"({format_size(least)})"
    )


def parse_size(text: str) -> int:
    """Read a size such as `"200MB"` (powers of ten) or `"1.5 GiB"` (powers of two) into bytes.

    Raises:
        BudgetError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]+)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise BudgetError(
            f'memory={text!r} is not known; pass "all" to keep every tape, a number of snapshots such as 20, or a '
            'budget such as "200MB" or "1.5GiB"'
        )
    return math.floor(float(match[1]) * _UNITS[match[2].upper()])


def format_size(size: int) -> str:
    """A size in the unit that reads best, in powers of ten."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} bytes"


def _slots(length: int, chunk: int, limit: int, cost: StepCost) -> int:
    """How many states fit beside a chunk of tapes; more than one for each chunk but the last are of no use."""
    most = max(1, -(-length // chunk) - 1)
    if cost.carry_bytes == 0:
        return most
    return min(most, 1 + (limit - cost.peak(1, chunk)) // cost.carry_bytes)
