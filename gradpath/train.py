"""The training loop: AdamW on a trajectory objective, logged, saved and resumable at every iteration."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from gradpath.errors import GradpathError, InputError, NonFiniteError
from gradpath.runs import Log, Run, create_run, open_run, read_log, truncate_log, update_metrics
from gradpath.stage import Stage
from gradpath.storage import load, load_train_state, save
from gradpath.task import Task, TrainOptions
from gradpath.training_gradients import (
    clip_gradients,
    gradient_fault,
    gradient_profile,
    locate_non_finite,
    report_of,
    stage_gradients,
)
from gradpath.training_progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` or `resume` did."""

    folder: Path
    iterations: int
    """Iterations in the saved state."""
    finished: bool
    """False after an interrupt; `resume` goes on."""
    last: dict[str, Any]
    """The last line of metrics.jsonl."""


def train(task: Task, folder: str | Path, *, console: Console | None = None) -> TrainResult:
    """Train a task in a run folder; a folder that holds the same task and options is continued.

    Killed at any moment and continued, a run gives the metrics and weights of an uninterrupted one, timings
    apart: data depend on the seed and the iteration only, and lines logged after the last saved state are
    dropped and computed again.

    Args:
        task: The task with its options.
        folder: The run folder; made where it does not exist.
        console: Where progress goes; None is the terminal.
    Raises:
        InputError: the folder holds another run, or a stage refuses its input in an iteration.
        NonFiniteError: a value, loss or gradient became NaN or infinite; names stage, time step and world. The
            optimizer step is not taken and the state before it is saved.
    """
    return _train(create_run(folder, task), (), console)


def resume(folder: str | Path, *, allow: Sequence[str] = (), console: Console | None = None) -> TrainResult:
    """Continue the training in a run folder with the options stored there.

    Args:
        folder: A run folder.
        allow: Modules outside gradpath that the run may import.
        console: Where progress goes; None is the terminal.
    Raises:
        LoadError: no run there, or damaged files.
        NonFiniteError: as in `train`.
    """
    return _train(open_run(folder, allow), allow, console)


def evaluate(folder: str | Path, *, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate the trained model of a run folder and store the result in its metrics.json.

    Returns:
        What the task's `evaluate` returned.
    Raises:
        LoadError: no run or no saved model there.
    """
    run = open_run(folder, allow)
    with _settings(run.task.options):
        model = _to_device(load(run.path, allow=_allowed(run.task, allow)), run.task.options).eval()
        torch.manual_seed(run.task.options.seed)
        metrics = run.task.evaluate(model, run.path)
    update_metrics(run, "evaluation", metrics)
    return metrics


def learning_rate(options: TrainOptions, iteration: int) -> float:
    """Return the learning rate of an iteration: a half cosine from the full rate to its final share.

    A function of the iteration alone, so that a resumed training needs no scheduler state.
    """
    progress = iteration / max(1, options.iterations - 1)
    share = options.final_learning_rate
    return options.learning_rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))


def _train(run: Run, allow: Sequence[str], console: Console | None) -> TrainResult:
    options: TrainOptions = run.task.options
    console = console or Console()
    with _settings(options), _interrupts() as interrupted:
        trainer = _Trainer(run, allow)
        started = time.perf_counter()
        try:
            trainer.loop(console, interrupted)
        finally:
            trainer.close()
    log = read_log(run.metrics_log)
    result = TrainResult(run.path, trainer.saved, trainer.saved >= options.iterations, log[-1] if log else {})
    if result.finished:
        update_metrics(run, "training", _summary(log))
        seconds = time.perf_counter() - started
        text = f"{trainer.saved} iterations done, {seconds:.1f} s in this session; the run is in {run.path}"
    else:
        text = f"interrupted after {trainer.saved} iterations; go on with: gradpath train --resume {run.path}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return result


class _Trainer:
    """Model, optimizer and logs of one run, at the iteration where the run stands."""

    def __init__(self, run: Run, allow: Sequence[str]) -> None:
        self.run, self.task = run, run.task
        self.options: TrainOptions = run.task.options
        self.losses = self.task.losses()
        if run.has_state:
            self.model = _to_device(load(run.path, allow=_allowed(self.task, allow)), self.options)
            self.optimizer = self._optimizer()
            self.saved = load_train_state(run.path, optimizer=self.optimizer).step or 0
        else:
            torch.manual_seed(self.options.seed)
            self.model = _to_device(self.task.build(), self.options)
            self.optimizer = self._optimizer()
            self.saved = 0
        for path in (run.metrics_log, run.gradients_log):
            truncate_log(path, self.saved)
        self.metrics_log, self.gradients_log = Log(run.metrics_log), Log(run.gradients_log)
        self.board: SummaryWriter = _tensorboard(run, self.saved)

    def loop(self, console: Console, interrupted: threading.Event) -> None:
        """Train to the last iteration, or until the flag is set; the state is saved in either case."""
        with Progress(console, self.options.iterations, self.saved) as progress:
            for iteration in range(self.saved, self.options.iterations):
                record = self.iterate(iteration)
                self.log(record)
                progress.show(record)
                done = iteration + 1
                if (
                    done % self.options.save_every == 0
                    or done == self.options.iterations
                    or interrupted.is_set()
                ):
                    self.save(done)
                if interrupted.is_set():
                    return

    def iterate(self, iteration: int) -> dict[str, Any]:
        """Take one optimizer step and return its line of metrics.jsonl."""
        started = time.perf_counter()
        rate = learning_rate(self.options, iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self._seed(iteration)
        try:
            trajectory = self.task.forward(self.model, iteration)
            values = self.losses(trajectory)
        except (NonFiniteError, InputError) as error:  # physics refuses a state with a NaN as an input
            self._seed(iteration)
            place = locate_non_finite(self.task, self.model, iteration)
            if place is None and isinstance(error, InputError):
                raise self._refuse(iteration, f"{error}", InputError) from error
            place = place or "every stage output is finite, so it arises in the loss itself"
            raise self._refuse(iteration, f"{error}. Here {place}") from error
        values.total.backward()
        profiled = iteration % self.options.profile_every == 0
        report = report_of(self.model, None if profiled else {})
        stages = stage_gradients(self.model, report)
        norm, factor = clip_gradients(self._parameters(), self.options.clip_norm)
        if not math.isfinite(norm):
            place = gradient_fault(self.model, report)
            raise self._refuse(iteration, f"a gradient became NaN or infinite on its way back at {place}")
        if report is not None and profiled:
            self.gradients_log.write({"iteration": iteration, **gradient_profile(report)})
            report.tensorboard(self.board, iteration)
        self.optimizer.step()
        return {
            "iteration": iteration,
            "loss": values.total.item(),
            "losses": {name: value.item() for name, value in values.weighted.items()},
            "metrics": _floats(self.task.measure(trajectory)),
            "gradient": {"norm": norm, "clip_factor": factor, "stages": stages},
            "learning_rate": rate,
            "seconds": time.perf_counter() - started,
        }

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one iteration to metrics.jsonl and TensorBoard."""
        self.metrics_log.write(record)
        for name, value in _scalars(record):
            self.board.add_scalar(name, value, record["iteration"])

    def save(self, iterations: int) -> None:
        """Save the state after `iterations` iterations; every line up to there is on disk already."""
        save(self.model, self.run.path, optimizer=self.optimizer, step=iterations)
        self.saved = iterations

    def close(self) -> None:
        """Close the logs."""
        self.metrics_log.close()
        self.gradients_log.close()
        self.board.close()

    def _seed(self, iteration: int) -> None:
        """Make draws from the global generator, dropout's for example, repeat on resume."""
        torch.manual_seed((self.options.seed << 20) + iteration)

    def _refuse(self, iteration: int, what: str, kind: type[GradpathError] = NonFiniteError) -> GradpathError:
        """Save the state before the step that cannot be taken, and say what happened."""
        self.save(iteration)
        return kind(
            f"iteration {iteration}: {what}. The optimizer step was not taken; {self.run.path} holds the "
            f"state before it. Look at what is named here, or train with a smaller --learning-rate"
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _optimizer(self) -> torch.optim.AdamW:
        parameters = self._parameters()
        if not parameters:
            raise InputError(f'task "{self.task.name}": the model has no parameter that requires a gradient')
        return torch.optim.AdamW(
            parameters, lr=self.options.learning_rate, weight_decay=self.options.weight_decay
        )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first interrupt into a flag, so that it cannot fall into the middle of an optimizer step.

    A second one raises KeyboardInterrupt as usual. Signals reach the main thread only; elsewhere the flag
    never rises.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def stop(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _allowed(task: Task, allow: Sequence[str]) -> tuple[str, ...]:
    """Return the modules whose stages may be loaded: the user's list and the module of the task itself."""
    return (*allow, type(task).__module__)


@contextmanager
def _settings(options: TrainOptions) -> Iterator[None]:
    """Use the task's number of threads, and leave that and the global random generator as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _to_device(model: Stage, options: TrainOptions) -> Stage:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("option device: expected a CUDA device, none is available; use --device cpu")
    return model.to(options.device)


def _tensorboard(run: Run, start: int) -> SummaryWriter:
    # Imported late: it takes longer to load than the rest of this module.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=start)


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value.item() if isinstance(value, Tensor) else float(value) for name, value in values.items()
    }


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested record with slash-separated names, as TensorBoard groups them."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "iteration":
            yield f"{prefix}{name}", value


def _summary(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of a finished training: the last ten iterations on average, and the time."""
    last = log[-10:]
    names = last[-1]["metrics"] if last else {}
    return {
        "iterations": len(log),
        "loss": sum(line["loss"] for line in last) / max(1, len(last)),
        **{name: _mean([line["metrics"][name] for line in last]) for name in names},
        "seconds": sum(line["seconds"] for line in log),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
