"""Memory: what a training step will take, from one measured step, before the whole is run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradpath import budget, tree
from gradpath.budget import StepCost, format_size
from gradpath.diagnosis import Finding
from gradpath.doctor_case import Case, NotMade
from gradpath.errors import BudgetError, GradpathError
from gradpath.memory import Memory
from gradpath.meter import Meter
from gradpath.rollout import Rollout

_UNLIMITED = "1000000TB"


def blow_up(case: Case, limit: int) -> list[Finding]:
    """Predict the peak of a forward and backward pass, and find whether it exceeds a limit in bytes.

    The peak is that of the time loop (`gradpath.budget.StepCost`), and the recorded outputs over all steps. Optimizer
    states and what a kernel library allocates for itself are not in it.

    Raises:
        NotMade: one step cannot be measured.
    """
    try:
        plan = Rollout(**{**case.rollout.config, "memory": _UNLIMITED}).plan(case.worlds, **case.fresh())
        tapes, recorded = _one_step(case)
    except Exception as error:  # whatever a stage may raise; a trace tells it with its place
        raise NotMade(f"one step cannot be measured: {error}") from error
    finally:
        case.restart()
    assert plan.budget is not None
    cost = plan.budget.cost
    stacked = recorded * case.length
    try:
        peak = _peak(case, cost)
    except BudgetError as error:
        return [_finding(case, cost, stacked, None, limit, tapes, str(error).rstrip("."))]
    if peak + stacked <= limit:
        return []
    return [_finding(case, cost, stacked, peak, limit, tapes, "")]


def available(device: torch.device) -> int:
    """Return the free memory in bytes: of a GPU, or of this machine and the control group that the process is in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    table = Path("/proc/meminfo")
    if table.exists():
        rows = dict(line.split(":", 1) for line in table.read_text().splitlines())
        if "MemAvailable" in rows:
            free = [int(rows["MemAvailable"].split()[0]) * 1024]
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text().strip()) != "max":
        free.append(int(most) - int((group / "memory.current").read_text()))
    return max(0, min(free))


def fitting(case: Case, limit: int) -> str | None:
    """Return the memory setting with which a case keeps within a limit in bytes, None where there is none."""
    setting = f"{limit}B"
    try:
        Rollout(**{**case.rollout.config, "memory": setting}).plan(case.worlds, **case.fresh())
    except GradpathError:
        return None
    return setting


def _peak(case: Case, cost: StepCost) -> int:
    """The predicted peak of the time loop with the memory setting of the model."""
    schedule = Memory.of(case.rollout.memory).fixed(case.length)
    if schedule is not None:
        return cost.peak(schedule.peak_snapshots, case.length if schedule.snapshots is None else 1)
    plan = case.rollout.plan(case.worlds, **case.fresh()).budget
    assert plan is not None  # what is not fixed is planned
    return plan.peak


def _finding(
    case: Case,
    cost: StepCost,
    stacked: int,
    peak: int | None,
    limit: int,
    tapes: Mapping[str, int],
    error: str,
) -> Finding:
    stage = max(tapes, key=lambda name: tapes[name], default=None)
    total = sum(tapes.values())
    largest = (
        f'; {tapes[stage] / total:.0%} of the tape of a step is that of stage "{stage}"'
        if stage and total
        else ""
    )
    setting = f"memory={case.rollout.memory!r}"
    need = None if peak is None else peak + stacked
    evidence = (
        f"{case.length} steps with {setting} would take {format_size(need)}, and there are {format_size(limit)}"
        if need is not None
        else f"{setting} cannot work: {error}"
    )
    return Finding(
        "memory blow-up",
        "error",
        f"{evidence}: the tape of one step is {format_size(cost.tape_bytes)}, one state "
        f"{format_size(cost.carry_bytes)}{largest}",
        _remedy(case, cost, limit - stacked),
        stage=stage,
        numbers={
            "predicted bytes": float(need or 0), "available bytes": float(limit), "tape bytes": float(cost.tape_bytes),
            "state bytes": float(cost.carry_bytes), "recorded bytes": float(stacked),
        },
    )  # fmt: skip


def _remedy(case: Case, cost: StepCost, room: int) -> str:
    if not isinstance(case.model, Rollout):
        return "use fewer worlds, smaller values, or recompute inside of the stage (torch.utils.checkpoint)"
    try:
        plan = budget.choose(case.length, max(room, 0), cost)
    except BudgetError as error:
        return f"no schedule fits, use fewer worlds: {str(error).rstrip('.')}"
    return (
        f'gp.Rollout(memory="{room // 10**3}kB") keeps {plan.slots} states and tapes {plan.chunk} steps at a time: '
        f"{format_size(plan.peak)}, {plan.slowdown:.2f} times the time, the same gradient"
    )


def _one_step(case: Case) -> tuple[dict[str, int], int]:
    """The bytes that each stage leaves on the tape of one step, and those of its recorded outputs."""
    inputs = case.fresh()
    for name in case.rollout.sequences:
        if name in inputs:
            inputs[name] = tree.map_leaves(lambda leaf: leaf[:1], inputs[name])
    config = {**case.rollout.config, "length": 1, "memory": "all", "record_gradients": False, "cut": None}
    rollout = Rollout(**config)
    meter = Meter()
    case.restart()
    with _stage_bytes(case, meter) as tapes, torch.enable_grad(), meter:
        trajectory = rollout(**inputs)
    leaves = tree.tensors(tree.flatten(dict(trajectory.recorded))[0])
    return tapes, sum(leaf.numel() * leaf.element_size() for leaf in leaves)


@contextmanager
def _stage_bytes(case: Case, meter: Meter) -> Iterator[dict[str, int]]:
    """Measure what is alive after each stage beyond what was before it."""
    before: dict[str, int] = {}
    found: dict[str, int] = {}

    def enter(name: str, module: nn.Module, args: Any) -> None:
        before[name] = meter.live

    def leave(name: str, module: nn.Module, args: Any, result: Any) -> None:
        found[name] = max(0, meter.live - before[name])

    with ExitStack() as stack:
        for name, stage in case.stages.items():
            stack.callback(stage.register_forward_pre_hook(partial(enter, name)).remove)
            stack.callback(stage.register_forward_hook(partial(leave, name)).remove)
        yield found
