"""Progress of a training on the terminal: a live bar, or plain lines where output goes to a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows the last record of a training; a context manager.

    Args:
        console: Where to write.
        iterations: Number of iterations of the whole training.
        start: Iterations that a former session has done.
    """

    def __init__(self, console: Console, iterations: int, start: int) -> None:
        self._console, self._iterations = console, iterations
        self._every = max(1, iterations // 20)
        self._bar: RichProgress | None = None
        if console.is_terminal:
            self._bar = RichProgress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=iterations, completed=start)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, record: Mapping[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        done, text = record["iteration"] + 1, summarize(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif done % self._every == 0 or done in (1, self._iterations):
            line = f"{done:5d}/{self._iterations}  {text}  {record['seconds']:.2f} s"
            self._console.print(line, highlight=False, soft_wrap=True)


def summarize(record: Mapping[str, Any]) -> str:
    """Return loss, task metrics and gradient norm of one iteration in one line."""
    parts = [f"loss {record['loss']:.4g}"]
    parts += [f"{name} {value:.3g}" for name, value in record["metrics"].items()]
    parts.append(f"gradient {record['gradient']['norm']:.3g}")
    if record["gradient"]["clip_factor"] < 1:
        parts.append(f"clipped x{record['gradient']['clip_factor']:.2g}")
    return "  ".join(parts)
