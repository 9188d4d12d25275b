import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import warp as wp

import gradpath as gp
from gradpath import kernel_launch, kernels
from gradpath.cubin import kernel_resources

TRAINING = """
import hashlib, sys, torch, gradpath as gp
from gradpath.examples.flight import FlightOptions, FlightTask
torch.set_num_threads(2)
for seed in sys.argv[1:]:
    gp.deterministic(int(seed))
    task = FlightTask(FlightOptions(worlds=3, seconds=0.5, height=12, width=16, threads=None))
    rollout, losses = task.build(), task.losses()
    torch.nn.init.normal_(rollout.step.plan.head.weight)
    optimizer = torch.optim.AdamW(rollout.parameters(), lr=1e-2)
    for iteration in range(2):
        optimizer.zero_grad()
        losses(task.forward(rollout, iteration)).total.backward()
        optimizer.step()
    data = b"".join(p.detach().numpy().tobytes() for p in rollout.parameters())
    print(hashlib.sha256(data).hexdigest())
"""


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_trainings_in_fresh_processes_are_equal_to_the_bit():
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, *seeds],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        for seeds, hash_seed in ((["7", "8"], "1"), (["7"], "2"))
    ]
    (one, other), (same,) = (run.communicate()[0].split() for run in runs)
    assert one == same
    assert one != other


def test_a_block_seeds_and_puts_everything_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    found = []
    for _ in range(2):
        with gp.deterministic(5):
            assert torch.are_deterministic_algorithms_enabled()
            assert kernel_launch.is_deterministic()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            assert torch.empty(100).isnan().all()  # memory that nothing was written to repeats itself too
            found.append(draws())
    assert found[0] == found[1] != expected
    assert draws() == expected
    assert not torch.are_deterministic_algorithms_enabled() and not kernel_launch.is_deterministic()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


class Clock(gp.Stage):
    contract = gp.Contract(inputs={"x": "B"}, outputs={"y": "B"}, effects=("io",))

    def forward(self, x):
        return x + 1.0


class Noise(gp.Stage):
    contract = gp.Contract(inputs={"y": "B"}, outputs={"z": "B"}, effects=("rng",))

    def forward(self, y):
        return y + torch.rand_like(y)


def test_what_cannot_be_made_deterministic_is_named(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with gp.deterministic(0) as settings:
        text = str(settings)
        assert "seed 0" in text and f"threads, {torch.get_num_threads()} now" in text
        assert "PYTHONHASHSEED=0" in text
        named = settings.limits_of(gp.Pipeline(clock=Clock(), noise=Noise()))
    assert len(named) == 2 and 'stage "clock" reads' in named[0] and 'stage "noise" draws' in named[1]
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    with gp.deterministic(0) as settings:
        assert "PYTHONHASHSEED" not in str(settings)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", True, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(gp.InputError, match="from 0 to"):
        gp.deterministic(seed)


def test_kernels_with_atomic_additions_compile_for_warps_deterministic_mode():
    """Warp refuses a kernel whose atomic operations it cannot order; the binary differs where it orders them."""

    @wp.kernel(module="unique", enable_backward=False)
    def _add(x: wp.array(dtype=wp.float32), place: wp.array(dtype=wp.int32), y: wp.array(dtype=wp.float32)):
        i = wp.tid()
        wp.atomic_add(y, place[i], x[i])

    wp.init()
    for kernel in (_add,):
        plain = {entry.name: entry.code for entry in kernel_resources(kernel)}
        try:
            with gp.deterministic(0):
                kernel_launch._follow_mode(kernel.module)
                assert kernel.module.options["deterministic"] == wp.DeterministicMode.RUN_TO_RUN
                ordered = {entry.name: entry.code for entry in kernel_resources(kernel)}
        finally:
            kernel_launch._follow_mode(kernel.module)
        assert kernel.module.options["deterministic"] == wp.DeterministicMode.NOT_GUARANTEED
        assert any(ordered[name] != code for name, code in plain.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gradients_repeat_on_the_gpu():
    operation = kernels.registry["rasterize"]
    given = {
        name: value.to("cuda") if isinstance(value, torch.Tensor) else value
        for name, value in operation.samples(3).items()
    }

    def gradient():
        points = given["points_camera"].clone().requires_grad_()
        image = operation.call(**{**given, "points_camera": points})
        (image["depth"].sin().sum() + image["alpha"].sum()).backward()
        return points.grad

    with gp.deterministic(0):
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(10))
