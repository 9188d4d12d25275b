"""Gradients that do not arrive: parameters that nothing reaches, and starvation."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath.diagnosis import Finding
from gradpath.doctor_exam import Exam, Pass

LEAST_GAIN = 1e-5
"""Least share of a change, in units of the size of values, that has to come back through a stage.

In healthy stages it lies between 5e-3 and 1e4, whatever their units: an activation that lets through less than 1e-5
is a tanh more than 6 from its middle. Less than that is not recovered by any learning rate in use.
"""

ADAM_EPSILON = 1e-8
"""Root mean square of a stage's gradient below which Adam (with its default epsilon) takes no full steps."""

SHORTEST = 8
"""Fewest steps of which early and late ones are told apart."""


def unreached(exam: Exam) -> list[Finding]:
    """Find parameters that are trained and that no path leads to."""
    result = exam.backward()
    missing: dict[str, list[str]] = {}
    for (stage, name, _), grad in zip(exam.case.trained(), result.gradients, strict=True):
        if grad is None:
            missing.setdefault(stage, []).append(name)
    return [
        Finding(
            "unreached parameter",
            "error",
            f"no loss depends on {_listed(names)}: they have no gradient at all, and the optimizer leaves them as "
            "they are",
            "use them in forward, remove them, or freeze them with requires_grad_(False); if they are used, look "
            "for a detach between them and the losses",
            stage=stage,
            value=_listed(names),
            numbers={"parameters": len(names)},
        )
        for stage, names in missing.items()
    ]


def starvation(exam: Exam) -> list[Finding]:
    """Find stages that let no gradient through, that get none, or whose early steps get none."""
    result = exam.backward()
    found = _blocked(exam, result)
    starved = _starved(exam, result)
    if found:
        names = ", ".join(finding.stage or "" for finding in starved)
        behind = f"; the parameters of {names} get almost nothing" if names else ""
        return [Finding(**{**vars(f), "evidence": f.evidence + behind}) for f in found]
    return starved or _early_steps(exam, result)


def _blocked(exam: Exam, result: Pass) -> list[Finding]:
    """Stages whose outputs get a gradient that does not come out again."""
    case, found = exam.case, []
    for stage, inputs in case.wires.inputs.items():
        trained = any(parameter.requires_grad for parameter in case.stages[stage].parameters())
        if not (trained or any(case.wires.needs_gradient(source) for source in inputs.values())):
            continue
        gains: dict[str, float] = {}
        for probe in exam.probes(stage):
            for path, gain in probe.gains.items():
                gains[path] = max(gain, gains.get(path, 0.0))
        arriving = {path: result.arriving(f"{stage}.{path}") for path in gains}
        blocked = {path: gain for path, gain in gains.items() if gain < LEAST_GAIN and arriving[path] > 0.0}
        if blocked and len(blocked) == sum(norm > 0.0 for norm in arriving.values()):
            path = min(blocked, key=lambda name: blocked[name])
            found.append(
                Finding(
                    "gradient starvation",
                    "error",
                    f'a gradient of norm {arriving[path]:.2g} arrives at its output "{path}", and a share of '
                    f"{blocked[path]:.1g} of it comes out at its inputs and parameters",
                    "look for what is saturated or dead in it: a tanh or sigmoid far from its middle, a ReLU that is "
                    "never positive, values beyond a clamp; scale its inputs, start with smaller weights, or use an "
                    "activation with a slope everywhere",
                    stage=stage,
                    value=path,
                    numbers={"gain": blocked[path], "threshold": LEAST_GAIN},
                )
            )
    return found


def _starved(exam: Exam, result: Pass) -> list[Finding]:
    """Stages whose parameters get a gradient, but one of zero or one that Adam does not scale up."""
    groups: dict[str, list[Tensor]] = {}
    for (stage, _, _), grad in zip(exam.case.trained(), result.gradients, strict=True):
        if grad is not None:
            groups.setdefault(stage, []).append(grad)
    found = []
    for stage, grads in groups.items():
        count = sum(grad.numel() for grad in grads)
        size = float(torch.stack([g.double().square().sum() for g in grads]).sum() / max(count, 1)) ** 0.5
        if size < ADAM_EPSILON:
            found.append(
                Finding(
                    "gradient starvation",
                    "error" if size == 0.0 else "warning",
                    f"the gradient of its {count} parameters has a root mean square of {size:.2g}, below the "
                    f"{ADAM_EPSILON:g} that Adam adds to it",
                    "weigh the losses so that they are of order one, or find what scales the gradient down on the "
                    "way: a weight that starts at zero, a factor, a decay",
                    stage=stage,
                    numbers={"rms": size, "threshold": ADAM_EPSILON},
                )
            )
    return found


def _early_steps(exam: Exam, result: Pass) -> list[Finding]:
    """Stages to whose parameters at least the first half of the steps gives nothing that a sum could hold."""
    rollout = exam.case.rollout
    if rollout.cut is not None or exam.case.length < SHORTEST:
        return []
    least = torch.finfo(exam.case.dtype).eps
    found = []
    for stage, norms in result.report.parameters.items():
        largest = float(norms.max())
        idle = int((norms >= least * largest).nonzero()[0]) if largest > 0.0 else 0
        if idle >= exam.case.length / 2:
            found.append(
                Finding(
                    "gradient starvation",
                    "warning",
                    f"what steps 0 to {idle - 1} of {exam.case.length} give to the gradient of its parameters is "
                    "below the rounding of the sum: what it does early is not learned from what comes of it",
                    "attach a loss to earlier steps too, shorten the horizon, or carry a memory that keeps the "
                    "gradient alive (gates that start open, residual updates)",
                    stage=stage,
                    step=idle - 1,
                    numbers={"first step": float(norms[0]), "largest step": largest, "rounding": least},
                )
            )
    return found


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
