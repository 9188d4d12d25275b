"""Loops whose number of steps turns out on the way: the same gradients, within bounded memory."""

import threading

import pytest
import torch
from torch import nn

from gradpath.errors import BudgetError, ContractError, GradpathError, InputError
from gradpath.memory import Memory
from gradpath.scan import scan
from gradpath.schedule import binomial

LENGTH = 70


class Step(nn.Module):
    """A noisy cell that counts."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(6, 6)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, carry, x):
        h = torch.tanh(self.cell(carry["h"])) + 0.1 * torch.randn(4, 6, generator=self.generator)
        return {"h": h if x is None else h + x, "count": carry["count"] + 1}, h.sum(-1)


def run(memory, xs=None, **how):
    torch.manual_seed(0)
    step = Step()
    carry = {"h": torch.ones(4, 6, requires_grad=True), "count": torch.tensor(0)}
    last, ys = scan(step, carry, xs, memory=memory, **how)
    wanted = [carry["h"], *step.parameters(), *(() if xs is None else (xs,))]
    grads = torch.autograd.grad(last["h"].square().sum() + ys.sin().sum(), wanted)
    return [last["h"], last["count"], ys, *grads, step.generator.get_state()]


def going(carry):
    return carry["count"] < LENGTH


@pytest.mark.parametrize("memory", ["all", 1, 2, 5, 100, "40kB", "1GB"])
def test_results_are_those_of_a_loop_of_known_length(memory):
    want = run("all", length=LENGTH)
    used = Memory(memory, measure=True)
    got = run(used, condition=going)
    assert len(got[2]) == LENGTH and used.tally.length == LENGTH and used.tally.complete
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)
    if isinstance(memory, int):
        assert used.tally.extra_steps <= 1.4 * binomial(LENGTH, memory).extra_steps
    if memory == "40kB":
        assert 1 < used.plan.slots < 70 and used.tally.peak <= 1.05 * 40_000
        assert used.tally.extra_steps == used.plan.schedule.extra_steps


@pytest.mark.parametrize("memory", ["all", 3])
def test_xs_and_length_are_upper_bounds(memory):
    xs = torch.randn(90, 4, 6, requires_grad=True)
    short = xs.detach()[:LENGTH].clone().requires_grad_()
    *want, want_xs, _ = run(memory, short)
    *got, got_xs, _ = run(memory, xs, condition=going)
    assert torch.equal(got_xs[:LENGTH], want_xs) and not got_xs[LENGTH:].any()
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)
    assert len(run(memory, length=9, condition=going)[2]) == 9


def test_memory_stays_bounded_however_long_the_loop_becomes():
    def peak(length):
        weight = torch.full((), 0.99, requires_grad=True)
        memory = Memory(6, measure=True)
        h, _ = scan(
            lambda h, x: (torch.sin(h * weight) + 1.0, None), torch.ones(1000),
            condition=lambda h: next(steps) < length, memory=memory,
        )  # fmt: skip
        h.sum().backward()
        assert memory.tally.length == length
        return memory.tally.peak

    steps = iter(range(10**6))
    short = peak(30)
    steps = iter(range(10**6))
    assert peak(900) <= 1.01 * short


def test_a_loop_without_a_step_gives_the_carry_back():
    h = torch.ones(3, requires_grad=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            last, ys = scan(
                lambda h, x: (h * 2, h), {"h": h, "n": 4}, condition=lambda carry: False, memory=2
            )
        assert ys is None and last["n"] == 4 and torch.equal(last["h"], h) and last["h"] is not h
    (grad,) = torch.autograd.grad(scan(lambda h, x: (h * 2, h), h, condition=lambda h: False)[0].sum(), h)
    assert torch.equal(grad, torch.ones(3))


def test_without_gradients_the_condition_holds_too():
    with torch.no_grad():
        last, ys = scan(lambda h, x: (h * 2, h), torch.ones(()), condition=lambda h: h < 1000)
    assert last == 1024 and ys.tolist() == [2.0**n for n in range(10)]


def test_a_step_that_is_measured_is_not_run_beyond_the_end():
    calls = []

    def step(h, x):
        calls.append(1)
        return h * 0.5, None

    h = torch.ones(3, requires_grad=True)
    scan(step, h, condition=lambda h: h.sum() > 2, memory="1MB")
    assert len(calls) == 2, "one to measure, one to run"
    last, _ = scan(step, h, condition=lambda h: h.sum() > 5, memory="1MB")
    assert len(calls) == 2 and torch.equal(last, h)


def test_what_cannot_work_is_refused():
    h = torch.ones(3, requires_grad=True)
    with pytest.raises(InputError, match=r"\(3,\).*before step 0.*\.any\(\)"):
        scan(lambda h, x: (h, None), h, condition=lambda h: h > 0)
    with pytest.raises(InputError, match="pass length="):
        scan(lambda h, x: (h, None), h, condition=lambda h: True, check_finite=True)
    with pytest.raises(BudgetError, match="smallest budget that works"):
        scan(lambda h, x: (h * 2, None), h, condition=lambda h: True, memory="10B")
    with pytest.raises(BudgetError, match="memory=0"):
        scan(lambda h, x: (h * 2, None), h, condition=lambda h: True, memory=0)
    draws = torch.nn.Dropout(0.5)
    with pytest.raises(ContractError, match="drew from the global random generator"):
        scan(lambda h, x: (draws(h), None), h, condition=lambda h: True, memory=3)


def test_backward_may_run_again():
    h = torch.ones(3, requires_grad=True)
    last, _ = scan(lambda h, x: (torch.sin(h), None), h, condition=lambda h: h.sum() > 1.0, memory=3)
    once = torch.autograd.grad(last.sum(), h, retain_graph=True)[0]
    assert torch.equal(once, torch.autograd.grad(last.sum(), h)[0])
    with pytest.raises(GradpathError, match="retain_graph"):
        torch.autograd.grad(last.sum(), h)


@pytest.mark.parametrize("known", [True, False])
def test_progress_is_shown_on_standard_error(known, capfd):
    h = torch.ones(3, requires_grad=True)
    how = {"length": 12} if known else {"condition": lambda h: h.sum() > 1.0}
    last, _ = scan(lambda h, x: (0.9 * h, None), h, memory=3, progress="flight", **how)
    last.sum().backward()
    output = capfd.readouterr()
    steps = 12 if known else 11
    assert output.out == "" and "flight forward" in output.err and "flight backward" in output.err
    assert output.err.count(f"{steps}/{steps}") >= 2


def test_progress_goes_away_with_an_error(capfd):
    def failing(h, x):
        if h.requires_grad and fails:
            raise ZeroDivisionError("planted")
        return h * 2, None

    h = torch.ones(3, requires_grad=True)
    for fails in (True, False):
        last = None
        try:
            last, _ = scan(failing, h, length=5, memory=2, progress=True)
        except ZeroDivisionError:
            continue
        fails = True
        with pytest.raises(ZeroDivisionError):
            last.sum().backward()
    for thread in threading.enumerate():
        if "refresh" in type(thread).__name__.lower():
            thread.join(timeout=5.0)
            assert not thread.is_alive()
    assert "scan forward" in capfd.readouterr().err
