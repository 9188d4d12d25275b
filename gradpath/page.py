"""The report of a run: one HTML file without external resources, readable in light and dark."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gradpath.diagram import draw_pipeline
from gradpath.errors import LoadError
from gradpath.figures import Figure, Series, interval_bar, line_chart, table
from gradpath.page_style import STYLE
from gradpath.rollout import Rollout
from gradpath.runs import (
    Run,
    open_run,
    read_diagnosis,
    read_log,
    read_metrics,
    run_versions,
    update_metrics,
    write_text,
)
from gradpath.storage import load
from gradpath.task import is_rate, task_path
from gradpath.training_gradients import pipeline_of


def report(folder: str | Path, *, allow: Sequence[str] = ()) -> Path:
    """Write report.html of a run folder from its logs, its metrics and the task's figures.

    Args:
        folder: A run folder; sections whose data are not there yet say how to make them.
        allow: Modules outside gradpath that the run may import.
    Returns:
        The path of the page.
    Raises:
        LoadError: no run there, nothing trained yet, or damaged files.
    """
    run = open_run(folder, allow)
    log = read_log(run.metrics_log)
    if not log or not run.has_state:
        raise LoadError(
            f"{run.path} has no saved iteration to report on; train it: gradpath train --resume {run.path}"
        )
    metrics = read_metrics(run)
    evaluation = metrics.get("evaluation", {})
    figures = run.task.figures(run.path) if evaluation else []
    sections = [
        _headline(evaluation, run),
        _section("Training", training_figures(log)),
        _section("Gradients", gradient_figures(log, read_log(run.gradients_log))),
        _diagnosis(run),
        _section("Pipeline", [pipeline_figure(run, allow)]),
        _section("What it does", figures) if figures else "",
        _numbers(evaluation, metrics.get("training", {})),
        _reproduce(run),
    ]
    title = f"{run.task.name} · {run.path.name}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><p class=eyebrow>gradpath run · {escape(run.path.name)}</p><h1>{escape(run.task.name)}</h1>"
        f"<p class=lead>{escape(run.task.description)}</p></header>"
        f"{''.join(sections)}</main></body></html>\n"
    )
    write_text(run.report_file, page)
    update_metrics(run, "report", {"figures": len(figures), "bytes": len(page.encode())})
    return run.report_file


def training_figures(log: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Draw task metrics, losses and learning rate over the iterations of metrics.jsonl."""
    x = [line["iteration"] for line in log]
    window = max(1, len(log) // 15)
    figures = []
    for name in log[0]["metrics"]:
        values = [line["metrics"].get(name) for line in log]
        share = all(value is None or 0 <= value <= 1 for value in values)
        chart = line_chart([Series(name, x, values, window)], x_label="iteration", percent=share)
        figures.append(
            Figure(_title(name), f"In the worlds of each iteration; mean over {window}.", html=chart)
        )
    terms = [Series("total", x, [line["loss"] for line in log], window)]
    terms += [
        Series(name, x, [line["losses"].get(name) for line in log], window) for name in log[0]["losses"]
    ]
    log_axis = all(value is None or value >= 0 for series in terms for value in series.y)
    chart = line_chart(terms, x_label="iteration", log=log_axis)
    figures.append(Figure("Loss", "The total and its weighted terms.", html=chart))
    return figures


def gradient_figures(log: Sequence[Mapping[str, Any]], profiles: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Draw gradient norms over training and over the time steps of a trajectory."""
    x = [line["iteration"] for line in log]
    norms = [line["gradient"] for line in log]
    window = max(1, len(log) // 15)
    total = Series("norm", x, [norm["norm"] for norm in norms], window)
    figures = []
    for kind, caption in STAGE_CAPTIONS.items():
        series = [
            Series(stage, x, [norm["stages"].get(stage, {}).get(kind) for norm in norms], window)
            for stage in norms[0]["stages"]
        ]
        series = [item for item in series if any(value for value in item.y)]
        if series:
            chart = line_chart(series, x_label="iteration", log=True)
            figures.append(Figure(f"Gradient norm per stage, {kind}", caption, html=chart))
    for which, profile in _first_and_last(profiles):
        series = [Series(name, range(len(y)), y) for name, y in profile["steps"].items() if any(y)]
        if series:
            chart = line_chart(series, x_label="time step", log=True)
            caption = f"Iteration {profile['iteration']}. The gradient flows from right to left."
            figures.append(Figure(f"Gradient norm per time step, {which}", caption, html=chart))
    clipped = sum(norm["clip_factor"] < 1 for norm in norms)
    caption = f"Before clipping; clipped in {clipped} of {len(log)} iterations."
    figures.append(
        Figure("Norm of the whole gradient", caption, html=line_chart([total], x_label="iteration", log=True))
    )
    return figures


STAGE_CAPTIONS = {
    "outputs": "What reaches the outputs of each stage from the losses, over all time steps.",
    "parameters": "What reaches the parameters that each stage owns.",
}


def pipeline_figure(run: Run, allow: Sequence[str] = ()) -> Figure:
    """Draw the graph of the run's pipeline."""
    model = load(run.path, allow=(*allow, type(run.task).__module__))
    pipeline = pipeline_of(model)
    if pipeline is None:
        return Figure("One time step", html='<p class="empty">the model is no pipeline</p>')
    carry = model.carry if isinstance(model, Rollout) else {}
    caption = (
        "Stages with inputs on the left and outputs on the right; dashed wires lead into the next time step."
    )
    return Figure("One time step", caption, svg=draw_pipeline(pipeline.graph(), carry), wide=True)


def reproduce_command(run: Run) -> str:
    """Return the command line that trains, evaluates and reports the same run again."""
    words = ["gradpath", "train", task_path(run.task), "--run", str(run.path)]
    for item in dataclasses.fields(run.task.options):
        value = getattr(run.task.options, item.name)
        if value == item.default:
            continue
        flag = item.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(str(part) for part in (value if isinstance(value, tuple) else (value,)))]
    folder = str(run.path)
    commands = (words, ["gradpath", "evaluate", folder], ["gradpath", "report", folder])
    return "\n".join(shlex.join(command) for command in commands)


def rate_text(rate: Mapping[str, Any]) -> str:
    """Return a share with its interval and counts as text."""
    return (
        f"{100 * rate['share']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f} %), "
        f"{rate['successes']} of {rate['trials']}"
    )


def _headline(evaluation: Mapping[str, Any], run: Run) -> str:
    rates = {name: value for name, value in evaluation.items() if is_rate(value)}
    if not evaluation:
        return (
            f'<p class="note">Not evaluated yet: <code>gradpath evaluate {escape(str(run.path))}</code></p>'
        )
    cards = "".join(
        f'<div class="card"><h3>{escape(_title(name))}</h3>'
        f"<p class=big>{100 * rate['share']:.1f}<small> %</small></p>"
        f"{interval_bar(rate['share'], rate['low'], rate['high'])}"
        f"<p class=fine>{rate['successes']} of {rate['trials']} · 95 % interval "
        f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %</p></div>"
        for name, rate in rates.items()
    )
    return f'<section class="cards">{cards}</section>'


def _diagnosis(run: Run) -> str:
    found = read_diagnosis(run)
    if found is None:
        return f'<p class="note">Not examined yet: <code>gradpath doctor {escape(str(run.path))}</code></p>'
    return f"<section><h2>Diagnosis</h2>{found.html()}</section>"


def _section(title: str, figures: Sequence[Figure]) -> str:
    drawn = "".join(
        f'<figure class="{"wide" if item.wide else ""}"><h3>{escape(item.title)}</h3>{item.content()}'
        f"<figcaption>{escape(item.caption)}</figcaption></figure>"
        for item in figures
    )
    return f'<section><h2>{escape(title)}</h2><div class="figures">{drawn}</div></section>'


def _numbers(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    blocks = []
    for title, values in (("Evaluation", evaluation), ("Training", training)):
        if rows := dict(_flat(values)):
            blocks.append(f"<div><h3>{title}</h3>{table(rows)}</div>")
    return (
        f'<section><h2>Numbers</h2><div class="figures">{"".join(blocks)}</div></section>' if blocks else ""
    )


def _reproduce(run: Run) -> str:
    options = {
        item.name: str(getattr(run.task.options, item.name)) for item in dataclasses.fields(run.task.options)
    }
    return (
        "<section><h2>Run it again</h2>"
        f"<pre>{escape(reproduce_command(run))}</pre>"
        f'<div class="figures"><div><h3>Options</h3>{table(options, mono=True)}</div>'
        f"<div><h3>Versions</h3>{table(run_versions(run), mono=True)}</div></div></section>"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested metrics as rows of names and texts; long lists are left to metrics.json."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{_title(key) if not prefix else key.replace('_', ' ')}"
        if is_rate(value):
            rows.append((name, rate_text(value)))
        elif isinstance(value, Mapping):
            rows += _flat(value, f"{name}: ")
        elif isinstance(value, float):
            rows.append((name, f"{value:.4g}"))
        elif not isinstance(value, list) or len(value) <= 8:
            rows.append((name, "none" if value is None else str(value)))
    return rows


def _first_and_last(profiles: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    if len(profiles) < 2:
        return [("last", profile) for profile in profiles]
    return [("first", profiles[0]), ("last", profiles[-1])]


def _title(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]
