"""Training: learning, logging, and the same result whether or not it was interrupted."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gradpath.errors import InputError, NonFiniteError
from gradpath.runs import read_log
from gradpath.storage import load_train_state
from gradpath.train import evaluate, learning_rate, resume, train
from gradpath.training_gradients import clip_gradients

HERE = Path(__file__).parent
QUIET = Console(quiet=True)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("toy_task")


def untimed(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(path)]


def same_result(a: Path, b: Path) -> None:
    assert untimed(a / "metrics.jsonl") == untimed(b / "metrics.jsonl")
    assert untimed(a / "gradients.jsonl") == untimed(b / "gradients.jsonl")
    for name in ("weights.safetensors", "train_state.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def start(folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "gradpath", "train", "toy_task:ToyTask", "--run", str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_training_lowers_the_loss_and_logs_every_iteration(toy, tmp_path):
    options = toy.ToyOptions(iterations=60, worlds=16, learning_rate=0.03)
    result = train(toy.ToyTask(options), tmp_path / "run", console=QUIET)
    log = read_log(tmp_path / "run" / "metrics.jsonl")
    assert result.finished and result.iterations == 60 and [line["iteration"] for line in log] == [*range(60)]
    first, last = (sum(line["loss"] for line in part) for part in (log[:10], log[-10:]))
    assert last < 0.7 * first
    line = log[-1]
    assert line["loss"] == pytest.approx(sum(line["losses"].values()), rel=1e-6)
    assert 0 <= line["metrics"]["success"] <= 1
    assert line["gradient"]["clip_factor"] == 1
    assert line["gradient"]["stages"]["policy"]["parameters"] == pytest.approx(
        line["gradient"]["norm"], rel=1e-5
    )
    assert line["gradient"]["stages"]["body"]["outputs"] > 0
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]
    assert summary["iterations"] == 60 and summary["loss"] == pytest.approx(last / 10)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_profiles_have_one_norm_per_time_step(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions()), tmp_path, console=QUIET)
    profiles = read_log(tmp_path / "gradients.jsonl")
    assert [profile["iteration"] for profile in profiles] == [0, 4, 8]
    for profile in profiles:
        assert profile["steps"] and all(len(norms) == 6 for norms in profile["steps"].values())


def test_a_killed_training_resumes_to_the_identical_result(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions(pause=0.05)), tmp_path / "whole", console=QUIET)
    process = start(tmp_path / "killed", "--pause", "0.05")
    wait_for_lines(
        tmp_path / "killed" / "metrics.jsonl", 6, process
    )  # Two lines beyond the state saved at 4.
    process.kill()
    process.wait()
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 6, "lo')
    assert len(read_log(tmp_path / "killed" / "metrics.jsonl")) < 12
    result = resume(tmp_path / "killed", allow=["toy_task"], console=QUIET)
    assert result.finished
    same_result(tmp_path / "whole", tmp_path / "killed")


def test_a_run_killed_before_its_first_save_starts_over(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions()), tmp_path / "whole", console=QUIET)
    train(toy.ToyTask(toy.ToyOptions()), tmp_path / "killed", console=QUIET)
    for name in ("pipeline.json", "weights.safetensors", "train_state.safetensors"):
        (tmp_path / "killed" / name).unlink()
    resume(tmp_path / "killed", allow=["toy_task"], console=QUIET)
    same_result(tmp_path / "whole", tmp_path / "killed")


def test_an_interrupt_saves_and_says_how_to_go_on(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions(pause=0.05)), tmp_path / "whole", console=QUIET)
    process = start(tmp_path / "stopped", "--pause", "0.05")
    wait_for_lines(tmp_path / "stopped" / "metrics.jsonl", 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"gradpath train --resume {tmp_path / 'stopped'}" in " ".join(output.split())
    assert 2 <= len(read_log(tmp_path / "stopped" / "metrics.jsonl")) < 12
    train(
        toy.ToyTask(toy.ToyOptions(pause=0.05)), tmp_path / "stopped", console=QUIET
    )  # The folder goes on too.
    same_result(tmp_path / "whole", tmp_path / "stopped")


def test_a_finished_run_is_left_as_it_is(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions()), tmp_path, console=QUIET)
    before = (tmp_path / "weights.safetensors").read_bytes()
    assert resume(tmp_path, allow=["toy_task"], console=QUIET).finished
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert len(read_log(tmp_path / "metrics.jsonl")) == 12


def test_a_nan_in_one_world_is_named_and_the_step_is_not_taken(toy, tmp_path):
    with pytest.raises(NonFiniteError) as caught:
        train(toy.ToyTask(toy.ToyOptions(poison=6)), tmp_path / "poisoned", console=QUIET)
    message = str(caught.value)
    for part in ("iteration 6", "policy", "step 0", "world 1", "optimizer step was not taken"):
        assert part in message
    # What is saved is the state of six sound iterations.
    assert load_train_state(tmp_path / "poisoned").step == 6
    train(toy.ToyTask(toy.ToyOptions(save_every=6)), tmp_path / "sound", console=QUIET)
    log = untimed(tmp_path / "poisoned" / "metrics.jsonl")
    assert log == untimed(tmp_path / "sound" / "metrics.jsonl")[:6]
    assert evaluate(tmp_path / "poisoned", allow=["toy_task"])["mean_distance"] > 0


def test_a_nan_that_a_stage_refuses_as_its_input_is_named_too(toy, tmp_path):
    with pytest.raises(NonFiniteError) as caught:
        train(toy.ToyTask(toy.ToyOptions(poison=6, strict=True)), tmp_path, console=QUIET)
    message = str(caught.value)
    for part in ("iteration 6", "force is not finite", 'stage "policy"', "time step 0", "world 1",
                 "optimizer step was not taken"):  # fmt: skip
        assert part in message
    assert load_train_state(tmp_path).step == 6


def test_an_input_that_is_refused_for_another_reason_stays_an_input_error(toy, tmp_path):
    task = toy.ToyTask(toy.ToyOptions(strict=True, learning_rate=1e8))
    with pytest.raises(InputError, match=r"^iteration 1: the force is too large\. .*step was not taken"):
        train(task, tmp_path, console=QUIET)
    assert load_train_state(tmp_path).step == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", -1), ("seed", 2**64), ("weight_decay", -1.0), ("weight_decay", float("nan"))],
)
def test_options_that_no_training_can_use_are_refused(toy, option, value):
    with pytest.raises(InputError, match=f"option {option}: expected"):
        toy.ToyOptions(**{option: value})


def test_an_infinite_gradient_of_a_finite_loss_is_named(toy, tmp_path):
    with pytest.raises(NonFiniteError) as caught:
        train(toy.ToyTask(toy.ToyOptions(explode=2)), tmp_path, console=QUIET)
    message = str(caught.value)
    for part in ("iteration 2", "gradient became NaN", "time step 3", "world 1", "body.state.position"):
        assert part in message
    assert len(read_log(tmp_path / "metrics.jsonl")) == 2


def test_a_stage_with_a_broken_gradient_is_named(toy, tmp_path):
    with pytest.raises(NonFiniteError, match=r'iteration 0.*stage "body", time step 5, world 0'):
        train(toy.ToyTask(toy.ToyOptions(kink=True)), tmp_path, console=QUIET)
    assert (tmp_path / "weights.safetensors").exists()


def test_clipping_scales_the_gradient_and_is_logged(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions(clip_norm=1e-3, iterations=3)), tmp_path, console=QUIET)
    for line in read_log(tmp_path / "metrics.jsonl"):
        gradient = line["gradient"]
        assert (
            gradient["clip_factor"] == pytest.approx(1e-3 / gradient["norm"], rel=1e-5)
            and gradient["norm"] > 1e-3
        )


def test_clipping_scales_all_gradients_by_one_factor():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
    assert clip_gradients(parameters, 10.0) == (5.0, 1.0)
    assert clip_gradients(parameters, 2.5) == (5.0, 0.5)
    assert parameters[0].grad.tolist() == [1.5, 0.0] and parameters[1].grad.tolist() == [-2.0]
    parameters[1].grad = torch.tensor([torch.nan])
    norm, factor = clip_gradients(parameters, 2.5)
    assert norm != norm and factor == 1.0 and parameters[0].grad.tolist() == [1.5, 0.0]


def test_the_learning_rate_is_a_half_cosine(toy):
    options = toy.ToyOptions(iterations=11, learning_rate=0.1, final_learning_rate=0.2)
    rates = [learning_rate(options, i) for i in range(11)]
    assert (
        rates[0] == pytest.approx(0.1)
        and rates[-1] == pytest.approx(0.02)
        and rates[5] == pytest.approx(0.06)
    )
    assert rates == sorted(rates, reverse=True)


def test_training_leaves_the_global_generator_and_signals_alone(toy, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    handler = signal.getsignal(signal.SIGINT)
    train(toy.ToyTask(toy.ToyOptions(iterations=2)), tmp_path, console=QUIET)
    assert torch.equal(torch.rand(3), expected)
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_works_outside_the_main_thread(toy, tmp_path):
    results = []
    options = toy.ToyOptions(iterations=2)
    thread = threading.Thread(
        target=lambda: results.append(train(toy.ToyTask(options), tmp_path, console=QUIET))
    )
    thread.start()
    thread.join()
    assert results[0].finished


def test_a_model_without_parameters_is_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.ToyTask, "build", lambda self: torch.nn.Identity())
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        train(toy.ToyTask(toy.ToyOptions()), tmp_path, console=QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the message where there is no GPU")
def test_a_missing_gpu_is_refused_with_the_remedy(toy, tmp_path):
    with pytest.raises(InputError, match="--device cpu"):
        train(toy.ToyTask(toy.ToyOptions(device="cuda")), tmp_path, console=QUIET)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_loss_and_success(toy, tmp_path, terminal):
    console = Console(record=True, force_terminal=terminal, width=160, file=open(os.devnull, "w"))  # noqa: SIM115
    train(toy.ToyTask(toy.ToyOptions(iterations=3)), tmp_path, console=console)
    text = console.export_text()
    assert "loss" in text and "success" in text and str(tmp_path) in text.replace("\n", "")
