import contextlib
import functools
import gc
import random
import threading
import types
import weakref

import numpy
import pytest
import torch
from torch import nn

from gradpath import capture
from gradpath.contract import Contract
from gradpath.errors import BudgetError, CaptureError, ContractError, GradpathError, InputError, ShapeError
from gradpath.memory import Memory
from gradpath.meter import Meter
from gradpath.mode import current_mode, mode
from gradpath.replay import Repeats
from gradpath.scan import scan
from gradpath.schedule import fewest_extra_steps

LENGTH, WORLDS, FEATURES = 30, 4, 5
MEMORIES = ["all", 1, 3, 8, LENGTH]


class Noisy(nn.Module):
    """A recurrent step with noise from a generator of its own."""

    def __init__(self, seed: int = 0, noise: float = 0.1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.cell = nn.GRUCell(3, FEATURES)
            self.head = nn.Linear(FEATURES, 2)
        self.generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        self.calls = 0

    def forward(self, carry, x):
        self.calls += 1
        h = self.cell(x, carry["h"])
        noise = torch.randn(h.shape, generator=self.generator, dtype=h.dtype)
        h = h + self.noise * noise * h.square()
        return {"h": h, "count": carry["count"] + 1}, {"out": self.head(h), "norm": h.norm(dim=1)}


def noisy_problem(dtype=torch.float32):
    torch.manual_seed(7)
    step = Noisy().to(dtype)
    h0 = torch.randn(WORLDS, FEATURES, dtype=dtype, requires_grad=True)
    xs = torch.randn(LENGTH, WORLDS, 3, dtype=dtype, requires_grad=True)
    carry = {"h": h0, "count": torch.zeros((), dtype=torch.int64)}
    return step, carry, xs


def noisy_loss(carry, ys):
    return carry["h"].square().sum() + ys["out"].sin().sum() + (ys["norm"] * ys["norm"].cos()).sum()


def plain_loop(step, carry, xs):
    ys = []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return carry, {key: torch.stack([y[key] for y in ys]) for key in ys[0]}


def gradients(loss, step, carry, xs):
    return torch.autograd.grad(loss, [carry["h"], xs, *step.parameters()])


@pytest.mark.parametrize("memory", [1, 3, 8, LENGTH])
def test_gradients_are_equal_to_the_bit_for_every_memory(memory):
    results = []
    for setting in ("all", memory):
        step, carry, xs = noisy_problem()
        last, ys = scan(step, carry, xs, memory=setting)
        results.append([last["h"], ys["out"], *gradients(noisy_loss(last, ys), step, carry, xs)])
    for stored, recomputed in zip(*results, strict=True):
        assert stored.abs().sum() > 0
        assert torch.equal(stored, recomputed)


@pytest.mark.parametrize("memory", MEMORIES)
def test_gradients_match_one_plain_graph(memory):
    step, carry, xs = noisy_problem(torch.float64)
    last, ys = plain_loop(step, carry, xs)
    expected = gradients(noisy_loss(last, ys), step, carry, xs)
    step, carry, xs = noisy_problem(torch.float64)
    last_scan, ys_scan = scan(step, carry, xs, memory=memory)
    assert torch.equal(last["h"], last_scan["h"]) and last_scan["count"] == LENGTH
    assert torch.equal(ys["out"], ys_scan["out"])
    for want, got in zip(expected, gradients(noisy_loss(last_scan, ys_scan), step, carry, xs), strict=True):
        assert (want - got).abs().max() <= 1e-12 * want.abs().max()


@pytest.mark.parametrize(
    ("length", "memory"), [(30, 1), (30, 3), (30, 8), (100, 5), (100, 10), (100, 20), (9, 9), (1000, 20)]
)
def test_step_calls_are_the_fewest(length, memory):
    step, carry, _ = noisy_problem()
    last, ys = scan(step, carry, torch.randn(length, WORLDS, 3), memory=memory)
    assert step.calls == length
    noisy_loss(last, ys).backward()
    assert step.calls == length + fewest_extra_steps(length, memory) + 1


def test_generators_are_left_as_after_the_forward_pass():
    step, carry, xs = noisy_problem()
    last, ys = scan(step, carry, xs, memory=3)
    after = step.generator.get_state()
    noisy_loss(last, ys).backward()
    assert torch.equal(step.generator.get_state(), after)


def test_generator_in_the_carry_and_in_constants():
    def run(memory):
        weight = torch.full((3,), 0.9, requires_grad=True)
        carry = (torch.ones(3), torch.Generator().manual_seed(1))
        other = torch.Generator().manual_seed(2)

        def step(carry, x, constants):
            h, generator = carry
            noise = torch.randn(3, generator=generator) * torch.rand(3, generator=constants["generator"])
            return (torch.tanh(constants["weight"] * h + noise), generator), h

        (h, _), ys = scan(
            step, carry, length=20, memory=memory, constants={"weight": weight, "generator": other}
        )
        (h.sum() + ys.square().sum()).backward()
        return weight.grad

    assert run("all").abs().sum() > 0
    assert torch.equal(run("all"), run(2))


@pytest.mark.parametrize("memory", ["all", 3])
def test_backward_may_run_again_when_the_graph_is_kept(memory):
    step, carry, xs = noisy_problem()
    last, ys = scan(step, carry, xs, memory=memory)
    loss = noisy_loss(last, ys)
    first = torch.autograd.grad(loss, carry["h"], retain_graph=True)[0]
    second = torch.autograd.grad(loss, carry["h"])[0]
    assert torch.equal(first, second)
    with pytest.raises(GradpathError, match="second time"):
        torch.autograd.grad(last["h"].sum(), carry["h"])


def test_torch_says_whether_a_graph_is_kept():
    # Without this private function scan keeps tapes and snapshots until its outputs are gone.
    assert torch._C._autograd._get_current_graph_task_keep_graph() in (True, False)


@pytest.mark.parametrize("memory", ["all", 3])
def test_double_backward_is_refused(memory):
    step, carry, xs = noisy_problem()
    last, _ = scan(step, carry, xs, memory=memory)
    (grad,) = torch.autograd.grad(last["h"].sum(), carry["h"], create_graph=True)
    with pytest.raises(GradpathError, match="differentiated again"):
        (grad.sum() + carry["h"].sum()).backward()


def test_long_lists_of_numbers_are_not_walked(monkeypatch):
    visits = []
    visit = capture._Finder.visit
    monkeypatch.setattr(capture._Finder, "visit", lambda self, *args: (visits.append(1), visit(self, *args)))
    table = {"list": [0.5] * 10000, "tuple": (1, "a", None) * 1000, "rows": [[1.0, 2.0]] * 100}
    weight = torch.ones(2, requires_grad=True)
    mixed = [1.0] * 50 + [weight]
    h, _ = scan(lambda h, x: (h * table["list"][0] * mixed[-1], None), torch.ones(2), length=3)
    h.sum().backward()
    assert (weight.grad == 3 / 8).all() and len(visits) < 300


W_GLOBAL = torch.tensor([0.5, -0.3], requires_grad=True)


def helper(h):
    return h * W_GLOBAL


@pytest.mark.parametrize("memory", ["all", 2])
def test_captured_leaves_are_found(memory):
    def leaf(*values):
        return torch.tensor(values, requires_grad=True)

    scale, default, bound, boxed, held, slotted = (leaf(0.1 * i, 0.2) for i in range(1, 7))
    linear = nn.Linear(2, 2)

    class Method:
        __slots__ = ("bias",)

        def step(self, box, carry, x, default=default):
            inner = lambda h: h * scale + box["weights"][0] + namespace.value  # noqa: E731
            return torch.tanh(linear(helper(inner(carry)) + self.bias) * default + bound), None

    owner = Method()
    owner.bias = slotted
    namespace = types.SimpleNamespace(value=held)
    step = functools.partial(owner.step, {"weights": (boxed,)})
    h, _ = scan(step, torch.ones(2), length=6, memory=memory)
    found = [scale, default, bound, boxed, held, slotted, W_GLOBAL, *linear.parameters()]
    got = torch.autograd.grad(h.sum(), found)
    carry = torch.ones(2)
    for _ in range(6):
        carry, _ = step(carry, None)
    for g, want in zip(got, torch.autograd.grad(carry.sum(), found), strict=True):
        torch.testing.assert_close(g, want)


@pytest.mark.parametrize("memory", ["all", 2])
@pytest.mark.parametrize("place", ["closure", "list", "tuple", "attribute", "default", "constants"])
def test_tensors_with_a_history_keep_it(memory, place):
    weight = torch.tensor([0.5, -0.2], requires_grad=True)

    def run(loop):
        goal = torch.exp(weight)
        box, pair, owner = [goal], (goal, 1), types.SimpleNamespace(goal=goal)

        def with_default(carry, x, goal=goal):
            return torch.tanh(carry * goal + weight), carry

        step = {
            "closure": lambda carry, x: (torch.tanh(carry * goal + weight), carry),
            "list": lambda carry, x: (torch.tanh(carry * box[0] + weight), carry),
            "tuple": lambda carry, x: (torch.tanh(carry * pair[0] + weight), carry),
            "attribute": lambda carry, x: (torch.tanh(carry * owner.goal + weight), carry),
            "default": with_default,
            "constants": lambda carry, x, c=None: (
                torch.tanh(carry * (goal if c is None else c) + weight),
                carry,
            ),
        }[place]
        h, ys = loop(step, goal if place == "constants" else None)
        result = torch.autograd.grad(h.sum() + ys.square().sum() + goal.sum(), weight)[0]
        assert box[0] is goal and pair[0] is goal and owner.goal is goal
        return result

    def plain(step, constants):
        carry, ys = torch.ones(2), []
        for _ in range(8):
            carry, y = step(carry, None)
            ys.append(y)
        return carry, torch.stack(ys)

    got = run(lambda step, constants: scan(step, torch.ones(2), length=8, memory=memory, constants=constants))
    torch.testing.assert_close(got, run(plain))


class Hidden:
    """Holds a tensor where no walk over attributes can see it."""

    def __init__(self, tensor):
        self._get = iter(lambda: tensor, None).__next__

    def value(self):
        return self._get()


@pytest.mark.parametrize("memory", ["all", 2])
def test_a_tensor_that_cannot_be_found_is_refused(memory):
    hidden_weight = torch.ones(2, requires_grad=True)
    hidden = Hidden(hidden_weight)
    with pytest.raises(CaptureError, match=r"step 0 uses .*shape \(2,\).*constants="):
        scan(lambda carry, x: (carry * hidden.value(), None), torch.ones(2), length=5, memory=memory)
    known = torch.ones(2, requires_grad=True)
    with pytest.raises(CaptureError, match="would be lost"):
        scan(lambda carry, x: (carry * known * hidden.value(), None), torch.ones(2), length=5, memory=memory)


def test_a_tensor_with_a_history_that_cannot_be_replaced_is_refused():
    goal = torch.ones(2, requires_grad=True).exp()
    step = functools.partial(lambda goal, carry, x: (carry * goal, None), goal)
    with pytest.raises(CaptureError, match="cannot be replaced"):
        scan(step, torch.ones(2), length=5, memory=2)


@pytest.mark.parametrize("memory", ["all", 2])
def test_a_late_use_of_a_hidden_tensor_is_refused(memory):
    hidden = Hidden(torch.ones(2, requires_grad=True))
    known = torch.ones(2, requires_grad=True)

    def step(carry, x):
        h, t = carry
        return (h * known if t < 3 else h * known * hidden.value(), t + 1), None

    with pytest.raises(CaptureError, match=r"step [345] uses"):
        (h, _), _ = scan(step, (torch.ones(2), 0), length=6, memory=memory)
        h.sum().backward()


def test_leaves_made_inside_a_step_are_its_own_affair():
    weight = torch.tensor(2.0, requires_grad=True)

    def step(carry, x):
        u = torch.ones((), requires_grad=True)
        with torch.enable_grad():
            (inner,) = torch.autograd.grad((u * weight).square(), u, create_graph=True)
        return carry + inner, None

    total, _ = scan(step, torch.zeros(()), length=3, memory=2)
    total.backward()
    assert weight.grad == 3 * 2 * 2 * 2.0


def test_unused_losses_of_earlier_iterations_are_let_go():
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.last = []

        def forward(self, carry, x):
            return carry * self.weight, None

    trainer, results = Trainer(), []
    for _ in range(3):
        h, _ = scan(trainer, torch.ones(2), length=3, memory=2)
        trainer.last[:] = [h]
        results.append(weakref.ref(h))
    del h
    gc.collect()
    assert [ref() is None for ref in results] == [True, True, False]


@pytest.mark.parametrize("memory", ["all", 2])
def test_decay_is_a_factor_per_step_on_the_carry(memory):
    class Fade(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, grad):
            return 0.8 * grad

    weight = torch.tensor([1.1, 0.7], dtype=torch.float64, requires_grad=True)
    h0 = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def step(carry, x):
        return torch.sin(carry * weight), carry.square()

    h, ys = scan(step, h0, length=7, memory=memory, decay=0.8)
    got = torch.autograd.grad(h.sum() + ys.sum(), [weight, h0])
    carry, total = h0, 0.0
    for _ in range(7):
        carry, y = step(Fade.apply(carry), None)
        total = total + y.sum()
    for g, want in zip(got, torch.autograd.grad(carry.sum() + total, [weight, h0]), strict=True):
        torch.testing.assert_close(g, want)


@pytest.mark.parametrize("memory", ["all", 1, 4])
@pytest.mark.parametrize("cut", [1, 4, 10, 40])
def test_a_cut_lets_no_gradient_through(memory, cut):
    def run(loop):
        torch.manual_seed(0)
        weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        h = torch.randn(3, dtype=torch.float64, requires_grad=True)
        xs = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
        last, ys = loop(lambda h, x: (torch.tanh(weight @ h + x), h.sin()), h, xs)
        loss = last.sum() + ys[-1].sum()
        return [last, ys, *torch.autograd.grad(loss, [weight, h, xs], materialize_grads=True)]

    def by_hand(step, h, xs):
        ys = []
        for t, x in enumerate(xs):
            h, y = step(h.detach() if t and t % cut == 0 else h, x)
            ys.append(y)
        return h, torch.stack(ys)

    got = run(lambda step, h, xs: scan(step, h, xs, memory=memory, cut=cut))
    for have, want in zip(got, run(by_hand), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-15)
    before = 9 // cut * cut  # the loss is on the last window
    assert not got[-1][:before].any() and got[-1][before:].all()
    assert got[-2].any() == (cut >= 10)


@pytest.mark.parametrize("memory", ["all", 3])
def test_xs_get_their_gradient_where_nothing_is_shared(memory):
    xs = torch.ones(6, 2, requires_grad=True)
    h, _ = scan(lambda h, x: (h + x, None), torch.zeros(2), xs, memory=memory)
    (grad,) = torch.autograd.grad(h.sum(), xs)
    assert torch.equal(grad, torch.ones(6, 2))


def test_decay_per_second():
    def gradient(**options):
        h = torch.ones(2, requires_grad=True)
        return torch.autograd.grad(scan(lambda h, x: (h * 1.0, None), h, length=8, **options)[0].sum(), h)[0]

    torch.testing.assert_close(gradient(decay=0.5, dt=0.25), gradient(decay=0.5**0.25))
    torch.testing.assert_close(gradient(decay=0.5, dt=0.25), torch.full((2,), 0.25))


def test_without_gradients_nothing_is_kept():
    step, carry, xs = noisy_problem()
    with torch.no_grad():
        last, ys = scan(step, carry, xs, memory=3)
    assert step.calls == LENGTH and not last["h"].requires_grad and not ys["out"].requires_grad
    with torch.inference_mode():
        last, ys = scan(step, carry, xs, memory=3)
    step.requires_grad_(False)
    last, ys = scan(step, {**carry, "h": carry["h"].detach()}, xs.detach(), memory=3)
    assert not last["h"].requires_grad


@pytest.mark.parametrize("memory", ["all", 2])
def test_carry_with_other_things_in_it(memory):
    weight = torch.tensor([0.5, 2.0], requires_grad=True)

    def step(carry, x):
        index = (carry["index"] + 1) % 2
        h = carry["h"] * weight[index]
        return {**carry, "index": index, "h": h, "n": carry["n"] + 1}, {
            "n": carry["n"],
            "none": None,
            "i": index,
        }

    fixed = torch.arange(3.0)
    start = {"index": torch.tensor(0), "h": torch.ones(()), "n": 0, "tag": "a", "none": None, "fixed": fixed}
    last, ys = scan(step, start, length=4, memory=memory)
    last["h"].backward()
    assert (last["n"], last["tag"], last["none"]) == (4, "a", None)
    assert ys["n"].tolist() == [0, 1, 2, 3] and ys["none"] is None and ys["i"].tolist() == [1, 0, 1, 0]
    assert torch.equal(last["fixed"], fixed) and not ys["i"].requires_grad
    torch.testing.assert_close(weight.grad, torch.tensor([4.0, 1.0]))  # d(w0^2 w1^2)


@pytest.mark.parametrize("memory", ["all", 3])
def test_only_some_outputs_used(memory):
    step, carry, xs = noisy_problem()
    _, ys = scan(step, carry, xs, memory=memory)
    (grad,) = torch.autograd.grad(ys["norm"][4].sum(), xs)
    assert grad[:5].abs().sum() > 0 and grad[5:].abs().sum() == 0


def test_dropout_from_the_global_generator_must_be_declared():
    layer = nn.Linear(4, 4)

    def step(carry, x):
        return nn.functional.dropout(layer(carry), 0.5), None

    with pytest.raises(ContractError, match=r"step 0 drew from the global random generator of cpu"):
        scan(step, torch.ones(2, 4), length=6, memory=2)

    def run(memory):
        torch.manual_seed(3)
        h, _ = scan(step, torch.ones(2, 4), length=6, memory=memory, generators=[torch.default_generator])
        return torch.autograd.grad(h.square().sum(), layer.weight)[0]

    assert torch.equal(run("all"), run(2))


class Counting(nn.Module):
    """Writes into a buffer at each step; `declared` says so in a contract."""

    def __init__(self, declared: bool):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=0.3)
        self.weight = nn.Parameter(torch.tensor([0.5, 1.0, 1.5]))
        if declared:
            self.contract = Contract(inputs={}, outputs={}, effects=("mutates:norm",))

    def forward(self, carry, x):
        seen = self.norm(carry * self.weight)
        return torch.tanh(seen + self.norm.running_mean), seen


def test_declared_buffers_are_restored_and_others_refused():
    def run(memory, declared=True):
        torch.manual_seed(0)
        step = Counting(declared)
        h, ys = scan(step, torch.randn(4, 3), length=12, memory=memory)
        after = step.norm.running_mean.clone()
        (h.sum() + ys.cos().sum()).backward()
        assert torch.equal(after, step.norm.running_mean)
        return step.weight.grad, after

    for stored, recomputed in zip(run("all"), run(2), strict=True):
        assert torch.equal(stored, recomputed)
    with pytest.raises(ContractError, match=r"step.norm.*changed in place.*mutates:<buffer>"):
        run(2, declared=False)


def test_in_place_changes_are_refused():
    weight = torch.ones(2, requires_grad=True)
    counter = torch.zeros((), dtype=torch.int64)

    def counting(carry, x):
        counter.add_(1)
        return carry * weight, None

    with pytest.raises(ContractError, match=r'"counter".*changed in place by a step'):
        scan(counting, torch.ones(2), length=4, memory=2)

    def overwriting(carry, x):
        carry["n"] += 1
        return {"h": carry["h"] * weight, "n": carry["n"]}, None

    with pytest.raises(ContractError, match=r"changed carry\['n'\] in place"):
        scan(overwriting, {"h": torch.ones(2), "n": torch.zeros(())}, length=4, memory=2)

    goal = torch.ones(2)
    h, _ = scan(lambda carry, x: (carry * weight + goal, None), torch.ones(2), length=4, memory=2)
    goal.add_(1)
    with pytest.raises(ContractError, match="changed in place between forward and backward"):
        h.sum().backward()

    def rounding(carry, x):  # what it makes in the first step goes through the others unchanged
        h, n = carry
        return (h * weight + n, n if n[0] == 0 else n - n), None

    (h, same), _ = scan(rounding, (torch.ones(2), torch.ones(2)), length=4, memory=2)
    with torch.no_grad():
        same.add_(1)
    with pytest.raises(GradpathError, match="changed in place"):
        h.sum().backward()


def test_an_exception_in_backward_leaves_no_gradient():
    step, carry, xs = noisy_problem()
    last, ys = scan(step, carry, xs, memory=3)
    after = step.generator.get_state()
    inner, step.forward = step.forward, None

    def failing(carry, x):
        if step.calls > LENGTH + 5:
            raise ZeroDivisionError("planted")
        return inner(carry, x)

    step.forward = failing
    with pytest.raises(ZeroDivisionError, match="planted"):
        noisy_loss(last, ys).backward()
    assert all(parameter.grad is None for parameter in step.parameters()) and carry["h"].grad is None
    assert torch.equal(step.generator.get_state(), after)


@pytest.mark.parametrize("memory", ["all", 2])
def test_mode_and_autocast_are_replayed(memory):
    layer = nn.Linear(4, 4)
    seen = []

    def step(carry, x):
        inner = layer(carry)
        seen.append((current_mode(), inner.dtype))
        return torch.tanh(inner.float()), None

    with mode("straight_through"), torch.autocast("cpu", torch.bfloat16):
        h, _ = scan(step, torch.ones(2, 4), length=6, memory=memory)
    h.sum().backward()
    assert set(seen) == {("straight_through", torch.bfloat16)}
    assert layer.weight.grad.abs().sum() > 0


def test_mode_is_replayed_in_another_thread():
    weight, seen = torch.tensor(0.5, requires_grad=True), []

    def step(carry, x):
        seen.append(current_mode())
        return torch.sin(carry * weight), None

    with mode("hard"):
        h, _ = scan(step, torch.ones(2), length=6, memory=2)
    thread = threading.Thread(target=h.sum().backward)
    thread.start()
    thread.join()
    assert set(seen) == {"hard"} and len(seen) > 6 and weight.grad is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("memory", ["all", 3])
def test_agrees_with_the_cpu_on_cuda(memory):
    def run(device):
        step, carry, xs = noisy_problem(torch.float64)
        step, step.noise = step.to(device), 0.0
        step.generator = torch.Generator(device).manual_seed(0)
        leaves = [carry["h"].detach().to(device).requires_grad_(), xs.detach().to(device).requires_grad_()]
        last, ys = scan(step, {"h": leaves[0], "count": carry["count"]}, leaves[1], memory=memory)
        grads = torch.autograd.grad(noisy_loss(last, ys), [*leaves, *step.parameters()])
        return [grad.cpu() for grad in grads]

    for cpu, cuda in zip(run("cpu"), run("cuda"), strict=True):
        torch.testing.assert_close(cpu, cuda, rtol=1e-9, atol=1e-12)


def test_autocast_gradients_are_equal_to_the_bit():
    def run(memory):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            h, _ = scan(
                lambda c, x: (torch.tanh(layer(c).float()), None), torch.ones(2, 4), length=6, memory=memory
            )
        h.square().sum().backward()
        return layer.weight.grad

    assert torch.equal(run("all"), run(2))


def test_progress_is_told_once_per_step():
    step, carry, xs = noisy_problem()
    done = []
    last, _ = scan(step, carry, xs, memory=3, on_step=done.append)
    last["h"].sum().backward()
    assert done == list(range(LENGTH))


def test_autocast_does_not_lose_a_weight_that_was_first_used_without_a_graph():
    def run(memory):
        torch.manual_seed(0)
        first, inner = nn.Linear(4, 4), nn.Linear(4, 4)

        def step(carry, x):
            h, t = carry
            layer = inner if 0 < t < 5 else first
            return (torch.tanh(layer(h).float()), t + 1), None

        with torch.autocast("cpu", torch.bfloat16):
            (h, _), _ = scan(step, (torch.ones(2, 4), 0), length=6, memory=memory)
            h.square().sum().backward()
        return inner.weight.grad

    assert run("all").abs().sum() > 0
    assert torch.equal(run("all"), run(2))


class Counted(torch.autograd.Function):
    """The identity into memory whose life is counted."""

    alive = most = 0

    @staticmethod
    def forward(ctx, value):
        array = value.numpy().copy()
        weakref.finalize(array, Counted.freed)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        return torch.from_numpy(array)

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def freed():
        Counted.alive -= 1


class Unrepeatable:
    """Steps that read what a recomputation cannot bring back."""

    def __init__(self):
        self.count = 0

    def counter(self, h, x):
        self.count += 1
        return torch.sin(h * self.count), None

    def numpy(self, h, x):
        return torch.sin(h * numpy.random.rand()), None

    def random(self, h, x):
        return h * 0.9, h * random.random()

    def order(self, h, x):
        return h[random.sample(range(50), 50)], None


@pytest.mark.parametrize("memory", [1, 3, 12])
@pytest.mark.parametrize("kind", ["counter", "numpy", "random", "order"])
def test_a_step_that_does_not_repeat_itself_is_refused(kind, memory):
    h0 = torch.linspace(-1, 1, 50, requires_grad=True)
    h, ys = scan(getattr(Unrepeatable(), kind), h0, length=12, memory=memory)
    with pytest.raises(ContractError, match=r"step \d+ gave another value when it was recomputed"):
        (h.square().sum() if ys is None else ys.square().sum()).backward()
    assert h0.grad is None
    h, ys = scan(getattr(Unrepeatable(), kind), h0, length=12)
    (h.square().sum() if ys is None else ys.square().sum()).backward()
    assert h0.grad.abs().sum() > 0


def test_layouts_and_types_of_what_is_compared():
    def step(carry, x):
        odd = {"strided": carry["z"].real[:, ::2], "conj": carry["z"].conj().mT, "flag": carry["z"].real > 0}
        small = {"half": carry["h"].bfloat16(), "none": carry["h"][:0], "scalar": carry["h"].sum(), "n": 3}
        return {"z": carry["z"] * 1j, "h": torch.tanh(carry["h"])}, {**odd, **small}

    carry = {"z": torch.randn(3, 4, dtype=torch.cfloat), "h": torch.randn(2, requires_grad=True)}
    _, ys = scan(step, carry, length=7, memory=2)
    ys["scalar"].sum().backward()
    assert carry["h"].grad.abs().sum() > 0


def test_what_differs_in_bits_is_compared_within_a_tolerance():
    values = torch.randn(20, 30)
    repeats = Repeats()
    repeats.check(4, [values, values.to(torch.cfloat), 3])
    for other in (values, values * (1 + 1e-6), values + torch.nan):
        repeats.check(4, [other, values.to(torch.cfloat), 3])
    for other in (values.flip(0), -values, values + 0.05, values * torch.randn(20, 1)):
        with pytest.raises(ContractError, match="step 4 gave another value"):
            repeats.check(4, [other, values.to(torch.cfloat), 3])
    assert 4 in repeats and 5 not in repeats
    with pytest.raises(ContractError, match="step 4 gave another value"):
        repeats.check(4, [values, values.to(torch.cfloat), 4])


def test_comparing_a_large_state_takes_no_copies_of_its_size():
    values = torch.randn(3_000_000)
    repeats = Repeats()
    with Meter() as meter:
        repeats.check(0, [values])
        repeats.check(0, [values * (1 + 1e-6)])
    assert meter.peak - values.nbytes < 5_000_000
    swapped = values.clone()
    swapped[: 2**18], swapped[2**18 : 2**19] = values[2**18 : 2**19], values[: 2**18]
    with pytest.raises(ContractError, match="step 0 gave another value"):
        repeats.check(0, [swapped])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer", [nn.LSTM(8, 8, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()]
)
def test_layers_that_torch_computes_otherwise_without_a_tape_are_no_hidden_state(layer, dtype):
    def step(h, x):
        after = layer(h)
        return 0.9 * (after[0] if isinstance(after, tuple) else after), None

    layer.to(dtype)
    h0 = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    h, _ = scan(step, h0, length=20, memory=3)
    h.square().sum().backward()
    assert torch.isfinite(h0.grad).all() and h0.grad.abs().sum() > 0


@pytest.mark.parametrize(("memory", "kept", "most"), [("all", 60, 61), (4, 5, 8), (20, 21, 24)])
def test_memory_is_let_go_along_the_way(memory, kept, most):
    Counted.alive = Counted.most = 0
    weight = torch.tensor(0.9, requires_grad=True)
    h, _ = scan(
        lambda c, x: (Counted.apply(torch.sin(c * weight)), None), torch.ones(100), length=60, memory=memory
    )
    loss = h.sum()
    assert Counted.alive <= kept + 1 and Counted.most <= most
    loss.backward()
    assert Counted.most <= most
    assert Counted.alive <= 1, "the last carry is still there, but nothing of the loop behind it"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("memory", ["all", 2])
def test_writing_into_the_last_carry_changes_nothing_that_was_given(memory, grad):
    given = {"h": torch.ones(3, requires_grad=grad), "world": torch.ones(2, 3), "x": torch.ones(2)}
    xs, constants = torch.ones(5, 2), {"c": torch.ones(2)}

    def step(carry, x, constants):
        after = {
            "h": carry["h"] * 0.5,
            "world": carry["world"].mT.mT,
            "x": x if memory == 2 else constants["c"],
        }
        return after, None

    last, _ = scan(step, given, xs, memory=memory, constants=constants)
    with torch.no_grad():
        last["world"].add_(1)
        last["x"].add_(1)
    assert (given["world"] == 1).all() and (xs == 1).all() and (constants["c"] == 1).all()
    if grad:
        last["h"].sum().backward()
        assert (given["h"].grad == 0.5**5).all()


def test_a_memory_may_be_a_numpy_integer():
    step, carry, xs = noisy_problem()
    scan(step, carry, xs, memory=numpy.int64(3))
    assert repr(Memory(numpy.int64(3))) == "Memory(3)"
    with pytest.raises(BudgetError, match=r"memory=3\.0"):
        scan(step, carry, xs, memory=3.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, InputError, "neither xs nor length"),
        ({"length": 0}, InputError, "at least one step"),
        ({"xs": torch.ones(3), "length": 4}, ShapeError, "first axis is time"),
        ({"xs": {"a": torch.ones(3), "b": torch.ones(4)}}, ShapeError, r"xs\['b'\] has shape \(4,\)"),
        ({"xs": torch.ones(())}, ShapeError, "first axis is time"),
        ({"xs": "text"}, InputError, "xs is a str"),
        ({"length": 3, "memory": 0}, BudgetError, "at least 1 snapshot"),
        ({"length": 3, "memory": "200"}, BudgetError, "number of snapshots"),
        ({"length": 3, "memory": 1.5}, BudgetError, "number of snapshots"),
        ({"length": 3, "cut": 0}, InputError, "cut >= 1"),
        ({"length": 3, "decay": 0.5, "dt": 0.0}, InputError, "above 0"),
        ({"length": 3, "memory": True}, BudgetError, "memory=True"),
        ({"length": 3, "decay": 1.5}, InputError, "between 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        scan(lambda carry, x: (carry, None), torch.ones(2), **arguments)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (lambda c, x: c, ContractError, "returns the pair"),
        (lambda c, x: ({"h": c}, None), ContractError, "keeps its structure"),
        (lambda c, x: (c[:1], None), ShapeError, r"shape \(1,\)"),
        (lambda c, x: (c.long(), None), ShapeError, "int64"),
        (lambda c, x: (c, "text"), ContractError, "a str in it"),
        (
            lambda c, x: (c * 2, c[: int(c[0] + 1)]),
            ShapeError,
            r"step 1 returned y with shape \(3,\), .* \(2,\)",
        ),
        (
            lambda c, x: (c * 2, {"a": [c.double() if c[0] > 1 else c]}),
            ShapeError,
            r"step 1 returned y\['a'\]\[0\] with dtype",
        ),
        (
            lambda c, x: (c * 2, 1 if c[0] < 2 else 2.5),
            ShapeError,
            "dtype torch.float32, the steps before .*int64",
        ),
        (lambda c, x: (c * 2, c if c[0] < 2 else c.to("meta")), ShapeError, "step 1 .* device meta"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_bad_steps_are_refused(step, error, message, grad):
    context = contextlib.nullcontext() if grad else torch.no_grad()
    with context, pytest.raises(error, match=message):
        scan(step, torch.ones(5, requires_grad=True), length=3, memory=2)
