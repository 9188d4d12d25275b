import json
import math

import pytest
import torch
from torch import nn

from gradpath.contract import Contract
from gradpath.errors import InputError, NonFiniteError
from gradpath.losses import Losses
from gradpath.pipeline import Pipeline
from gradpath.report import gradient_report
from gradpath.rollout import Rollout
from gradpath.scan import scan
from gradpath.stage import Stage

LENGTH, WORLDS = 10, 3


class Policy(Stage):
    contract = Contract(inputs={"x": "B 2"}, outputs={"u": "B 2"})

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2, dtype=torch.float64)
        with torch.no_grad():
            self.net.weight.copy_(torch.tensor([[0.3, -0.1], [0.2, 0.4]]))
            self.net.bias.zero_()

    def forward(self, x):
        return self.net(x)


class Body(Stage):
    """Scales its state; takes a root that has an infinite slope where the trap is sprung."""

    contract = Contract(inputs={"x": "B 2", "u": "B 2", "trap": "B"}, outputs={"x": "B 2", "extra": "B 2"})

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x, u, trap):
        root = (x * trap[:, None]).abs().sqrt() * (trap[:, None] == 0)
        return self.scale * x + 0.0 * u + 0.0 * root, 2.0 * u


def rollout(scale=1.2, memory="all", **options):
    step = Pipeline(
        policy=Policy(), body=Body(scale), wires={"policy.x": "x", "body.x": "x", "body.trap": "trap"}
    )
    return Rollout(step, LENGTH, {"x": "body.x"}, memory=memory, sequences=["trap"], **options)


def start():
    return torch.tensor([[1.0, 0.5], [2.0, 1.0], [0.1, 0.2]], dtype=torch.float64)


def no_trap():
    return torch.ones(LENGTH, WORLDS, dtype=torch.float64)


@pytest.mark.parametrize("memory", ["all", 2])
def test_norms_by_step_world_and_stage(memory):
    flight = rollout(memory=memory)
    weights = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    trajectory = flight(start(), trap=no_trap())
    (trajectory.final["x"].sum(-1) * weights).sum().backward()
    report = gradient_report(flight)
    steps = torch.arange(LENGTH, dtype=torch.float64)
    expected = 2**0.5 * 1.2 ** (LENGTH - steps[1:, None]) * weights
    torch.testing.assert_close(report.carry[1:], expected)
    assert report.carry[0].abs().sum() == 0  # the first carry needs no gradient here
    torch.testing.assert_close(report.outputs["body.x"][:-1], expected)
    assert report.growth == pytest.approx(torch.tensor(1.2).log().item(), rel=1e-6)
    assert report.worst_worlds(2)[0][0] == 1
    assert report.first_step == 1 and report.zero_share == pytest.approx(1 / WORLDS)
    assert report.non_finite_share == 0 and report.fault is None
    assert list(report.outputs) == ["policy.u", "body.x"]


def test_parameter_norms_are_those_of_single_steps():
    flight = rollout(scale=1.0)
    trajectory = flight(start(), trap=no_trap())
    trajectory["body.extra"].sum().backward()
    report = gradient_report(flight)
    x = start()  # constant through time, as the scale is 1; d(2 W x)/dW = 2 x in each row
    want = torch.cat([2 * x.sum(0).repeat(2), torch.full((2,), 2.0 * WORLDS, dtype=torch.float64)]).norm()
    torch.testing.assert_close(report.parameters["policy"], want.expand(LENGTH))
    extra = torch.full((LENGTH, WORLDS), 2**0.5, dtype=torch.float64)
    torch.testing.assert_close(report.outputs["body.extra"], extra)
    both = (report.outputs["body.x"].square().sum(1) + extra.square().sum(1)).sqrt()
    torch.testing.assert_close(report.stages["body"], both)


def test_the_latest_backward_pass_counts():
    flight = rollout()
    trajectory = flight(start(), trap=no_trap())
    trajectory.final["x"].sum().backward(retain_graph=True)
    first = gradient_report(flight)
    trajectory["body.x"][2].sum().backward()
    second = gradient_report(flight)
    assert first.carry[5].sum() > 0 and second.carry[5].sum() == 0 and second.carry[2].sum() > 0
    assert first.carry[5].sum() > 0, "an earlier report must not change"


def test_decay_shows():
    flight = rollout(scale=1.0, decay=0.5)
    flight(start(), trap=no_trap()).final["x"].sum().backward()
    report = gradient_report(flight)
    assert report.growth == pytest.approx(torch.tensor(0.5).log().item(), rel=1e-6)
    assert "gradient decay: 0.5 per step" in report.table()


def test_table_and_json():
    flight = rollout()
    trajectory = flight(start(), trap=no_trap())
    losses = Losses(
        end=(2.0, lambda t: t.final["x"].sum(-1)), extra=(0.5, lambda t: t["body.extra"].square().sum(-1))
    )
    values = losses(trajectory)
    values.total.backward(retain_graph=True)
    before = gradient_report(flight, losses)
    text = before.table()
    for part in (
        "carry",
        "policy.u",
        "body.x",
        "policy parameters",
        "growth per step",
        'loss "end": weight 2',
    ):
        assert part in text
    report = gradient_report(flight, values)
    assert report.losses["end"] == 0 and report.losses["extra"] > 0
    assert torch.equal(before.carry, report.carry), "comparing losses must not disturb the recording"
    data = json.loads(json.dumps(report.json(), allow_nan=False))
    assert len(data["carry"]) == LENGTH and data["worlds"] == WORLDS and data["losses"]["extra"] > 0


@pytest.mark.parametrize("memory", ["all", 2])
def test_a_fault_is_named_by_stage_step_and_world(memory):
    trap = no_trap()
    trap[6, 1] = trap[3, 2] = 0.0
    flight = rollout(memory=memory)
    flight(start(), trap=trap).final["x"].sum().backward()
    report = gradient_report(flight)
    assert (report.fault.step, report.fault.world) == (6, 1)
    assert report.fault.stages == ("policy", "body"), "both take the state; which one it was is not looked at"
    assert (
        report.non_finite_share > 0
        and 'stage "policy" or stage "body", time step 6, world 1' in report.table()
    )
    json.dumps(report.json(), allow_nan=False)
    flight = rollout(memory=memory, check_finite=True)
    trajectory = flight(start(), trap=trap)
    with pytest.raises(NonFiniteError, match='at stage "body", time step 6, world 1'):
        trajectory.final["x"].sum().backward()
    assert all(parameter.grad is None for parameter in flight.parameters())


def test_scan_can_check_on_its_own():
    weight = torch.tensor(1.0, requires_grad=True)
    xs = torch.ones(8, 4)
    xs[5, 2] = 0.0

    def step(carry, x):
        return carry * weight + (carry * x).sqrt() * 0.0, None

    h, _ = scan(step, torch.ones(4), xs, check_finite=True, memory=2)
    with pytest.raises(NonFiniteError, match="the step, time step 5, world 2"):
        h.sum().backward()
    assert weight.grad is None


def test_large_gradients_are_not_called_infinite():
    weight = torch.tensor(1.0, requires_grad=True)
    h, _ = scan(lambda c, x: (c * weight * 1e6, None), torch.full((2, 2), 1e-30), length=6, check_finite=True)
    (h * 1e-8).sum().backward()  # the gradient of the carry reaches 1e22, whose square is no float32
    assert weight.grad.isfinite()


def test_nothing_recorded_is_said():
    with pytest.raises(InputError, match="no backward pass"):
        gradient_report(rollout())
    with pytest.raises(InputError, match="record_gradients=True"):
        gradient_report(rollout(record_gradients=False))
    flight = rollout()
    values = Losses(extra=(1.0, lambda t: t["body.extra"].sum(-1)))(flight(start(), trap=no_trap()))
    values.total.backward()
    with pytest.raises(InputError, match="retain_graph=True"):
        gradient_report(flight, values)


def test_a_cut_is_told_and_seen():
    flight = rollout(cut=4)
    flight(start().requires_grad_(), trap=no_trap()).final["x"].sum().backward()
    report = gradient_report(flight)
    assert report.cut == 4 and report.json()["cut"] == 4 and "cut every 4 steps" in report.table()
    assert not report.carry[:9].any() and report.carry[9:].all()


class Mixed(Stage):
    """Takes one input that tells worlds apart and one that does not."""

    contract = Contract(inputs={"x": "B 2", "gain": "1"}, outputs={"x": "B 2"})

    def forward(self, x, gain):
        return x * gain


def test_inputs_with_and_without_worlds_are_measured_together():
    step = Pipeline(body=Mixed(), wires={"body.x": "x"})
    flight = Rollout(step, 3, {"x": "body.x"}, check_finite=True)
    gain = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    flight(start().requires_grad_(), gain=gain).final["x"].sum().backward()
    report = gradient_report(flight)
    torch.testing.assert_close(report.carry[0], torch.full((3,), 2**0.5 * 1.5**3, dtype=torch.float64))


def test_growth_per_second():
    flight = rollout(scale=1.2, dt=0.05)
    flight(start(), trap=no_trap()).final["x"].sum().backward()
    report = gradient_report(flight)
    assert report.growth_rate == pytest.approx(math.log(1.2) / 0.05, rel=1e-6)
    assert report.json()["growth_rate"] == report.growth_rate
    assert f"{report.growth_rate:+.3f} per second" in report.table()
    without = rollout()
    without(start(), trap=no_trap()).final["x"].sum().backward()
    assert gradient_report(without).growth_rate is None


def test_groups_of_parameters_losses_and_stages_are_summed_up():
    flight = rollout()
    net = flight.step.policy.net
    trajectory = flight(start(), trap=no_trap())
    losses = Losses(
        none=(1.0, lambda t: 0.0 * t["body.extra"].sum(-1) + 3.0),
        extra=(0.5, lambda t: t["body.extra"].square().sum(-1)),
    )
    values = losses(trajectory)
    values.total.backward(retain_graph=True)
    with torch.no_grad():
        net.bias.grad[0] = 0.0
        net.weight.grad[0, 1] = torch.inf
    report = gradient_report(flight, values)
    weight, bias = net.weight.grad, net.bias.grad
    assert set(report.groups) == {"policy"}
    found = report.groups["policy"]
    assert (found.zero_share, found.non_finite_share) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    assert found.norm == math.inf and report.json()["groups"]["policy"]["norm"] == "inf"
    with torch.no_grad():
        net.weight.grad[0, 1] = 0.0
    spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.SGD(
        [{"params": [net.weight], "name": "weights"}, {"params": [net.bias, spare]}], lr=0.1
    )
    groups = gradient_report(flight, groups=optimizer).groups
    assert groups["weights"].norm == pytest.approx(weight.norm().item())
    assert groups["weights"].zero_share == pytest.approx(1 / 4)
    assert groups["group 1"].norm == pytest.approx(bias.norm().item())
    assert groups["group 1"].zero_share == pytest.approx(4 / 5), "what got no gradient counts as zero"
    assert gradient_report(flight, groups={"bias": [net.bias]}).groups["bias"].zero_share == 0.5
    with pytest.raises(InputError, match='parameter group "net" holds a str'):
        gradient_report(flight, groups={"net": ["weight"]})
    assert report.by_loss["none"].zero_share == 1.0 and report.losses["none"] == 0.0
    assert report.by_loss["extra"].zero_share == 0.0
    stage = report.by_stage["body"]
    torch.testing.assert_close(stage.norm, report.stages["body"].norm().item())
    assert 0 < stage.zero_share < 1, "no gradient arrives at body.x"


def test_numbers_for_tensorboard():
    flight = rollout(dt=0.1)
    values = Losses(end=(1.0, lambda t: t.final["x"].sum(-1)))(flight(start(), trap=no_trap()))
    values.total.backward(retain_graph=True)
    report = gradient_report(flight, values)
    written = {}

    class Board:
        def add_scalar(self, tag, scalar_value, global_step):
            written[tag] = (scalar_value, global_step)

    report.tensorboard(Board(), 7)
    assert written["gradients/growth_rate"] == (report.growth_rate, 7)
    assert written["gradients/stages/body/norm"] == (report.by_stage["body"].norm, 7)
    assert written["gradients/groups/policy/zero_share"][0] == 1.0
    assert written["gradients/losses/end/norm"] == (0.0, 7)
    assert all(isinstance(number, float) for number, _ in written.values())
