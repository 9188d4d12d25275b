"""What an implicit solve reports about itself. Part of `gradpath.implicit`, which exports these names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Report:
    """What one call of `argmin` or `fixed_point` did.

    Attributes:
        name: Name of the objective or the map.
        gradient: Which gradient it gives: `"implicit"`, `"gauss_newton"` or `"unroll"`.
        converged: Which samples converged, (B,); the others have a gradient of zero.
        residual: Norm of what should be zero at the solution: the objective's gradient, or u - f(u); (B,).
        iterations: Iterations taken.
        difference: Relative distance between the gradient that was given and the exact one, over the converged
            samples; filled in by the backward pass of the choices that are not exact, None before and otherwise.
    """

    name: str
    gradient: str
    converged: Tensor
    residual: Tensor
    iterations: int
    difference: float | None = None

    @property
    def unconverged_share(self) -> float:
        """Share of samples that did not converge."""
        return float((~self.converged).double().mean()) if self.converged.numel() else 0.0

    def json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "gradient": self.gradient,
            "samples": self.converged.numel(),
            "unconverged": (~self.converged).nonzero().flatten().tolist(),
            "largest_residual": float(self.residual.max()) if self.residual.numel() else 0.0,
            "iterations": self.iterations,
            "difference": self.difference,
        }

    def __str__(self) -> str:
        worst = f"{float(self.residual.max()):.2g}" if self.residual.numel() else "none"
        text = (
            f"{self.name}: {int(self.converged.sum())} of {self.converged.numel()} samples converged in "
            f"{self.iterations} iterations, largest residual {worst}; gradient: {self.gradient}"
        )
        if self.difference is not None:
            text += f", differs from the exact one by {self.difference:.2%}"
        return text


_recorders: ContextVar[tuple[list[Report], ...]] = ContextVar("gradpath_implicit_reports", default=())


@contextlib.contextmanager
def record() -> Iterator[list[Report]]:
    """Collect the reports of all implicit solves within a `with` block.

    ```python
    with gp.implicit.record() as reports:
        u = gp.implicit.argmin(objective, init, a)
    print(reports[0])
    ```

    Within it, the backward pass of a choice that is not exact solves for the exact gradient as well, and writes how
    much the two differ in `Report.difference`.
    """
    reports: list[Report] = []
    token = _recorders.set((*_recorders.get(), reports))
    try:
        yield reports
    finally:
        _recorders.reset(token)


def publish(report: Report) -> bool:
    """Give a report to everyone who records; return whether there is anyone."""
    for reports in _recorders.get():
        reports.append(report)
    return bool(_recorders.get())


def relative_difference(given: Tensor, exact: Tensor, where: Tensor) -> float:
    """Return |given - exact| / |exact| over the samples `where`; all are (B, n), `where` (B,)."""
    size = torch.linalg.vector_norm(exact[where])
    return float(torch.linalg.vector_norm((given - exact)[where]) / size) if size > 0 else 0.0
