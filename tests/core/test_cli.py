"""The command line: verbs, their help, their errors, and a run from training to report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradpath import cli
from gradpath.errors import LoadError
from gradpath.examples.__main__ import find_examples
from gradpath.examples.__main__ import main as examples_main
from gradpath.task import describe_task

HERE = Path(__file__).parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(HERE))
    return "toy_task:ToyTask"


def test_help_lists_what_there_is(capsys):
    assert cli.main([]) == 0 and cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS) and "doctor" not in text


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
