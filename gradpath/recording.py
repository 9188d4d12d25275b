"""What the time loop tells whoever measures its gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Recording(Protocol):
    """Who listens to one time loop to measure its gradients; waits for the device at the end only."""

    def taping(self, step: int) -> AbstractContextManager[None]:
        """Return a context within which `step` is run with a tape."""

    def reversing(self) -> None:
        """A backward pass starts."""

    def reversed(self, step: int, adjoint: list[Tensor | None], captured: list[Tensor | None]) -> None:
        """A step was reversed: the adjoint of the carry that entered it, and the gradients of captured leaves."""

    def finish(self) -> None:
        """A backward pass is complete. May raise NonFiniteError."""


class Recorder(Protocol):
    """Who measures the gradients of time loops."""

    def begin(
        self,
        length: int,
        carry: list[Any],
        captured: list[Tensor],
        decay: float | None,
        cut: int | None = None,
    ) -> Recording:
        """Start to listen to a forward pass from this carry, with these captured leaves."""
