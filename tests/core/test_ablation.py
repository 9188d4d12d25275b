"""Ablation studies: what is trained, what the table says, and that a study can be interrupted."""

from __future__ import annotations

import importlib
import json
import os
import signal
from pathlib import Path

import pytest

import gradpath.train
from gradpath import cli
from gradpath.ablation import Ablation, ablate, figure_text
from gradpath.errors import InputError
from gradpath.intervals import Interval
from gradpath.task import Task, rate, task_class

HERE = Path(__file__).parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("toy_task")


def test_the_table_holds_every_ablation_with_intervals(toy, tmp_path, capsys):
    assert cli.main(["ablate", "toy_task:ToyTask", "--run", str(tmp_path), "--iterations", "5"]) == 0
    assert (tmp_path / "ablation.md").read_text() in capsys.readouterr().out
    table = json.loads((tmp_path / "ablation.json").read_text())
    whole, one, blank = table["rows"]
    assert table["finished"] and (whole["name"], one["name"], blank["name"]) == (
        "as it is", "one step", "camera blanked",
    )  # fmt: skip
    for row, folder, length in ((whole, "as-it-is", 6), (one, "one-step", 1)):
        run = json.loads((tmp_path / folder / "metrics.json").read_text())
        options = json.loads((tmp_path / folder / "options.json").read_text())["options"]
        assert options["length"] == length and options["iterations"] == run["training"]["iterations"] == 5
        assert row["figures"] == {name: run["evaluation"][name] for name in ("trained", "distance")}
    text = (tmp_path / "ablation.md").read_text().splitlines()
    share, distance = one["figures"]["trained"], one["figures"]["distance"]
    assert f"{100 * share['share']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})" in text[3]
    assert f"{distance['value']:.3g} ({distance['low']:.3g} to {distance['high']:.3g})" in text[3]
    assert text[4].startswith("| camera blanked | does not apply |") and "it has no camera" in text[4]
    assert not (tmp_path / "camera-blanked").exists()


def test_an_interrupted_study_goes_on_and_gives_the_same(toy, tmp_path, monkeypatch):
    options = toy.ToyOptions(iterations=6, save_every=2)
    expected = ablate(toy.ToyTask(options), tmp_path / "whole")
    iterate = gradpath.train._Trainer.iterate

    def interrupt(trainer, iteration):
        if trainer.options.length == 1 and iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(trainer, iteration)

    words = [
        "ablate",
        "toy_task:ToyTask",
        "--run",
        str(tmp_path / "cut"),
        "--iterations",
        "6",
        "--save-every",
        "2",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(gradpath.train._Trainer, "iterate", interrupt)
        assert cli.main(words) == 130
    rows = json.loads((tmp_path / "cut/ablation.json").read_text())["rows"]
    assert [row["figures"] is None for row in rows] == [False, True, True]
    assert "not done yet" in (tmp_path / "cut/ablation.md").read_text()
    done = (tmp_path / "cut/as-it-is/weights.safetensors").stat().st_mtime_ns
    assert cli.main(words) == 0
    assert (tmp_path / "cut/as-it-is/weights.safetensors").stat().st_mtime_ns == done
    found = json.loads((tmp_path / "cut/ablation.json").read_text())["rows"]
    assert [row["figures"] for row in found] == [row["figures"] for row in expected.rows]


def test_some_of_them(toy, tmp_path):
    task = toy.ToyTask(toy.ToyOptions(iterations=1))
    table = ablate(task, tmp_path, only=["camera blanked"])
    assert [row["name"] for row in table.rows] == ["as it is", "camera blanked"]
    with pytest.raises(InputError, match='no ablation "wings"; it has one step, camera blanked'):
        ablate(task, tmp_path, only=["wings"])
    with pytest.raises(InputError, match="other options"):
        ablate(toy.ToyTask(toy.ToyOptions(iterations=2)), tmp_path)


def test_declarations_that_cannot_be_right(toy, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="why it does not apply"):
        Ablation("nothing")
    task = toy.ToyTask(toy.ToyOptions())
    monkeypatch.setattr(toy.ToyTask, "ablations", (Ablation("wings", {"wings": 2}),))
    with pytest.raises(InputError, match='"wings": the task has no option wings'):
        ablate(task, tmp_path)
    monkeypatch.setattr(toy.ToyTask, "ablations", ())
    with pytest.raises(InputError, match="declares no ablations"):
        ablate(task, tmp_path)
    assert cli.main(["ablate", "toy_task:ToyTask", "--run", str(tmp_path)]) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["flight", "navigate", "reach"])
def test_tasks_of_the_library_declare_the_four(name):
    cls: type[Task] = task_class(name)
    names = {item.name for item in cls.ablations}
    assert names == {
        "camera blanked",
        "planner frozen",
        "renderer's gradient off",
        "perception trained alone",
    }
    for item in cls.ablations:
        assert item.note
        if item.options is not None:
            changed = cls.Options(**item.options)
            assert changed != cls.Options()


def test_help_and_figures(capsys):
    assert cli.main(["ablate", "--help"]) == 0 and cli.main(["ablate"]) == 2
    assert "gradpath ablate TASK" in capsys.readouterr().out
    assert figure_text(rate(3, 4)) == "75.0 % (30.1 to 95.4)"
    assert figure_text(Interval(1.23456, 1.0, 1.5).measured()) == "1.23 (1 to 1.5)"
    assert figure_text(Interval(2.0, float("nan"), float("nan")).measured()) == "2"
    assert figure_text(0.5) == "0.5" and figure_text(None) == "-"
