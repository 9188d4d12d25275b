"""Relaxations: operations whose soft form misleads, and task results that the robot's hard operations do not give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradpath.diagnosis import Finding
from gradpath.directions import Directions
from gradpath.doctor_case import NotMade
from gradpath.doctor_exam import Exam
from gradpath.errors import GradpathError
from gradpath.intervals import cosine_interval
from gradpath.mismatch import mismatch
from gradpath.mismatch_report import END_TO_END, Gap, Mismatch
from gradpath.mismatch_runs import Runs
from gradpath.mode import mode
from gradpath.rollout import Rollout
from gradpath.specs import tensors
from gradpath.trajectory import Trajectory

MOST_DISTANCE = 0.6
"""Largest relative distance between soft and hard values.

A step that is 1/2 wherever the hard one is 0 or 1, so that nothing of the decision is left, has 0.71.
"""

MOST_DECISIONS = 0.1
"""Largest share of decisions that the soft value, read as a decision, makes differently."""

WRONG_COSINE = -0.2
"""An interval of the cosine that lies below this: the gradient points away from that of the hard loss.

The interval is one of 95 %; with the directions drawn here, a right angle is taken for it in less than 1 of 100 cases.
"""

MOST_LOSS = 0.1
"""Largest difference between the hard and the soft loss, in the root mean square of the losses of all worlds, that
is certain at 95 %."""

SAMPLES = 8
"""Random directions of each cosine."""

STD = 0.01
"""Radius within which the hard loss is looked at, in root mean squares of the parameters."""

NEAR = 1e-2
"""Share of that radius within which the soft loss has to follow its gradient."""

_RELAXED = ("relaxed", "straight_through", "surrogate")


def invalid(exam: Exam) -> list[Finding]:
    """Find relaxed operations whose value or decisions are far from the hard ones, or whose gradient misleads."""
    found = []
    measured = _measured(exam)
    for name in measured.operations:
        gap = measured[name]
        what = _misled(exam, gap) or _invalid(gap)
        if what is not None:
            stage, operation = _split(exam, name)
            found.append(
                Finding(
                    "invalid relaxation",
                    "error" if "points away" in what else "warning",
                    f"at temperature {gap.temperature:.3g} {what}",
                    "lower its temperature (relax.Anneal does it over training), scale its input so that the "
                    'temperature is small beside it, or train in gp.mode("straight_through")',
                    stage=stage,
                    value=operation,
                    numbers=_numbers(gap),
                )
            )
    return found


def boundary(exam: Exam) -> list[Finding]:
    """Compare the result of the task in hard mode, which a robot runs, with that in soft mode, which is trained."""
    measured = _measured(exam)
    whole = measured[END_TO_END]
    if whole.loss is None:
        return []
    scale = _loss_scale(exam)
    low, high = whole.loss.low, whole.loss.high
    certain = (
        0.0 if math.isnan(low) else max(low, -high, 0.0)
    )  # the end of the interval that is nearer to zero
    if certain <= MOST_LOSS * scale:
        return []
    stage, operation = _worst(exam, measured)
    return [
        Finding(
            "boundary mismatch",
            "error",
            f"in hard mode the loss is {whole.loss.value:+.3g} higher than in soft mode ({low:+.3g} to {high:+.3g}, "
            f"95 %), {abs(whole.loss.value) / scale:.0%} of its size: what is trained is not what the robot does",
            "lower the temperatures towards the end of training, train in "
            'gp.mode("straight_through"), and judge a policy by its result in gp.mode("hard")',
            stage=stage,
            value=operation,
            numbers={**_numbers(whole), "size of the loss": scale},
        )
    ]


def _measured(exam: Exam) -> Mismatch:
    """The gaps of all relaxed operations, measured once.

    Raises:
        NotMade: nothing is relaxed, or the model does not run in hard mode.
    """
    exam.backward()
    known = exam.options.get("mismatch")
    if known is not None:
        return known
    case = exam.case
    relaxed = any(stage.contract.gradient in _RELAXED for stage in case.stages.values())
    exam.same()
    try:
        found = _mismatch(exam, SAMPLES if relaxed and case.trained() else 0)
        if not relaxed and not found.operations:
            raise NotMade("nothing is relaxed: no operation of gp.relax runs, and no contract says so")
        if not relaxed and case.trained():
            found = _mismatch(exam, SAMPLES)
    except GradpathError as error:
        raise NotMade(f"soft and hard cannot be compared: {error}") from error
    finally:
        case.restart()
    exam.options["mismatch"] = found
    return found


def _mismatch(exam: Exam, samples: int) -> Mismatch:
    exam.case.restart()
    generator = torch.Generator().manual_seed(0)
    rollout, batch, loss = _task(exam)
    return mismatch(rollout, batch, loss, (), samples=samples, std=STD, generator=generator)


def _task(exam: Exam) -> tuple[Rollout, dict[str, Any], Callable[[Trajectory], Tensor]]:
    """The model with its whole gradient, for what decay and cut leave out is not the relaxation's."""
    case = exam.case

    def loss(trajectory: Trajectory) -> Tensor:
        return case.losses.by_world(case.outcome(trajectory))

    return Rollout(**{**case.rollout.config, "decay": None, "cut": None}), case.fresh(), loss


def _misled(exam: Exam, gap: Gap) -> str | None:
    if gap.cosine is None or not gap.cosine.high < WRONG_COSINE or _is_rough(exam):
        return None
    return f"its gradient points away from that of the loss with the hard operation, cosine {gap.cosine}"


def _is_rough(exam: Exam) -> bool:
    """Whether the gradient is right close by, and the soft loss by itself goes another way within the radius.

    Then no relaxation is to blame: the loss is rough at that scale, as it is where a loop is unstable.
    """
    runs = Runs(*_task(exam))
    cosines = []
    for std in (STD, NEAR * STD):
        generator = torch.Generator().manual_seed(0)
        directions = Directions.draw(runs, None, SAMPLES, std, generator)
        assert directions is not None  # something is trained, or there would be no cosine
        cosines.append(cosine_interval(directions.slopes("soft", 1.0), directions.changes(None, "soft", 1.0)))
    around, close = cosines
    return around.value < 0.5 < close.value


def _invalid(gap: Gap) -> str | None:
    if gap.decisions is not None and gap.decisions > MOST_DECISIONS:
        return f"{gap.decisions:.0%} of the decisions read off its soft value are others than the hard ones"
    if gap.distance > MOST_DISTANCE:
        return (
            f"its soft value is off by {gap.distance:.2g} of the size of the hard one: nothing of it is left"
        )
    return None


def _numbers(gap: Gap) -> dict[str, float]:
    numbers = {"distance": gap.distance}
    if gap.decisions is not None:
        numbers["decisions that differ"] = gap.decisions
    if gap.loss is not None:
        numbers["hard minus soft loss"] = gap.loss.value
    if gap.cosine is not None:
        numbers["cosine"] = gap.cosine.value
    return numbers


def _split(exam: Exam, name: str) -> tuple[str | None, str]:
    """The stage and the operation of a name such as "camera.rasterize"."""
    stage = exam.case.wires.owner(name)
    return stage, name if stage is None else name.removeprefix(f"{stage}.")


def _worst(exam: Exam, measured: Mismatch) -> tuple[str | None, str | None]:
    """The operation, or else the stage, that makes the largest difference."""
    losses = {name: gap.loss for name in measured.operations if (gap := measured[name]).loss is not None}
    sizes = {name: abs(loss.value) for name, loss in losses.items() if loss is not None}
    if sizes:
        return _split(exam, max(sizes, key=lambda name: sizes[name]))
    distances = {stage: _distance(exam, stage) for stage in exam.case.stages}
    stage = max(distances, key=lambda name: distances[name])
    return (stage, None) if distances[stage] > 0.0 else (None, None)


def _distance(exam: Exam, stage: str) -> float:
    """The relative distance between soft and hard outputs of single calls of a stage."""
    largest = 0.0
    module = exam.case.stages[stage]
    for (name, _), call in exam.trace.calls.items():
        if name != stage:
            continue
        values = []
        for which in ("soft", "hard"):
            exam.case.restart()
            with mode(which), torch.no_grad():
                named = module.named_outputs(module(**call.copies()), stage)
            values.append({path: v for key, value in named.items() for path, v in tensors(value, key)})
        for path, soft in values[0].items():
            if soft.is_floating_point():
                size = float(soft.double().norm()) or 1.0
                largest = max(largest, float((soft - values[1][path]).double().norm()) / size)
    return largest


def _loss_scale(exam: Exam) -> float:
    with torch.no_grad():
        losses = exam.case.by_world(exam.case.run()).double()
    return float(losses.square().mean().sqrt()) or 1.0
