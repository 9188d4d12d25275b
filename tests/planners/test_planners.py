import math

import pytest
import torch
from torch.autograd import gradcheck

from gradpath.errors import InputError
from gradpath.planners import AttitudeController, FlyTowards, HoldVelocity, Idle, Policy

F64 = torch.float64
LEVEL = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)


def rolled(angle):
    pose = LEVEL.clone()
    pose[0, 3:] = torch.tensor([math.sin(angle / 2), 0.0, 0.0, math.cos(angle / 2)])
    return pose


def test_policy_stays_within_its_bounds_and_starts_in_the_middle():
    torch.manual_seed(0)
    policy = Policy(8, low=(-2.0, 0.0), high=(2.0, 10.0))
    assert torch.allclose(policy(torch.zeros(1, 8)), torch.tensor([[0.0, 5.0]]))
    command = policy(1e4 * torch.randn(100, 8))
    assert bool((command >= torch.tensor([-2.0, 0.0])).all()) and bool(
        (command <= torch.tensor([2.0, 10.0])).all()
    )
    assert float(command.detach()[:, 0].abs().max()) == pytest.approx(2.0)
    with pytest.raises(InputError, match="low < high"):
        Policy(8, low=(1.0,), high=(1.0,))


@pytest.mark.parametrize("actions, bounds", [(4, {}), (2, {"high": (3.0, 4.0)}), (2, {"low": (-2.0, -3.0)})])
def test_policy_takes_a_number_of_actions(actions, bounds):
    policy = Policy(features=8, actions=actions, **bounds)
    command = policy.run({"feature": torch.randn(5, 8)})["command"]
    assert command.shape == (5, actions)
    assert policy.low.tolist() == list(bounds.get("low", [-1.0] * actions))
    assert policy.high.tolist() == list(bounds.get("high", [1.0] * actions))


@pytest.mark.parametrize(
    "options",
    [
        {"actions": 0},
        {"low": (), "high": ()},
        {"low": (-1.0,), "high": (1.0, 1.0)},
        {"actions": 2, "low": (-1.0,)},
    ],
)
def test_policy_refuses_bounds_that_do_not_match_its_actions(options):
    with pytest.raises(InputError, match="as many bounds"):
        Policy(8, **options)


def test_idle_commands_nothing():
    assert torch.equal(Idle(8, 3).run({"feature": torch.randn(2, 8)})["command"], torch.zeros(2, 3))


def test_target_velocity_points_to_the_goal_and_levels_off():
    plan = FlyTowards(speed=2.0, max_climb=1.0)
    velocity = plan(LEVEL, torch.tensor([[3.0, 4.0, 1.0]], dtype=F64))
    assert torch.allclose(velocity, torch.tensor([[1.2, 1.6, 0.0]], dtype=F64), atol=1e-6)
    high = plan(LEVEL, torch.tensor([[3.0, 4.0, 500.0]], dtype=F64))
    assert float(high[0, 2]) == pytest.approx(1.0)
    goal = LEVEL[:, :3].clone().requires_grad_()  # at the goal
    plan(LEVEL, goal).sum().backward()
    assert bool(torch.isfinite(goal.grad).all())


def test_hold_velocity_opposes_the_error_and_adds_the_correction():
    motion = torch.zeros(1, 9, dtype=F64)
    motion[0, :3] = torch.tensor([1.0, -0.5, 0.0])
    acceleration = HoldVelocity(gain=2.0, speed=3.0)(motion, torch.tensor([[0.5, 0.0, 1.0]], dtype=F64))
    assert torch.allclose(acceleration, torch.tensor([[-5.5, 3.0, 1.0]], dtype=F64))


def test_controller_hovers_and_turns_towards_the_wanted_thrust():
    control = AttitudeController(mass=2.0)
    ahead = torch.tensor([[3.0, 0.0, 0.0]], dtype=F64)
    still = control(torch.zeros(1, 3, dtype=F64), LEVEL, ahead)
    assert torch.allclose(still, torch.tensor([[2.0 * 9.81, 0.0, 0.0, 0.0]], dtype=F64), atol=1e-9)
    forward = control(torch.tensor([[2.0, 0.0, 0.0]], dtype=F64), LEVEL, ahead)
    assert forward[0, 2] > 0 and abs(float(forward[0, 1])) < 1e-9  # pitch down is a positive rate about y
    left = control(torch.tensor([[0.0, 2.0, 0.0]], dtype=F64), LEVEL, ahead)
    assert left[0, 1] < 0
    back = control(torch.zeros(1, 3, dtype=F64), rolled(0.3), ahead)
    assert back[0, 1] < 0  # undoes the roll
    assert (
        float(control(torch.zeros(1, 3, dtype=F64), LEVEL, torch.tensor([[0.0, 3.0, 0.0]], dtype=F64))[0, 3])
        > 0
    )


def test_controller_gradient_is_exact_and_finite_everywhere():
    control = AttitudeController()
    generator = torch.Generator().manual_seed(0)
    pose = torch.cat(
        [torch.randn(2, 3, generator=generator), torch.randn(2, 4, generator=generator)], -1
    ).double()
    pose[:, 3:] /= pose[:, 3:].norm(dim=-1, keepdim=True)
    inputs = [
        torch.randn(2, 3, generator=generator).double(),
        pose,
        torch.randn(2, 3, generator=generator).double(),
    ]
    assert gradcheck(control, [x.requires_grad_() for x in inputs])
    still = [
        x.clone().requires_grad_()
        for x in (torch.zeros(1, 3, dtype=F64), LEVEL, torch.zeros(1, 3, dtype=F64))
    ]
    control(*still).sum().backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in still)


@pytest.mark.parametrize("spoiled", range(3))
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_controller_passes_on_what_is_not_finite(spoiled, wrong):
    """Bounds must not turn a broken input into a plausible command."""
    inputs = [
        torch.zeros(2, 3, dtype=F64),
        LEVEL.repeat(2, 1),
        torch.tensor([[3.0, 0.0, 0.0]], dtype=F64).repeat(2, 1),
    ]
    inputs[spoiled][1, -1 if spoiled == 1 else 0] = wrong
    command = AttitudeController()(*inputs)
    assert torch.isfinite(command).all(-1).tolist() == [True, False]
