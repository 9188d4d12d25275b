"""The command line: `gradpath train`, `evaluate`, `report`, `doctor`, `ablate`, `view` and `gradcheck`."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from gradpath.errors import GradpathError, InputError
from gradpath.intervals import is_measured
from gradpath.task import TASKS, Task, describe_task, is_rate, task_class


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the trained model of a run folder; print the figures and store them in metrics.json."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    allow: tuple[str, ...] = ()
    """Modules outside gradpath that the run may import, for tasks of your own."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder: curves, gradients, the pipeline, and what the task shows."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    allow: tuple[str, ...] = ()
    """Modules outside gradpath that the run may import, for tasks of your own."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Resume:
    """Continue a training with the options stored in its run folder."""

    resume: Path
    """The run folder."""
    allow: tuple[str, ...] = ()
    """Modules outside gradpath that the run may import, for tasks of your own."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class View:
    """Write pictures: of a mesh file from all sides, or of a run what its task draws of the evaluation."""

    path: tyro.conf.Positional[Path]
    """A mesh file (OBJ with MTL, GLB, PLY, STL, ...) or a run folder."""
    out: Path | None = None
    """Where to; the folder "view" beside the file or in the run by default."""
    frames: int = 36
    """Pictures around a mesh."""
    height: int = 360
    """Rows of these pictures."""
    width: int = 480
    """Columns of these pictures."""
    rerun: bool = False
    """Also write a recording of a mesh for the Rerun viewer (extra "viewer")."""
    allow: tuple[str, ...] = ()
    """Modules outside gradpath that the run may import, for tasks of your own."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Gradcheck:
    """Prove every registered gradient against central differences in float64; exit with 1 where one is wrong."""

    name: tyro.conf.Positional[str | None] = None
    """One operation; all of them by default."""
    module: tuple[str, ...] = ()
    """Modules to import first, for operations of your own."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Doctor:
    """Examine the trained pipeline of a run folder on a fresh batch; exit with 1 where something is found."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    worlds: int | None = None
    """Worlds of the batch; as many as in training by default."""
    memory: str | None = None
    """The memory there is, such as 16GB; what is free by default."""
    only: tuple[str, ...] = ()
    """Failure modes to look for, such as "gradient starvation"; all by default."""
    allow: tuple[str, ...] = ()
    """Modules outside gradpath that the run may import, for tasks of your own."""
    debug: bool = False
    """Show the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 refused with a message, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb, rest = words[0], words[1:]
    if verb == "--version":
        return _version()
    if verb not in VERBS:
        print(f'unknown command "{verb}"\n\n{_usage()}', file=sys.stderr)
        return 2
    try:
        return VERBS[verb][0](rest)
    except GradpathError as error:
        if "--debug" in rest:
            raise
        print(f"gradpath {verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full, a folder that may not be written
        if "--debug" in rest:
            raise
        print(f"gradpath {verb}: {error}; --debug shows where", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"gradpath {verb}: interrupted", file=sys.stderr)
        return 130


def train_command(words: Sequence[str]) -> int:
    """`gradpath train TASK [--options] [--run DIR]`, or `gradpath train --resume RUN`."""
    if any(word.split("=")[0] == "--resume" for word in words):
        return _resume(words)
    if not words or words[0].startswith("-"):
        print(_train_usage())
        return 0 if words and words[0] in ("-h", "--help") else 2
    from gradpath.runs import next_folder
    from gradpath.train import train

    task, given = _task(words, "train", ("run", Annotated[Path | None, tyro.conf.arg(help=RUN_HELP)], None))
    result = train(task, given.run or next_folder(task.name))
    return 0 if result.finished else 130


def ablate_command(words: Sequence[str]) -> int:
    """`gradpath ablate TASK [--options] [--run DIR] [--only NAME ...]`."""
    if not words or words[0].startswith("-"):
        print(_ablate_usage())
        return 0 if words and words[0] in ("-h", "--help") else 2
    from gradpath.ablation import ablate

    task, given = _task(
        words,
        "ablate",
        ("run", Annotated[Path | None, tyro.conf.arg(help=STUDY_HELP)], None),
        ("only", Annotated[tuple[str, ...], tyro.conf.arg(help="Ablations to do; all by default.")], ()),
    )
    folder = given.run or Path("runs") / f"ablate-{task.name}"
    table = ablate(task, folder, only=given.only)
    print(table.markdown())
    print(folder / "ablation.md")
    return 0 if table.finished else 130


def _task(words: Sequence[str], verb: str, *more: tuple[str, Any, Any]) -> tuple[Task, Any]:
    """A task with the options on a command line, and all that was given there."""
    cls = task_class(words[0])
    command = dataclasses.make_dataclass(
        verb.title(),
        [
            ("options", Annotated[cls.Options, tyro.conf.arg(name="")], cls.Options()),
            *more,
            ("debug", Annotated[bool, tyro.conf.arg(help="Show the traceback of an error.")], False),
        ],
    )
    try:
        given: Any = tyro.cli(
            command, prog=f"gradpath {verb} {words[0]}", description=cls.description, args=list(words[1:])
        )
    except ValueError as error:  # of the checks of a task's own options
        raise error if isinstance(error, GradpathError) else InputError(f"bad option: {error}") from error
    return cls(given.options), given


def evaluate_command(words: Sequence[str]) -> int:
    """`gradpath evaluate RUN`."""
    given = tyro.cli(Evaluate, prog="gradpath evaluate", args=list(words))
    from gradpath.train import evaluate

    print_metrics(evaluate(given.run, allow=given.allow))
    return 0


def report_command(words: Sequence[str]) -> int:
    """`gradpath report RUN`."""
    given = tyro.cli(Report, prog="gradpath report", args=list(words))
    from gradpath.page import report
    from gradpath.runs import open_run, read_metrics

    path = report(given.run, allow=given.allow)
    print_metrics(read_metrics(open_run(given.run, given.allow)).get("evaluation", {}))
    print(path)
    return 0


def view_command(words: Sequence[str]) -> int:
    """`gradpath view FILE|RUN`."""
    given = tyro.cli(View, prog="gradpath view", args=list(words))
    from gradpath.viewing import write_figures, write_frames, write_recording

    if given.path.is_dir():
        from gradpath.runs import open_run

        run = open_run(given.path, given.allow)
        paths = write_figures(run.task.figures(run.path), given.out or run.path / "view")
    else:
        from gradpath.render.models import Model
        from gradpath.render.turntable import turntable

        model = Model.load(given.path)
        frames = turntable(model, given.frames, given.height, given.width).numpy()
        folder = given.out or given.path.parent / "view"
        paths = write_frames(frames, folder, given.path.stem)
        if given.rerun:
            mesh = model.mesh.vertices.numpy(), model.mesh.faces.numpy()
            paths.append(write_recording(*mesh, frames, folder / f"{given.path.stem}.rrd"))
    for path in paths:
        print(path)
    return 0


def gradcheck_command(words: Sequence[str]) -> int:
    """`gradpath gradcheck [NAME]`."""
    given = tyro.cli(Gradcheck, prog="gradpath gradcheck", args=list(words))
    from gradpath.gradcheck import check_registry

    for module in (*OPERATIONS, *given.module):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(f"cannot import {module}: {error}") from error
    return 0 if check_registry(given.name) else 1


def doctor_command(words: Sequence[str]) -> int:
    """`gradpath doctor RUN`."""
    given = tyro.cli(Doctor, prog="gradpath doctor", args=list(words))
    from gradpath.doctor_run import examine

    found = examine(
        given.run, worlds=given.worlds, memory=given.memory, only=given.only or None, allow=given.allow
    )
    print(found.table())
    return 0 if found.healthy else 1


def print_metrics(metrics: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the figures of an evaluation, one per line; nested and long values are left to metrics.json."""
    from gradpath.ablation import figure_text
    from gradpath.page import rate_text

    console = console or Console()
    shown: dict[str, str] = {}
    for name, value in metrics.items():
        if is_rate(value):
            shown[name] = rate_text(value)
        elif is_measured(value):
            shown[name] = figure_text(value)
        elif isinstance(value, (int, float, str)):
            shown[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        console.print(
            f"{name.replace('_', ' '):<{width}}  {text}", highlight=False, markup=False, soft_wrap=True
        )


RUN_HELP = (
    "The run folder; runs/TASK-001 and so on by default. "
    "A folder that holds this task with these options is continued."
)

STUDY_HELP = (
    "The folder of the study, with a run folder for each ablation; runs/ablate-TASK by default. "
    "What is there is not done again."
)

# Importing them registers the operations of the library.
OPERATIONS = (
    "gradpath.distances",
    "gradpath.sim",
    "gradpath.render",
    "gradpath.perception",
    "gradpath.planners",
)

VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train_command, "train a task in a run folder, or continue a training"),
    "evaluate": (evaluate_command, "evaluate the trained model of a run folder"),
    "report": (report_command, "write report.html of a run folder"),
    "doctor": (doctor_command, "say what is wrong with the trained model of a run folder, and where"),
    "ablate": (ablate_command, "train a task again with one thing changed at a time, and compare"),
    "view": (view_command, "write pictures and videos of a mesh file, or of a run"),
    "gradcheck": (gradcheck_command, "prove every registered gradient against central differences"),
}


def _resume(words: Sequence[str]) -> int:
    from gradpath.runs import open_run
    from gradpath.task import task_path
    from gradpath.train import resume

    named = words[0] if not words[0].startswith("-") else None
    given = tyro.cli(Resume, prog="gradpath train", args=list(words[1:] if named else words))
    if named and (there := task_path(open_run(given.resume, given.allow).task)) != named:
        raise InputError(f'{given.resume} holds a run of task "{there}", not "{named}"; leave the name out')
    return 0 if resume(given.resume, allow=given.allow).finished else 130


def _usage() -> str:
    verbs = "\n".join(f"  {name:<10} {text}" for name, (_, text) in VERBS.items())
    return (
        "usage: gradpath COMMAND ...\n\n"
        "Gradients through a whole robot loop: images, planning, physics and time.\n\n"
        f"commands:\n{verbs}\n\n"
        '"gradpath COMMAND --help" lists the options; "python -m gradpath.examples" lists the examples.'
    )


def _train_usage() -> str:
    tasks = "\n".join(f"  {name:<10} {describe_task(name)}" for name in sorted(TASKS))
    return (
        "usage: gradpath train TASK [--run DIR] [options]\n       gradpath train --resume RUN\n\n"
        f"tasks:\n{tasks}\n  or a path, package.module:Class, for a task of your own\n\n"
        '"gradpath train TASK --help" lists the options of a task.'
    )


def _ablate_usage() -> str:
    return (
        "usage: gradpath ablate TASK [--run DIR] [--only NAME ...] [options]\n\n"
        f"tasks: {', '.join(sorted(TASKS))}, or a path, package.module:Class, for a task of your own\n\n"
        "Trains and evaluates the task as it is, and with each of its ablations, and writes ablation.md and\n"
        'ablation.json. "gradpath ablate TASK --help" lists the options, which all trainings share.'
    )


def _version() -> int:
    from gradpath import __version__

    print(f"gradpath {__version__}")
    return 0
