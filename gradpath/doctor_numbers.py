"""Numbers that cannot be trusted: what is not finite first, and gradients in which float32 is not enough."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor

from gradpath.diagnosis import Finding
from gradpath.doctor_case import Case, NotMade
from gradpath.doctor_exam import Exam, Pass, run_backward
from gradpath.doctor_probe import flat, probe
from gradpath.doctor_state import SingleDraws
from gradpath.errors import GradpathError, NonFiniteError
from gradpath.recorder import Fault
from gradpath.rollout import Rollout

MOST_ROUNDING = 0.02
"""Largest relative difference between the gradients of single and double precision.

Rounding alone gives about 1e-6; 1e-2 means that five of seven digits are lost. The gradient of a batch of a thousand
worlds has a standard error of about 3 %: from here on it is precision and not data that limits it.
"""

MOST_LOCAL = 1e-3
"""Largest relative difference within one stage on its own; where all are below, errors grow on the way through time."""


def non_finite(exam: Exam) -> list[Finding]:
    """Find the first value that is NaN or infinite; then the first gradient on its way back."""
    bad = exam.trace.first_bad()
    if bad is not None:
        name, step, world = bad
        return [
            Finding(
                "non-finite value",
                "error",
                "the first output, in the order of execution, that is NaN or infinite; all before it are finite",
                "look at what this stage gets in this step and world: a division or a logarithm at zero, an overflow, "
                "a bad sample",
                stage=exam.case.wires.owner(name),
                value=name,
                step=step,
                world=world,
            )
        ]
    return _non_finite_gradient(exam)


def _non_finite_gradient(exam: Exam) -> list[Finding]:
    try:
        exam.backward()
        return []
    except NotMade:
        if isinstance(exam.failed, NonFiniteError):
            return [
                Finding(
                    "non-finite value",
                    "error",
                    f"all outputs of all stages are finite, a loss is not: {exam.failed}",
                    "look at its function: a logarithm or a quotient at zero, an overflow",
                    value="losses",
                )
            ]
        if not exam.faulty:
            raise
    fault = _precise_fault(exam.case)
    if fault is None:
        raise NotMade("a gradient that is not finite did not come again")
    return [
        Finding(
            "non-finite value",
            "error",
            "all values are finite, and a gradient becomes NaN or infinite here on its way back; in later steps it "
            "is finite",
            "look for a root, a norm or a quotient at zero, where the slope is infinite: sqrt(x + eps), "
            "gp.relax.norm, a torch.where inside of the operation and not around it",
            stage=fault.stages[0] if fault.stages else None,
            value=None if not fault.values else ", ".join(fault.values),
            step=fault.step,
            world=fault.world,
        )
    ]


def _precise_fault(case: Case) -> Fault | None:
    """The fault of a backward pass in which each stage has its own alias of its inputs."""
    rollout = Rollout(**{**case.rollout.config, "check_finite": True})
    with contextlib.suppress(NonFiniteError):
        total = case.losses(case.run(rollout=rollout)).total
        torch.autograd.grad(total, case.leaves(), allow_unused=True)
    assert rollout.recorder is not None
    return None if rollout.recorder.last is None else rollout.recorder.last.fault()


def precision(exam: Exam) -> list[Finding]:
    """Compare the gradient with that of a copy in double precision, which sees the same noise."""
    exam.same()
    single = exam.backward()
    double = exam.double()
    try:
        with SingleDraws():
            other = run_backward(double)
    except GradpathError as error:
        raise NotMade(f"the model does not run backward in float64: {error}") from error
    errors = _errors(exam.case, single, other)
    total = errors.pop("", 0.0)
    if total <= MOST_ROUNDING:
        return []
    local = _local_errors(exam, double)
    stage = max(local, key=lambda name: local[name], default=None)
    worst = 0.0 if stage is None else local[stage]
    alone = worst > MOST_LOCAL
    where = (
        f"on its own, from the same inputs, this stage is off by {worst:.1g}"
        if alone
        else "no stage is far off on its own, so rounding grows on the way through time"
    )
    return [
        Finding(
            "float32 disagrees with float64",
            "error",
            f"the gradient is off by a share of {total:.2g} from that of the same model in double precision; {where}",
            "subtract before you scale, use expm1, log1p, hypot and the like, compute this stage in float64, or give "
            "the positions relative to something near"
            if alone
            else "make the steps stable, see unstable training; or compute in float64",
            stage=stage if alone else None,
            step=_first_step(single, other, stage if alone else None),
            numbers={"relative error": total, "allowed": MOST_ROUNDING, "stage alone": worst},
        )
    ]


def _errors(case: Case, single: Pass, double: Pass) -> dict[str, float]:
    """Relative difference of the gradients of each stage, and of all under the empty name."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (stage, _, _), a, b in zip(case.trained(), single.gradients, double.gradients, strict=True):
        if a is not None and b is not None:
            for name in (stage, ""):
                rows.setdefault(name, []).append((a, b))
    found = {}
    for name, pairs in rows.items():
        difference = flat({str(i): a.double() - b for i, (a, b) in enumerate(pairs)}).norm()
        size = flat({str(i): b for i, (_, b) in enumerate(pairs)}).norm()
        found[name] = float(difference / size.clamp_min(1e-300))
    return found


def _local_errors(exam: Exam, double: Case) -> dict[str, float]:
    """Relative difference of the outputs and gradients of single calls of each stage, from the same inputs."""
    found: dict[str, float] = {}
    for (stage, step), call in exam.trace.calls.items():
        try:
            ours = exam.probe(stage, step)
            with SingleDraws():
                theirs = probe(double, call.doubled())
        except (NotMade, RuntimeError, TypeError):
            continue
        errors = [_distance(ours.gradients, theirs.gradients), _distance(ours.outputs, theirs.outputs)]
        found[stage] = max(found.get(stage, 0.0), *errors)
    return found


def _distance(single: Mapping[str, Tensor], double: Mapping[str, Tensor]) -> float:
    """Relative distance of the values that both have, side by side."""
    shared = [name for name in single if name in double]
    difference = flat({name: single[name].double() - double[name] for name in shared}).norm()
    size = float(flat({name: double[name] for name in shared}).norm())
    return float(difference) / size if size > 0.0 else 0.0


def _first_step(single: Pass, double: Pass, stage: str | None) -> int | None:
    """The last step, the first on the way back, from whose outputs on the norms of gradients differ."""
    steps = []
    for name, norms in single.report.outputs.items():
        other = double.report.outputs.get(name)
        if other is None or (stage is not None and not name.startswith(f"{stage}.")):
            continue
        size = torch.linalg.vector_norm(other, dim=1)
        differ = torch.linalg.vector_norm(norms - other, dim=1) > MOST_ROUNDING * size
        if bool(differ.any()):
            steps.append(int(differ.nonzero()[-1]))
    return max(steps, default=None)
