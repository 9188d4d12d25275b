"""Every registered operation of the library: its gradient, its repeatability, its dtypes, its devices."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from gradpath import distances, kernels, render, sim
from gradpath.proof import prove

F64 = torch.float64
AREAS = (distances, render, sim)  # importing them registers their operations
LIBRARY = [name for name, op in kernels.registry.items() if op.module.startswith("gradpath.")]


def flatten(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    values = result.values() if isinstance(result, dict) else result
    return [tensor for value in values for tensor in flatten(value)]


def split(samples: dict) -> tuple[list[str], list[torch.Tensor]]:
    """The names and values of the differentiable samples."""
    found = {k: v for k, v in samples.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return list(found), [value.clone().requires_grad_() for value in found.values()]


def test_the_library_registers_its_operations():
    bodies = {"quadrotor_motion", "bicycle_motion", "differential_drive_motion"}
    assert {"shape_distance", "mesh_distance", "place_vertices", "rasterize", *bodies} <= set(LIBRARY)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LIBRARY)
def test_every_operation_is_differentiated_right(name, batch):
    op = kernels.registry[name]
    assert op.samples is not None, f"{name} has no samples, so nothing holds its gradient; pass samples="
    samples = op.samples(batch)
    names, values = split(samples)
    assert values and all(value.dtype == F64 for value in values)

    def function(*changed):
        return tuple(
            t
            for t in flatten(op.call(**samples | dict(zip(names, changed, strict=True))))
            if t.is_floating_point()
        )

    if op.kind == "surrogate":
        assert prove(name, op.kind, op.call, samples).passed
        return
    assert gradcheck(function, values, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LIBRARY)
def test_every_operation_repeats_itself_and_writes_to_no_input(name):
    op = kernels.registry[name]
    samples = op.samples(3)
    names, values = split(samples)
    before = [value.detach().clone() for value in values]

    def run() -> list[torch.Tensor]:
        outputs = [
            t for t in flatten(op.call(**samples | dict(zip(names, values, strict=True)))) if t.requires_grad
        ]
        seeds = [torch.ones_like(output) for output in outputs]
        return [*outputs, *torch.autograd.grad(outputs, values, seeds, materialize_grads=True)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
    for value, old in zip(values, before, strict=True):
        assert torch.equal(value, old)


@pytest.mark.parametrize("name", LIBRARY)
def test_every_operation_agrees_in_float32(name):
    op = kernels.registry[name]
    samples = op.samples(3)
    single = {
        k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in samples.items()
    }
    for a, b in zip(flatten(op.call(**samples)), flatten(op.call(**single)), strict=True):
        torch.testing.assert_close(b.to(a.dtype), a, rtol=1e-4, atol=1e-4)
    assert math.isfinite(sum(float(t.double().sum()) for t in flatten(op.call(**single))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", LIBRARY)
def test_every_operation_agrees_on_the_gpu(name):
    op = kernels.registry[name]
    samples = op.samples(3)
    names, values = split(samples)

    def run(device: str) -> list[torch.Tensor]:
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in samples.items()}
        leaves = [value.detach().to(device).requires_grad_() for value in values]
        outputs = flatten(op.call(**moved | dict(zip(names, leaves, strict=True))))
        outputs = [t for t in outputs if t.requires_grad]
        seeds = [torch.ones_like(output) for output in outputs]
        return [*outputs, *torch.autograd.grad(outputs, leaves, seeds, materialize_grads=True)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ours = run("cuda")
    stream.synchronize()
    for a, b in zip(run("cpu"), ours, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-9, atol=1e-9)
