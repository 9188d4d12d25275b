"""Which loss pulls at which stage, and which losses pull against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradpath.errors import InputError
from gradpath.losses import LossValues, gradients_by_loss
from gradpath.pipeline import Pipeline
from gradpath.rollout import Rollout


def loss_matrix(values: LossValues, where: nn.Module | Mapping[str, Iterable[Tensor]]) -> LossMatrix:
    """Measure the gradient of each weighted loss with respect to the parameters of each stage.

    ```python
    values = losses(trajectory)
    print(gp.loss_matrix(values, rollout).table())
    values.total.backward()
    ```

    Args:
        values: What calling the losses gave, before its graph is freed. It is kept: the call may come first.
        where: A rollout or a pipeline, whose stages are the columns; another module, whose children are; or
            parameters by name.

    Raises:
        InputError: no parameter that requires a gradient, or no loss depends on one.

    Runs one backward pass per loss over the same graph.
    """
    groups = {name: [p for p in found if p.requires_grad] for name, found in _groups(where).items()}
    groups = {name: found for name, found in groups.items() if found}
    if not groups:
        raise InputError("loss_matrix: no stage has a parameter that requires a gradient")
    rows = gradients_by_loss(values, [p for found in groups.values() for p in found], retain_graph=True)
    sizes = [sum(p.numel() for p in found) for found in groups.values()]
    gradients = torch.stack(list(rows.values())).double()
    norms, cosines = [], {}
    for name, part in zip(groups, gradients.split(sizes, dim=1), strict=True):
        norm = torch.linalg.vector_norm(part, dim=1)
        norms.append(norm)
        cosines[name] = _cosines(part, norm).cpu()
    everything = _cosines(gradients, torch.linalg.vector_norm(gradients, dim=1)).cpu()
    return LossMatrix(tuple(rows), tuple(groups), torch.stack(norms, 1).cpu(), cosines, everything)


@dataclass(frozen=True)
class LossMatrix:
    """Gradients of weighted losses by stage, on the CPU in float64.

    Attributes:
        losses: Names of the K losses that have a gradient.
        stages: Names of the S stages that have parameters.
        norms: Norm of the gradient of each loss at each stage, (K, S).
        cosines: Cosines between the gradients of the losses at each stage, (K, K) by its name; NaN where one is zero.
        total: The same over all parameters, (K, K).
    """

    losses: tuple[str, ...]
    stages: tuple[str, ...]
    norms: Tensor
    cosines: dict[str, Tensor]
    total: Tensor

    def conflicts(self, below: float = 0.0) -> list[tuple[str, str, str, float]]:
        """Return (stage, loss, loss, cosine) of all pairs whose cosine is below a number, the worst first."""
        found = []
        for stage, cosine in self.cosines.items():
            for i, one in enumerate(self.losses):
                for j in range(i):
                    if float(cosine[i, j]) < below:
                        found.append((stage, self.losses[j], one, float(cosine[i, j])))
        return sorted(found, key=lambda row: row[3])

    def json(self) -> dict[str, Any]:
        """Return plain JSON values; None for the cosine with a gradient of zero."""
        return {
            "norms": {
                loss: dict(zip(self.stages, row, strict=True))
                for loss, row in zip(self.losses, self.norms.tolist(), strict=True)
            },
            "cosines": {name: _plain(cosine) for name, cosine in {**self.cosines, "all": self.total}.items()},
            "losses": list(self.losses),
        }

    def table(self) -> str:
        """Return a text table: a row per loss, a column per stage, and the pairs that pull against each other."""
        width = max(map(len, ("gradient norm", *self.losses)))
        columns = [max(10, len(name)) for name in self.stages]
        lines = [f"{'gradient norm':{width}}" + _cells(self.stages, columns, "")]
        for loss, row in zip(self.losses, self.norms.tolist(), strict=True):
            lines.append(f"{loss:{width}}" + _cells(row, columns, ".3g"))
        lines += [
            f"{stage}: {a} against {b}, cosine {cosine:+.2f}" for stage, a, b, cosine in self.conflicts()
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def _cells(values: Sequence[Any], widths: list[int], form: str) -> str:
    return "".join(f"  {format(value, form):>{width}}" for value, width in zip(values, widths, strict=True))


def _groups(where: nn.Module | Mapping[str, Iterable[Tensor]]) -> dict[str, list[Tensor]]:
    if isinstance(where, Mapping):
        return {name: list(found) for name, found in where.items()}
    if isinstance(where, Rollout):
        where = where.step
    children = where.stages if isinstance(where, Pipeline) else dict(where.named_children())
    return {name: list(child.parameters()) for name, child in children.items()}


def _cosines(gradients: Tensor, norm: Tensor) -> Tensor:
    return (gradients @ gradients.T) / (norm[:, None] * norm)


def _plain(cosine: Tensor) -> list[list[float | None]]:
    return [[x if x == x else None for x in row] for row in cosine.tolist()]
