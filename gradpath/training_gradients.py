"""What the training loop does with gradients: norms, clipping, profiles, and naming the place of a NaN."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradpath.errors import InputError, NonFiniteError
from gradpath.gradient_summary import Groups
from gradpath.pipeline import Pipeline
from gradpath.report import GradientReport, gradient_report
from gradpath.rollout import Rollout
from gradpath.stage import Stage, observe
from gradpath.task import Task


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> tuple[float, float]:
    """Scale all gradients so that their common norm is at most `limit`.

    Args:
        parameters: Parameters after a backward pass; those without a gradient count as zero.
        limit: Largest norm, or None to measure only.
    Returns:
        The norm before, and the factor that was applied (1 where nothing was clipped). Where the norm is not
        finite nothing is scaled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = norm_of(gradients)
    if limit is None or not math.isfinite(norm) or norm <= limit:
        return norm, 1.0
    factor = limit / norm
    for gradient in gradients:
        gradient.mul_(factor)
    return norm, factor


def norm_of(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all numbers in all tensors, with one wait for the device."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return float(torch.stack(norms).square().sum().sqrt()) if norms else 0.0


def pipeline_of(model: Stage) -> Pipeline | None:
    """Return the pipeline that a model is, or that it runs at every time step."""
    step = model.step if isinstance(model, Rollout) else model
    return step if isinstance(step, Pipeline) else None


def stage_gradients(model: Stage, report: GradientReport | None) -> dict[str, dict[str, float]]:
    """Return two norms per stage: of the gradient that reaches its `outputs`, and of that of its `parameters`.

    Args:
        model: The model after a backward pass, before clipping or not.
        report: The report of that pass; None leaves out the outputs.
    """
    pipeline = pipeline_of(model)
    stages = pipeline.stages if pipeline is not None else {"model": model}
    norms: dict[str, dict[str, float]] = {name: {} for name in stages}
    for name, stage in stages.items():
        if report is not None and name in report.stages:
            norms[name]["outputs"] = float(torch.linalg.vector_norm(report.stages[name]))
        gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
        if gradients:
            norms[name]["parameters"] = norm_of(gradients)
    return norms


def report_of(model: Stage, groups: Groups | None = None) -> GradientReport | None:
    """Return the gradient report of the last backward pass, None where the model records none.

    Args:
        model: The model after a backward pass.
        groups: Groups of parameters to sum up; an empty mapping leaves them out.
    """
    if not (isinstance(model, Rollout) and model.recorder is not None):
        return None
    return gradient_report(model, groups=groups)


def gradient_profile(report: GradientReport) -> dict[str, Any]:
    """Return the norms per time step, of the carry and of what reaches the outputs of each stage."""
    carry = torch.linalg.vector_norm(report.carry, dim=1)
    return {
        "steps": {"carry": carry.tolist(), **{name: norms.tolist() for name, norms in report.stages.items()}},
        "growth": report.growth,
        "growth_rate": report.growth_rate,
        "zero_share": report.zero_share,
        "non_finite_share": report.non_finite_share,
        "stages": {name: summary.json() for name, summary in report.by_stage.items()},
        "groups": {name: summary.json() for name, summary in report.groups.items()},
        "worst_worlds": report.worst_worlds(),
    }


def gradient_fault(model: Stage, report: GradientReport | None) -> str:
    """Name the stage, time step and world where a gradient stopped being finite on its way back."""
    if report is not None and report.fault is not None:
        return str(report.fault)
    broken = [name for name, norms in stage_gradients(model, None).items() if not _finite(norms)]
    return "the parameters of " + " and ".join(f'stage "{name}"' for name in broken)


def _finite(norms: Mapping[str, float]) -> bool:
    return all(math.isfinite(norm) for norm in norms.values())


class _Found(Exception):
    """Ends the search for a non-finite value."""


def locate_non_finite(task: Task, model: Stage, iteration: int) -> str | None:
    """Run an iteration again, forward only, up to the first stage output that is not finite, and name it.

    Returns:
        The place as text; None where all outputs are finite up to the end, or up to a stage that refuses its input.
    """
    calls: Counter[tuple[str, str]] = Counter()

    def look(stage: str, path: str, value: Tensor) -> None:
        step = calls[stage, path]
        calls[stage, path] += 1
        finite = torch.isfinite(value.detach())
        if not finite.all():
            worlds = (~finite.reshape(len(finite), -1)).any(1).nonzero().flatten() if finite.ndim else None
            where = f", world {int(worlds[0])}" if worlds is not None else ""
            raise _Found(f'stage "{stage}", output "{path}", time step {step}{where}')

    try:
        with torch.no_grad(), observe(look):
            task.forward(model, iteration)
    except _Found as found:
        return f"the first value that is not finite: {found}"
    except (NonFiniteError, InputError):
        pass
    return None
