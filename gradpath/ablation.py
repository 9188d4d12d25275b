"""Ablations: a task trained again with one thing changed, and a table of what that costs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradpath.errors import InputError
from gradpath.intervals import is_measured
from gradpath.runs import open_run, read_metrics, task_path, write_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from gradpath.task import Task

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Ablation:
    """One thing changed in a task, as data: which options, or why it cannot be.

    Attributes:
        name: What is done, such as "camera blanked".
        options: Options of the task that differ from those that were asked for; None where it does not apply.
        note: What the change does, or why it does not apply.
    """

    name: str
    options: Mapping[str, Any] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.options is None and not self.note:
            raise InputError(f'ablation "{self.name}": say in note= why it does not apply, or give options')


@dataclass(frozen=True)
class AblationTable:
    """What an ablation study has found so far.

    Attributes:
        task: Name or path of the task.
        figures: Names of the figures of the evaluation that are compared.
        rows: One for each ablation: `name`, `note`, `figures` by name (None before it is done), `seconds` of training.
        finished: False after an interrupt.
    """

    task: str
    figures: tuple[str, ...]
    rows: list[dict[str, Any]]
    finished: bool

    def markdown(self) -> str:
        """The table as text; every figure with its 95 % interval."""
        head = ["", *(name.replace("_", " ") for name in self.figures), "training [s]", ""]
        lines = [head, ["---"] * len(head)]
        for row in self.rows:
            found = row["figures"]
            if row["options"] is None:
                cells = ["does not apply"] + [""] * len(self.figures)
            elif found is None:
                cells = ["not done yet"] + [""] * len(self.figures)
            else:
                cells = [figure_text(found.get(name)) for name in self.figures] + [f"{row['seconds']:.0f}"]
            lines.append([row["name"], *cells, row["note"]])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ablate(
    task: Task, folder: str | Path, *, only: Sequence[str] = (), console: Console | None = None
) -> AblationTable:
    """Train and evaluate a task as it is, and with each of its ablations; write the table.

    Each training has a run folder of its own in `folder`, named after the ablation. What is there is not done again,
    and an interrupted training is continued, so an interrupted study goes on with the same call. `ablation.md` and
    `ablation.json` are written anew after every row.

    Args:
        task: The task with its options; a study on a small budget has small options.
        folder: Where to.
        only: Names of ablations to do, beside the task as it is; all of them by default.
        console: Where progress goes; None is the terminal.
    Raises:
        InputError: a task without ablations, an unknown name, or a folder that holds runs with other options.
        NonFiniteError: as in `train`.
    """
    from gradpath.train import evaluate, train

    planned = _planned(task, only)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [_row(item) for item in planned]
    table = AblationTable(task_path(task), task.compared, rows, False)
    allow = (type(task).__module__,)  # the caller has imported it
    for item, row in zip(planned, rows, strict=True):
        if item.options is None:
            continue
        changed = type(task)(dataclasses.replace(task.options, **item.options))
        run = path / _slug(item.name)
        if not train(changed, run, console=console).finished:
            return table
        metrics = read_metrics(open_run(run, allow))
        evaluation = metrics.get("evaluation") or evaluate(run, allow=allow)
        row["figures"] = {name: evaluation[name] for name in task.compared if name in evaluation}
        row["seconds"] = metrics["training"]["seconds"]
        _write(path, table)
    table = dataclasses.replace(table, finished=True)
    _write(path, table)
    return table


def figure_text(value: Any) -> str:
    """A figure of an evaluation as text: a share or a measured number with its interval, or a plain number."""
    from gradpath.task import is_rate

    if is_rate(value):
        return f"{100 * value['share']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
    if is_measured(value):
        bounds = [value["low"], value["high"]]
        text = f"{value['value']:.3g}"
        return text if None in bounds else f"{text} ({bounds[0]:.3g} to {bounds[1]:.3g})"
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"


def _planned(task: Task, only: Sequence[str]) -> list[Ablation]:
    """The task as it is, and its ablations, all or some."""
    declared = {item.name: item for item in task.ablations}
    if not declared or not task.compared:
        raise InputError(
            f'task "{task.name}" declares no ablations; set `ablations`, a tuple of Ablation, and `compared`, the '
            "names of the figures to compare, on its class"
        )
    for item in declared.values():
        known = {option.name for option in dataclasses.fields(task.options)}
        if unknown := sorted(set(item.options or {}) - known):
            raise InputError(f'ablation "{item.name}": the task has no option {", ".join(unknown)}')
    for name in only:
        if name not in declared:
            raise InputError(f'task "{task.name}" has no ablation "{name}"; it has {", ".join(declared)}')
    chosen = [item for item in declared.values() if not only or item.name in only]
    return [Ablation(AS_IT_IS, {}), *chosen]


def _row(item: Ablation) -> dict[str, Any]:
    options = None if item.options is None else dict(item.options)
    return {"name": item.name, "note": item.note, "options": options, "figures": None, "seconds": None}


def _write(folder: Path, table: AblationTable) -> None:
    write_json(folder / "ablation.json", dataclasses.asdict(table))
    write_text(folder / "ablation.md", table.markdown())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
