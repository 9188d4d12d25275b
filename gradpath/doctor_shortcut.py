"""Shortcuts: what the losses depend on and should not, and what they should depend on and do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradpath import tree
from gradpath.diagnosis import Finding
from gradpath.doctor_case import Case, NotMade
from gradpath.doctor_exam import Exam
from gradpath.errors import GradpathError, InputError

MOST_EFFECT = 0.05
"""Most that the loss may move when what should not matter is exchanged between worlds, in its spread over worlds.

What does not matter moves it by nothing at all; a fifth of the spread is what statistics call a small effect.
"""

LEAST_EFFECT = 1e-4
"""Least that the loss must move when what should matter is exchanged between worlds, in its spread over worlds.

Policies with fresh weights, whose commands are still small, move it by 4e-4 to 1 in a hundred random pipelines; what
is cut off or replaced by a constant moves it by nothing.
"""

Wire = tuple[str, str, str]
"""A stage, its input, and the field of that input, empty for the whole."""


def shortcuts(exam: Exam) -> list[Finding]:
    """Exchange values between worlds, wire by wire, and see what the losses make of it.

    Raises:
        NotMade: no value is named, or the batch has a single world.
    """
    irrelevant, relevant = exam.options["irrelevant"], exam.options["relevant"]
    if not (irrelevant or relevant):
        raise NotMade("say what must not matter and what must: irrelevant=[...], relevant=[...]")
    case = exam.case
    wires = {name: wires_of(exam.case, name) for name in (*irrelevant, *relevant)}
    exam.same()
    if case.worlds < 2:
        raise NotMade("exchanging values between worlds takes two worlds")
    base = _losses(exam, [])
    spread = float((base - base.mean()).square().mean().sqrt()) or float(base.square().mean().sqrt()) or 1.0
    found = [_irrelevant(exam, name, wires[name], base, spread) for name in irrelevant]
    found += [_relevant(exam, name, wires[name], base, spread) for name in relevant]
    return [finding for finding in found if finding is not None]


def _irrelevant(exam: Exam, name: str, wires: list[Wire], base: Tensor, spread: float) -> Finding | None:
    change = _losses(exam, wires) - base
    effect = _rms(change) / spread
    if effect <= MOST_EFFECT:
        return None
    single = {wire: _rms(_losses(exam, [wire]) - base) for wire in wires}
    stage, key, _ = max(single, key=lambda wire: single[wire])
    return Finding(
        "shortcut learning",
        "warning",
        f'"{name}" should not matter, and the losses move by {effect:.2g} of their spread over worlds when it is '
        f'exchanged between worlds; it comes in at the input "{key}" of this stage',
        f"do not give {name} to this stage, or draw it at random in each world so that nothing can be learned from it",
        stage=stage,
        value=name,
        world=int(change.abs().argmax()),
        numbers={"effect": effect, "allowed": MOST_EFFECT, "sensitivity": _sensitivity(exam, name, spread)},
    )


def _relevant(exam: Exam, name: str, wires: list[Wire], base: Tensor, spread: float) -> Finding | None:
    effect = _rms(_losses(exam, wires) - base) / spread
    if effect >= LEAST_EFFECT:
        return None
    return Finding(
        "shortcut learning",
        "warning",
        f'"{name}" should matter, and the losses move by {effect:.2g} of their spread when it is exchanged between '
        "worlds: whatever is learned does not come from it",
        f"look at what this stage makes of {name}; take away what the model can go by instead, and see that the batch "
        "differs in it",
        stage=wires[0][0],
        value=name,
        numbers={"effect": effect, "needed": LEAST_EFFECT},
    )


def wires_of(case: Case, name: str) -> list[Wire]:
    """Return all inputs of stages that a value goes to, or is a field of.

    Raises:
        InputError: there is none.
    """
    found = []
    for stage, inputs in case.wires.inputs.items():
        for key, source in inputs.items():
            if source == name or source.startswith(f"{name}."):
                found.append((stage, key, ""))
            elif name.startswith(f"{source}."):
                found.append((stage, key, name.removeprefix(f"{source}.")))
    if not found:
        sources = {source for inputs in case.wires.inputs.values() for source in inputs.values()}
        raise InputError(f'no stage takes "{name}"; there are {", ".join(sorted(sources))}')
    return found


def _losses(exam: Exam, wires: list[Wire]) -> Tensor:
    """The losses of each world, with what goes over some wires exchanged between worlds."""
    with _exchanged(exam, wires), torch.no_grad():
        try:
            return exam.case.by_world(exam.case.run()).double().cpu()
        except GradpathError as error:
            raise NotMade(f"the model does not run with values of other worlds: {error}") from error


@contextmanager
def _exchanged(exam: Exam, wires: list[Wire]) -> Iterator[None]:
    worlds = exam.case.worlds

    def exchange(key: str, field: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if key not in kwargs:
            return None
        return args, {**kwargs, key: _rolled(kwargs[key], field.split(".") if field else [], worlds)}

    with ExitStack() as stack:
        for stage, key, field in wires:
            hook = exam.case.stages[stage].register_forward_pre_hook(
                partial(exchange, key, field), with_kwargs=True
            )
            stack.callback(hook.remove)
        yield


def _rolled(value: Any, fields: list[str], worlds: int) -> Any:
    """A value, or a field of it, in which each world has what the one before it had."""
    if fields and isinstance(value, Mapping):
        return {**value, fields[0]: _rolled(value[fields[0]], fields[1:], worlds)}

    def roll(leaf: Any) -> Any:
        fits = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == worlds
        return leaf.roll(1, 0) if fits else leaf

    return tree.map_leaves(roll, value)


def _sensitivity(exam: Exam, name: str, spread: float) -> float:
    """The slope of the losses in an external input, times its spread over worlds, in theirs; zero where it has none."""
    head, *fields = name.split(".")
    inputs = exam.case.fresh()
    if head not in inputs:
        return 0.0
    value = inputs[head]
    for field in fields:
        value = value[field]
    leaves = [leaf for leaf in tree.tensors(tree.flatten(value)[0]) if leaf.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    total = exam.case.losses.by_world(exam.case.run(inputs)).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad and leaves else []
    squares = 0.0
    for leaf, grad in zip(leaves, grads, strict=False):
        if grad is not None:
            values = leaf.detach().double()
            squares += float((grad.double() * (values - values.mean(0))).square().sum())
    return (squares / exam.case.worlds) ** 0.5 / spread


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())
