"""Byte budgets: how many states and tapes fit, and which of them cost the fewest extra steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gradpath.errors import BudgetError
from gradpath.schedule import Schedule, chunked, extra_steps, keep_all

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
    """

    carry_bytes: int
    tape_bytes: int
    forward_bytes: int
    reverse_bytes: int
    forward_seconds: float = 1.0
    reverse_seconds: float = 2.0

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


@dataclass(frozen=True)
class BudgetPlan:
    """How a time loop keeps within a budget.

    Attributes:
        limit: The budget in bytes.
        cost: What one step costs.
        slots: States that are kept at most, 0 where every tape is.
        chunk: Steps that are taped together.
        schedule: All actions.
    """

    limit: int
    cost: StepCost
    slots: int
    chunk: int
    schedule: Schedule

    @property
    def peak(self) -> int:
        """The predicted peak in bytes, without `xs`, its gradient and the stacked `ys`."""
        return self.cost.peak(self.slots, self.chunk)

    @property
    def slowdown(self) -> float:
        """The predicted time relative to keeping every tape."""
        once = self.schedule.length * (self.cost.forward_seconds + self.cost.reverse_seconds)
        return 1.0 + self.schedule.extra_steps * self.cost.forward_seconds / once if once else 1.0


def choose(length: int, limit: int, cost: StepCost) -> BudgetPlan:
    """Return the plan with the fewest extra steps within a budget; of equals, the one that needs the least.

    Args:
        length: The number of steps T.
        limit: The budget in bytes.
        cost: What one step costs.

    Raises:
        BudgetError: no plan fits; tells the smallest budget that would do.
    """
    if cost.peak(0, length) <= limit:
        return BudgetPlan(limit, cost, 0, length, keep_all(length))
    ranked = []
    for chunk in range(1, length):
        if cost.peak(1, chunk) > limit:
            break
        slots = _slots(length, chunk, limit, cost)
        ranked.append((extra_steps(length, slots, chunk), cost.peak(slots, chunk), slots, chunk))
    if not ranked:
        least = min(cost.peak(1, 1), cost.peak(0, length))
        raise BudgetError(
            f"a budget of {format_size(limit)} cannot work: one kept state is {format_size(cost.carry_bytes)}, the "
            f"tape of one step {format_size(cost.tape_bytes)}, and reversing it takes "
            f"{format_size(cost.reverse_bytes)} more; the smallest budget that works is {least} bytes "
            f"({format_size(least)})"
        )
    _, _, slots, chunk = min(ranked)
    return BudgetPlan(limit, cost, slots, chunk, chunked(length, slots, chunk))


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
