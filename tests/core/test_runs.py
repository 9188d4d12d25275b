"""Run folders: what is written can be read, what is cut short is dropped, what is foreign is refused."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from gradpath import runs
from gradpath.errors import InputError, LoadError
from gradpath.task import options_from_json, options_to_json, rate, task_class


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("toy_task")


def test_a_run_opens_with_the_task_and_options_it_was_made_with(toy, tmp_path):
    made = runs.create_run(tmp_path / "run", toy.ToyTask(toy.ToyOptions(seed=3, length=9, clip_norm=2.0)))
    opened = runs.open_run(made.path, allow=["toy_task"])
    assert type(opened.task) is toy.ToyTask
    assert opened.task.options == toy.ToyOptions(seed=3, length=9, clip_norm=2.0)
    assert not opened.has_state


def test_the_same_run_is_opened_again_and_another_is_refused(toy, tmp_path):
    first = runs.create_run(tmp_path, toy.ToyTask(toy.ToyOptions(seed=3)))
    before = first.options_file.read_bytes()
    runs.create_run(tmp_path, toy.ToyTask(toy.ToyOptions(seed=3)))
    with pytest.raises(InputError, match=r"seed=3 instead of 4.*--run or, under make, with RUN="):
        runs.create_run(tmp_path, toy.ToyTask(toy.ToyOptions(seed=4)))
    assert first.options_file.read_bytes() == before


def test_a_task_of_the_user_is_imported_only_when_allowed(toy, tmp_path):
    run = runs.create_run(tmp_path, toy.ToyTask(toy.ToyOptions()))
    with pytest.raises(LoadError, match="--allow toy_task"):
        runs.open_run(run.path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "expected an object"),
        ('{"format": 1}', "lacks options, task, versions"),
        (
            '{"format": 99, "task": "t", "options": {}, "versions": {"gradpath": "9.9"}}',
            r"reads format 1.*9\.9",
        ),
    ],
)
def test_damaged_or_newer_options_say_what_to_do(tmp_path, content, message):
    (tmp_path / "options.json").write_text(content)
    with pytest.raises(LoadError, match=message):
        runs.open_run(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"is no run folder.*gradpath train"):
        runs.open_run(tmp_path / "nothing")


def test_unknown_options_are_refused(toy):
    with pytest.raises(LoadError, match="does not know: wings"):
        options_from_json(toy.ToyOptions, {"wings": 2})


def test_options_survive_json_exactly(toy):
    options = toy.ToyOptions(seed=7, learning_rate=0.1 + 0.2, clip_norm=None)
    assert options_from_json(toy.ToyOptions, json.loads(json.dumps(options_to_json(options)))) == options


def test_options_that_json_cannot_hold_are_refused(toy):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Odd(toy.ToyOptions):
        where: Path = Path("here")

    with pytest.raises(InputError, match="option where"):
        options_to_json(Odd())


@pytest.mark.parametrize("bad", [{"iterations": 0}, {"learning_rate": float("nan")}, {"clip_norm": -1.0}])
def test_impossible_options_are_refused(toy, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        toy.ToyOptions(**bad)


def test_a_line_cut_short_is_dropped_and_later_lines_too(tmp_path):
    path = tmp_path / "log.jsonl"
    log = runs.Log(path)
    for iteration in range(5):
        log.write({"iteration": iteration, "loss": 0.5})
    log.close()
    with open(path, "a") as file:
        file.write('{"iteration": 5, "lo')
    assert [line["iteration"] for line in runs.read_log(path)] == [0, 1, 2, 3, 4]
    runs.truncate_log(path, 3)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"iteration": 0}\nhello\n{"iteration": 2}\n')
    with pytest.raises(LoadError, match="line 2 is damaged"):
        runs.read_log(path)


def test_non_finite_numbers_become_null_and_sections_are_kept(toy, tmp_path):
    run = runs.create_run(tmp_path, toy.ToyTask(toy.ToyOptions()))
    runs.update_metrics(run, "training", {"loss": float("nan")})
    runs.update_metrics(run, "evaluation", {"trained": rate(1, 2)})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["training"] == {"loss": None}
    assert content["evaluation"]["trained"]["successes"] == 1


def test_rate_matches_published_wilson_intervals():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert rate(81, 263)["low"] == pytest.approx(0.2553, abs=5e-5)
    assert rate(81, 263)["high"] == pytest.approx(0.3662, abs=5e-5)
    assert rate(0, 20)["high"] == pytest.approx(0.1611, abs=5e-5)
    with pytest.raises(InputError, match="3 of 2"):
        rate(3, 2)


def test_unknown_tasks_name_the_known_ones():
    with pytest.raises(InputError, match=r'unknown task "fligth"; known are flight'):
        task_class("fligth")
    with pytest.raises(InputError, match="is not a subclass"):
        task_class("pathlib:Path")
    with pytest.raises(InputError, match="cannot find Nothing"):
        task_class("pathlib:Nothing")


def test_free_folders_are_numbered(tmp_path):
    assert runs.next_folder("toy", tmp_path).name == "toy-001"
    (tmp_path / "toy-001").mkdir()
    assert runs.next_folder("toy", tmp_path).name == "toy-002"
