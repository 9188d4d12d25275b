"""Schedules for a number of steps that turns out on the way: states are placed while the loop runs."""

from __future__ import annotations

from gradpath.errors import BudgetError
from gradpath.schedule import Action, Schedule, keep_all, reverse_from


class Online:
    """A forward pass of unknown length with a bounded number of kept states.

    Each kept state has a level. One that lies before another of a higher level can be done without. A new state
    takes a free place, or that of such a one; where there is neither, it takes the place of the newest and is one
    level above it. However long the loop becomes, no step is run more than once more often than the best schedule for
    that length would run its most repeated one (Wang, Moin and Iaccarino 2009, Minimal repetition dynamic
    checkpointing).

    ```python
    online = Online(snapshots=8)
    while condition(state):
        for action in online.before(step):     # the last one is to run the step
            ...
    schedule = online.finish(step)             # with the actions of the backward pass
    ```

    Args:
        snapshots: States to keep at most, the first one among them; None keeps every tape.

    Raises:
        BudgetError: fewer than one snapshot.
    """

    def __init__(self, snapshots: int | None):
        if snapshots is not None and snapshots < 1:
            raise BudgetError(
                f"memory={snapshots}: a time loop needs at least 1 snapshot, the initial state; pass 1 or more"
            )
        self.snapshots = snapshots
        self._held: list[int] = []
        self._levels: list[float] = []
        self._forward: list[Action] = []

    def before(self, step: int) -> list[Action]:
        """Return what to do with the states before a step runs, and how to run it: the last action."""
        if self.snapshots is None:
            return [Action("tape", step, step + 1)]
        actions = [*self._place(step), Action("hold", step, step + 1), Action("advance", step, step + 1)]
        self._forward += (action for action in actions if action.kind != "hold")
        return actions

    def _place(self, step: int) -> list[Action]:
        """Keep the state that enters a step, in a place that is free or can be made free."""
        assert self.snapshots is not None
        if step == 0:
            self._held, self._levels = [0], [float("inf")]
            return [Action("snapshot", 0, 1)]
        if len(self._held) < self.snapshots:
            return self._keep(step, 0)
        highest = self._levels[-1]
        for i in reversed(range(1, len(self._held) - 1)):
            if self._levels[i] < highest:
                return [self._free(i), *self._keep(step, 0)]
            highest = max(highest, self._levels[i])
        if len(self._held) == 1:
            return []
        level = self._levels[-1] + 1
        return [self._free(-1), *self._keep(step, level)]

    def _keep(self, step: int, level: float) -> list[Action]:
        self._held.append(step)
        self._levels.append(level)
        return [Action("snapshot", step, step + 1)]

    def _free(self, index: int) -> Action:
        step = self._held.pop(index)
        del self._levels[index]
        return Action("free", step, step + 1)

    def finish(self, length: int) -> Schedule:
        """Return all that was done for `length` steps, and how to reverse them."""
        if length == 0:
            return Schedule(0, self.snapshots, (), ())
        if self.snapshots is None:
            return keep_all(length)
        last = length - 1
        forward = [*self._forward[:-1], Action("hold", last, length), self._forward[-1]]
        backward: list[Action] = []
        reverse_from(backward, list(self._held), length, self.snapshots, at=last)
        return Schedule(length, self.snapshots, tuple(forward), tuple(backward))
