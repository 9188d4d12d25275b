"""The proof of a gradient rule: against central differences in float64, input by input, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import GradientError, InputError

STEP = 1e-6  # of the differences, relative to 1 + |x|: rounding and curvature cost about 1e-9 each
ABSOLUTE, RELATIVE = 1e-6, 1e-5  # what a right rule may differ by
SEEDS = 2  # random cotangents; a wrong rule hides from each with probability zero


@dataclass(frozen=True)
class Proof:
    """How a gradient rule compares with central differences.

    Attributes:
        name: The operation.
        kind: `"exact"` or `"surrogate"`.
        error: Largest difference of an element, relative to 1 or the largest element of that input's gradient.
        cosine: Cosine between the two gradients, NaN where one of them is zero.
        relative_error: Norm of the difference over the norm of the true gradient, infinite where that is zero.
        fault: What is wrong with an exact rule, None where it holds.
    """

    name: str
    kind: str
    error: float
    cosine: float
    relative_error: float
    fault: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the rule is what it says: a surrogate may differ, but not be infinite."""
        return self.fault is None

    def __str__(self) -> str:
        text = f"{self.name}: {self.kind}, largest error {self.error:.1e}"
        if self.kind == "surrogate":
            text += f", cosine {self.cosine:.3f}, relative error {self.relative_error:.3g}"
        return text


def prove(name: str, kind: str, call: Callable[..., Any], samples: Mapping[str, Any]) -> Proof:
    """Compare the gradient of `call(**samples)` with central differences.

    Args:
        name: The operation, for messages.
        kind: `"exact"` or `"surrogate"`.
        call: The operation; returns a tensor or a nested tuple, list or dict of tensors.
        samples: Inputs by name. Floating tensors are differentiated, in float64; the others are passed on.
    Raises:
        InputError: nothing to differentiate, or the operation does not repeat itself.
        GradientError: an output does not depend on its inputs as far as autograd knows.
    """
    names = [key for key, value in samples.items() if _is_float(value)]
    values = [samples[key].detach().to(torch.float64, copy=True).requires_grad_() for key in names]
    if not any(value.numel() for value in values):
        raise InputError(
            f'operation "{name}": its samples have no floating tensor, so nothing to differentiate'
        )

    def outputs(inputs: list[Tensor]) -> list[Tensor]:
        found = leaves(call(**{**samples, **dict(zip(names, inputs, strict=True))}))
        return [tensor for tensor in found if tensor.is_floating_point()]

    ours = outputs(values)
    tracked = [i for i, tensor in enumerate(ours) if tensor.requires_grad]
    if not tracked:
        raise GradientError(f'operation "{name}": no output has a gradient; is it detached in the forward?')
    again = outputs(values)
    if not all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)):
        raise InputError(
            f'operation "{name}" gives other values when called again; pass its noise as an input'
        )
    generator = torch.Generator().manual_seed(0)
    seeds = [[_draw(ours[i], generator) for i in tracked] for _ in range(SEEDS)]
    got = [_backward([ours[i] for i in tracked], values, seed) for seed in seeds]
    expected = _differences(outputs, values, tracked, seeds)
    return _compare(name, kind, names, got, expected)


def leaves(result: Any) -> list[Tensor]:
    """Return the tensors of a nested tuple, list or mapping, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return leaves(list(result.values()))
    return (
        [tensor for value in result for tensor in leaves(value)] if isinstance(result, (tuple, list)) else []
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)


def _backward(outputs: list[Tensor], inputs: list[Tensor], seed: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(outputs, inputs, seed, retain_graph=True, materialize_grads=True)
    return [gradient.detach() for gradient in found]


def _differences(
    outputs: Callable[[list[Tensor]], list[Tensor]],
    values: list[Tensor],
    tracked: list[int],
    seeds: list[list[Tensor]],
) -> list[list[Tensor]]:
    """Central differences of the outputs' inner product with each seed, [seed][input] of the inputs' shapes."""
    found = [
        [torch.zeros_like(value, memory_format=torch.contiguous_format) for value in values] for _ in seeds
    ]
    with torch.no_grad():
        for position, value in enumerate(values):
            for index in range(value.numel()):
                step = STEP * (1.0 + abs(float(value.reshape(-1)[index])))
                sides = []
                for sign in (1.0, -1.0):
                    moved = value.detach().clone(memory_format=torch.contiguous_format)
                    moved.view(-1)[index] += sign * step
                    everything = outputs([*values[:position], moved, *values[position + 1 :]])
                    sides.append([everything[i] for i in tracked])
                for number, seed in enumerate(seeds):
                    change = sum(((a - b) * s).sum() for a, b, s in zip(*sides, seed, strict=True))
                    found[number][position].view(-1)[index] = change / (2 * step)
    return found


def _compare(
    name: str, kind: str, names: list[str], got: list[list[Tensor]], expected: list[list[Tensor]]
) -> Proof:
    worst, fault = 0.0, None
    for ours, theirs in zip(got, expected, strict=True):
        for key, a, b in zip(names, ours, theirs, strict=True):
            if not a.numel():
                continue
            scale = max(1.0, float(b.abs().max()))
            excess = (a - b).abs()
            error = float(excess.max()) / scale if a.isfinite().all() else math.inf
            worst = max(worst, error)
            bad = ~(excess <= ABSOLUTE * scale + RELATIVE * b.abs())
            if fault is None and bad.any() and (kind == "exact" or not a.isfinite().all()):
                fault = _describe(name, key, a, b, bad)
    flat, true = (torch.cat([t.reshape(-1) for row in rows for t in row]) for rows in (got, expected))
    sizes = float(torch.linalg.vector_norm(flat)), float(torch.linalg.vector_norm(true))
    cosine = float(flat @ true) / (sizes[0] * sizes[1]) if all(sizes) else math.nan
    relative = float(torch.linalg.vector_norm(flat - true)) / sizes[1] if sizes[1] else math.inf
    return Proof(name, kind, worst, cosine, relative, fault)


def _describe(name: str, key: str, got: Tensor, expected: Tensor, bad: Tensor) -> str:
    wrong = torch.where(bad, (got - expected).abs().nan_to_num(math.inf), -1.0)
    index = tuple(int(i) for i in torch.unravel_index(wrong.argmax(), wrong.shape))
    where = "".join(f"[{i}]" if len(index) == 1 else f"{', ' if n else '['}{i}" for n, i in enumerate(index))
    where += "]" if len(index) > 1 else ""
    return (
        f'operation "{name}": the gradient of input "{key}"{where} is wrong: expected {float(expected[index]):.9g} by '
        f"central differences, got {float(got[index]):.9g} ({int(bad.sum())} of {bad.numel()} elements differ); "
        'mend the backward rule, or register it as kind="surrogate" if it is meant to differ'
    )
