"""Stages that do what nobody sees: hidden randomness, writes into inputs, values cut off from their gradient."""

from __future__ import annotations

import torch

from gradpath.diagnosis import Finding
from gradpath.doctor_case import NotMade
from gradpath.doctor_exam import Exam, run_backward
from gradpath.doctor_probe import depends, reads_attribute
from gradpath.doctor_trace import Event


def nondeterminism(exam: Exam) -> list[Finding]:
    """Find draws from global generators, and values and gradients that differ between two runs from one start."""
    events = [event for event in exam.trace.events.values() if event.kind == "draws"]
    found = [_drawn(event) for event in events]
    if exam.trace.stopped is not None:
        return found
    difference = exam.trace.first_difference(exam.repeat)
    if difference is not None:
        name, step, world, share = difference
        stage = exam.case.wires.owner(name)
        if stage not in {event.stage for event in events}:
            found.append(
                Finding(
                    "hidden nondeterminism",
                    "error",
                    f"two runs from the same start, with the same state of all generators, first differ here; in the "
                    f"end {share:.0%} of all outputs do",
                    "look for what it reads beside its inputs: a counter or a list that it keeps, the time, a "
                    "generator seeded anew; carry that, or draw from a torch.Generator that comes in as an input",
                    stage=stage,
                    value=name,
                    step=step,
                    world=world,
                    numbers={"share that differs": share},
                )
            )
    return found or _gradients_differ(exam)


def _drawn(event: Event) -> Finding:
    return Finding(
        "hidden nondeterminism",
        "error",
        f"draws from {event.value}, which its contract does not declare (in {event.count} steps of one run): no run "
        "can be repeated, and a step that is recomputed draws other numbers",
        'take a "generator" as an input and draw from it; or, for torch\'s global generator, declare effects=("rng",)',
        stage=event.stage,
        value=event.value,
        step=event.step,
        numbers={"steps": event.count},
    )


def _gradients_differ(exam: Exam) -> list[Finding]:
    """Gradients that differ although all values are the same: sums in another order, or a backward rule that draws."""
    first = exam.backward().gradients
    again = run_backward(exam.case).gradients
    sizes = {}
    for (stage, name, _), a, b in zip(exam.case.trained(), first, again, strict=True):
        if a is not None and b is not None and not torch.equal(a, b):
            size = float((a - b).double().norm() / a.double().norm().clamp_min(1e-30))
            sizes[stage, name] = size
    if not sizes:
        return []
    (stage, name), size = max(sizes.items(), key=lambda item: item[1])
    return [
        Finding(
            "hidden nondeterminism",
            "error" if size > 1e-3 else "warning",
            f"the values of two runs are the same, the gradients of {len(sizes)} parameters are not, by up to a share "
            f"of {size:.1g}",
            "where it is rounding, sums come in any order: run within gp.deterministic(seed); where it is more, a "
            "backward rule reads something that changes",
            stage=stage,
            value=name,
            numbers={"relative difference": size, "parameters": len(sizes)},
        )
    ]


def mutation(exam: Exam) -> list[Finding]:
    """Find stages that write into their inputs without declaring it, also past torch's version counter."""
    return [
        Finding(
            "mutated input",
            "error",
            f"writes into its input (in {event.count} steps): other stages that take it, and steps that are "
            "recomputed, read the changed values",
            f'clone it first, or declare effects=("mutates:{event.value}",)',
            stage=event.stage,
            value=event.value,
            step=event.step,
            world=event.world,
            numbers={"steps": event.count},
        )
        for event in exam.trace.events.values()
        if event.kind == "writes"
    ]


def detachment(exam: Exam) -> list[Finding]:
    """Find values that something depends on while no gradient comes back: in a stage, in an attribute, in a loss."""
    return [*_cut_inside(exam), *_kept(exam), *_cut_losses(exam)]


def _cut_inside(exam: Exam) -> list[Finding]:
    found = {}
    for (stage, step), call in exam.trace.calls.items():
        if exam.case.stages[stage].contract.gradient == "none":
            continue
        needing = exam.needing(stage)
        for path in _unreached(exam, stage, step):
            if needing(path) and (stage, path) not in found and _depends(exam, call, path):
                found[stage, path] = Finding(
                    "detached value",
                    "error",
                    "its outputs change with this input, and no gradient comes back to it: the path is cut inside",
                    "find the .detach(), .item(), comparison, numpy or no_grad on the way; where it is meant, declare "
                    'gradient="none", or detached=(...) for the outputs',
                    stage=stage,
                    value=path,
                    step=step,
                )
    return list(found.values())


def _unreached(exam: Exam, stage: str, step: int) -> tuple[str, ...]:
    try:
        return exam.probe(stage, step).unreached
    except NotMade:
        return ()


def _depends(exam: Exam, call: object, path: str) -> bool:
    try:
        return depends(exam.case, call, path)  # type: ignore[arg-type]
    except NotMade:
        return False


def _kept(exam: Exam) -> list[Finding]:
    """Tensors that a stage leaves in an attribute in one step and reads in a later one."""
    found = []
    for event in exam.trace.events.values():
        if event.kind != "keeps":
            continue
        calls = [
            call for (stage, step), call in exam.trace.calls.items() if stage == event.stage and step > 0
        ]
        if any(reads_attribute(exam.case, call, event.value) for call in calls):
            found.append(
                Finding(
                    "detached value",
                    "error",
                    f'keeps a tensor in its attribute "{event.value}" and reads it in a later step: no gradient goes '
                    "back through it, recomputed steps read another one, and the next run starts with the last one",
                    "make it an output and an input, and carry it: gp.Rollout(carry={...})",
                    stage=event.stage,
                    value=event.value,
                    step=event.step,
                    numbers={"steps": event.count},
                )
            )
    return found


def _cut_losses(exam: Exam) -> list[Finding]:
    try:
        losses = exam.losses()
    except NotMade:
        return []
    if not exam.case.trained():
        return []
    return [
        Finding(
            "detached value",
            "error",
            f'the loss "{name}" carries no gradient: nothing is learned from it',
            "find the .detach(), .item() or no_grad in its function, or before the value that it is attached to",
            value=f'loss "{name}"',
            numbers={"loss": loss},
        )
        for name, (loss, carries) in losses.items()
        if not carries
    ]


def stopped(exam: Exam) -> list[Finding]:
    """Say where a run, or its backward pass, ends with an error."""
    error = exam.trace.stopped
    if error is not None:
        stage, step = exam.trace.at or (None, None)
        return [_stopped(str(error), stage, step)]
    try:
        exam.backward()
    except NotMade:
        if exam.failed is None:
            return []
        return [_stopped(str(exam.failed), None, None)]
    return []


def _stopped(error: str, stage: str | None, step: int | None) -> Finding:
    return Finding(
        "stopped run", "error", f"the run ends with an error: {error.rstrip('.')}", "see the error",
        stage=stage, step=step,
    )  # fmt: skip
