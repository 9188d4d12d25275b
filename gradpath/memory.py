"""`Memory`: what a time loop may keep. Everything, a number of states, or a budget in bytes."""

from __future__ import annotations

import operator
import os
import time
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from gradpath import budget, tree
from gradpath.budget import BudgetPlan, StepCost
from gradpath.config import Configured
from gradpath.errors import BudgetError
from gradpath.loop import Loop
from gradpath.meter import Meter, storage_bytes
from gradpath.online import Online
from gradpath.replay import DrawGuard, Snapshot, VersionGuard
from gradpath.reverse import Sums
from gradpath.schedule import Schedule, binomial, keep_all
from gradpath.store import FileStore, HostStore, Store
from gradpath.tally import Tally

_REMEMBERED = 16
"""How many measured steps, of different shapes or settings, are remembered."""


class Memory(Configured):
    """What a time loop may keep, and what it took.

    ```python
    memory = gp.Memory("200MB", measure=True)
    carry, ys = gp.scan(step, carry, xs, memory=memory)
    ys.sum().backward()
    memory.plan.peak, memory.tally.peak        # predicted and measured, bytes
    ```

    A budget is turned into a plan by measuring one step before the first loop of its kind: two steps run and
    one is reversed, with all they change put back. A `Memory` remembers this for later loops with the same shapes and
    settings, where a plain `"200MB"` measures anew in each call of `scan`.

    A loop that is very long has a second place for its states: `folder` on a disk, or with `host` the memory beside
    a GPU. What one state takes to write and read is measured too, and as many are stored there as save time.

    Args:
        setting: `"all"`, a number of snapshots, or a size such as `"200MB"` or `"1.5GiB"`. The size holds for what
            the loop adds to the memory of the process between its start and the end of the backward pass, tensors
            of torch on any device. It does not hold for `xs`, their gradient and the stacked `ys`.
        measure: Count bytes, at some microseconds per torch operation: in each loop with True, in the first of each
            plan with "first".
        folder: Where states may be written to files. They are gone with the loop.
        host: States may be copied to the memory of the host, where steps run on a GPU; refused on the CPU.

    Attributes:
        plan: How the latest loop keeps within the budget; None without a budget or a second place.
        tally: What the latest loop took.

    Raises:
        BudgetError: no known setting, or a second place for states where none are kept.
    """

    def __init__(
        self,
        setting: int | str,
        measure: bool | Literal["first"] = False,
        *,
        folder: str | os.PathLike[str] | None = None,
        host: bool = False,
    ):
        self.setting = setting
        self.measure = measure
        self.folder, self.host = folder, host
        self.limit: int | None = None
        self.plan: BudgetPlan | None = None
        self.tally: Tally | None = None
        self._metered: BudgetPlan | None = None
        self._online_cost: StepCost | None = None
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
        if folder is not None and host:
            raise BudgetError("states are stored in a folder or on the host, not in both; pass one of them")
        if self.stores and setting == "all":
            raise BudgetError(
                'memory="all" keeps every tape and no states, so there are none to store; pass a number of '
                'snapshots or a budget such as "200MB" with folder= or host='
            )

    @property
    def stores(self) -> bool:
        """Whether there is a second place for states."""
        return self.folder is not None or self.host

    @classmethod
    def of(cls, setting: MemoryLike) -> Memory:
        """A setting as a `Memory`; one that is given is used as it is."""
        return setting if isinstance(setting, Memory) else cls(setting)

    def fixed(self, length: int) -> Schedule | None:
        """The schedule for so many steps, None where it takes a measurement.

        Raises:
            BudgetError: fewer than one snapshot.
        """
        if self.setting == "all":
            return keep_all(length)
        schedule = binomial(length, self.setting) if isinstance(self.setting, int) else None
        return None if self.stores else schedule

    def schedule(self, loop: Loop) -> Schedule | Online:
        """The schedule for a loop that is about to run.

        Raises:
            BudgetError: a budget that cannot work.
        """
        self.plan = None
        if loop.condition is not None:
            return Online(self._slots_online(loop))
        fixed = self.fixed(loop.length)
        if fixed is not None:
            return fixed
        self.plan = self.choose(loop)
        return self.plan.schedule

    def ran(self, loop: Loop) -> None:
        """Take note of a forward pass: with a budget, of the plan of a loop whose length turned out on the way."""
        schedule = loop.schedule
        cost, self._online_cost = self._online_cost, None
        if cost is not None and schedule is not None:
            self.plan = BudgetPlan(self.limit, cost, schedule.snapshots or 0, 1, schedule)

    @property
    def plans(self) -> bool:
        """Whether what is kept depends on a measurement: a budget in bytes, or a second place for states."""
        return self.limit is not None or self.stores

    def _slots_online(self, loop: Loop) -> int | None:
        """How many states a loop of unknown length may keep; None for every tape."""
        if self.stores:
            raise BudgetError(
                "states can be stored in a second place only where the number of steps is known; leave out folder= "
                "and host=, or give length= without a condition"
            )
        if self.limit is not None:
            if not loop.goes_on(0, loop.carry.leaves):
                return 1
            self._online_cost = self.cost(loop)
            return budget.choose_slots(self.limit, self._online_cost)
        return self.setting if isinstance(self.setting, int) else None

    def choose(self, loop: Loop) -> BudgetPlan:
        """The plan of a budget for a loop; its first step is measured where it is not known yet.

        Raises:
            BudgetError: a budget that cannot work, or none.
        """
        if not self.plans:
            raise BudgetError(f"memory={self.setting!r} is no budget in bytes, so there is nothing to choose")
        cost = self.cost(loop)
        key = (loop.length, cost)
        if key not in self._plans:
            _make_room(self._plans)
            if self.limit is None:
                assert isinstance(self.setting, int)
                self._plans[key] = budget.choose_stored(loop.length, self.setting, cost)
            else:
                self._plans[key] = budget.choose(loop.length, self.limit, cost)
        return self._plans[key]

    def open_store(self, loop: Loop) -> Store | None:
        """The second place for states, None where there is none."""
        if self.folder is not None:
            return FileStore(self.folder)
        if self.host and not any(tensor.device.type != "cpu" for _, tensor in loop.carry.tensors):
            raise BudgetError(
                "host=True stores states beside a GPU, and this carry lies on the CPU, in that same memory; leave it "
                "out, or name a folder= to store states on a disk"
            )
        return HostStore() if self.host else None

    def cost(self, loop: Loop) -> StepCost:
        """What one step of a loop costs, measured where it is not known yet."""
        key = _kind(loop)
        if key not in self._costs:
            _make_room(self._costs)
            self._costs[key] = measure(loop, self.open_store(loop))
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
        return partial(Memory, folder=self.folder, host=self.host), (self.setting, self.measure)

    def __repr__(self) -> str:
        place = f", folder={os.fspath(self.folder)!r}" if self.folder is not None else ""
        return f"Memory({self.setting!r}{place}{', host=True' if self.host else ''})"


MemoryLike = int | str | Memory
"""`"all"`, a number of snapshots, a size such as `"200MB"`, or a `Memory`."""


def measure(loop: Loop, store: Store | None = None) -> StepCost:
    """Measure what one step costs, by running the first two; leaves everything as it was.

    The second step tells what each further one takes. The first would count caches that are made once. What both
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
            cost = _measured(loop, count, meter, store)
        writes.check("by a step")
        draws.check(count - 1)
        return cost
    finally:
        before.restore()
        loop.recording = None
        loop.used.clear()
        if store is not None:
            store.close()


def _measured(loop: Loop, count: int, meter: Meter, store: Store | None) -> StepCost:
    segment = None
    carry = [tree.detach(leaf) for leaf in loop.carry.leaves]
    for step in range(count):
        if step and not loop.goes_on(step, carry):
            break
        older, segment = carry, None  # two tapes at once might be more than the budget
        before = meter.peak = meter.live
        start = time.perf_counter()
        segment = loop.tape(step, carry, as_later=True)[0]
        forward_seconds = time.perf_counter() - start
        carry = segment.detached_carry()
        taped, forward_bytes = meter.live, meter.peak - before
        with meter.ignoring():
            loop.repeats.check(step, [*carry, *segment.ys])
    assert segment is not None
    state = loop.effects.snapshot(carry)
    carry_bytes = storage_bytes(state.tensors, beside=older)
    working_bytes = storage_bytes(tree.tensors(carry), beside=older)
    with meter.ignoring(), torch.no_grad():
        store_seconds = None if store is None else _seconds_to_store(store, state)
        y_grads = [_zeros(y, count) for y in segment.ys]
    with torch.no_grad():
        adjoint = [torch.zeros_like(leaf) if tree.is_differentiable(leaf) else None for leaf in carry]
    del state, carry, older
    sums = Sums(adjoint, y_grads, count, loop.decay, uncounted=meter.ignoring)
    del adjoint
    segments = [segment]  # popped below, so that nothing here holds on to the tape
    del segment
    with torch.no_grad():
        meter.peak = meter.live
        start = time.perf_counter()
        loop.reverse(segments.pop(), sums)
        reverse_seconds = time.perf_counter() - start
    # In a longer loop there are sums of the gradients of earlier steps beside those of this one.
    reverse_bytes = meter.peak - taped + (storage_bytes(sums.shared) if loop.length > 1 else 0)
    return StepCost(
        carry_bytes, max(0, taped - before), forward_bytes, max(0, reverse_bytes),
        forward_seconds, reverse_seconds, store_seconds, working_bytes,
    )  # fmt: skip


def _seconds_to_store(store: Store, state: Snapshot) -> float:
    """The time to write a state and to read it back."""
    start = time.perf_counter()
    store.put(0, state)
    store.get(0)
    return time.perf_counter() - start


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
