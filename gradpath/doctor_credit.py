"""Credit: losses that drown or cancel each other, and stages that a gradient cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from gradpath.diagnosis import Finding
from gradpath.doctor_exam import Exam
from gradpath.doctor_probe import flat
from gradpath.loss_matrix import LossMatrix
from gradpath.specs import tensors

DROWNED = 1e-4
"""Share of the largest loss's gradient below which a loss has no say.

The gradient of a batch has a relative error of one over the root of the number of worlds: at 1e-4 it takes 1e8 worlds
for the loss to stand out.
"""

COMPARABLE = 1e-2
"""Share that a loss must have without the weights, to be drowned by them and not simply inactive in this batch."""

CANCELLED = 0.05
"""Share of the added norms that is left of the sum of the gradients. K losses that ignore each other leave K**-0.5."""

COLLINEAR = 0.9999
"""Cosine between the gradients at two outputs over all worlds, steps and numbers: an angle below one degree."""


def credit(exam: Exam) -> list[Finding]:
    """Find losses without a say, losses that cancel, and stages that get one and the same gradient."""
    exam.backward()
    found = [*_twins(exam), *_drowned_stages(exam)]
    if exam.case.trained():
        found += [*_drowned_losses(exam), *_conflict(exam)]
    return found


def _matrix(exam: Exam) -> LossMatrix:
    matrix = exam.backward().matrix
    assert matrix is not None  # something is trained
    return matrix


def _drowned_losses(exam: Exam) -> Iterator[Finding]:
    matrix, weights = _matrix(exam), exam.case.losses.weights()
    scale = torch.tensor([abs(weights[name]) or 1.0 for name in matrix.losses], dtype=torch.float64)
    share = (matrix.norms / matrix.norms.max(0).values.clamp_min(1e-300)).max(1).values
    plain = matrix.norms / scale[:, None]
    unweighted = (plain / plain.max(0).values.clamp_min(1e-300)).max(1).values
    for i, name in enumerate(matrix.losses):
        if 0.0 < float(share[i]) < DROWNED and float(unweighted[i]) > COMPARABLE:
            column = int((matrix.norms[i] / matrix.norms.max(0).values).argmax())
            largest = matrix.losses[int(matrix.norms[:, column].argmax())]
            yield Finding(
                "poor credit assignment",
                "warning",
                f'the gradient of the loss "{name}" is {float(share[i]):.1g} of that of "{largest}" at every stage, by '
                f"their weights ({weights[name]:g} and {weights[largest]:g}): it has no say",
                f"raise the weight of {name} or lower that of {largest}, until their norms in gp.loss_matrix compare",
                stage=matrix.stages[column],
                value=f'loss "{name}"',
                numbers={"share": float(share[i]), "without weights": float(unweighted[i])},
            )


def _conflict(exam: Exam) -> Iterator[Finding]:
    matrix = _matrix(exam)
    norms = torch.linalg.vector_norm(matrix.norms, dim=1)
    total = flat({str(i): g for i, g in enumerate(exam.backward().gradients) if g is not None}).norm()
    added = float(norms.sum())
    if len(norms) < 2 or added == 0.0 or float(total) / added >= CANCELLED:
        return
    products = matrix.total.nan_to_num() * norms[:, None] * norms
    i, j = divmod(int(products.argmin()), len(norms))
    one, other = sorted((matrix.losses[i], matrix.losses[j]))
    cosines = {stage: float(cosine[i, j]) for stage, cosine in matrix.cosines.items()}
    stage = min(cosines, key=lambda name: cosines[name])
    yield Finding(
        "poor credit assignment",
        "warning",
        f"the losses cancel each other: of the norms of their gradients {float(total) / added:.1%} is left; "
        f'"{one}" and "{other}" pull against each other, cosine {float(matrix.total[i, j]):+.2f}. A compromise that '
        "training has come to looks so too; before, nothing is learned",
        'change the weights, or resolve the conflict: values.backward(parameters, conflicts="pcgrad" or "cagrad")',
        stage=stage,
        value=f"losses {one} and {other}",
        numbers={"left of the sum": float(total) / added, "cosine there": cosines[stage]},
    )


def _drowned_stages(exam: Exam) -> Iterator[Finding]:
    """Stages a relative change of whose parameters changes the loss by less than the rounding of another one's."""
    sizes: dict[str, float] = {}
    for (stage, _, parameter), grad in zip(exam.case.trained(), exam.backward().gradients, strict=True):
        if grad is not None:
            effect = float((grad.double() * parameter.detach().double()).square().sum())
            sizes[stage] = sizes.get(stage, 0.0) + effect
    effects = {stage: size**0.5 for stage, size in sizes.items() if size > 0.0}
    largest = max(effects, key=lambda stage: effects[stage], default=None)
    least = torch.finfo(exam.case.dtype).eps
    for stage, effect in effects.items():
        if largest is not None and effect < least * effects[largest]:
            yield Finding(
                "poor credit assignment",
                "warning",
                f"a relative change of its parameters changes the loss by {effect / effects[largest]:.1g} of what one "
                f'of stage "{largest}" does, which is below rounding: what it does is not to be seen in the loss',
                f"give {stage} a loss of its own, or scale the parameters of {largest} to order one",
                stage=stage,
                numbers={"share": effect / effects[largest], "rounding": least},
            )


def _twins(exam: Exam) -> Iterator[Finding]:
    """Trained stages beside each other whose outputs always get the same gradient, but for a factor."""
    case = exam.case
    trained = list(dict.fromkeys(stage for stage, _, _ in case.trained()))
    pairs = [
        (a, b)
        for a, b in combinations(trained, 2)
        if a not in case.wires.before(b) and b not in case.wires.before(a)
    ]
    if not pairs:
        return
    for (one, other), cosine in _output_cosines(exam, pairs).items():
        if abs(cosine) > COLLINEAR:
            yield Finding(
                "poor credit assignment",
                "warning",
                f'"{one}" and "{other}" get the same gradient in all worlds and steps, cosine {cosine:+.5f}: the '
                "losses see one sum of the two, and cannot tell which of them did what",
                "give one of them a loss or an input of its own, freeze one, or make them one stage",
                stage=case.wires.owner(one),
                value=f"{one} and {other}",
                numbers={"cosine": cosine},
            )


def _output_cosines(exam: Exam, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Cosines between the gradients at outputs of equal shape of each pair of stages, over all steps."""
    case = exam.case
    meet = _Meeting(pairs)
    with ExitStack() as stack:
        for name in {stage for pair in pairs for stage in pair}:
            hook = case.stages[name].register_forward_hook(partial(meet.watch, name))
            stack.callback(hook.remove)
        values = case.losses(case.run())
        torch.autograd.grad(values.total, case.leaves(), allow_unused=True)
    return meet.cosines()


class _Meeting:
    """Adds up the products of the gradients that arrive at the outputs of pairs of stages, step by step.

    In a time loop gradients arrive one step after the other, whatever is recomputed, so that two outputs of one
    step are the two that arrived last.
    """

    def __init__(self, pairs: list[tuple[str, str]]):
        self.partners: dict[str, list[str]] = {}
        for a, b in pairs:
            self.partners.setdefault(a, []).append(b)
            self.partners.setdefault(b, []).append(a)
        self.arrived: dict[str, list[Tensor]] = {}

    def watch(self, stage: str, module: nn.Module, args: Any, result: Any) -> None:
        for output, value in module.named_outputs(result, stage).items():  # type: ignore[operator]
            for path, leaf in tensors(value, f"{stage}.{output}"):
                if leaf.requires_grad:
                    leaf.register_hook(partial(self._arrive, path))

    def _arrive(self, path: str, grad: Tensor) -> None:
        if grad is not None:
            self.arrived.setdefault(path, []).append(grad.detach().double().cpu())

    def cosines(self) -> dict[tuple[str, str], float]:
        found = {}
        for one, other in combinations(sorted(self.arrived), 2):
            a, b = self.arrived[one], self.arrived[other]
            stages = {path.rpartition(".")[0] for path in (one, other)}
            paired = any(
                one.startswith(f"{stage}.") and other.startswith(f"{partner}.")
                for stage, partners in self.partners.items()
                for partner in partners
            )
            if len(stages) < 2 or not paired or [g.shape for g in a] != [g.shape for g in b]:
                continue
            x, y = torch.cat([g.reshape(-1) for g in a]), torch.cat([g.reshape(-1) for g in b])
            size = float(x.norm() * y.norm())
            if size > 0.0 and len(x) > 1:
                found[one, other] = float(x @ y) / size
        return found
