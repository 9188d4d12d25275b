"""How far a time loop has come: a callback per step, and a bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Watcher:
    """Is told of every step of a time loop.

    Args:
        length: Steps in all, None where that turns out on the way.
        on_step: Called with the number of each step of the forward pass.
        bar: Title of a bar that shows the forward and the backward pass on standard error; None for no bar. Where
            standard error is no terminal, one line tells of each pass when it is done.
    """

    def __init__(self, length: int | None, on_step: Callable[[int], None] | None, bar: str | None):
        self.length = length
        self.on_step = on_step
        self.title = bar
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def ran(self, step: int) -> None:
        """A step of the forward pass is done."""
        if self.on_step is not None:
            self.on_step(step)
        self._show("forward", step)

    def passed(self, length: int) -> None:
        """The forward pass is done, after so many steps."""
        self.length = length
        self._close()

    def reversed(self, step: int) -> None:
        """The gradient of a step is done."""
        assert self.length is not None
        self._show("backward", self.length - 1 - step)
        if step == 0:
            self._close()

    def stop(self) -> None:
        """Take the bar away, done or not."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, which: str, number: int) -> None:
        if self.title is None:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(f"{self.title} {which}", total=self.length)
        self._bar.update(self._task, completed=number + 1)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, total=self.length)
        self.stop()
