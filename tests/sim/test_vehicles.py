"""The bicycle and the differential drive, against closed forms; the quadrotor has a file of its own."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import gradpath as gp
from gradpath import geometry, kernels, sim
from gradpath.errors import InputError, ShapeError

F64 = torch.float64


def exact(options: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=F64) for name, value in options.items()}


def bicycle(dt: float = 0.1, substeps: int = 1, **options) -> sim.Bicycle:
    return sim.Bicycle(dt, substeps, **exact(options)).double()


def drive(dt: float = 0.1, substeps: int = 1, **options) -> sim.DifferentialDrive:
    return sim.DifferentialDrive(dt, substeps, **exact(options)).double()


def commands(*values: float, steps: int, batch: int = 1) -> Tensor:
    return torch.tensor(values, dtype=F64).expand(batch, steps, 2)


@pytest.mark.parametrize("rear", [0.0, 1.2])
def test_a_bicycle_drives_the_circle_of_its_geometry(rear):
    body = bicycle(wheelbase=2.5, rear=rear)
    state = body.rest_state(1) | {
        "speed": torch.tensor([3.0], dtype=F64), "steer": torch.tensor([0.4], dtype=F64)
    }  # fmt: skip
    radius = math.hypot(2.5 / math.tan(0.4), rear)  # the centre is in line with the rear axle
    states = body.simulate(state, commands(0.0, 0.0, steps=200))
    centre = torch.tensor([-rear, 2.5 / math.tan(0.4)], dtype=F64)
    distance = (states["position"][0] - centre).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full((200,), radius, dtype=F64), rtol=1e-12, atol=0)
    assert states["yaw"][0, -1].item() == pytest.approx(3.0 * 20.0 / radius, rel=1e-12)


def test_the_slip_angle_is_the_direction_in_which_the_reference_point_moves():
    body = bicycle(dt=1e-6, wheelbase=2.0, rear=1.0)
    state = body.rest_state(1) | {
        "speed": torch.tensor([5.0], dtype=F64), "steer": torch.tensor([0.5], dtype=F64)
    }  # fmt: skip
    moved = body.simulate(state, commands(0.0, 0.0, steps=1))["position"][0, 0]
    assert math.atan2(moved[1], moved[0]) == pytest.approx(math.atan(0.5 * math.tan(0.5)), rel=1e-5)


@pytest.mark.parametrize("substeps", [1, 3])
def test_braking_stops_at_the_distance_of_constant_deceleration_and_stays(substeps):
    body = bicycle(dt=0.3, substeps=substeps, max_braking=6.0)
    speed = torch.tensor([10.0], dtype=F64, requires_grad=True)
    states = body.simulate(body.rest_state(1) | {"speed": speed}, commands(-99.0, 0.0, steps=10))
    assert states["position"][0, -1, 0].item() == pytest.approx(100.0 / 12.0, rel=1e-13)
    assert states["speed"][0, -1].item() == 0.0
    states["position"][0, -1, 0].backward()
    assert speed.grad.item() == pytest.approx(10.0 / 6.0, rel=1e-13)


def test_a_bicycle_that_may_reverse_does():
    body = bicycle(dt=0.1, min_speed=-2.0, max_braking=5.0)
    states = body.simulate(body.rest_state(1), commands(-5.0, 0.0, steps=20))
    assert states["speed"][0, -1].item() == pytest.approx(-2.0)
    assert states["position"][0, -1, 0].item() == pytest.approx(-(0.5 * 2.0 * 0.4 + 2.0 * 1.6), rel=1e-12)


def test_speed_and_steering_are_limited():
    body = bicycle(max_speed=5.0, max_acceleration=2.0, max_steer=0.3, max_steer_rate=0.5)
    states = body.simulate(body.rest_state(1), commands(99.0, -99.0, steps=40))
    torch.testing.assert_close(
        states["speed"][0], (0.2 * torch.arange(1, 41, dtype=F64)).clamp(max=5.0), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        states["steer"][0], -(0.05 * torch.arange(1, 41, dtype=F64)).clamp(max=0.3), rtol=1e-12, atol=1e-12
    )


def test_wheels_that_turn_alike_drive_straight_and_opposite_ones_turn_on_the_spot():
    body = drive(radius=0.1, track=0.5, motor_lag=1e-3)
    start = body.rest_state(2, yaw=0.5) | {"wheels": torch.tensor([[4.0, 4.0], [-3.0, 3.0]], dtype=F64)}
    states = body.simulate(start, start["wheels"].unsqueeze(1).expand(2, 30, 2))
    ahead = 0.1 * 4.0 * 3.0 * torch.tensor([math.cos(0.5), math.sin(0.5)], dtype=F64)
    torch.testing.assert_close(states["position"][0, -1], ahead, rtol=1e-12, atol=0)
    torch.testing.assert_close(states["position"][1, -1], torch.zeros(2, dtype=F64), rtol=0, atol=1e-13)
    assert states["yaw"][0, -1].item() == pytest.approx(0.5, rel=1e-13)
    assert states["yaw"][1, -1].item() == pytest.approx(0.5 + 0.1 * 6.0 * 3.0 / 0.5, rel=1e-12)


def test_a_differential_drive_closes_its_circle():
    body = drive(dt=0.05, radius=0.1, track=0.5)
    wheels = torch.tensor([[3.0, 5.0]], dtype=F64)
    turn_rate = 0.1 * 2.0 / 0.5
    steps = 64
    body = drive(dt=2 * math.pi / turn_rate / steps, radius=0.1, track=0.5)
    states = body.simulate(body.rest_state(1) | {"wheels": wheels}, wheels.expand(1, steps, 2))
    torch.testing.assert_close(states["position"][0, -1], torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    radius = 0.1 * 4.0 / turn_rate
    half = states["position"][0, steps // 2 - 1]
    torch.testing.assert_close(half, torch.tensor([0.0, 2 * radius], dtype=F64), rtol=1e-12, atol=1e-12)


def test_motors_follow_their_commands_as_exact_first_order_lags():
    body = drive(dt=0.07, motor_lag=0.1, radius=0.1, max_wheel_speed=6.0)
    states = body.simulate(body.rest_state(1), commands(6.0, 6.0, steps=5))
    lag = 0.1 * (1 - math.exp(-0.35 / 0.1))
    torch.testing.assert_close(states["wheels"][0, -1], torch.full((2,), 60.0 * lag, dtype=F64))
    assert states["position"][0, -1, 0].item() == pytest.approx(0.1 * 6.0 * (0.35 - lag), rel=1e-12)
    wild = body.simulate(body.rest_state(1), commands(99.0, -99.0, steps=60))
    torch.testing.assert_close(wild["wheels"][0, -1], torch.tensor([6.0, -6.0], dtype=F64))


VEHICLES = {
    "quadrotor": (lambda dt, n: sim.Quadrotor(dt, n, learnable=True).double(), 4, [8.0, 0.5, -0.3, 0.4]),
    "bicycle": (lambda dt, n: sim.Bicycle(dt, n, rear=1.0, learnable=True).double(), 2, [1.0, 0.3]),
    "differential drive": (
        lambda dt, n: sim.DifferentialDrive(dt, n, learnable=True).double(),
        2,
        [3.0, 5.0],
    ),
}


def vehicle(name: str, dt: float = 0.1, substeps: int = 1, batch: int = 2):
    make, _, command = VEHICLES[name]
    body = make(dt, substeps)
    state = body.hover_state(batch) if name == "quadrotor" else body.rest_state(batch)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch, 6, len(command), dtype=F64, generator=generator)
    return body, {k: v.detach() for k, v in state.items()}, torch.tensor(command, dtype=F64) * (0.5 + noise)


def step(body, state, control) -> dict[str, Tensor]:
    return body.run({"state": state, "control": control})["state"]


@pytest.mark.parametrize("name", VEHICLES)
def test_a_motion_is_the_steps_one_by_one_and_so_is_its_gradient(name):
    body, start, controls = vehicle(name, substeps=2)
    controls = controls.requires_grad_()
    inputs = [controls, *body.parameters()]
    states = body.simulate(start, controls)
    weights = {k: torch.rand_like(v[:, 0]) for k, v in states.items()}
    at_once = torch.autograd.grad(sum((weights[k] * v[:, -1]).sum() for k, v in states.items()), inputs)
    state = start
    for t in range(controls.shape[1]):
        state = step(body, state, controls[:, t])
        for key, value in state.items():
            assert torch.equal(value, states[key][:, t]), key
    one_by_one = torch.autograd.grad(sum((weights[k] * v).sum() for k, v in state.items()), inputs)
    for a, b in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", VEHICLES)
def test_substeps_are_shorter_steps(name):
    body, start, controls = vehicle(name, dt=0.1, substeps=4)
    short, _, _ = vehicle(name, dt=0.025)
    once = body.simulate(start, controls[:, :1])
    often = short.simulate(start, controls[:, :1].expand(-1, 4, -1))
    for key, value in once.items():
        torch.testing.assert_close(value[:, 0], often[key][:, -1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["bicycle", "differential drive"])
def test_refinement_converges_with_second_order(name):
    def end(substeps: int) -> Tensor:
        body, start, controls = vehicle(name, dt=0.4, substeps=substeps, batch=1)
        start = start | ({"speed": torch.full((1,), 4.0, dtype=F64)} if name == "bicycle" else {})
        return body.simulate(start, controls[:, :3])["position"][0, -1].detach()

    reference = end(512)
    errors = [(end(n) - reference).norm().item() for n in (2, 4, 8, 16)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4.0, abs=0.8)


@pytest.mark.parametrize("name", VEHICLES)
def test_the_samples_of_the_gradient_test_meet_the_limits(name):
    op = kernels.registry[f"{name.replace(' ', '_')}_motion"]
    samples = {k: v.requires_grad_() if isinstance(v, Tensor) else v for k, v in op.samples(3).items()}
    gradient = torch.autograd.grad(op.call(**samples).sum(), samples["params"])[0]
    assert (gradient.abs().max(0).values > 0).all(), (
        "a parameter has no influence, so its gradient is not tested"
    )


@pytest.mark.parametrize("name", VEHICLES)
def test_float32_agrees_with_float64(name):
    body, start, controls = vehicle(name)
    single = VEHICLES[name][0](0.1, 1).float()
    a = body.simulate(start, controls)
    b = single.simulate({k: v.float() for k, v in start.items()}, controls.float())
    for key in a:
        torch.testing.assert_close(b[key].double(), a[key], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", VEHICLES)
def test_gradients_are_finite_at_rest(name):
    body, start, controls = vehicle(name)
    state = {k: v.requires_grad_() for k, v in start.items()}
    control = torch.zeros_like(controls[:, 0]).requires_grad_()
    total = sum(value.sum() for value in step(body, state, control).values())
    for gradient in torch.autograd.grad(
        total, [*state.values(), control, *body.parameters()], materialize_grads=True
    ):
        assert torch.isfinite(gradient).all()


def test_the_poses_of_a_vehicle_on_a_plane_are_its_place_and_heading():
    body = bicycle()
    out = body.run(
        {"state": body.rest_state(2, (1.0, 2.0), yaw=0.7), "control": torch.zeros(2, 2, dtype=F64)}
    )
    expected = geometry.quat_from_axis_angle(
        torch.tensor([0.0, 0.0, 1.0], dtype=F64), torch.tensor(0.7, dtype=F64)
    )
    torch.testing.assert_close(out["pose"][1, :3], torch.tensor([1.0, 2.0, 0.0], dtype=F64))
    torch.testing.assert_close(out["pose"][1, 3:], expected)


def test_a_vehicle_runs_in_a_rollout_with_a_memory():
    body = sim.DifferentialDrive(0.1, learnable=True)
    rollout = gp.Rollout(
        gp.Pipeline(body=body), length=10, carry={"state": "body.state"}, memory=2, sequences=("control",)
    )
    controls = torch.linspace(0, 4, 20).reshape(10, 1, 2).expand(10, 3, 2)
    trajectory = rollout(body.rest_state(3), control=controls)
    trajectory["body.pose"][-1, :, 0].sum().backward()
    own = sim.DifferentialDrive(0.1, learnable=True)
    own.simulate(own.rest_state(3), controls.transpose(0, 1))["position"][:, -1, 0].sum().backward()
    torch.testing.assert_close(body.radius.grad, own.radius.grad)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: sim.Bicycle(0.1, max_steer=1.6),
            "bicycle max_steer: expected finite values between 0 and 1.571",
        ),
        (lambda: sim.Bicycle(0.1, wheelbase=0.0), "bicycle wheelbase: expected finite values, positive"),
        (lambda: sim.Bicycle(0.1, rear=-0.1), "bicycle rear: expected finite values, zero or more"),
        (lambda: sim.Bicycle(0.1, min_speed=5.0, max_speed=5.0), "min_speed 5.0 is not below max_speed 5.0"),
        (lambda: sim.Bicycle(0.1, max_speed=math.inf), "bicycle max_speed: expected finite values"),
        (lambda: sim.DifferentialDrive(0.0), "differential_drive dt: expected a positive duration"),
        (lambda: sim.DifferentialDrive(0.1, 0), "differential_drive substeps: expected at least 1, got 0"),
        (
            lambda: sim.DifferentialDrive(0.1, motor_lag=math.nan),
            "motor_lag: expected finite values, positive",
        ),
        (lambda: sim.DifferentialDrive(0.1, track=torch.ones(2, 2)), "track: expected a number"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_is_not_finite_is_refused_by_world():
    body = sim.DifferentialDrive(0.1)
    control = torch.ones(3, 4, 2)
    control[1, 2, 0] = math.nan
    with pytest.raises(InputError, match="differential_drive: the control of world 1 is"):
        body.simulate(body.rest_state(3), control)
    state = body.rest_state(3)
    state["yaw"][2] = math.inf
    with pytest.raises(InputError, match="differential_drive: the state of world 2 is"):
        body(state, torch.ones(3, 2))


def test_wrong_shapes_and_names_are_refused():
    body = sim.Bicycle(0.1)
    with pytest.raises(ShapeError, match=r"bicycle: expected controls of shape \(B, T, 2\), got \(3, 4, 3\)"):
        body.simulate(body.rest_state(3), torch.ones(3, 4, 3))
    with pytest.raises(ShapeError, match="bicycle: state 'position': expected shape"):
        body.simulate(body.rest_state(2), torch.ones(3, 4, 2))
    with pytest.raises(ShapeError, match=r"torch\.float64, as the control has"):
        body.simulate(body.rest_state(3), torch.ones(3, 4, 2).double())
    with pytest.raises(InputError, match="bicycle: state has no 'steer'"):
        body.simulate({k: v for k, v in body.rest_state(3).items() if k != "steer"}, torch.ones(3, 4, 2))
