"""Gradients of groups of parameters in three numbers each: norm, share of zeros, share of what is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradpath.errors import InputError

Groups = Mapping[str, Iterable[Tensor]] | torch.optim.Optimizer
"""Parameters by the name of their group, or an optimizer with its parameter groups."""


@dataclass(frozen=True)
class GradientSummary:
    """A gradient in three numbers.

    Attributes:
        norm: Euclidean norm over everything.
        zero_share: Share of its numbers that are exactly zero, in [0, 1]; what no gradient arrived at counts.
        non_finite_share: Share that is NaN or infinite.
    """

    norm: float
    zero_share: float
    non_finite_share: float

    def json(self) -> dict[str, Any]:
        """Return the three numbers, text where the norm is not finite."""
        finite = torch.isfinite(torch.tensor(self.norm)).item()
        return {**vars(self), "norm": self.norm if finite else str(self.norm)}


def summarize(gradients: Mapping[str, Iterable[tuple[Tensor | None, int]]]) -> dict[str, GradientSummary]:
    """Sum gradients up, group by group, with one wait for the device.

    Args:
        gradients: For each group, gradients (None where none arrived) and how many numbers each has.
    """
    counts: dict[str, list[int]] = {}
    rows = []
    for name, group in gradients.items():
        present, total, missing = [], 0, 0
        for gradient, numel in group:
            total += numel
            if gradient is None:
                missing += numel
            else:
                gradient = gradient.detach()
                present.append(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
        counts[name] = [total, missing]
        rows += [_row(present)] if present else []
    found = iter(torch.stack([row.to(rows[0].device) for row in rows]).tolist() if rows else [])
    result = {}
    for name, (total, missing) in counts.items():
        square, zeros, bad = next(found) if total > missing else (0.0, 0, 0)
        size = max(total, 1)
        result[name] = GradientSummary(square**0.5, (zeros + missing) / size, bad / size)
    return result


def _row(gradients: list[Tensor]) -> Tensor:
    """Square of the norm, number of zeros, number of what is not finite, (3,)."""
    parts = []
    for gradient in gradients:
        square = torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        counts = [(gradient == 0).sum(), (~gradient.isfinite()).sum()]
        parts.append(torch.stack([square, *(count.double() for count in counts)]).to(gradients[0].device))
    return torch.stack(parts).sum(0)


def parameter_groups(
    module: nn.Module, stages: Mapping[str, nn.Module], groups: Groups | None
) -> dict[str, list[Tensor]]:
    """Return the parameters by group: as given, or by the stage that owns them.

    Raises:
        InputError: a group holds something else than tensors.
    """
    if isinstance(groups, torch.optim.Optimizer):
        return {
            str(group.get("name", f"group {i}")): list(group["params"])
            for i, group in enumerate(groups.param_groups)
        }
    if groups is not None:
        found = {name: list(group) for name, group in groups.items()}
        for name, group in found.items():
            for item in group:
                if not isinstance(item, Tensor):
                    raise InputError(
                        f'parameter group "{name}" holds a {type(item).__name__}; expected tensors, such as '
                        "stage.parameters()"
                    )
        return found
    modules = stages or {"model": module}
    owned = {name: [p for p in stage.parameters() if p.requires_grad] for name, stage in modules.items()}
    return {name: list[Tensor](group) for name, group in owned.items() if group}
