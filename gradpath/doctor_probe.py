"""One call of one stage on its own: what its outputs depend on, and what of that its gradient knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradpath import tree
from gradpath.contract import covers
from gradpath.doctor_case import Case, NotMade
from gradpath.doctor_trace import Call, fingerprint
from gradpath.specs import tensors
from gradpath.stage import Stage


@dataclass(frozen=True)
class Probe:
    """The gradient of one call of a stage.

    Attributes:
        unreached: Floating inputs, by dotted path, that no gradient comes back to.
        gains: For each output, how much of a change of it, in units of its size, comes back to the inputs and
            parameters that carry a gradient, in units of theirs: the norm of J^T c over that of c for a random c.
        gradients: The gradient of each input and parameter for one random cotangent.
        outputs: The floating outputs.
    """

    unreached: tuple[str, ...]
    gains: dict[str, float]
    gradients: dict[str, Tensor]
    outputs: dict[str, Tensor]


def probe(case: Case, call: Call, needing: Callable[[str], bool] = lambda path: True) -> Probe:
    """Differentiate one call.

    Args:
        case: Where the stage is.
        call: The call, as a trace kept it.
        needing: Which inputs, by path, carry a gradient in the model.

    Raises:
        NotMade: the call cannot be repeated on its own.
    """
    stage = case.stages[call.stage]
    inputs = call.copies()
    leaves = {path: leaf for key, value in inputs.items() for path, leaf in tensors(value, key)}
    leaves = {path: leaf for path, leaf in leaves.items() if leaf.is_floating_point()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    own = {name: p for name, p in stage.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        outputs = _outputs(case, call, inputs)
    values = {path: value.detach() for path, value in outputs.items()}
    outputs = {path: value for path, value in outputs.items() if value.requires_grad}
    every = {**leaves, **own}
    reached: set[str] = set()
    gains: dict[str, float] = {}
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for path, output in outputs.items():
        if covers(stage.contract.detached, path):
            continue
        unit = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
        cotangent = unit / _size(output)
        try:
            grads = torch.autograd.grad(
                output, list(every.values()), cotangent, retain_graph=True, allow_unused=True
            )
        except Exception as error:  # whatever a backward rule may raise
            raise NotMade(f'stage "{call.stage}" does not run backward on its own: {error}') from error
        flowing = {name: grad for name, grad in zip(every, grads, strict=True) if grad is not None}
        reached |= flowing.keys()
        sizes = [
            float(grad.double().norm()) * _size(every[name])
            for name, grad in flowing.items()
            if name in own or needing(name)
        ]
        gains[path] = max(sizes, default=0.0) / max(float(unit.double().norm()), 1e-30)
        for name, grad in flowing.items():
            sums[name] = sums[name] + grad if name in sums else grad
    return Probe(tuple(path for path in leaves if path not in reached), gains, sums, values)


def depends(case: Case, call: Call, path: str) -> bool:
    """Say whether the outputs of a call change with one of its inputs, by making it larger and by mixing worlds.

    Raises:
        NotMade: the call cannot be repeated on its own.
    """
    base = _prints(_outputs(case, call, call.copies()))
    for change in (_grown, lambda leaf: leaf.roll(1, 0) if leaf.ndim else leaf):
        inputs = call.copies()
        for key, value in inputs.items():
            for at, leaf in tensors(value, key):
                if at == path:
                    with torch.no_grad():
                        leaf.copy_(change(leaf.clone()))
        try:
            if _prints(_outputs(case, call, inputs)) != base:
                return True
        except NotMade:
            continue  # a stage may refuse such an input; then this change tells nothing
    return False


def reads_attribute(case: Case, call: Call, key: str) -> bool:
    """Say whether the outputs of a call change with a tensor in an attribute of the stage."""
    value = call.attributes.get(key)
    if value is None:
        return False
    with torch.no_grad():
        other = _grown(value) if value.is_floating_point() else value + 1
    prints = [_prints(_outputs(case, call, call.copies(), {key: kept})) for kept in (value, other)]
    return prints[0] != prints[1]


def _outputs(
    case: Case, call: Call, inputs: dict[str, Any], attributes: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Repeat a call; the floating outputs by path."""
    stage = case.stages[call.stage]
    case.restart()
    with _attributes_of(stage, {**call.attributes, **(attributes or {})}):
        try:
            result = stage(**inputs)
        except Exception as error:  # whatever a stage may raise
            raise NotMade(f'stage "{call.stage}" does not run on its own: {error}') from error
    named = stage.named_outputs(result, call.stage)
    pairs = [pair for name, value in named.items() for pair in tensors(value, name)]
    return {path: value for path, value in pairs if value.is_floating_point()}


@contextmanager
def _attributes_of(stage: Stage, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a stage other tensors in its attributes; a copy each, so that writing into them changes nothing."""
    places = []
    for key, value in values.items():
        prefix, _, name = key.rpartition(".")
        module = stage.get_submodule(prefix)
        places.append((module, name, vars(module).get(name)))
        object.__setattr__(module, name, value.clone())
    try:
        yield
    finally:
        for module, name, before in places:
            object.__setattr__(module, name, before)


def _prints(outputs: Mapping[str, Tensor]) -> dict[str, int]:
    return {path: int(fingerprint(value, 1)) for path, value in outputs.items()}


def _grown(leaf: Tensor) -> Tensor:
    """A value one percent larger; what is zero becomes a hundredth. A unit quaternion keeps its direction."""
    return torch.where(leaf == 0, torch.full_like(leaf, 0.01), leaf * 1.01)


def _size(value: Tensor) -> float:
    """The root mean square of some numbers; one where there are none or all are zero, for that tells no size."""
    return 1.0 if not value.numel() else float(value.detach().double().square().mean().sqrt()) or 1.0


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return gradients side by side, in double precision, (P,)."""
    parts = [gradient.detach().double().reshape(-1).cpu() for gradient in tree.tensors(gradients.values())]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
