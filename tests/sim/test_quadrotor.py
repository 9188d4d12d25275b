import itertools
import math

import pytest
import torch
from torch import Tensor

from gradpath import geometry, kernels, sim
from gradpath.errors import InputError, ShapeError
from gradpath.sim.quadrotor import GRAVITY, quadrotor_step

F64 = torch.float64


def quadrotor(dt: float = 0.05, substeps: int = 1, **options) -> sim.Quadrotor:
    values = {"mass": 0.75, "drag": (0.03, 0.03, 0.05), "thrust_lag": 0.03, "rate_lag": 0.05, **options}
    return sim.Quadrotor(dt, substeps, **{k: torch.tensor(v, dtype=F64) for k, v in values.items()}).double()


def command(*values: float, batch: int = 1) -> Tensor:
    return torch.tensor([values], dtype=F64).expand(batch, 4)


def fly(
    body: sim.Quadrotor, state: dict[str, Tensor], control: Tensor, steps: int, **inputs
) -> dict[str, Tensor]:
    for _ in range(steps):
        state = body(state, control, **inputs)
    return state


def test_hover_stays_where_it_is():
    body = quadrotor()
    start = body.hover_state(3, position=(1.0, 2.0, 3.0), yaw=0.7)
    end = fly(body, start, command(body.mass.item() * GRAVITY, 0, 0, 0, batch=3), 100)
    for name in start:
        torch.testing.assert_close(end[name], start[name], atol=1e-12, rtol=0)


def test_free_fall_is_exact_without_drag():
    body = quadrotor(dt=0.1, drag=(0.0, 0.0, 0.0), thrust_lag=1e-3)
    start = body.hover_state(1) | {"thrust": torch.zeros(1, dtype=F64)}
    end = fly(body, start, command(0, 0, 0, 0), 20)
    torch.testing.assert_close(end["pose"][0, 2].item(), -0.5 * GRAVITY * 2.0**2)
    torch.testing.assert_close(end["velocity"][0, 2].item(), -GRAVITY * 2.0)


def test_terminal_velocity_is_where_drag_balances_weight():
    body = quadrotor(drag=(0.1, 0.1, 0.2), substeps=4)
    end = fly(body, body.hover_state(1) | {"thrust": torch.zeros(1, dtype=F64)}, command(0, 0, 0, 0), 400)
    assert end["velocity"][0, 2].item() == pytest.approx(-math.sqrt(0.75 * GRAVITY / 0.2), rel=1e-9)


def test_steady_wind_carries_a_hovering_body_along():
    body = quadrotor(drag=(0.1, 0.1, 0.2))
    wind = torch.tensor([[2.0, -1.0, 0.0]], dtype=F64)
    end = fly(body, body.hover_state(1), command(0.75 * GRAVITY, 0, 0, 0), 2000, wind=wind)
    lag = wind / (1 + 0.1 / 0.75 * wind.norm() * 100.0)  # solution of u' = -(d / m) |u| u
    torch.testing.assert_close(wind - end["velocity"], lag, atol=0, rtol=2e-3)


def test_thrust_and_rates_follow_their_commands_as_exact_first_order_lags():
    body = quadrotor(dt=0.04, thrust_lag=0.1, rate_lag=0.03)
    start = body.hover_state(1)
    end = fly(body, start, command(12.0, 1.0, -2.0, 0.5), 3)
    decay = math.exp(-0.12 / 0.1)
    assert end["thrust"].item() == pytest.approx(12.0 + (0.75 * GRAVITY - 12.0) * decay, rel=1e-12)
    expected = torch.tensor([[1.0, -2.0, 0.5]], dtype=F64) * (1 - math.exp(-0.12 / 0.03))
    torch.testing.assert_close(end["rates"], expected)


def test_a_turn_about_one_axis_is_exact():
    body = quadrotor(dt=0.1, rate_lag=0.08)
    end = fly(body, body.hover_state(1), command(0.75 * GRAVITY, 0, 0, 1.5), 7)
    angle = 1.5 * (0.7 - 0.08 * (1 - math.exp(-0.7 / 0.08)))
    torch.testing.assert_close(
        geometry.quat_log(end["pose"][:, 3:]),
        torch.tensor([[0.0, 0.0, angle]], dtype=F64),
        atol=1e-12,
        rtol=0,
    )


def test_commands_are_limited():
    body = quadrotor(max_thrust=10.0, max_rates=(1.0, 2.0, 3.0))
    wild = fly(body, body.hover_state(1), command(99.0, 50.0, -50.0, 50.0), 40)
    assert wild["thrust"].item() == pytest.approx(10.0)
    torch.testing.assert_close(wild["rates"], torch.tensor([[1.0, -2.0, 3.0]], dtype=F64))
    assert fly(body, body.hover_state(1), command(-5.0, 0, 0, 0), 40)["thrust"].item() == pytest.approx(
        0, abs=1e-9
    )


def random_flight(batch: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    state = {
        "pose": geometry.pose(random(batch, 3), geometry.quat_normalize(random(batch, 4))),
        "velocity": 2 * random(batch, 3),
        "rates": random(batch, 3),
        "thrust": 8 + random(batch),
    }
    controls = torch.cat([8 + random(20, batch, 1), random(20, batch, 3)], -1)
    return state, controls, random(batch, 3)


def test_attitude_keeps_norm_one():
    state, controls, _ = random_flight(4)
    body = quadrotor()
    for _ in range(50):
        for control in controls:
            state = body(state, control)
    torch.testing.assert_close(
        state["pose"][:, 3:].norm(dim=-1), torch.ones(4, dtype=F64), atol=1e-14, rtol=0
    )


def test_substeps_converge_with_first_order():
    start, controls, wind = random_flight(1)

    def end(substeps: int, parts: int = 1) -> Tensor:
        state, body = start, quadrotor(dt=0.1 / parts, substeps=substeps, drag=(0.3, 0.3, 0.3))
        for _ in range(parts):
            state = body(state, controls[0], wind)
        return torch.cat([state["pose"], state["velocity"]], -1)

    reference = end(16, parts=64)
    errors = [(end(n) - reference).norm().item() for n in (1, 2, 4, 8, 16)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, abs=0.6)


def test_substeps_are_shorter_steps():
    start, controls, wind = random_flight(2)
    once = quadrotor(dt=0.1, substeps=4)(start, controls[0], wind)
    state, short = start, quadrotor(dt=0.025)
    for _ in range(4):
        state = short(state, controls[0], wind)
    for name in once:
        torch.testing.assert_close(once[name], state[name], atol=1e-13, rtol=1e-13)


def test_gradients_of_twenty_steps_match_central_differences():
    start, controls, wind = random_flight(2)
    own = quadrotor(max_thrust=9.0, max_rates=(1.0, 1.0, 1.0), drag=(0.1, 0.1, 0.2)).parameters_per_world(2)
    inputs = {
        **start,
        "controls": controls,
        "wind": wind,
        **{name: value.clone() for name, value in own.items()},
    }
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(2, 7, dtype=F64, generator=generator)

    def objective(values: dict[str, Tensor]) -> Tensor:
        state = {name: values[name] for name in start}
        total = torch.zeros((), dtype=F64)
        for control in values["controls"]:
            state = quadrotor_step(state, control, values["wind"], values, dt=0.05, substeps=2)
            total = total + (weight * state["pose"]).sum() + 0.1 * state["velocity"].square().sum()
        return total + state["rates"].sum() + state["thrust"].sum()

    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    gradients = torch.autograd.grad(objective(leaves), list(leaves.values()))
    for (name, value), gradient in zip(inputs.items(), gradients, strict=True):
        assert gradient.abs().max() > 0, f"{name} has no influence, so its gradient is not tested"
        direction = torch.randn(value.shape, dtype=F64, generator=generator)
        eps = 1e-6
        ahead = objective({**inputs, name: value + eps * direction})
        behind = objective({**inputs, name: value - eps * direction})
        difference = ((ahead - behind) / (2 * eps)).item()
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=2e-6, abs=1e-7), name


def test_gradients_are_finite_at_rest():
    body = sim.Quadrotor(0.05, learnable=True)
    state = {name: value.requires_grad_() for name, value in body.hover_state(2).items()}
    control = torch.zeros(2, 4, requires_grad=True)
    end = body(state, control)
    total = sum(value.sum() for value in end.values())
    inputs = [*state.values(), control, *body.parameters()]
    for gradient in torch.autograd.grad(total, inputs, materialize_grads=True):
        assert torch.isfinite(gradient).all()


def test_parameters_learn_and_may_differ_by_world():
    mass = torch.tensor([0.5, 1.0], dtype=F64)
    body = sim.Quadrotor(0.05, mass=mass, learnable=True).double()
    assert dict(body.named_parameters()).keys() == {
        "mass", "drag", "thrust_lag", "rate_lag", "max_thrust", "max_rates",
    }  # fmt: skip
    state = body.hover_state(2)
    end = body.run({"state": state, "control": command(6.0, 0.1, 0.1, 0.0, batch=2)})["state"]
    (gradient,) = torch.autograd.grad(end["velocity"][0].sum(), body.mass)
    assert gradient[0] != 0 and gradient[1] == 0  # worlds do not mix
    override = {**body.parameters_per_world(2), "mass": mass.flip(0)}
    flipped = body.run({"state": state, "control": command(6.0, 0, 0, 0, batch=2), "parameters": override})[
        "state"
    ]
    assert not torch.equal(flipped["velocity"], end["velocity"])


def test_float32_agrees_with_float64():
    start, controls, wind = random_flight(3)
    double, single = quadrotor(substeps=4), sim.Quadrotor(0.05, 4)
    a, b = start, {name: value.float() for name, value in start.items()}
    for control in controls:
        a, b = double(a, control, wind), single(b, control.float(), wind.float())
    for name in a:
        torch.testing.assert_close(b[name].double(), a[name], atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dt": 0.0}, "dt: expected a positive duration"),
        ({"substeps": 0}, "substeps: expected at least 1, got 0"),
        ({"mass": -1.0}, "mass: expected finite values, positive"),
        ({"rate_lag": 0.0}, "rate_lag"),
        ({"drag": (0.1, math.nan, 0.1)}, "drag: expected finite values, zero or more"),
        ({"drag": 0.1}, "drag: expected 3 numbers"),
        ({"max_thrust": torch.ones(2, 2)}, "max_thrust: expected a number"),
    ],
)
def test_bad_parameters_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        sim.Quadrotor(**{"dt": 0.05, **options})


def test_a_wrong_command_is_named():
    body = sim.Quadrotor(0.05)
    with pytest.raises(ShapeError, match="control"):
        body.run({"state": body.hover_state(2), "control": torch.zeros(2, 3)})


@pytest.mark.parametrize("entry", range(4))
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_command_that_is_not_finite_is_refused_by_world(entry, wrong):
    body = sim.Quadrotor(0.05)
    control = torch.ones(3, 4)
    control[1, entry] = wrong
    with pytest.raises(InputError, match="the control of world 1 is"):
        body(body.hover_state(3), control)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_limits_pass_on_a_command_that_is_not_finite(wrong):
    """What a GPU does, where nobody looks at the command: the state is spoiled, in that world only."""
    operation = kernels.registry["quadrotor_motion"]
    samples = operation.samples(3)
    samples["control"] = torch.ones(3, 4, dtype=F64)
    samples["control"][1, 0] = wrong
    samples["control"][2, 3] = wrong
    state = operation.call(**samples)
    pose, velocity, rates, thrust = state.split([7, 3, 3, 1], -1)
    assert torch.isfinite(thrust[:, 0]).tolist() == [True, False, True]
    assert torch.isfinite(rates).all(-1).tolist() == [True, True, False]
    assert torch.isfinite(velocity).all(-1).tolist() == [True, False, False]
    assert torch.isfinite(pose).all(-1).tolist() == [True, False, False]


def test_the_samples_of_the_gradient_test_exceed_every_limit():
    samples = kernels.registry["quadrotor_motion"].samples(3)
    control, most = samples["control"].unflatten(1, (3, 4)), samples["params"][:, None, 6:10]
    thrust, rates = control[..., 0], control[..., 1:]
    assert (thrust > most[..., 0]).any() and (thrust < 0).any()
    for bound in (rates > most[..., 1:], rates < -most[..., 1:]):
        assert bound.flatten(0, 1).any(0).sum() >= 2
    inside = (rates.abs() < most[..., 1:]).all(-1) & (thrust > 0) & (thrust < most[..., 0])
    assert inside.any()


def test_a_quaternion_that_is_no_rotation_is_refused():
    body = sim.Quadrotor(0.05)
    state = body.hover_state(2)
    state["pose"][1, 6] = 1.1
    with pytest.raises(InputError, match=r"quadrotor: the pose of world 1 .* norm 1"):
        body(state, torch.ones(2, 4))
