"""States in a second place: files that come back to the bit and leave nothing behind, plans that know their cost."""

import itertools

import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath import sim
from gradpath.budget import StepCost, choose, choose_stored
from gradpath.errors import BudgetError, GradpathError, InputError
from gradpath.memory import Memory
from gradpath.replay import Effects
from gradpath.scan import scan
from gradpath.schedule import cost_of_periods
from gradpath.store import FileStore, HostStore

LENGTH = 60


class Step(nn.Module):
    """Everything that a state can hold: several types and layouts, noise, a buffer that is written into."""

    contract = gp.Contract(inputs={}, outputs={}, effects=("mutates:norm",))

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, momentum=0.3)
        self.cell = nn.GRUCell(8, 8)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, carry, x):
        noise = torch.randn(carry["h"].shape, generator=self.generator)
        h = self.cell(self.norm(carry["h"]) + 0.1 * noise + self.norm.running_mean, carry["h"])
        after = {"h": h, "count": carry["count"] + 1, "even": ~carry["even"], "half": carry["half"] * 0.5}
        return {**after, "name": carry["name"], "columns": carry["columns"].sin()}, h.sum(-1)


def first():
    return {
        "h": torch.linspace(-1, 1, 2048).reshape(256, 8).requires_grad_(),
        "count": torch.tensor(0),
        "even": torch.tensor([True]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "name": "drone",
        "columns": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).T,
    }


def run(memory, loss=lambda last, ys: last["h"].square().sum() + ys.sin().sum()):
    torch.manual_seed(0)
    step, carry = Step(), first()
    last, ys = scan(step, carry, length=LENGTH, memory=memory)
    grads = torch.autograd.grad(loss(last, ys), [carry["h"], *step.parameters()])
    assert last["name"] == "drone" and last["columns"].stride() == carry["columns"].stride()
    tensors = [value for value in last.values() if isinstance(value, torch.Tensor)]
    return [*tensors, ys, *grads, *step.buffers(), step.generator.get_state()]


def cheap(monkeypatch):
    """Let storing cost next to nothing, so that plans use it whatever the disk is like today."""
    monkeypatch.setattr("gradpath.memory._seconds_to_store", lambda store, state: 1e-9)


@pytest.mark.parametrize("setting", [1, 3, "127kB", "150kB", "300kB"])
def test_gradients_do_not_depend_on_where_states_are(setting, tmp_path, monkeypatch):
    cheap(monkeypatch)
    want = run("all")
    memory = Memory(setting, measure=True, folder=tmp_path / "new")
    got = run(memory)
    assert memory.plan.schedule.stored > 0 and memory.tally.steps["store"] == memory.plan.schedule.stored
    assert memory.tally.steps["load"] == memory.tally.steps["store"]
    assert memory.tally.extra_steps == memory.plan.schedule.extra_steps
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)
    assert list((tmp_path / "new").iterdir()) == []
    if isinstance(setting, str):
        assert memory.tally.peak <= 1.05 * memory.limit
        assert memory.tally.peak == pytest.approx(memory.plan.peak, rel=0.1)


def test_files_stay_for_another_backward_and_go_with_an_error(tmp_path, monkeypatch):
    cheap(monkeypatch)
    step, carry = Step(), first()
    last, _ = scan(step, carry, length=LENGTH, memory=Memory(2, folder=tmp_path))
    assert len([*tmp_path.glob("*/*.safetensors")]) > 3
    once = torch.autograd.grad(last["h"].sum(), carry["h"], retain_graph=True)
    assert len([*tmp_path.glob("*/*.safetensors")]) > 3
    again = torch.autograd.grad(last["h"].sum(), carry["h"])
    assert torch.equal(once[0], again[0]) and not [*tmp_path.iterdir()]

    last, _ = scan(step, carry, length=LENGTH, memory=Memory(2, folder=tmp_path))
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(b"damaged")
    with pytest.raises(
        GradpathError, match=r"the state that enters step \d+ could not be read.*its files must stay"
    ):
        last["h"].sum().backward()
    assert carry["h"].grad is None and not [*tmp_path.iterdir()]

    last, _ = scan(step, carry, length=LENGTH, memory=Memory(2, folder=tmp_path))
    assert [*tmp_path.iterdir()]
    del last, _
    assert not [*tmp_path.iterdir()], "a loop that is dropped takes its files along"


def test_a_state_comes_back_as_it_was(tmp_path):
    step = Step()
    state = Effects([step], [step.generator]).snapshot([*first().values(), torch.ones(0), torch.tensor(1j)])
    for store in (FileStore(tmp_path), HostStore()):
        store.put(7, state)
        back = store.get(7)
        for a, b in zip(state.carry, back.carry, strict=True):
            same = (
                torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
                if torch.is_tensor(a)
                else a == b
            )
            assert same
        for (a, x), (b, y) in itertools.chain(
            zip(state.generators, back.generators, strict=True), zip(state.buffers, back.buffers, strict=True)
        ):
            assert a is b and torch.equal(x, y)
        store.drop(7)
        with pytest.raises((GradpathError, KeyError)):
            store.get(7)
        store.close()
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name a folder that can be written to"):
        scan(Step(), first(), length=5, memory=Memory(2, folder=tmp_path / "file"))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(BudgetError, match="none to store"):
        Memory("all", folder="states")
    with pytest.raises(BudgetError, match="pass one of them"):
        Memory(3, folder="states", host=True)
    with pytest.raises(BudgetError, match="lies on the CPU"):
        scan(Step(), first(), length=5, memory=Memory(2, host=True))
    with pytest.raises(BudgetError, match="number of steps is known"):
        scan(Step(), first(), length=5, memory=Memory(2, folder="states"), condition=lambda carry: True)


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_weighs_storing_against_running_again(seed):
    generator = torch.Generator().manual_seed(seed)
    carry, tape, reverse = (int(n) for n in torch.randint(1, 40, (3,), generator=generator))
    for store_seconds, length in itertools.product((0.0, 0.5, 3.0, 1e9), (7, 40, 90)):
        cost = StepCost(carry, tape, tape + 2, reverse, 1.0, 2.0, store_seconds)
        limit = cost.peak(1, 1) + int(torch.randint(0, 200, (1,), generator=generator))
        plan = choose(length, limit, cost)
        assert plan.peak <= limit
        price = plan.schedule.extra_steps + store_seconds * plan.schedule.stored
        for period in range(1, length):
            for slots in range(period):
                peak = cost.peak(slots, 1) if slots else cost.peak_of_period(period)
                if peak <= limit:
                    extra, stored = cost_of_periods(length, period, slots)
                    assert price <= extra + store_seconds * stored
        without = choose(length, limit, StepCost(carry, tape, tape + 2, reverse, 1.0, 2.0))
        assert price <= without.schedule.extra_steps
        assert store_seconds < 1e9 or plan.schedule.stored == 0
    few = choose_stored(1000, 3, StepCost(carry, tape, tape + 2, reverse, 1.0, 2.0, 0.5))
    assert few.schedule.peak_snapshots <= 3 and few.schedule.stored > 10 and few.limit is None


def test_storing_lowers_the_smallest_budget():
    cost = StepCost(100, 50, 50, 20, 1.0, 2.0)
    with pytest.raises(BudgetError, match=f"works is {cost.peak(1, 1)} bytes"):
        choose(100, 330, cost)
    plan = choose(100, 330, StepCost(100, 50, 50, 20, 1.0, 2.0, 0.1))
    assert plan.schedule.stored == 49 and plan.chunk == 2 and plan.peak <= 330


def test_a_rollout_stores_and_its_memory_is_saved(tmp_path, monkeypatch):
    cheap(monkeypatch)
    rollout = gp.Rollout(
        gp.Pipeline(body=sim.Quadrotor(dt=0.05)), 80, {"state": "body.state"},
        memory=Memory(2, folder=tmp_path / "states"),
    )  # fmt: skip
    state = rollout.step.stages["body"].hover_state(3)
    state["velocity"] = torch.ones(3, 3, requires_grad=True)
    gp.save(rollout, tmp_path / "saved")
    for model in (rollout, gp.load(tmp_path / "saved")):
        final = model(state, control=torch.ones(3, 4)).final["state"]
        (grad,) = torch.autograd.grad(final["pose"].sum(), state["velocity"])
        assert grad.abs().sum() > 0
        assert "stored states: " in str(model.plan()) and "measured:" in str(model.plan())
        assert model.plan().schedule.stored > 0
        assert repr(model.memory) == f"Memory(2, folder={str(tmp_path / 'states')!r})"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_states_wait_beside_a_gpu(monkeypatch):
    cheap(monkeypatch)
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)

    def gradient(memory):
        h, _ = scan(
            lambda h, x: (torch.tanh(h @ weight), None),
            torch.ones(8, 64, device="cuda"),
            length=100,
            memory=memory,
        )
        return torch.autograd.grad(h.sum(), weight)[0]

    memory = Memory(2, host=True)
    assert torch.allclose(gradient("all"), gradient(memory)) and memory.plan.schedule.stored > 0
