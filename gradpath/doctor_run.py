"""`gradpath doctor RUN`: the doctor on the trained model of a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from gradpath.diagnosis import Diagnosis
from gradpath.doctor import doctor
from gradpath.errors import InputError, LoadError
from gradpath.runs import open_run, update_metrics, write_json
from gradpath.storage import load
from gradpath.task import Task


def examine(
    folder: str | Path,
    *,
    worlds: int | None = None,
    memory: str | None = None,
    only: Sequence[str] | None = None,
    allow: Sequence[str] = (),
) -> Diagnosis:
    """Examine the trained model of a run on a batch that its training has not seen, and write doctor.json.

    The batch is that of the iteration after the last one. What must and must not matter is what the task says in
    `Task.doctor_options`.

    Args:
        folder: The run folder.
        worlds: Worlds of the batch; as many as in training by default.
        memory: See `gradpath.doctor`.
        only: See `gradpath.doctor`.
        allow: Modules outside gradpath that the run may import.
    Raises:
        LoadError: no run there, nothing trained yet, or damaged files.
        InputError: the task does not run its model as `Task.forward` does, or an option is out of range.
    """
    run = open_run(folder, allow)
    if not run.has_state:
        raise LoadError(f"{run.path} has no trained model; train it: gradpath train --resume {run.path}")
    task = run.task
    if type(task).forward is not Task.forward:
        raise InputError(
            f'task "{task.name}" runs its model in a way of its own (forward), which the doctor cannot repeat; '
            "call gp.doctor(model, batch, losses) in a script"
        )
    options = task.options if worlds is None else dataclasses.replace(task.options, worlds=worlds)
    task = type(task)(options)
    model = load(run.path, allow=(*allow, type(task).__module__)).to(options.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        batch = task.sample(options.iterations)
        found = doctor(model, batch, task.losses(), memory=memory, only=only, **task.doctor_options())
    finally:
        torch.set_num_threads(threads)
    write_json(run.diagnosis_file, found.json())
    errors = sum(finding.severity == "error" for finding in found.findings)
    counts = {"errors": errors, "warnings": len(found.findings) - errors}
    update_metrics(run, "doctor", {"healthy": found.healthy, **counts})
    return found
