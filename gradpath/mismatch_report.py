"""What `gp.mismatch` found: its rows, its limits, its table, JSON and plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradpath.errors import InputError, MismatchError
from gradpath.intervals import Interval

END_TO_END = "end to end"
LIMITS = ("distance", "decisions", "loss", "cosine")


@dataclass(frozen=True)
class Gap:
    """What one relaxed operation, or all of them, cost at one factor on the temperatures.

    Attributes:
        operation: `"stage.operation"`, with the line that calls it where a stage calls it in several places, or
            `"end to end"`.
        factor: The factor on all temperatures.
        temperature: The mean temperature of the operation with that factor; None end to end.
        distance: Root mean square of soft minus hard values, over the larger of the root mean squares of the two; the
            largest over the outputs. Of the operation: both on the same inputs. End to end: of what the model returns.
        values: Root mean square of soft minus hard, in the unit of each output.
        decisions: Share of decisions that differ. Of the operation: the soft value, read as a decision, against the
            hard one on the same input. End to end: what was decided on the way through the soft run against the hard
            run. None where nothing is decided, or not the same number of times.
        loss: Loss with the operation hard minus loss with it soft, the other operations soft, over worlds. End to
            end: all hard minus all soft. None without losses.
        cosine: Between the gradient that a training takes and the zeroth-order gradient of the loss with the operation
            hard, the others soft; end to end with all hard. None where it was not asked for.
    """

    operation: str
    factor: float
    temperature: float | None
    distance: float
    values: dict[str, float]
    decisions: float | None
    loss: Interval | None = None
    cosine: Interval | None = None

    def json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "operation": self.operation,
            "factor": self.factor,
            "temperature": self.temperature,
            "distance": _finite(self.distance),
            "values": {name: _finite(value) for name, value in self.values.items()},
            "decisions": self.decisions,
            "loss": None if self.loss is None else self.loss.json(),
            "cosine": None if self.cosine is None else self.cosine.json(),
        }


@dataclass(frozen=True)
class Mismatch:
    """The gaps between soft and hard, operation by operation and end to end, for each factor on the temperatures.

    Attributes:
        gaps: Operations in the order of their first call, then end to end; for each factor, in ascending order.
        gradient: The mode whose gradient was compared, `"soft"` or `"straight_through"`.
        samples: Random directions of each cosine.
        notes: What could not be measured, and why.
    """

    gaps: tuple[Gap, ...]
    gradient: str
    samples: int
    notes: tuple[str, ...] = field(default=())

    @property
    def operations(self) -> tuple[str, ...]:
        """The relaxed operations that ran."""
        return tuple(dict.fromkeys(gap.operation for gap in self.gaps if gap.operation != END_TO_END))

    @property
    def factors(self) -> tuple[float, ...]:
        """The factors on the temperatures, ascending."""
        return tuple(dict.fromkeys(gap.factor for gap in self.gaps))

    def __getitem__(self, key: str | tuple[str, float]) -> Gap:
        """Return the gap of an operation, or `"end to end"`, at a factor; 1 where none is given."""
        operation, factor = key if isinstance(key, tuple) else (key, 1.0)
        for gap in self.gaps:
            if gap.operation == operation and gap.factor == factor:
                return gap
        raise InputError(
            f'mismatch: no "{operation}" at factor {factor:g}; operations are '
            f"{', '.join((*self.operations, END_TO_END))}, factors {', '.join(f'{f:g}' for f in self.factors)}"
        )

    def check(self, limits: Mapping[str, float]) -> None:
        """Refuse gaps beyond limits, at the temperatures as they are (factor 1).

        Args:
            limits: The largest `distance`, share of `decisions` and size of the `loss` difference, and the smallest
                `cosine`. A figure that is NaN keeps no limit; one that was not measured is passed over.
        Raises:
            MismatchError: names each operation that is beyond, what it has, and what to do.
            InputError: another name, or a limit on what was not measured at all.
        """
        check_limits(limits)
        found = []
        for name, limit in limits.items():
            here = [gap for gap in self.gaps if gap.factor == 1.0 and _measured(gap, name) is not None]
            if not here:
                raise InputError(
                    f'mismatch: a limit on "{name}", which was not measured; it needs '
                    + ("an operation that decides something" if name == "decisions" else "losses")
                )
            found += [text for gap in here if (text := _beyond(gap, name, limit)) is not None]
        if found:
            raise MismatchError(
                f"relaxed and hard operations differ beyond the limit: {'; '.join(found)}. Lower the temperature of "
                "what is named, train it with straight_through, or allow more"
            )

    def json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; None for what was not measured or is not finite."""
        return {
            "gradient": self.gradient,
            "samples": self.samples,
            "notes": list(self.notes),
            "gaps": [gap.json() for gap in self.gaps],
        }

    def table(self) -> str:
        """Return a text table: a row per operation and factor."""
        rows = [
            ("operation", "factor", "temperature", "distance", "decisions", "loss, hard - soft", "cosine")
        ]
        for gap in self.gaps:
            rows.append(
                (
                    gap.operation,
                    f"{gap.factor:g}",
                    "-" if gap.temperature is None else f"{gap.temperature:.3g}",
                    f"{gap.distance:.3g}",
                    "-" if gap.decisions is None else f"{100 * gap.decisions:.2f} %",
                    "-" if gap.loss is None else str(gap.loss),
                    "-" if gap.cosine is None else str(gap.cosine),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path) -> None:
        """Draw the four figures over the factor on the temperatures, a line per operation, as an image file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 3.4), layout="constrained")
        titles = ("distance of values", "decisions that differ", "loss, hard - soft", "cosine of gradients")
        for axes, name, title in zip(figure.subplots(1, 4), LIMITS, titles, strict=True):
            for operation in (*self.operations, END_TO_END):
                _draw(axes, [gap for gap in self.gaps if gap.operation == operation], name)
            axes.set(title=title, xlabel="factor on temperatures", xscale="log")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
        figure.savefig(path, dpi=120)


def check_limits(limits: Mapping[str, float]) -> None:
    """Refuse limits of another name.

    Raises:
        InputError: says the known ones.
    """
    for name in limits:
        if name not in LIMITS:
            raise InputError(f'mismatch: no limit "{name}"; there are {", ".join(LIMITS)}')


def _measured(gap: Gap, name: str) -> float | None:
    value = getattr(gap, name)
    number = value.value if isinstance(value, Interval) else value
    return None if number is None else abs(number) if name == "loss" else number


def _beyond(gap: Gap, name: str, limit: float) -> str | None:
    """What is wrong with a figure, None where it keeps the limit; a figure that is not a number keeps none."""
    value = _measured(gap, name)
    assert value is not None
    if value >= limit if name == "cosine" else value <= limit:
        return None
    side = "at least" if name == "cosine" else "at most"
    return f"{gap.operation}: {name} {value:.3g}, allowed {side} {limit:g}"


def _draw(axes: Any, gaps: Sequence[Gap], name: str) -> None:
    shown = [gap for gap in gaps if _measured(gap, name) is not None]
    values = [getattr(gap, name) for gap in shown]
    x = [gap.factor for gap in shown]
    y = [value.value if isinstance(value, Interval) else value for value in values]
    (line,) = axes.plot(x, y, "o-", label=gaps[0].operation, markersize=4)
    if values and isinstance(values[0], Interval):
        axes.fill_between(
            x,
            [value.low for value in values],
            [value.high for value in values],
            color=line.get_color(),
            alpha=0.2,
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
