import functools
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import torch
import warp as wp
from torch.autograd import gradcheck

from gradpath import kernel_launch, kernels
from gradpath.errors import ContractError, InputError, ShapeError

F64 = torch.float64


def make_push(scalar):
    vec3 = wp.types.vector(3, scalar)

    @wp.kernel(module="unique")
    def _push(
        direction: wp.array(dtype=vec3),
        strength: wp.array2d(dtype=scalar),
        pick: wp.array(dtype=wp.int32),
        gain: scalar,
        force: wp.array(dtype=vec3),
        power: wp.array(dtype=scalar),
    ):
        i = wp.tid()
        s = strength[i, pick[i]] * gain
        force[i] = wp.sin(s) * direction[i]
        power[i] = s * s * wp.dot(direction[i], direction[i])

    return _push


PUSH = kernels.Op(
    "test_push",
    make_push,
    inputs={"direction": "B vec3", "strength": "B N scalar", "pick": "B int32"},
    constants={"gain": "scalar"},
    outputs={"force": "B vec3", "power": "B scalar"},
    launch="B",
)


def push_inputs(batch: int = 4, dtype: torch.dtype = F64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(batch, 3, dtype=dtype, generator=generator).requires_grad_()
    strength = torch.randn(batch, 2, dtype=dtype, generator=generator).requires_grad_()
    return direction, strength, torch.arange(batch, dtype=torch.int32) % 2


def push_in_torch(direction, strength, pick, gain):
    s = strength.gather(1, pick.long()[:, None])[:, 0] * gain
    return torch.sin(s)[:, None] * direction, s * s * (direction * direction).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_torch(dtype):
    direction, strength, pick = push_inputs(dtype=dtype)
    ours, theirs = PUSH(direction, strength, pick, gain=0.7), push_in_torch(direction, strength, pick, 0.7)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours[0].sum() + ours[1].exp().sum(), (direction, strength)),
        torch.autograd.grad(theirs[0].sum() + theirs[1].exp().sum(), (direction, strength)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_backward_twice_gives_the_same_and_leaves_everything_as_it_was():
    direction, strength, pick = push_inputs()
    outputs = PUSH(direction, strength, pick, gain=0.7)
    seeds = [torch.randn_like(output) for output in outputs]
    before = [x.detach().clone() for x in (direction, strength, *outputs, *seeds)]
    first = torch.autograd.grad(outputs, (direction, strength), seeds, retain_graph=True)
    second = torch.autograd.grad(outputs, (direction, strength), seeds)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    for x, old in zip((direction, strength, *outputs, *seeds), before, strict=True):
        assert torch.equal(x, old)


def test_layouts_that_are_not_contiguous():
    direction, strength, pick = push_inputs()
    expected = PUSH(direction, strength, pick, gain=0.7)
    column = direction.detach().t().contiguous().requires_grad_()
    force, power = PUSH(column.t(), strength, pick, gain=0.7)
    assert torch.equal(force, expected[0]) and torch.equal(power, expected[1])
    assert gradcheck(lambda c, s: PUSH(c.t(), s, pick, gain=0.7), (column, strength))
    shared = torch.randn(3, dtype=F64, requires_grad=True)  # expanded: its gradient is the sum over worlds
    assert gradcheck(lambda d: PUSH(d.expand(4, 3), strength.detach(), pick, gain=0.7), (shared,))
    force = PUSH(direction, strength, pick, gain=0.7)[0]
    (gradient,) = torch.autograd.grad(force, direction, torch.ones((), dtype=F64).expand(4, 3))
    expected_force = push_in_torch(direction, strength, pick, 0.7)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected_force.sum(), direction)[0])


def test_only_what_needs_a_gradient_gets_one():
    direction, strength, pick = push_inputs()
    assert gradcheck(lambda s: PUSH(direction.detach(), s, pick, gain=0.7), (strength,))
    force, power = PUSH(direction.detach(), strength.detach(), pick, gain=0.7)
    assert not force.requires_grad and not power.requires_grad
    with torch.no_grad():
        assert not PUSH(direction, strength, pick, gain=0.7)[0].requires_grad


@pytest.mark.parametrize("victim", ["input", "unused layout", "output"])
def test_changing_a_tensor_after_the_forward_is_an_error_not_a_wrong_gradient(victim):
    direction, strength, pick = push_inputs()
    base = direction.detach().t().contiguous() if victim == "unused layout" else direction.detach().clone()
    held = base.t() if victim == "unused layout" else base
    force, _ = PUSH(held, strength, pick, gain=0.7)
    with torch.no_grad():
        (force if victim == "output" else base).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        force.sum().backward()


def test_a_second_derivative_is_refused_even_when_hidden_in_a_sum():
    direction, strength, pick = push_inputs()
    (gradient,) = torch.autograd.grad(
        PUSH(direction, strength, pick, gain=0.7)[0].sum(), strength, create_graph=True
    )
    torch.testing.assert_close(
        gradient, torch.autograd.grad(push_in_torch(direction, strength, pick, 0.7)[0].sum(), strength)[0]
    )
    with pytest.raises(ContractError, match='op "test_push" is once differentiable'):
        torch.autograd.grad(gradient.sum() + strength.square().sum(), strength)


def test_an_empty_batch():
    direction, strength, pick = push_inputs(0)
    force, power = PUSH(direction, strength, pick, gain=0.7)
    assert force.shape == (0, 3) and power.shape == (0,)
    (gradient,) = torch.autograd.grad(force.sum() + power.sum(), strength)
    assert gradient.shape == (0, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda d, s, p: (d[:, :2], s, p),
            r'"direction": expected "B vec3", a tensor of shape \(B, 3\), got \(4, 2\)',
        ),
        (lambda d, s, p: (d, s[:3], p), r'"strength": expected "B N scalar".*\(4, N\), got \(3, 2\)'),
        (lambda d, s, p: (d, s.float(), p), r'"strength".*got torch.float32.*share a dtype'),
        (lambda d, s, p: (d.half(), s, p), r'"direction".*got torch.float16.*float32 or float64'),
        (lambda d, s, p: (d, s, p.long()), r'"pick".*got torch.int64.*int32'),
        (lambda d, s, p: (d, 1.0, p), r'"strength".*got float; pass a torch tensor'),
        (lambda d, s, p: (d[0], s, p), r'"direction".*got \(3,\)'),
    ],
)
def test_wrong_tensors_are_named(change, message):
    with pytest.raises(ShapeError, match='op "test_push": argument ' + message):
        PUSH(*change(*push_inputs()), gain=0.7)


def test_wrong_arguments_are_named():
    direction, strength, pick = push_inputs()
    with pytest.raises(ContractError, match='input "pick" is missing'):
        PUSH(direction, strength, gain=0.7)
    with pytest.raises(ContractError, match=r"takes the constants \['gain'\], got \[\]"):
        PUSH(direction, strength, pick)
    with pytest.raises(ContractError, match="takes 3 inputs"):
        PUSH(direction, strength, pick, pick, gain=0.7)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "test_push"}, "registered already"),
        ({"inputs": {"x": "B vec5"}}, "no element type"),
        ({"inputs": {"x": "B int32"}}, "no floating input"),
        ({"launch": "C"}, "axis 'C' is in no input"),
        ({"outputs": {"y": "B M vec3"}}, "axis 'M' is in no input"),
    ],
)
def test_wrong_declarations_are_refused(change, message):
    good = {"name": "test_refused", "inputs": {"x": "B vec3"}, "outputs": {"y": "B vec3"}, "launch": "B"}
    with pytest.raises(InputError, match=message):
        kernels.Op(**{**good, **change, "make": make_push})
    assert "test_refused" not in kernels.registry


def make_total(scalar):
    @wp.kernel(module="unique")
    def _sum_cubes(x: wp.array2d(dtype=scalar), total: wp.array(dtype=scalar)):
        b, n = wp.tid()
        wp.atomic_add(total, b, x[b, n] * x[b, n] * x[b, n])

    return _sum_cubes


def make_total_backward(scalar):
    @wp.kernel(module="unique", enable_backward=False)
    def _sum_cubes_backward(
        x: wp.array2d(dtype=scalar),
        total: wp.array(dtype=scalar),
        grad_total: wp.array(dtype=scalar),
        grad_x: wp.array2d(dtype=scalar),
    ):
        b, n = wp.tid()
        grad_x[b, n] = scalar(3.0) * x[b, n] * x[b, n] * grad_total[b]

    return _sum_cubes_backward


@pytest.mark.parametrize("backward", [None, make_total_backward])
def test_accumulation_and_a_hand_written_adjoint(backward):
    name = f"test_total_{backward is not None}"
    options = {"inputs": {"x": "B N scalar"}, "outputs": {"total": "B scalar"}, "launch": "B N"}
    total = kernels.Op(name, make_total, backward=backward, **options)
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    torch.testing.assert_close(total(x), (x**3).sum(1))
    assert gradcheck(total, (x,))
    assert len(kernels.registry[name].factories) == (1 if backward is None else 2)


def test_a_warp_object_is_kept_alive_until_backward():
    def make(scalar):
        vec3 = wp.types.vector(3, scalar)

        @wp.kernel(module="unique")
        def _scale(x: wp.array(dtype=vec3), mesh: wp.uint64, y: wp.array(dtype=vec3)):
            i = wp.tid()
            corner = wp.mesh_get_point(mesh, 0)
            y[i] = x[i] * scalar(corner[0])

        return _scale

    scale = kernels.Op(
        "test_scale",
        make,
        inputs={"x": "B vec3"},
        constants={"mesh": wp.uint64},
        outputs={"y": "B vec3"},
        launch="B",
    )
    points = wp.array(np.array([[3, 0, 0], [0, 1, 0], [0, 0, 1]]), dtype=wp.vec3, device="cpu")
    mesh = wp.Mesh(points=points, indices=wp.array([0, 1, 2], dtype=wp.int32, device="cpu"))
    alive = weakref.ref(mesh)
    x = torch.ones(2, 3, dtype=F64, requires_grad=True)
    y = scale(x, mesh=mesh)
    del mesh
    gc.collect()
    assert alive() is not None
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.full((2, 3), 3.0, dtype=F64))


def make_worlds(scalar):
    @wp.kernel(module="unique", enable_backward=False)
    def _fill(first: int, x: wp.array2d(dtype=scalar), visits: wp.array2d(dtype=wp.int32)):
        b, n = wp.tid()
        world = first + b
        x[world, n] = scalar(world) + scalar(0.1) * scalar(n)
        visits[world, n] += 1

    return _fill


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("worlds", [0, 1, 2, 7])
def test_launch_worlds_visits_every_world_once(threads, worlds):
    x, visits = torch.zeros(worlds, 3, dtype=F64), torch.zeros(worlds, 3, dtype=torch.int32)
    try:
        kernels.set_threads(threads)
        kernel = kernels.specialize(make_worlds, F64)
        arrays = [kernels.array(x, wp.float64), kernels.array(visits, wp.int32)] if worlds else [None, None]
        kernels.launch_worlds(kernel, worlds, arrays, torch.device("cpu"), dim=(3,))
    finally:
        kernels.set_threads(None)
    expected = torch.arange(worlds, dtype=F64)[:, None] + 0.1 * torch.arange(3, dtype=F64)
    torch.testing.assert_close(x, expected)
    assert (visits == 1).all()


def test_an_error_in_a_thread_reaches_the_caller():
    try:
        kernels.set_threads(2)
        with pytest.raises(Exception, match=r"(?i)argument|parameter"):
            kernel = kernels.specialize(make_worlds, F64)
            kernels.launch_worlds(kernel, 4, ["no array"], torch.device("cpu"), dim=(3,))
    finally:
        kernels.set_threads(None)


def test_an_error_in_the_caller_waits_for_the_other_threads(monkeypatch):
    done = []

    def launch(kernel, dim, args, device, block_dim=None):
        if args[0] == 0:
            raise RuntimeError("planted")
        time.sleep(0.2)
        done.append(args[0])

    monkeypatch.setattr(kernel_launch, "launch", launch)
    try:
        kernels.set_threads(2)
        with pytest.raises(RuntimeError, match="planted"):
            kernels.launch_worlds(None, 4, [], torch.device("cpu"))
    finally:
        kernels.set_threads(None)
    assert done == [2]


def test_threads_share_one_kernel():
    made = []

    def make(scalar):
        time.sleep(0.1)
        made.append(make_worlds(scalar))
        return made[-1]

    threads = [threading.Thread(target=kernels.specialize, args=(make, F64)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_threads_load_a_kernel_once(monkeypatch):
    kernel = kernels.specialize(functools.partial(make_worlds), F64)
    active, most = [], []
    load = type(kernel.module).load

    def slow(module, *args, **options):
        active.append(module)
        time.sleep(0.05)
        most.append(len(active))
        active.pop()
        return load(module, *args, **options)

    monkeypatch.setattr(type(kernel.module), "load", slow)
    x, visits = torch.zeros(1, 3, dtype=F64), torch.zeros(1, 3, dtype=torch.int32)
    arrays = [0, kernels.array(x, wp.float64), kernels.array(visits, wp.int32)]
    cpu = torch.device("cpu")
    threads = [threading.Thread(target=kernel_launch._load, args=(kernel, cpu, None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    kernels.launch(kernel, (1, 3), arrays, cpu)
    assert visits.sum() == 3


def test_backward_from_another_thread():
    direction, strength, pick = push_inputs()
    force = PUSH(direction, strength, pick, gain=0.7)[0].sum()
    thread = threading.Thread(target=force.backward)
    thread.start()
    thread.join()
    torch.testing.assert_close(
        strength.grad,
        torch.autograd.grad(push_in_torch(direction, strength, pick, 0.7)[0].sum(), strength)[0],
    )


def test_array_refuses_what_the_kernel_would_misread():
    with pytest.raises(ShapeError, match="contiguous"):
        kernels.array(torch.zeros(3, 4).t(), wp.float32)
    with pytest.raises(ShapeError, match="float16"):
        kernels.specialize(make_push, torch.float16)
