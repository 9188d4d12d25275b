"""Plans of rollouts: what is kept and recomputed, as predicted, and as it came out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gradpath.budget import BudgetPlan, format_size
from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.memory import MemoryLike
from gradpath.pipeline import Pipeline
from gradpath.schedule import Schedule
from gradpath.specs import DictSpec, Spec, TensorSpec
from gradpath.tally import Tally


@dataclass(frozen=True)
class Plan:
    """What a rollout keeps and recomputes.

    Attributes:
        schedule: Its actions, step calls and extra steps.
        memory: The setting it follows.
        batch: Worlds, as asked for.
        carry_bytes: The size of one carry in float32, None where it is not known from the contracts.
        budget: Slots, chunk and predicted peak, where the setting is a budget in bytes or stores states elsewhere.
        tally: What the latest run took, None before its backward pass.
    """

    schedule: Schedule
    memory: MemoryLike
    batch: int | None = None
    carry_bytes: int | None = None
    budget: BudgetPlan | None = None
    tally: Tally | None = None

    @property
    def slots(self) -> int:
        """States that are kept at most."""
        return self.schedule.peak_snapshots

    @property
    def chunk(self) -> int:
        """Steps that are taped together."""
        return self.schedule.chunk

    @property
    def extra_steps(self) -> int:
        """Step calls beyond one per time step."""
        return self.schedule.extra_steps

    def __str__(self) -> str:
        lines = [f"memory={self.memory!r}: {self.schedule}"]
        if self.budget is not None:
            lines += self._predicted(self.budget)
        elif self.carry_bytes is not None:
            kept = self.carry_bytes * max(self.slots, 1)
            lines[0] += (
                f"; one carry of {self.batch} worlds {self.carry_bytes:,} bytes, all snapshots {kept:,} bytes"
            )
        if self.tally is not None:
            lines.append(self._measured(self.tally))
        return "\n".join(lines)

    def _predicted(self, plan: BudgetPlan) -> list[str]:
        worlds = "" if self.batch is None else f", {self.batch} worlds"
        limit = "" if plan.limit is None else f" of {format_size(plan.limit)}"
        cost = plan.cost
        return [
            f"slots: {plan.slots}, chunk: {plan.chunk}, extra steps: {plan.schedule.extra_steps}"
            + (f", stored states: {plan.schedule.stored}" if plan.schedule.stored else ""),
            f"one step{worlds}: kept state {format_size(cost.carry_bytes)}, tape {format_size(cost.tape_bytes)}, "
            f"reversing {format_size(cost.reverse_bytes)}",
            f"predicted: peak {format_size(plan.peak)}{limit}, slow-down {plan.slowdown:.2f}",
        ]

    def _measured(self, tally: Tally) -> str:
        peak = "" if tally.peak is None else f"peak {format_size(tally.peak)}, "
        beside = {"ys": tally.ys_bytes, "gradient of xs": tally.xs_bytes}
        outside = ", ".join(f"{name} {format_size(size)}" for name, size in beside.items() if size)
        return f"measured:  {peak}slow-down {tally.slowdown:.2f}, extra steps {tally.extra_steps}" + (
            f"; beside the budget: {outside}" if outside else ""
        )


def carry_bytes(step: Pipeline, names: Iterable[str], batch: int) -> int | None:
    """The size of some inputs of a pipeline in float32; None where it is not known from the contracts."""
    parts = [_bytes(step.contract.input_specs[name], batch) for name in names]
    return None if None in parts else sum(part for part in parts if part is not None)


def example_inputs(
    contract: Contract, optional: Iterable[str], batch: int | None, given: Iterable[str]
) -> dict[str, Any]:
    """Make up the inputs of a contract that are not given and may not be left out.

    Raises:
        InputError: an input whose shape is not known from the contract.
    """
    leave_out = {*optional, *given}
    return {
        name: _example(name, spec, batch)
        for name, spec in contract.input_specs.items()
        if name not in leave_out
    }


def _example(name: str, spec: Spec, batch: int | None) -> Any:
    if isinstance(spec, DictSpec):
        return {field: _example(f"{name}.{field}", inner, batch) for field, inner in spec.fields.items()}
    if spec.text == "generator":
        return torch.Generator()
    sizes = [batch if dim == "B" else dim for dim in spec.dims] if isinstance(spec, TensorSpec) else [None]
    shape = [size for size in sizes if isinstance(size, int)]
    if not isinstance(spec, TensorSpec) or spec.leading or len(shape) < len(sizes):
        raise InputError(
            f'the plan needs one step to measure, and the input "{name}" ("{spec.text}") cannot be made up from its '
            f"contract; pass an example: plan({name.split('.')[0]}=...)"
        )
    value = torch.zeros(shape, dtype=spec.dtype or torch.get_default_dtype())
    if value.ndim > 1 and value.is_floating_point():
        value[..., -1] = 1.0
    return value


def _bytes(spec: Spec, batch: int) -> int | None:
    """The size of a carried value in float32; None where an axis other than the worlds B is not a number."""
    if isinstance(spec, DictSpec):
        parts = [_bytes(field, batch) for field in spec.fields.values()]
        return None if None in parts else sum(part for part in parts if part is not None)
    if not isinstance(spec, TensorSpec):
        return 0
    sizes = [batch if dim == "B" else dim for dim in spec.dims]
    if spec.leading or any(isinstance(size, str) for size in sizes):
        return None
    count = math.prod(size for size in sizes if isinstance(size, int))
    return count * (spec.dtype or torch.float32).itemsize
