"""`Memory`: what a time loop may keep. Everything, a number of states, or a budget in bytes."""

from __future__ import annotations

import operator
import time
from typing import Any, Literal

import torch
from torch import Tensor

from gradpath import budget, tree
from gradpath.budget import BudgetPlan, StepCost
from gradpath.errors import BudgetError
from gradpath.loop import Loop
from gradpath.meter import Meter, storage_bytes
from gradpath.replay import DrawGuard, VersionGuard
from gradpath.reverse import Sums
from gradpath.schedule import Schedule, binomial, keep_all
from gradpath.tally import Tally

_REMEMBERED = 16
"""How many measured steps, of different shapes or settings, are remembered."""


class Memory:
    """What a time loop may keep, and what it took.

    ```python
    memory = gp.Memory("200MB", measure=True)
    carry, ys = gp.scan(step, carry, xs, memory=memory)
    ys.sum().backward()
    memory.plan.peak, memory.tally.peak        # predicted and measured, bytes
    ```

    A budget is turned into a plan by measuring one step before the first loop of its kind: two steps are taped and
    reversed, with all they change put back. A `Memory` remembers this for later loops with the same shapes and
    settings, where a plain `"200MB"` measures anew in each call of `scan`.

    Args:
        setting: `"all"`, a number of snapshots, or a size such as `"200MB"` or `"1.5GiB"`. The size holds for what
            the loop adds to the memory of the process between its start and the end of the backward pass, tensors
            of torch on any device. It does not hold for `xs`, their gradient and the stacked `ys`.
        measure: Count bytes, at some microseconds per torch operation: in each loop with True, in the first of each
            plan with "first".

    Attributes:
        plan: How the latest loop keeps within the budget; None without a budget.
        tally: What the latest loop took.

    Raises:
        BudgetError: no known setting.
    """

    def __init__(self, setting: int | str, measure: bool | Literal["first"] = False):
        self.setting = setting
        self.measure = measure
        self.limit: int | None = None
        self.plan: BudgetPlan | None = None
        self.tally: Tally | None = None
        self._metered: BudgetPlan | None = None
        self._costs: dict[Any, StepCost] = {}
        self._plans: dict[tuple[int, StepCost], BudgetPlan] = {}
        if isinstance(setting, str):
            self.limit = None if setting == "all" else budget.parse_size(setting)
        elif hasattr(setting, "__index__") and not isinstance(setting, (bool, Tensor)):
            self.setting = operator.index(setting)
        else:
            raise BudgetError(
                f'memory={setting!r} is not known; pass "all" to keep every tape, a number of snapshots such as 20, '
                'or a budget such as "200MB"'
            )

    @classmethod
    def of(cls, setting: MemoryLike) -> Memory:
        """A setting as a `Memory`; one that is given is used as it is."""
        return setting if isinstance(setting, Memory) else cls(setting)

    def fixed(self, length: int) -> Schedule | None:
        """The schedule for so many steps, None where it takes a measurement.

        Raises:
            BudgetError: fewer than one snapshot.
        """
        if self.limit is not None:
            return None
        if self.setting == "all":
            return keep_all(length)
        assert isinstance(self.setting, int)
        return binomial(length, self.setting)

    def schedule(self, loop: Loop) -> Schedule:
        """The schedule for a loop that is about to run.

        Raises:
            BudgetError: a budget that cannot work.
        """
        fixed = self.fixed(loop.length)
        if fixed is not None:
            return fixed
        plan = self.choose(loop)
        self.plan = plan
        return plan.schedule

    def choose(self, loop: Loop) -> BudgetPlan:
        """The plan of a budget for a loop; its first step is measured where it is not known yet.

        Raises:
            BudgetError: a budget that cannot work, or none.
        """
        if self.limit is None:
            raise BudgetError(f"memory={self.setting!r} is no budget in bytes, so there is nothing to choose")
        cost = self.cost(loop)
        key = (loop.length, cost)
        if key not in self._plans:
            _make_room(self._plans)
            self._plans[key] = budget.choose(loop.length, self.limit, cost)
        return self._plans[key]

    def cost(self, loop: Loop) -> StepCost:
        """What one step of a loop costs, measured where it is not known yet."""
        key = _kind(loop)
        if key not in self._costs:
            _make_room(self._costs)
            self._costs[key] = measure(loop)
        return self._costs[key]

    def begin(self, length: int) -> Tally:
        """Start to count a loop."""
        peak = None
        if self.measure == "first" and self.tally is not None and self.tally.complete:
            peak = self.tally.peak if self._metered is self.plan and self.tally.length == length else None
        self._metered = self.plan
        self.tally = Tally(length, Meter() if self.measure and peak is None else None, peak)
        return self.tally

    def __reduce__(self) -> Any:
        """Copies know the setting and measure anew."""
        return Memory, (self.setting, self.measure)

    def __repr__(self) -> str:
        return f"Memory({self.setting!r})"


MemoryLike = int | str | Memory
"""`"all"`, a number of snapshots, a size such as `"200MB"`, or a `Memory`."""


def measure(loop: Loop) -> StepCost:
    """Measure what one step costs, by taping and reversing the first two; leaves everything as it was.

    The second step tells what each further one adds. The first would count caches that are made once. What both
    gave is kept as checksums: the loop refuses a step that gives another value when it runs.

    Raises:
        ContractError: a step writes or draws where it does not say so, which could not be put back.
    """
    count = min(2, loop.length)
    before = loop.effects.snapshot(tree.generators([*loop.carry.leaves, *loop.xs.leaves]))
    writes, draws = VersionGuard(loop.watched()), DrawGuard(loop.effects.generators)
    meter = Meter()
    try:
        with loop.ambient.entered(), meter:
            if loop.recorder is not None:
                with meter.ignoring():
                    loop.recording = loop.recorder.begin(
                        count, loop.carry.leaves, loop.leaves, loop.decay, loop.cut
                    )
            cost = _measured(loop, count, meter)
        writes.check("by a step")
        draws.check(count - 1)
        return cost
    finally:
        before.restore()
        loop.recording = None
        loop.used.clear()


def _measured(loop: Loop, count: int, meter: Meter) -> StepCost:
    segments, taped = [], [meter.live]
    carry = [tree.detach(leaf) for leaf in loop.carry.leaves]
    for step in range(count):
        older = carry
        meter.peak = meter.live
        start = time.perf_counter()
        segments.append(loop.tape(step, carry, as_later=True)[0])
        forward_seconds = time.perf_counter() - start
        carry = segments[-1].detached_carry()
        with meter.ignoring():
            loop.repeats.check(step, [*carry, *segments[-1].ys])
        taped.append(meter.live)
    forward_bytes = meter.peak - taped[-2]
    state = loop.effects.snapshot(carry)
    kept = [*state.carry, *(s for _, s in state.generators), *(value for _, value in state.buffers)]
    carry_bytes = storage_bytes(kept, beside=older)
    with meter.ignoring(), torch.no_grad():
        y_grads = [_zeros(y, count) for y in segments[-1].ys]
    with torch.no_grad():
        adjoint = [torch.zeros_like(leaf) if tree.is_differentiable(leaf) else None for leaf in carry]
    del state, kept, carry, older
    sums = Sums(adjoint, y_grads, count, loop.decay, uncounted=meter.ignoring)
    del adjoint
    reverse_bytes = 0
    with torch.no_grad():
        for step in reversed(range(count)):
            meter.peak = meter.live
            start = time.perf_counter()
            loop.reverse(segments.pop(), sums)
            reverse_seconds = time.perf_counter() - start
            reverse_bytes = max(reverse_bytes, meter.peak - taped[step + 1])
    return StepCost(
        carry_bytes, max(0, taped[-1] - taped[-2]), forward_bytes, max(0, reverse_bytes),
        forward_seconds, reverse_seconds,
    )  # fmt: skip


def _make_room(remembered: dict[Any, Any]) -> None:
    while len(remembered) >= _REMEMBERED:
        del remembered[next(iter(remembered))]


def _zeros(y: Any, count: int) -> Tensor | None:
    if not tree.is_differentiable(y):
        return None
    return torch.zeros((count, *y.shape), dtype=y.dtype, device=y.device)


def _kind(loop: Loop) -> Any:
    """What the cost of a step depends on, as far as it can be seen from outside."""

    def form(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return type(leaf)
        return tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad

    leaves = [*loop.carry.leaves, *loop.constant_leaves, *loop.captured.tensors.values()]
    xs = [form(leaf[:1]) if isinstance(leaf, Tensor) else type(leaf) for leaf in loop.xs.leaves]
    ambient = (loop.ambient.mode, *loop.ambient.autocast, loop.recorder is None)
    return loop.length > 1, tuple(map(form, leaves)), tuple(xs), ambient
