"""What several checks look at, computed once: traces, a backward pass, probes, a copy in double precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradpath import tree
from gradpath.doctor_case import Case, NotMade
from gradpath.doctor_probe import Probe, probe
from gradpath.doctor_state import SingleDraws
from gradpath.doctor_trace import Trace, trace
from gradpath.loss_matrix import LossMatrix, loss_matrix
from gradpath.losses import LossValues
from gradpath.report import GradientReport, gradient_report


@dataclass(frozen=True)
class Pass:
    """One backward pass.

    Attributes:
        gradients: Of each trained parameter, in the order of `Case.trained`; None where nothing reaches it.
        report: What the gradients did on their way.
        matrix: The gradient of each loss at each stage; None where it was not asked for, or nothing is trained.
        losses: Value of each loss without its weight, and whether it carries a gradient.
    """

    gradients: list[Tensor | None]
    report: GradientReport
    matrix: LossMatrix | None
    losses: dict[str, tuple[float, bool]]

    def arriving(self, name: str) -> float:
        """Return the norm of the gradient that reaches an output over all steps and worlds, zero where none does."""
        parts = [
            torch.linalg.vector_norm(norms)
            for key, norms in self.report.outputs.items()
            if key == name or key.startswith(f"{name}.")
        ]
        return float(torch.stack(parts).norm()) if parts else 0.0


class Exam:
    """A case, and what has been found out about it so far.

    Args:
        case: What is examined.
        options: What the doctor was told, by name.

    Attributes:
        failed: The error that ended the backward pass, or the losses before it.
    """

    def __init__(self, case: Case, options: dict[str, Any]):
        self.case, self.options = case, options
        self.failed: Exception | None = None
        self._pass: Pass | NotMade | None = None
        self._probes: dict[tuple[str, int], Probe | NotMade] = {}
        self._double: Case | NotMade | None = None

    @cached_property
    def trace(self) -> Trace:
        """The first run."""
        return trace(self.case)

    @cached_property
    def repeat(self) -> Trace:
        """A second run, from the same start but for what a run should not depend on."""
        return trace(self.case, hidden=False)

    def whole(self) -> Trace:
        """Return the first run.

        Raises:
            NotMade: it did not come to an end, or not with finite numbers.
        """
        seen = self.trace
        if seen.stopped is not None and seen.at is not None:
            raise NotMade(f'the run stops at stage "{seen.at[0]}", step {seen.at[1]}')
        if seen.stopped is not None:
            raise NotMade(f"the model does not run: {seen.stopped}")
        if (bad := seen.first_bad()) is not None:
            raise NotMade(f"{bad[0]} is not finite at step {bad[1]}")
        return seen

    def same(self) -> Trace:
        """Return the first run, where a second one gave the same.

        Raises:
            NotMade: it did not.
        """
        seen = self.whole()
        if seen.first_difference(self.repeat) is not None:
            raise NotMade("two runs give different values, so that nothing else can be told from two runs")
        return seen

    @property
    def faulty(self) -> bool:
        """Whether a gradient of the backward pass is not finite."""
        return isinstance(self._pass, Pass) and self._pass.report.fault is not None

    def backward(self) -> Pass:
        """Return the first backward pass.

        Raises:
            NotMade: there is none, or its gradients are not finite.
        """
        self.whole()
        if self._pass is None:
            try:
                self._pass = run_backward(self.case, by_loss=True)
            except NotMade as reason:
                self._pass = reason
            except Exception as error:  # whatever a backward rule may raise; it is told as a finding
                self.failed = error
                self._pass = NotMade(f"there is no backward pass: {error}")
        if isinstance(self._pass, NotMade):
            raise self._pass
        if self._pass.report.fault is not None:
            raise NotMade(f"a gradient is not finite at {self._pass.report.fault}")
        return self._pass

    def losses(self) -> dict[str, tuple[float, bool]]:
        """Return the value of each loss, and whether it carries a gradient.

        Raises:
            NotMade: the run does not come to its end.
        """
        try:
            return self.backward().losses
        except NotMade:
            self.whole()
        if self.failed is not None:
            raise NotMade(f"there is no backward pass: {self.failed}")
        return _carrying(self.case.losses(self.case.run()))

    def probe(self, stage: str, step: int) -> Probe:
        """Return the gradient of one call that the trace kept.

        Raises:
            NotMade: the call cannot be repeated on its own.
        """
        if (stage, step) not in self._probes:
            try:
                call = self.trace.calls[stage, step]
                self._probes[stage, step] = probe(self.case, call, self.needing(stage))
            except NotMade as reason:
                self._probes[stage, step] = reason
        found = self._probes[stage, step]
        if isinstance(found, NotMade):
            raise found
        return found

    def probes(self, stage: str) -> list[Probe]:
        """Return the gradients of all kept calls of a stage that can be repeated on their own."""
        steps = [step for name, step in self.trace.calls if name == stage]
        found = []
        for step in steps:
            with contextlib.suppress(NotMade):
                found.append(self.probe(stage, step))
        return found

    def needing(self, stage: str) -> Callable[[str], bool]:
        """Return a function that says whether an input of a stage, by path, carries a gradient."""
        sources = self.case.wires.inputs[stage]

        def needs(path: str) -> bool:
            name, _, field = path.partition(".")
            source = sources.get(name)
            return source is not None and self.case.wires.needs_gradient(
                f"{source}.{field}" if field else source
            )

        return needs

    def double(self) -> Case:
        """Return the case in double precision.

        Raises:
            NotMade: it cannot be had.
        """
        if self._double is None:
            try:
                self._double = self.case.double()
                with torch.no_grad(), SingleDraws():
                    self._double.run()
            except NotMade as reason:
                self._double = reason
            except Exception as error:  # a stage may have any reason not to
                self._double = NotMade(f"the model does not run in float64: {str(error).splitlines()[0]}")
        if isinstance(self._double, NotMade):
            raise self._double
        return self._double

    def double_or_single(self) -> tuple[Case, float]:
        """Return the case in the best precision there is, and the relative size of a small change in it."""
        if self.case.dtype == torch.float64:
            return self.case, 1e-8
        try:
            return self.double(), 1e-8
        except NotMade:
            return self.case, 1e-4


def run_backward(case: Case, by_loss: bool = False) -> Pass:
    """Run a case forward and backward.

    Args:
        case: What to run.
        by_loss: Whether to take the gradient of each loss by itself, too.

    Raises:
        NotMade: nothing is trained, or the losses carry no gradient.
        NonFiniteError: a loss is not finite.
    """
    inputs, leaves = case.fresh(), case.leaves()
    given = [leaf for leaf in tree.tensors(tree.flatten(inputs)[0]) if leaf.requires_grad]
    if not (leaves or given):
        raise NotMade("nothing is trained: no parameter and no input requires a gradient")
    with torch.enable_grad():
        values = case.losses(case.run(inputs))
        if not values.total.requires_grad:
            raise NotMade("the losses carry no gradient")
        gradients = torch.autograd.grad(
            values.total, [*leaves, *given], retain_graph=by_loss, allow_unused=True
        )[: len(leaves)]
    report = gradient_report(case.rollout)
    groups: dict[str, list[Tensor]] = {}
    for stage, _, parameter in case.trained():
        groups.setdefault(stage, []).append(parameter)
    matrix = loss_matrix(values, groups) if groups and by_loss else None
    return Pass(list(gradients), report, matrix, _carrying(values))


def _carrying(values: LossValues) -> dict[str, tuple[float, bool]]:
    return {name: (value.item(), value.requires_grad) for name, value in values.terms.items()}
