"""The library on a GPU: every stage of the main job and its training, against the CPU in float64."""

import dataclasses

import pytest
import torch

from gradpath import train
from gradpath.examples import flight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

OPTIONS = flight.FlightOptions(worlds=3, seconds=10 / 12, features=16, height=16, width=20, noise=0.0)


def moved(tree, device):
    """Floating tensors as float64, everything on a device; generators are left out."""
    if isinstance(tree, dict):
        return {k: moved(v, device) for k, v in tree.items() if not isinstance(v, torch.Generator)}
    return tree.to(device, torch.float64 if tree.is_floating_point() else None)


def leaves(tree, prefix=""):
    if isinstance(tree, dict):
        return {
            name: x for key, value in tree.items() for name, x in leaves(value, f"{prefix}.{key}").items()
        }
    return {prefix: tree}


def run_step(device):
    """All outputs of one control step, and the gradients of what goes in and of the parameters."""
    task = flight.FlightTask(OPTIONS)
    step = task.build().step.double().to(device)
    (state,), inputs = task.sample(0)
    memory = torch.linspace(-1, 1, 3 * OPTIONS.features).reshape(3, -1)
    values = moved({"state": state, "memory": memory, **inputs}, device)
    for value in leaves(values).values():
        value.requires_grad_()
    names = [f"{name}.{output}" for name, stage in step.stages.items() for output in stage.contract.outputs]
    outputs = leaves(step.run(values, outputs=names))
    weights = {
        n: torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(x.shape) for n, x in outputs.items()
    }
    sum((x * weights[name].to(device)).sum() for name, x in outputs.items() if x.requires_grad).backward()
    gradients = {name: x.grad for name, x in [*leaves(values).items(), *step.named_parameters()]}
    return outputs, gradients


def assert_agree(ours, reference):
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        if expected is None:
            assert ours[name] is None, name
            continue
        scale = float(expected.detach().abs().max().clamp_min(1e-12))
        difference = float((ours[name].detach().cpu() - expected.detach()).abs().max())
        assert difference <= 1e-9 * scale, f"{name}: {difference / scale}"


def test_every_stage_of_a_control_step_agrees_with_the_cpu():
    outputs, gradients = run_step("cuda")
    expected_outputs, expected_gradients = run_step("cpu")
    assert_agree(outputs, expected_outputs)
    assert_agree(gradients, expected_gradients)


@pytest.mark.parametrize("memory", ["all", "4"])
def test_the_gradient_of_a_flight_agrees_with_the_cpu(memory):
    def run(device):
        task = flight.FlightTask(dataclasses.replace(OPTIONS, memory=memory))
        rollout = task.build().double().to(device)
        (state,), inputs = task.sample(0)
        losses = task.losses()(rollout(moved(state, device), **moved(inputs, device)))
        losses.total.backward()
        return {name: p.grad for name, p in rollout.named_parameters()}

    assert_agree(run("cuda"), run("cpu"))


def test_training_runs_and_evaluates(tmp_path):
    options = dataclasses.replace(OPTIONS, iterations=2, device="cuda", noise=0.02, evaluation_worlds=4)
    train.train(flight.FlightTask(options), tmp_path / "run")
    metrics = train.evaluate(tmp_path / "run")
    assert metrics["trained"]["trials"] == 4
