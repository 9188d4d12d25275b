"""Run folders: the files of one training, and how they are read and written.

A run folder holds
    options.json          the task, its options and the versions that wrote it
    pipeline.json, weights.safetensors, train_state.safetensors    the saved state (gradpath.storage)
    metrics.jsonl         one line per iteration
    gradients.jsonl       gradient norm per time step, every few iterations
    metrics.json          final figures, one section per command
    doctor.json           what the doctor found
    tensorboard/          the same scalars for TensorBoard
    report.html           what a person looks at
and whatever files the task's evaluation adds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gradpath.diagnosis import Diagnosis
from gradpath.errors import InputError, LoadError
from gradpath.task import Task, options_from_json, options_to_json, task_class, task_path
from gradpath.versions import versions

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """An open run folder and the task in it."""

    path: Path
    task: Task

    @property
    def options_file(self) -> Path:
        """The task and its options."""
        return self.path / "options.json"

    @property
    def metrics_log(self) -> Path:
        """One line per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def gradients_log(self) -> Path:
        """Gradient norm per time step, every few iterations."""
        return self.path / "gradients.jsonl"

    @property
    def diagnosis_file(self) -> Path:
        """What `gradpath doctor` found."""
        return self.path / "doctor.json"

    @property
    def report_file(self) -> Path:
        """The page that `gradpath report` writes."""
        return self.path / "report.html"

    @property
    def has_state(self) -> bool:
        """Whether a model has been saved here."""
        return (self.path / "pipeline.json").exists()


def create_run(folder: str | Path, task: Task) -> Run:
    """Make a run folder, or open the one that is there if it holds the same task with the same options.

    Raises:
        InputError: the folder holds another run; nothing in it is touched.
    """
    path = Path(folder)
    options = options_to_json(task.options)
    if (path / "options.json").exists():
        there = _read_options(path)
        if there["task"] != task_path(task) or there["options"] != options:
            raise InputError(
                f"{path} holds {_difference(there, task_path(task), options)}; "
                "choose another folder, with --run or, under make, with RUN=runs/NAME"
            )
        return Run(path, task)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run folder {path}: {error}; choose another --run") from error
    run = Run(path, task)
    header = {"format": FORMAT, "task": task_path(task), "versions": versions(), "options": options}
    write_json(run.options_file, header)
    return run


def open_run(folder: str | Path, allow: Sequence[str] = ()) -> Run:
    """Open a run folder by its options.json.

    Args:
        folder: A folder that `create_run` made.
        allow: Modules outside gradpath that may be imported for the task.
    Raises:
        LoadError: no run there, a damaged or newer options.json, or a task that is not allowed.
    """
    path = Path(folder)
    header = _read_options(path)
    cls = task_class(header["task"], allow)
    return Run(path, cls(options_from_json(cls.Options, header["options"])))


def run_versions(run: Run) -> dict[str, str]:
    """Return the versions that were recorded when the run folder was made."""
    return dict(_read_options(run.path)["versions"])


def next_folder(name: str, root: str | Path = "runs") -> Path:
    """Return the first free folder of the form runs/name-001."""
    number = 1
    while (path := Path(root) / f"{name}-{number:03d}").exists():
        number += 1
    return path


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a reader, or a kill, sees the old file or the new one."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """Return a value as JSON types: tensors and arrays as numbers or lists, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise InputError(f"cannot write a {type(value).__name__} as JSON; use numbers, text, lists and dicts")


def update_metrics(run: Run, section: str, values: Mapping[str, Any]) -> Path:
    """Replace one section of metrics.json and keep the others. Returns the file's path."""
    path = run.path / "metrics.json"
    content = read_metrics(run)
    content["task"] = task_path(run.task)
    content[section] = dict(values)
    write_json(path, content)
    return path


def read_metrics(run: Run) -> dict[str, Any]:
    """Return metrics.json, or an empty dict before there is one."""
    path = run.path / "metrics.json"
    return _read_json(path) if path.exists() else {}


class Log:
    """An append-only file of JSON lines; every line reaches the disk before `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_diagnosis(run: Run) -> Diagnosis | None:
    """Return what the doctor found, None before it has looked.

    Raises:
        LoadError: a damaged file.
    """
    return Diagnosis.from_json(_read_json(run.diagnosis_file)) if run.diagnosis_file.exists() else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log; a last line that a kill cut short is left out."""
    return [record for _, record in _lines(path)]


def truncate_log(path: Path, iterations: int) -> None:
    """Drop the lines of iteration `iterations` and later, and a line that was cut short."""
    if not path.exists():
        return
    keep = [line for line, record in _lines(path) if record["iteration"] < iterations]
    write_text(path, "".join(f"{line}\n" for line in keep))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last newline is a line that was being written when the process died.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            record["iteration"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise LoadError(
                f"{path}, line {number} is damaged ({error}); restore the file or delete the line"
            ) from error
        yield line, record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoadError(f"cannot read {path}: {error}; restore the file or train again") from error
    if not isinstance(content, dict):
        raise LoadError(
            f"{path} is damaged: expected an object, got {type(content).__name__}; restore the file"
        )
    return content


def _read_options(path: Path) -> dict[str, Any]:
    file = path / "options.json"
    if not file.exists():
        raise LoadError(f'"{path}" is no run folder: it has no options.json; "gradpath train" makes one')
    header = _read_json(file)
    if missing := {"format", "task", "options", "versions"} - header.keys():
        raise LoadError(f"{file} lacks {', '.join(sorted(missing))}; restore the file or train again")
    if header["format"] != FORMAT:
        raise LoadError(
            f"{file} has format {header['format']}, this gradpath {versions()['gradpath']} reads format {FORMAT}; "
            f"use the gradpath that wrote it ({header['versions'].get('gradpath')})"
        )
    return header


def _difference(there: Mapping[str, Any], task: str, options: Mapping[str, Any]) -> str:
    if there["task"] != task:
        return f'a run of task "{there["task"]}"'
    names = sorted(set(options) | set(there["options"]))
    changed = [
        f"{name}={there['options'].get(name)!r} instead of {options.get(name)!r}"
        for name in names
        if there["options"].get(name) != options.get(name)
    ]
    return f"a run with other options ({', '.join(changed)})"
