"""The doctor: finds what is wrong with a differentiable pipeline, and names stage, step and world."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradpath import (
    doctor_behaviour,
    doctor_credit,
    doctor_gradients,
    doctor_growth,
    doctor_memory,
    doctor_numbers,
    doctor_relaxation,
    doctor_shortcut,
    tree,
)
from gradpath.budget import parse_size
from gradpath.diagnosis import Check, Diagnosis, Finding
from gradpath.doctor_case import Batch, Case, NotMade
from gradpath.doctor_exam import Exam
from gradpath.errors import GradpathError, InputError
from gradpath.losses import Losses
from gradpath.stage import Stage

Detector = Callable[[Exam], list[Finding]]

DETECTORS: dict[str, Detector] = {
    "non-finite value": doctor_numbers.non_finite,
    "mutated input": doctor_behaviour.mutation,
    "hidden nondeterminism": doctor_behaviour.nondeterminism,
    "detached value": doctor_behaviour.detachment,
    "unreached parameter": doctor_gradients.unreached,
    "gradient starvation": doctor_gradients.starvation,
    "unstable training": doctor_growth.instability,
    "poor credit assignment": doctor_credit.credit,
    "float32 disagrees with float64": doctor_numbers.precision,
    "invalid relaxation": doctor_relaxation.invalid,
    "boundary mismatch": doctor_relaxation.boundary,
    "shortcut learning": doctor_shortcut.shortcuts,
}
"""What looks for each failure mode, in the order in which it is done. Memory comes before all of them."""

MEMORY, STOPPED = "memory blow-up", "stopped run"

FAILURES = (MEMORY, *DETECTORS, STOPPED)
"""The failure modes, by the names that findings have."""


def doctor(
    model: Stage,
    batch: Batch,
    losses: Losses,
    *,
    irrelevant: Sequence[str] = (),
    relevant: Sequence[str] = (),
    memory: str | None = None,
    only: Sequence[str] | None = None,
) -> Diagnosis:
    """Examine a model with one batch, and say what is wrong where.

    ```python
    found = gp.doctor(rollout, {"state": state0, "goal": goal, "generator": generator}, losses)
    print(found.table())
    ```

    Each check is made on its own; one that cannot be made says why in `Diagnosis.checks`. The thresholds, and their
    reasons, are constants of the modules `gradpath.doctor_*`.

    Args:
        model: A rollout, or a pipeline (one step).
        batch: Its inputs by name; or the pair of positional and named ones that `Task.sample` returns. A batch like
            those of the training: what it does not contain cannot be seen.
        losses: What it is trained for.
        irrelevant: Values that must not matter to the losses, `"lamp"`, `"state.pose"` or `"camera.depth"`: they are
            exchanged between worlds on their way into every stage.
        relevant: Values that must matter, tested the same way.
        memory: The memory there is, such as `"16GB"`; what is free on this device by default.
        only: The failure modes to look for, of `FAILURES`; all by default.

    Returns:
        The findings, errors first; `.healthy`, `.table()`, `.json()`.

    Raises:
        InputError: another model, an unknown failure mode, or a value that no stage takes.
        ContractError: a loss is attached to a value that is not there.

    Parameters, gradients, buffers, generators and attributes of stages are left as they were. It takes about as long
    as a dozen training steps, of which some are in double precision.
    """
    wanted = _wanted(only)
    case = Case(model, batch, losses)
    for name in (*irrelevant, *relevant):
        doctor_shortcut.wires_of(case, name)
    limit = doctor_memory.available(_device(case)) if memory is None else parse_size(memory)
    options = {"irrelevant": tuple(irrelevant), "relevant": tuple(relevant)}
    findings: list[Finding] = []
    checks: list[Check] = []

    def make(failure: str, look: Callable[[], list[Finding]]) -> None:
        start = time.perf_counter()
        skipped = ""
        try:
            findings.extend(look())
        except NotMade as reason:
            skipped = str(reason)
        checks.append(Check(failure, skipped, time.perf_counter() - start))

    with case.untouched():
        if MEMORY in wanted:
            make(MEMORY, lambda: doctor_memory.blow_up(case, limit))
        setting = doctor_memory.fitting(case, limit) if findings else None
        if findings and setting is None:
            reason = "the model does not fit into the memory"
            checks += [Check(failure, reason) for failure in DETECTORS if failure in wanted]
            return Diagnosis(tuple(findings), tuple(checks))
        exam = Exam(case if setting is None else Case(model, batch, losses, setting), options)
        for failure, detector in DETECTORS.items():
            if failure in wanted:
                make(failure, lambda detector=detector: _examined(detector, exam))  # type: ignore[misc]
        if STOPPED in wanted and not any(finding.severity == "error" for finding in findings):
            make(STOPPED, lambda: doctor_behaviour.stopped(exam))
    order = {"error": 0, "warning": 1}
    return Diagnosis(tuple(sorted(findings, key=lambda finding: order[finding.severity])), tuple(checks))


def _examined(detector: Detector, exam: Exam) -> list[Finding]:
    """What a detector finds; an error of the model within it is a reason not to have made the check."""
    try:
        return detector(exam)
    except GradpathError as error:
        raise NotMade(f"the model does not run in it: {error}") from error


def _wanted(only: Sequence[str] | None) -> tuple[str, ...]:
    for name in only or ():
        if name not in FAILURES:
            raise InputError(f'doctor: no failure mode "{name}"; there are {", ".join(FAILURES)}')
    return FAILURES if only is None else tuple(only)


def _device(case: Case) -> torch.device:
    leaves: list[Any] = [*case.pipeline.parameters(), *tree.tensors(tree.flatten(case.inputs)[0])]
    return next((leaf.device for leaf in leaves if leaf.device.type == "cuda"), torch.device("cpu"))
