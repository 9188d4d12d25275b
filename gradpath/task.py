"""Tasks: what `gradpath train` trains. A task builds a model, draws its data and measures the result."""

from __future__ import annotations

import abc
import ast
import dataclasses
import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gradpath.errors import InputError, LoadError

if TYPE_CHECKING:
    from gradpath.ablation import Ablation
    from gradpath.figures import Figure
    from gradpath.losses import Losses
    from gradpath.stage import Stage

# Import paths, not classes: listing the tasks must not import Warp.
TASKS: dict[str, str] = {
    "flight": "gradpath.examples.flight:FlightTask",
    "navigate": "gradpath.examples.navigate_task:NavigateTask",
    "reach": "gradpath.examples.reach:ReachTask",
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options every task has. A task adds its own by subclassing; all fields must be plain JSON values."""

    seed: int = 0
    """Seed of the weights, the worlds and the noise."""
    iterations: int = 100
    """Optimizer steps."""
    worlds: int = 32
    """Worlds per iteration, flown in parallel."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW in the first iteration."""
    final_learning_rate: float = 0.1
    """Share of the learning rate that a cosine schedule leaves in the last iteration."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient, logged with the factor in every iteration; None does not clip."""
    save_every: int = 10
    """Iterations between two saved states; killing the training loses fewer than this many."""
    profile_every: int = 10
    """Iterations between two gradient profiles over time steps (gradients.jsonl)."""
    threads: int | None = None
    """CPU threads of torch, on which the order of sums depends; None takes torch's own choice."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs."""

    def __post_init__(self) -> None:
        positive = ("iterations", "worlds", "save_every", "profile_every")
        for name in (*positive, "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"option {name}: expected at least 1, got {value}")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"option {name}: expected a positive number, got {value}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"option seed: expected a number from 0 to 2**32 - 1, got {self.seed}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"option weight_decay: expected 0 or more, got {self.weight_decay}")
        if not 0 <= self.final_learning_rate <= 1:
            raise InputError(
                f"option final_learning_rate: expected a share in [0, 1], got {self.final_learning_rate}"
            )


class Task(abc.ABC):
    """A model, its data and its measures, behind one interface for training, evaluation and report.

    Subclasses name themselves, set `Options` to their options dataclass and implement the methods below. For
    `gradpath ablate` they declare their `ablations`, and which figures of the evaluation are `compared`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    Options: ClassVar[type[TrainOptions]] = TrainOptions
    ablations: ClassVar[tuple[Ablation, ...]] = ()
    compared: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: TrainOptions) -> None:
        self.options: Any = options

    @abc.abstractmethod
    def build(self) -> Stage:
        """Return the model, as a rule a Rollout, with fresh weights; a pure function of the options."""

    @abc.abstractmethod
    def losses(self) -> Losses:
        """Return the losses, to be called with the trajectory that `forward` returns."""

    @abc.abstractmethod
    def sample(self, iteration: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and keyword arguments of the model for one iteration.

        Must depend on the options and `iteration` only, noise included (pass a torch.Generator seeded from
        both): this is what makes a resumed training identical to one that was never interrupted.
        """

    def forward(self, model: Stage, iteration: int) -> Mapping[str, Any]:
        """Run the model on the sample of one iteration and return the trajectory."""
        args, kwargs = self.sample(iteration)
        return model(*args, **kwargs)

    def measure(self, trajectory: Mapping[str, Any]) -> dict[str, float]:
        """Return cheap figures of one training iteration, for example {"success": 0.5}."""
        return {}

    def doctor_options(self) -> Mapping[str, Any]:
        """Return what the doctor should know of the task: `irrelevant` and `relevant` values, see `gradpath.doctor`."""
        return {}

    @abc.abstractmethod
    def evaluate(self, model: Stage, folder: Path) -> dict[str, Any]:
        """Measure the trained model and return JSON values; write data files and videos into `folder`.

        Shares made with `rate` appear as headline numbers, in their order, in the report and on the terminal, as do
        numbers with an interval, `Interval.measured`, on the terminal.
        """

    def figures(self, folder: Path) -> list[Figure]:
        """Return the task's own pictures for the report, made from what `evaluate` wrote into `folder`."""
        return []


def rate(successes: int, trials: int) -> dict[str, float | int]:
    """Return a share with its 95 % interval (Wilson score), as plain JSON values.

    Args:
        successes: Number of successes, between 0 and `trials`.
        trials: Number of independent trials, at least 1.
    Returns:
        `share`, `low` and `high` in [0, 1], and the two counts.
    Raises:
        InputError: if the counts are impossible.
    References: Wilson 1927.
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise InputError(
            f"rate: expected 0 <= successes <= trials and trials >= 1, got {successes} of {trials}"
        )
    z = 1.959963984540054
    share = successes / trials
    scale = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return {
        "share": share,
        "low": max(0.0, center - half),
        "high": min(1.0, center + half),
        "successes": int(successes),
        "trials": int(trials),
    }


def is_rate(value: Any) -> bool:
    """Say whether a JSON value was made by `rate`."""
    return isinstance(value, Mapping) and {"share", "low", "high"} <= value.keys()


def register_task(name: str, path: str) -> None:
    """Make a task known by name. `path` is "module:Class"; the module is imported when the task is used."""
    if ":" not in path:
        raise InputError(f'task "{name}": expected a path like "package.module:Class", got "{path}"')
    TASKS[name] = path


def task_class(name: str, allow: Sequence[str] | None = None) -> type[Task]:
    """Return the class of a task by its registered name or its "module:Class" path.

    Args:
        name: A name in `TASKS`, or a path.
        allow: Modules that may be imported besides gradpath's own; None allows every module. Give it where
            the name comes out of a file, because importing a module runs its code.
    Raises:
        InputError: unknown name, or a class that is no Task.
        LoadError: the module is not allowed.
    """
    path = TASKS.get(name, name)
    module_name, _, class_name = path.partition(":")
    if not class_name:
        known = ", ".join(sorted(TASKS))
        raise InputError(
            f'unknown task "{name}"; known are {known}; others by path, as "package.module:Class"'
        )
    own = name in TASKS or module_name.split(".")[0] == "gradpath"
    if not own and allow is not None and module_name not in allow:
        raise LoadError(
            f'the run asks for task "{path}", and importing {module_name} runs its code; '
            f"if you trust it, allow it: --allow {module_name}"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(
            f"task {name}: cannot find {class_name} in {module_name} ({error}); check the path and PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f'task "{name}": {path} is not a subclass of gradpath.task.Task')
    return found


def task_path(task: Task | type[Task]) -> str:
    """Return what `task_class` needs to find a task again: its registered name, else its import path."""
    cls = task if isinstance(task, type) else type(task)
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, known in TASKS.items() if known == path), path)


def describe_task(name: str) -> str:
    """Return the one-line description of a registered task, read from its source without importing it."""
    module_name, _, class_name = TASKS[name].partition(":")
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None:
        return "(not installed)"
    tree = ast.parse(Path(spec.origin).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return next((text for item in node.body if (text := _assigned_text(item, "description"))), "")
    return ""


def _assigned_text(node: ast.stmt, name: str) -> str:
    """Return the text that a statement assigns to a name, with or without an annotation."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    value = getattr(node, "value", None)
    found = isinstance(target, ast.Name) and target.id == name and isinstance(value, ast.Constant)
    return str(value.value) if found and isinstance(value, ast.Constant) else ""


def options_to_json(options: TrainOptions) -> dict[str, Any]:
    """Return the options as JSON values. `options_from_json` gives back an equal object."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(part is None or isinstance(part, (bool, int, float, str)) for part in parts):
            raise InputError(
                f"option {name}: expected a number, text, None or a tuple of these, "
                f"got {type(value).__name__}; options are stored in the run folder as JSON"
            )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def options_from_json(cls: type[TrainOptions], values: Mapping[str, Any]) -> TrainOptions:
    """Return the options that `options_to_json` wrote.

    Raises:
        LoadError: the file has options that the task does not know.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise LoadError(
            f"the run has options that {cls.__name__} does not know: {', '.join(unknown)}; "
            "it was written by another version of gradpath or edited by hand"
        )
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return cls(**arguments)
