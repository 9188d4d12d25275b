import pytest
import torch

import gradpath as gp
from gradpath import planners, sim
from gradpath.errors import InputError, NonFiniteError, ShapeError

F64 = torch.float64
TARGET = torch.tensor([[[0.5, -0.3]], [[-1.0, 0.8]]], dtype=F64)


def bowl(u):
    return (u - TARGET).square().sum((-1, -2))


def seeded(number=0):
    return torch.Generator().manual_seed(number)


START = torch.zeros(2, 3, 2, dtype=F64)


def test_mppi_is_the_weighted_mean_of_its_candidates():
    found = planners.mppi(bowl, START, std=0.5, generator=seeded(), samples=200, tau=0.3)
    noise = torch.randn(200, 2, 3, 2, dtype=F64, generator=seeded())
    noise[0] = 0.0
    weights = torch.softmax(-bowl(0.5 * noise) / 0.3, 0)
    torch.testing.assert_close(found.controls, (weights[..., None, None] * 0.5 * noise).sum(0))
    torch.testing.assert_close(found.effective, 1 / weights.square().sum(0))
    assert (bowl(found.controls) < bowl(START)).all()
    with gp.mode("hard"):
        best = planners.mppi(bowl, START, std=0.5, generator=seeded(), samples=200, tau=0.3)
    torch.testing.assert_close(bowl(best.controls), best.cost)
    torch.testing.assert_close(best.effective, torch.ones(2, dtype=F64))


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_cem_finds_the_bottom_of_a_bowl(mode):
    with gp.mode(mode):
        found = planners.cem(bowl, START, std=1.0, generator=seeded(), samples=200, elites=20, rounds=15)
    torch.testing.assert_close(found.controls, TARGET.expand(2, 3, 2), rtol=0, atol=0.02)
    assert found.spread.max() < 0.1


def test_hard_elites_are_the_best_and_soft_ones_tend_to_them():
    options = {"std": 1.0, "samples": 50, "elites": 5, "rounds": 1}
    noise = torch.randn(50, 2, 3, 2, dtype=F64, generator=seeded())
    noise[0] = 0.0
    order = bowl(noise).argsort(0)[:5]
    expected = torch.stack([noise[order[:, sample], sample].mean(0) for sample in range(2)])
    with gp.mode("hard"):
        hard = planners.cem(bowl, START, generator=seeded(), **options).controls
    torch.testing.assert_close(hard, expected)
    gaps = [
        (planners.cem(bowl, START, generator=seeded(), tau=tau, **options).controls - hard).norm().item()
        for tau in (1.0, 0.1, 1e-4)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-3


@pytest.mark.parametrize("planner", ["mppi", "cem"])
def test_gradients_to_what_the_objective_depends_on(planner):
    centre = TARGET.clone().requires_grad_()
    start, std = START.clone().requires_grad_(), torch.tensor(0.5, dtype=F64, requires_grad=True)

    def plan(centre, start, std):
        options = {"generator": seeded(), "samples": 12, "std": std, "rounds": 2, "low": -1.0, "high": 1.0}
        if planner == "cem":
            options |= {"elites": 3, "tau": 0.5}
        return getattr(planners, planner)(
            lambda u: (u - centre).square().sum((-1, -2)), start, **options
        ).controls

    assert torch.autograd.gradcheck(plan, (centre, start, std))
    assert plan(centre, start, std).abs().max() <= 1.0


def test_candidates_without_a_cost_are_left_out():
    def broken(u):
        return torch.where(u[..., 0, 0] > 0, torch.nan, bowl(u))

    for plan in (
        planners.mppi(broken, START, std=1.0, generator=seeded(), samples=100),
        planners.cem(broken, START - 0.1, std=1.0, generator=seeded(), samples=100),
    ):
        assert plan.controls.isfinite().all() and (plan.controls[:, 0, 0] <= 0).all()
    with pytest.raises(NonFiniteError, match="no candidate of sample 0"):
        planners.mppi(lambda u: bowl(u) * torch.nan, START, std=1.0, generator=seeded())
    with pytest.raises(ShapeError, match=r"expected \(64, 2\)"):
        planners.mppi(lambda u: bowl(u).sum(-1), START, std=1.0, generator=seeded())
    with pytest.raises(InputError, match="elites are from 1 to 63"):
        planners.cem(bowl, START, std=1.0, generator=seeded(), elites=64)
    with pytest.raises(InputError, match="low < high"):
        planners.mppi(bowl, START, std=1.0, generator=seeded(), low=1.0, high=0.0)


def pendulum():
    """The swing of `ilqr`'s pendulum, as functions."""

    def step(x, u):
        rate = x[..., 1] + 0.05 * (u[..., 0] - 9.81 * torch.sin(x[..., 0]))
        return torch.stack([x[..., 0] + 0.05 * rate, rate], -1)

    def cost(x, u):
        return 0.01 * u.square().sum(-1) + 0.05 * (x[..., 0] - 2.0).square()

    def final(x):
        return 5.0 * (x[..., 0] - 2.0).square() + x[..., 1].square()

    return step, cost, final


HANGING = torch.tensor([[0.3, 0.0], [0.0, 0.2]], dtype=F64)


@pytest.mark.parametrize("method, tolerance", [("lbfgs", 1e-6), ("adam", 1e-3)])
def test_shooting_reaches_the_optimum_of_ilqr(method, tolerance):
    functions, start = pendulum(), torch.zeros(2, 20, 1, dtype=F64)
    objective = planners.Shooting(*functions, HANGING)
    free = planners.ilqr(*functions, HANGING, start)
    found = planners.shoot(objective, start, method=method, iterations=600, learning_rate=0.3)
    torch.testing.assert_close(found.cost, free.cost, rtol=tolerance, atol=0)
    torch.testing.assert_close(objective(found.controls), found.cost)
    torch.testing.assert_close(objective.states(free.controls), free.states)
    if method == "lbfgs":
        assert found.converged.all()
    bounded = planners.ilqr(*functions, HANGING, start, low=-6.0, high=6.0)
    found = planners.shoot(
        objective, start, method=method, low=-6.0, high=6.0, iterations=600, learning_rate=0.1
    )
    assert found.controls.abs().max() <= 6.0
    torch.testing.assert_close(found.cost, bounded.cost, rtol=5e-3, atol=0)


def test_levenberg_marquardt_reaches_the_optimum_within_bounds():
    step, cost, final = pendulum()
    objective = planners.Shooting(step, cost, final, HANGING)

    def residuals(u):
        x = objective.states(u)
        parts = [
            0.1 * u.flatten(-2),
            0.05**0.5 * (x[..., :-1, 0] - 2.0),
            5.0**0.5 * (x[..., -1, :1] - 2.0),
            x[..., -1, 1:],
        ]
        return 2.0**0.5 * torch.cat(parts, -1)

    start = torch.zeros(2, 20, 1, dtype=F64)
    for bound in (torch.inf, 6.0):
        limits = {} if bound == torch.inf else {"low": -bound, "high": bound}
        found = planners.levenberg_marquardt(residuals, start, **limits)
        expected = planners.ilqr(step, cost, final, HANGING, start, **limits)
        assert found.converged.all() and found.iterations < 50
        torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.controls, expected.controls, rtol=0, atol=1e-5)


def test_shooting_and_sampling_through_a_simulator_stage():
    body = sim.Quadrotor(dt=0.1)
    state, hover = body.hover_state(2), torch.tensor([0.75 * 9.81, 0.0, 0.0, 0.0])
    dynamics = planners.StageDynamics(body, state, torch.zeros(2, 4))
    goal = torch.tensor([[0.5, 0.2, 0.3], [-0.2, 0.4, 0.1]])
    objective = planners.Shooting(
        dynamics,
        lambda x, u: 0.01 * (u - hover).square().sum(-1),
        lambda x: 10.0 * (x[..., :3] - goal).square().sum(-1),
        dynamics.state_packing.pack(state),
    )
    start = hover.expand(2, 8, 4).clone()
    before = objective(start)
    for found in (
        planners.shoot(objective, start, iterations=60),
        planners.shoot(objective, start, method="adam", iterations=60, learning_rate=0.2),
    ):
        assert (found.cost < 0.3 * before).all()
    sampled = planners.cem(objective, start, std=1.0, generator=seeded(), samples=128, elites=16, rounds=6)
    assert (objective(sampled.controls) < 0.5 * before).all()


def test_bad_shots_are_refused():
    with pytest.raises(NonFiniteError, match="start of sample 1 is NaN"):
        planners.shoot(lambda u: bowl(u) * torch.tensor([1.0, torch.nan]), START)
    with pytest.raises(InputError, match="one of adam, lbfgs"):
        planners.shoot(bowl, START, method="newton")
    with pytest.raises(InputError, match="both bounds or none"):
        planners.shoot(bowl, START, low=-1.0)
    with pytest.raises(InputError, match="a start between them"):
        planners.levenberg_marquardt(lambda u: u.flatten(-2), START + 5.0, low=-1.0, high=1.0)
    with pytest.raises(ShapeError, match="one number per sample"):
        planners.shoot(lambda u: u.sum(), START)
