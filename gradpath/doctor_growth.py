"""Gradients that grow through time, and how fast small changes of the state do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradpath.diagnosis import Finding
from gradpath.doctor_case import Case, NotMade
from gradpath.doctor_exam import Exam
from gradpath.doctor_gradients import SHORTEST
from gradpath.specs import tensors

MOST_GROWTH = 100.0
"""Most growth of the carry's gradient over the earlier half of the steps.

What sums up over time or integrates grows like a power p of the time, over this half by 2**p: 16 for the fourth,
which no mechanics with a bounded controller exceeds. 100 over a half is 1e4 over all: exponential growth.
"""

LEAST_DIVERGENCE = 10.0
"""Least growth of a small change of the state over the same steps, without which gradients grow for another reason."""


def instability(exam: Exam) -> list[Finding]:
    """Find worlds whose gradient grows exponentially back in time, and measure how fast small changes grow."""
    case, report = exam.case, exam.backward().report
    first, middle = report.first_step, report.first_step + (case.length - report.first_step) // 2
    steps = middle - first
    if case.length < SHORTEST:
        raise NotMade(f"a rate of growth takes {SHORTEST} steps, and there are {case.length}")
    logs = report.carry[first : middle + 1].log()
    growth = torch.tensor([_growth(column) for column in logs.flip(0).unbind(1)], dtype=torch.float64)
    growth = growth.nan_to_num(-math.inf)
    world = int(growth.argmax())
    if float(growth[world]) <= math.log(MOST_GROWTH):
        return []
    forward = max(
        _growth(rows[: steps + 1, world if rows.shape[1] > 1 else 0]) for rows in divergence(exam).values()
    )
    if forward < math.log(LEAST_DIVERGENCE):
        return []
    name = _growing(report.outputs, case.wires.carried.values(), first, middle)
    jumps = (logs[:-1, world] - logs[1:, world]).nan_to_num(-math.inf)
    exponent = forward / steps
    per_second = {} if case.rollout.dt is None else {"Lyapunov exponent [1/s]": exponent / case.rollout.dt}
    growing = int((growth > math.log(MOST_GROWTH)).sum())
    return [
        Finding(
            "unstable training",
            "error" if growing > 0.5 * len(growth) else "warning",  # a few can be clipped, most cannot
            f"the gradient of the carry grows by a factor of {math.exp(float(growth[world])):.2g} from step "
            f"{middle} back to step {first} in world {world}, and a small change of the state by "
            f"{math.exp(forward):.2g} over as many: a few worlds and steps drown all others",
            "make what is carried stable (a smaller time step or gain, more damping, gates or norms of a memory), or "
            "shorten what the gradient sees: gp.Rollout(decay=...) or cut=...; clipping alone keeps its direction, "
            "which is that of the worst world",
            stage=None if name is None else case.wires.owner(name),
            value=name,
            step=first + int(jumps.argmax()),
            world=world if len(growth) > 1 else None,
            numbers={
                "growth per step": float(growth[world]) / steps,
                "Lyapunov exponent per step": exponent,
                **per_second,
                "worlds that grow": growing,
                "worlds": len(growth),
            },
        )
    ]


def divergence(exam: Exam) -> dict[str, Tensor]:
    """Return how far a small change of the first carry has grown, the logarithm, (T, B) for each carried tensor.

    Its slope over time estimates the largest Lyapunov exponent: Benettin et al. 1980, with one run of a small change
    in place of many that are renormalized. The change is 1e-8 of the values where the model runs in float64.
    """
    case, size = exam.double_or_single()
    inputs = case.fresh()
    generator = torch.Generator().manual_seed(0)
    for key in case.rollout.carry:
        for _, leaf in tensors(inputs[key], key):
            if leaf.is_floating_point():
                unit = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
                scale = float(leaf.detach().double().square().mean().sqrt()) or 1.0
                with torch.no_grad():
                    leaf.add_(size * scale * unit)
    with torch.no_grad():
        return dict(_distances(case, case.run(), case.run(inputs)))


def _distances(case: Case, base: Mapping[str, Any], other: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    for source in case.rollout.carry.values():
        pairs = zip(tensors(base[source], source), tensors(other[source], source), strict=True)
        for (path, a), (_, b) in pairs:
            if a.is_floating_point():
                rows = (a - b).double().reshape(len(a), case.worlds, -1)
                yield path, torch.linalg.vector_norm(rows, dim=-1).log()


def _growth(logs: Tensor) -> float:
    """What a straight line through some logarithms grows by from the first to the last; NaN where few are finite."""
    use = logs.isfinite()
    if int(use.sum()) < 3:
        return math.nan
    x = torch.arange(len(logs), dtype=torch.float64, device=logs.device)[use]
    x = x - x.mean()
    slope = (x * logs[use].double()).sum() / x.square().sum()
    return float(slope) * (len(logs) - 1)


def _growing(outputs: Mapping[str, Tensor], carried: Iterable[str], first: int, middle: int) -> str | None:
    """The carried output whose gradient grows most."""
    sources = list(carried)
    rates = {}
    for name, norms in outputs.items():
        if any(name == source or name.startswith(f"{source}.") for source in sources):
            rate = _growth(torch.linalg.vector_norm(norms, dim=1)[first : middle + 1].log().flip(0))
            rates[name] = -math.inf if math.isnan(rate) else rate
    return max(rates, key=lambda name: rates[name], default=None)
