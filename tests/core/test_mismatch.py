import json
import math

import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath import relax
from gradpath.intervals import student

F64 = torch.float64


class Gate(gp.Stage):
    """Two decisions: whether to go, and which of three gains to take."""

    contract = gp.Contract(inputs={"x": "B 3"}, outputs={"y": "B"}, gradient="relaxed")

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.2, dtype=F64))

    def forward(self, x):
        go = relax.step(x.sum(-1) + self.bias, tau=0.4)
        return go * relax.argmax(x, tau=0.3)


class Body(gp.Stage):
    contract = gp.Contract(
        inputs={"y": "B", "state": "B", "generator": "generator"}, outputs={"state": "B"}, gradient="relaxed"
    )

    def forward(self, y, state, generator):
        noise = 0.1 * torch.randn(state.shape, dtype=state.dtype, generator=generator)
        return relax.clip(0.5 * state + y + noise, -2.0, 2.0, tau=0.2)


def pipeline():
    return gp.Pipeline(gate=Gate(), body=Body(), outputs=["body.state"])


def batch(worlds=6):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(worlds, 3, dtype=F64, generator=generator)
    return {"x": x, "state": torch.zeros(worlds, dtype=F64), "generator": generator}


LOSSES = gp.Losses(near=(3.0, lambda state: (state - 0.4).square(), "body.state"))


def by_hand(values, step="soft", argmax="soft", clip="soft", factor=1.0):
    """The pipeline with each operation soft or hard, and the loss of each world."""
    x, state = values["x"], values["state"]
    s = x.sum(-1) + 0.2
    go = torch.sigmoid(s / (0.4 * factor)) if step == "soft" else (s > 0).to(F64)
    index = torch.arange(3.0, dtype=F64)
    which = (torch.softmax(x / (0.3 * factor), -1) * index).sum(-1)
    which = which if argmax == "soft" else x.argmax(-1).to(F64)
    noise = 0.1 * torch.randn(state.shape, dtype=F64, generator=values["generator"].clone_state())
    z = 0.5 * state + go * which + noise
    t = 0.2 * factor
    soft = -2 + t * nn.functional.softplus((z + 2) / t) - t * nn.functional.softplus((z - 2) / t)
    y = soft if clip == "soft" else z.clamp(-2, 2)
    return {"step": go, "argmax": which, "clip": y}, 3.0 * (y - 0.4).square()


def interval(samples):
    half = student(len(samples) - 1) * samples.std() / math.sqrt(len(samples))
    return [float(samples.mean() + side * half) for side in (0, -1, 1)]


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_every_figure_of_an_operation_and_end_to_end_equals_that_by_hand(factor):
    values = batch()
    found = gp.mismatch(pipeline(), values, LOSSES, taus=(0.5,), samples=0)
    assert found.factors == (0.5, 1.0)
    assert found.operations == ("gate.relax.step", "gate.relax.argmax", "body.relax.clip")
    soft, soft_loss = by_hand(values, factor=factor)
    for name, tau in (("step", 0.4), ("argmax", 0.3), ("clip", 0.2)):
        gap = found[("body" if name == "clip" else "gate") + f".relax.{name}", factor]
        alone, loss = by_hand(values, factor=factor, **{name: "hard"})
        ours, theirs = soft[name], alone[name]
        size = max(ours.square().sum(), theirs.square().sum())
        assert gap.temperature == pytest.approx(tau * factor)
        assert gap.distance == pytest.approx(math.sqrt((ours - theirs).square().sum() / size))
        assert gap.values == {"value": pytest.approx((ours - theirs).square().mean().sqrt())}
        assert list(gap.loss) == pytest.approx(interval(loss - soft_loss))
        decided = {"step": ours > 0.5, "argmax": ours.round(), "clip": None}[name]
        share = None if decided is None else (decided != theirs).double().mean().item()
        assert gap.decisions == share
    hard, hard_loss = by_hand(values, "hard", "hard", "hard")
    whole = found["end to end", factor]
    assert list(whole.loss) == pytest.approx(interval(hard_loss - soft_loss))
    assert whole.values == {"body.state": pytest.approx((hard["clip"] - soft["clip"]).square().mean().sqrt())}
    differ = (soft["step"] > 0.5) != hard["step"], soft["argmax"].round() != hard["argmax"]
    assert whole.decisions == torch.cat(differ).double().mean()


@relax.relaxation("contact", decision=lambda value, **_: value > 0.5)
def contact(x, *, tau=0.5):
    """A soft version that goes down where the hard one jumps up."""
    return (x > 0).to(x.dtype) if gp.current_mode() == "hard" else torch.sigmoid(-x / tau)


def test_the_cosine_tells_a_gradient_that_points_the_wrong_way():
    x = torch.linspace(-1, 1, 400, dtype=F64)[:, None] * torch.ones(1, 2, dtype=F64)

    def model(offset, x):
        shifted = x + offset
        return {"right": relax.step(shifted[:, 0], tau=0.5), "wrong": contact(shifted[:, 1])}

    def run(losses, **options):
        inputs = {"offset": torch.zeros(2, dtype=F64), "x": x}
        return gp.mismatch(model, inputs, losses, (), wrt=["offset"], std=0.2, samples=40, **options)

    right = run(lambda values: values["right"])
    assert right["relax.step"].cosine.low > 0.8
    wrong = run(lambda values: values["wrong"])
    assert wrong["contact"].cosine.high < -0.8
    assert wrong["relax.step"].cosine.low > 0.8
    with pytest.raises(gp.MismatchError, match=r"limit: contact: cosine -\d.*, allowed at least 0.5; end"):
        wrong.check({"cosine": 0.5})
    right.check({"cosine": 0.8})


def test_the_whole_gradient_may_be_wrong_where_each_operation_is_right():
    """Two gates in a row, the second in the band where the first is uncertain: only the mixture passes both."""
    x = torch.zeros(1, dtype=F64)

    def model(x):
        go = relax.step(x, tau=1.0)
        return relax.step(0.25 - (go - 0.5).abs(), tau=0.05)

    found = gp.mismatch(model, {"x": x}, lambda y: y, samples=0)
    assert found.operations[0].startswith("relax.step (test_mismatch.py:")
    assert found["end to end"].loss.value == pytest.approx(-1.0, abs=0.02)
    assert found["end to end"].decisions > 0


def test_a_limit_fails_the_run_and_names_the_operations():
    with pytest.raises(gp.MismatchError) as caught:
        gp.mismatch(pipeline(), batch(), LOSSES, (), samples=0, limits={"distance": 0.01})
    text = str(caught.value)
    assert "gate.relax.argmax: distance" in text and "allowed at most 0.01" in text
    assert "Lower the temperature" in text
    gp.mismatch(pipeline(), batch(), LOSSES, (), samples=0, limits={"distance": 1.0, "loss": 10.0})
    for limits, message in [
        ({"cosine": 0.1}, 'a limit on "cosine", which was not measured'),
        ({"distnce": 0.1}, 'no limit "distnce"; there are distance'),
    ]:
        with pytest.raises(gp.InputError, match=message):
            gp.mismatch(pipeline(), batch(), LOSSES, (), samples=0, limits=limits)


def rollout(**options):
    return gp.Rollout(pipeline(), length=4, carry={"state": "body.state"}, **options)


def test_a_rollout_counts_each_step_and_is_left_as_it_was():
    model, values = rollout(memory=2), batch()
    losses = gp.Losses(near=(3.0, lambda state: (state - 0.4).square(), "body.state"))
    losses(model(**values)).total.backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient, recording = model.step.gate.bias.grad.clone(), model.recorder.last
    state, noise = torch.random.get_rng_state(), values["generator"].get_state()
    found = gp.mismatch(model, values, losses, (), samples=4, std=4.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.step.gate.bias.grad, gradient) and model.recorder.last is recording
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(values["generator"].get_state(), noise)
    assert found.operations == ("gate.relax.step", "gate.relax.argmax", "body.relax.clip")
    assert -1 <= found["end to end"].cosine.value <= 1
    assert gp.mismatch(model, values, losses, (), samples=4, std=4.0).json() == found.json()
    narrow = gp.mismatch(model, values, losses, (), samples=4, std=1e-9)
    assert math.isnan(narrow["end to end"].cosine.value) and "a larger std reaches farther" in narrow.table()


class Filter(gp.Stage):
    """Keeps a running mean in a buffer, which its gradient needs; draws noise from two names of one generator."""

    contract = gp.Contract(
        inputs={"x": "B", "one": "generator", "two": "generator"},
        outputs={"y": "B"},
        gradient="relaxed",
        effects=("mutates:mean",),
    )

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5, dtype=F64))
        self.register_buffer("mean", torch.zeros((), dtype=F64))

    def forward(self, x, one, two):
        self.mean.mul_(0.5).add_(0.5 * x.detach().mean() + 1.0)
        noise = torch.randn(2, generator=one, dtype=F64) + torch.randn(2, generator=two, dtype=F64)
        return relax.step(self.gain * x * self.mean + noise.sum(), tau=0.3)


def test_a_stage_that_writes_into_a_buffer_and_one_generator_of_two_names():
    stage, generator = Filter(), torch.Generator().manual_seed(3)
    model = gp.Pipeline(filter=stage)
    x = torch.linspace(-1, 1, 8, dtype=F64)
    values = {"x": x, "one": generator, "two": generator}
    found = gp.mismatch(model, values, lambda v: v["filter.y"], (), samples=6, std=0.5)
    assert stage.mean == 0.0
    drawn = generator.clone_state()
    first, second = (torch.randn(2, generator=drawn, dtype=F64) for _ in range(2))
    z = 1.5 * x * (0.5 * x.mean() + 1.0) + (first + second).sum()
    soft, hard = torch.sigmoid(z / 0.3), (z > 0).to(F64)
    assert list(found["end to end"].loss) == pytest.approx(interval(hard - soft))
    assert found["end to end"].cosine.value > 0.5


def test_the_gradient_of_a_smooth_pipeline_agrees_with_that_of_zeroth_order():
    """At a temperature at which soft is hard, away from all decisions, the cosine is one."""
    values = batch()
    values["x"] = values["x"].sign() * (0.5 + values["x"].abs()) + torch.tensor([1.0, 0.0, -0.6], dtype=F64)
    found = gp.mismatch(rollout(), values, LOSSES, (0.01,), wrt=["state"], samples=8, std=1e-3)
    assert found["end to end", 0.01].cosine.low > 0.999
    assert found["gate.relax.step", 0.01].decisions == 0


def test_straight_through_has_its_own_gradient():
    """The slope of soft rounding times that of the loss, at the soft value or at the hard one."""
    x = torch.tensor([-0.3, 0.2, 0.9], dtype=F64)

    def run(name):
        return gp.mismatch(
            lambda x: relax.round(x, tau=0.2),
            {"x": x},
            lambda y: (y - 0.4).square(),
            (),
            samples=20,
            std=0.5,
            gradient=name,
        )

    soft, through = run("soft"), run("straight_through")
    assert soft.gradient == "soft" and through.gradient == "straight_through"
    assert soft["end to end"].cosine != through["end to end"].cosine
    assert soft["end to end"].loss == through["end to end"].loss


def test_temperatures_are_scaled_wherever_they_are_and_in_recomputed_steps():
    x = torch.tensor([0.3], dtype=F64)
    with relax.scaled(0.5), relax.scaled(0.5):
        assert relax.step(x, tau=0.4) == torch.sigmoid(x / 0.1)
        assert (
            relax.argmax(torch.tensor([1.0, 2.0]), tau=4.0)
            == relax.one_hot(torch.tensor([1.0, 2.0]), tau=4.0)[1]
        )
        assert relax.visibility(x, x + 0.3, tau=0.4) == torch.sigmoid(((x + 0.3) - x) / 0.1)
    assert relax.step(x, tau=0.4) == torch.sigmoid(x / 0.4)
    with pytest.raises(gp.InputError, match=r"relax\.scaled: factor is above zero"):
        relax.scaled(0.0)
    gradients = []
    for memory in ("all", 2):
        model = rollout(memory=memory)
        with relax.scaled(0.3):
            total = LOSSES(model(**batch())).total
        total.backward()  # steps are recomputed here, outside of the block
        gradients.append(model.step.gate.bias.grad.clone())
    assert torch.equal(*gradients)
    with relax.scaled(0.3):
        fresh = rollout()
        LOSSES(fresh(**batch())).total.backward()
    assert torch.equal(fresh.step.gate.bias.grad, gradients[0])


def test_table_json_and_plot(tmp_path):
    found = gp.mismatch(pipeline(), batch(), LOSSES, (0.5, 2.0), samples=4, std=4.0)
    lines = found.table().splitlines()
    assert lines[0].startswith("operation") and lines[0].endswith("cosine")
    assert len(lines) == 2 + 3 * 4
    data = json.loads(json.dumps(found.json(), allow_nan=False))
    assert [gap["operation"] for gap in data["gaps"][:4]] == [*found.operations, "end to end"]
    found.plot(tmp_path / "gap.png")
    assert (tmp_path / "gap.png").stat().st_size > 5000
    with pytest.raises(gp.InputError, match=r'no "gate\.step" at factor 1'):
        found["gate.step"]


def test_what_is_not_there_is_none():
    """No losses: no loss, no cosine. One world: no interval. Nothing relaxed: only the whole."""
    found = gp.mismatch(pipeline(), batch())
    assert all(gap.loss is None and gap.cosine is None for gap in found.gaps)
    one = gp.mismatch(pipeline(), batch(1), LOSSES, (), samples=0)["end to end"].loss
    assert math.isfinite(one.value) and math.isnan(one.low)
    plain = gp.mismatch(lambda x: 2 * x, {"x": torch.ones(3)}, lambda y: y, (), samples=4)
    assert plain.operations == () and plain["end to end"].distance == 0.0
    assert plain["end to end"].cosine.value == pytest.approx(1.0, abs=1e-3)
    assert plain["end to end"].decisions is None


def test_refusals():
    values = batch()
    for options, message in [
        ({"samples": 3}, "samples is 0, or at least 4"),
        ({"taus": (0.0,)}, "taus is above zero"),
        ({"gradient": "hard"}, 'gradient is "soft" or "straight_through"'),
        ({"wrt": ["stat"]}, 'no floating input "stat"'),
        ({"std": -1.0}, "std is above zero"),
    ]:
        with pytest.raises(gp.InputError, match=message):
            gp.mismatch(pipeline(), values, LOSSES, **{"taus": (), **options})
    with pytest.raises(gp.ShapeError, match="one number per world"):
        gp.mismatch(pipeline(), values, lambda values: values, ())
    with pytest.raises(gp.NonFiniteError, match="the hard run"):
        gp.mismatch(pipeline(), values, lambda values: values["body.state"] / 0.0, ())
