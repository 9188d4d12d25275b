"""The command line: verbs, their help, their errors, and a run from training to report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from gradpath import cli
from gradpath.errors import LoadError
from gradpath.examples.__main__ import find_examples
from gradpath.examples.__main__ import main as examples_main
from gradpath.task import describe_task, rate

HERE = Path(__file__).parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(HERE))
    return "toy_task:ToyTask"


def test_help_lists_what_there_is(capsys):
    assert cli.main([]) == 0 and cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


def test_help_of_train_lists_the_tasks(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert ["flight", describe_task("flight")] in lines and describe_task("flight")


def test_help_of_a_task_lists_its_options(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", toy, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--learning-rate" in text and "--length" in text and "--run" in text and "Time steps." in text


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_help_of_the_other_verbs(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0 and "run folder" in capsys.readouterr().out


def test_train_evaluate_report(toy, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert cli.main(["train", toy, "--run", run, "--iterations", "3", "--seed", "5"]) == 0
    assert json.loads((tmp_path / "run" / "options.json").read_text())["options"]["seed"] == 5
    assert cli.main(["train", "--resume", run, "--allow", "toy_task"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", run, "--allow", "toy_task"]) == 0
    assert "mean distance" in capsys.readouterr().out
    assert cli.main(["report", run, "--allow", "toy_task"]) == 0
    assert "report.html" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) == {"task", "training", "evaluation", "report"}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = (
        "options.json pipeline.json weights.safetensors train_state.safetensors metrics.jsonl metrics.json"
    )
    assert {*expected.split(), "gradients.jsonl", "report.html", "tensorboard"} <= names
    assert not [name for name in names if name.endswith(".partial")]


def test_errors_are_one_message_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "gradpath", "evaluate", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no run folder" in done.stderr and "Traceback" not in done.stderr


def test_bad_option_values_and_folders_are_one_message(toy, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert cli.main(["train", toy, "--run", str(tmp_path / "file")]) == 1
    assert cli.main(["train", toy, "--run", str(tmp_path / "run"), "--seed", "-1"]) == 1
    assert "option seed: expected" in capsys.readouterr().err
    assert cli.main(["train", toy, "--run", str(tmp_path / "run"), "--length", "-1"]) == 1
    assert "bad option: length" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    def full(words):
        raise OSError(28, "No space left on device", "runs/demo")

    monkeypatch.setitem(cli.VERBS, "report", (full, ""))
    assert cli.main(["report", "runs/demo"]) == 1
    assert capsys.readouterr().err.startswith("gradpath report: [Errno 28] No space left")
    with pytest.raises(OSError):
        cli.main(["report", "runs/demo", "--debug"])


def test_unexpected_errors_keep_their_traceback(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "report", (lambda words: [][1], ""))
    with pytest.raises(IndexError):
        cli.main(["report", "runs/demo"])


def test_an_example_writes_its_figures_into_its_run_folder(tmp_path, monkeypatch, capsys):
    example = types.ModuleType("gradpath.examples.planted")

    def main(size: int = 1, scale: float = 2.0) -> dict[str, Any]:
        """An example.

        Args:
            size: How large.
            scale: How wide.
        """
        return {"area": size * scale, "share": rate(1, 2), "values": torch.ones(2)}

    example.main = main
    monkeypatch.setitem(sys.modules, example.__name__, example)
    monkeypatch.setattr("gradpath.examples.__main__.find_examples", lambda: {"planted": "An example."})
    monkeypatch.chdir(tmp_path)
    assert examples_main(["planted", "--size", "3"]) == 0
    assert examples_main(["planted", "--run", str(tmp_path / "other")]) == 0
    text = capsys.readouterr().out
    assert "area   6" in text and "runs/planted/metrics.json" in text
    figures = json.loads((tmp_path / "runs" / "planted" / "metrics.json").read_text())
    assert figures == {"area": 6.0, "share": rate(1, 2), "values": [1.0, 1.0]}
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["area"] == 2.0
    (tmp_path / "other" / "options.json").write_text("{}")
    assert examples_main(["planted", "--run", str(tmp_path / "other")]) == 1
    assert "holds a training" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        examples_main(["planted", "--help"])
    text = capsys.readouterr().out
    assert "How large." in text and "--run" in text and "metrics.json" in text


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("code", "passes"), [(0, True), (5, True), (1, False)])
def test_make_accepts_that_no_test_is_slow(tmp_path, code, passes):
    (tmp_path / "bin").mkdir()
    for stamp in (".base", ".dev"):
        (tmp_path / stamp).touch()
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    command = ["make", "test-slow", f"VENV={tmp_path}", "TORCH_INDEX="]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
    assert (done.returncode == 0) == passes, done.stderr


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(LoadError):
        cli.main(["evaluate", str(tmp_path), "--debug"])


def test_unknown_commands_and_tasks_are_named(capsys):
    assert cli.main(["fly"]) == 2
    assert 'unknown command "fly"' in capsys.readouterr().err
    assert cli.main(["train", "fligth"]) == 1
    assert 'unknown task "fligth"' in capsys.readouterr().err


def test_resume_refuses_another_task(toy, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert cli.main(["train", toy, "--run", run, "--iterations", "1"]) == 0
    assert cli.main(["train", "flight", "--resume", run, "--allow", "toy_task"]) == 1
    assert 'holds a run of task "toy_task:ToyTask", not "flight"' in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gradpath ")


def test_examples_are_listed_with_a_line_each(capsys):
    assert examples_main([]) == 0
    text = capsys.readouterr().out
    for name, line in find_examples().items():
        assert name in text and line in text and line, f"{name} needs a docstring"
    assert examples_main(["nothing"]) == 2
