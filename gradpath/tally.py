"""What a time loop really took: step calls, time, and where asked for, bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from gradpath.meter import Meter

Work = Literal["advance", "tape", "reverse", "store", "load"]


@dataclass
class Tally:
    """Counts of one forward pass and its latest backward pass.

    Attributes:
        length: Time steps T.
        meter: Counts bytes while the loop works; None where nobody asked.
        known_peak: The peak of an earlier loop of the same plan, where this one is not metered.
        steps: Step calls without a tape ("advance"), with one ("tape"), and reversed steps ("reverse"); states that
            were written to a second place ("store") and read back ("load").
        seconds: The time of each kind. On a GPU, that of handing out the work.
        ys_bytes: The stacked `ys`, which belong to the caller and are not charged.
        xs_bytes: The gradient of `xs`, likewise.
        complete: Whether a backward pass has run through.
    """

    length: int
    meter: Meter | None = None
    known_peak: int | None = None
    steps: dict[Work, int] = field(default_factory=lambda: dict.fromkeys(get_args(Work), 0))
    seconds: dict[Work, float] = field(default_factory=lambda: dict.fromkeys(get_args(Work), 0.0))
    ys_bytes: int = 0
    xs_bytes: int = 0
    complete: bool = False

    @property
    def step_calls(self) -> int:
        """How often the step ran."""
        return self.steps["advance"] + self.steps["tape"]

    @property
    def extra_steps(self) -> int:
        """Step calls beyond one per time step."""
        return self.step_calls - self.length

    @property
    def peak(self) -> int | None:
        """The peak in bytes beyond what existed before, without stacked `ys` and the gradient of `xs`."""
        return self.known_peak if self.meter is None else self.meter.peak

    @property
    def slowdown(self) -> float:
        """Time relative to taping and reversing each step once, at the pace measured here."""
        if not self.steps["tape"] or not self.steps["reverse"]:
            return float("nan")
        pace = self.seconds["tape"] / self.steps["tape"] + self.seconds["reverse"] / self.steps["reverse"]
        return sum(self.seconds.values()) / (pace * self.length)

    @contextmanager
    def working(self, kind: Work, steps: int = 1) -> Iterator[None]:
        """Count and time what runs within."""
        start = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - start
        self.steps[kind] += steps

    def metered(self) -> AbstractContextManager[object]:
        """Count the bytes of what is made within, where asked for."""
        return nullcontext() if self.meter is None else self.meter

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors whose making torch does not tell of."""
        if self.meter is not None:
            for tensor in tensors:
                self.meter.count(tensor)

    def uncounted(self) -> AbstractContextManager[object]:
        """What is made within belongs to the caller of the loop and is not charged."""
        return nullcontext() if self.meter is None else self.meter.ignoring()
