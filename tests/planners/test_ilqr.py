import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import gradpath as gp
from gradpath import planners, sim
from gradpath.errors import ContractError, InputError, ShapeError

F64 = torch.float64


def pendulum(gravity):
    """States (angle, rate); gravity (B,)."""

    def step(x, u):
        rate = x[..., 1] + 0.05 * (u[..., 0] - gravity * torch.sin(x[..., 0]))
        return torch.stack([x[..., 0] + 0.05 * rate, rate], -1)

    def cost(x, u):
        return 0.01 * u.square().sum(-1) + 0.05 * (x[..., 0] - 3.0).square()

    def final(x):
        return 5.0 * (x[..., 0] - 3.0).square() + x[..., 1].square()

    return step, cost, final


def cartpole(length):
    """States (position, angle from below, and their rates)."""

    def step(x, u):
        place, angle, speed, rate = x.unbind(-1)
        sine, cosine = torch.sin(angle), torch.cos(angle)
        push = (u[..., 0] + 0.1 * sine * (length * rate**2 + 9.81 * cosine)) / (1.0 + 0.1 * sine**2)
        turn = -(push * cosine + 9.81 * sine) / length
        speed, rate = speed + 0.05 * push, rate + 0.05 * turn
        return torch.stack([place + 0.05 * speed, angle + 0.05 * rate, speed, rate], -1)

    def cost(x, u):
        return 0.01 * u.square().sum(-1) + 0.1 * x[..., 0].square() + 0.1 * (1.0 + torch.cos(x[..., 1]))

    def final(x):
        return 10.0 * (1.0 + torch.cos(x[..., 1])) + x[..., 0].square() + 0.1 * x[..., 2:].square().sum(-1)

    return step, cost, final


def total(functions, x0, controls):
    """Cost of each sample, by a plain loop; controls (B, T, m)."""
    step, cost, final = functions
    x, value = x0, 0.0
    for u in controls.unbind(1):
        value = value + cost(x[None], u[None])[0]
        x = step(x, u)
    return value + final(x)


def by_scipy(functions, x0, controls, bounds):
    """The optimum from the same start by a general solver, all samples as one problem."""

    def value(flat):
        u = torch.from_numpy(flat.copy()).reshape(controls.shape).requires_grad_()
        found = total(functions, x0, u).sum()
        found.backward()
        return found.item(), u.grad.numpy().ravel()

    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-9, "maxcor": 50}
    limits = np.broadcast_to(bounds, (*controls.shape, 2)).reshape(-1, 2)
    found = minimize(
        value, controls.numpy().ravel(), jac=True, bounds=limits, method="L-BFGS-B", options=options
    )
    return found.fun, torch.from_numpy(found.x).reshape(controls.shape)


GRAVITY = torch.tensor([9.81, 12.0], dtype=F64)
HANGING = torch.tensor([[0.3, 0.0], [0.0, 0.2]], dtype=F64)


@pytest.mark.parametrize("hessian", ["exact", "gauss_newton"])
def test_pendulum_reaches_the_optimum_of_a_general_solver(hessian):
    functions, start = pendulum(GRAVITY), torch.zeros(2, 30, 1, dtype=F64)
    plan = planners.ilqr(*functions, HANGING, start, low=-5.0, high=5.0, hessian=hessian)
    value, controls = by_scipy(functions, HANGING, start, (-5.0, 5.0))
    assert plan.converged.all() and plan.iterations < 30
    assert plan.cost.sum().item() <= value + 1e-9
    torch.testing.assert_close(plan.controls, controls, rtol=0, atol=1e-5)
    at_bound = (plan.controls.abs() == 5.0).sum()
    assert 20 < at_bound < 55
    torch.testing.assert_close(plan.cost, total(functions, HANGING, plan.controls))
    torch.testing.assert_close(plan.states[:, 1], functions[0](HANGING, plan.controls[:, 0]))


def test_cartpole_reaches_the_optimum_of_a_general_solver():
    functions = cartpole(torch.tensor([0.5, 0.6], dtype=F64))
    x0 = torch.tensor([[0.0, 0.2, 0.0, 0.0], [0.3, -0.1, 0.0, 0.0]], dtype=F64)
    start = torch.zeros(2, 25, 1, dtype=F64)
    plan = planners.ilqr(*functions, x0, start, low=-8.0, high=8.0)
    assert plan.converged.all()
    assert (plan.controls.abs() == 8.0).any()
    value, controls = by_scipy(functions, x0, plan.controls + 0.05, (-8.0, 8.0))
    assert plan.cost.sum().item() == pytest.approx(value, abs=1e-8)
    torch.testing.assert_close(plan.controls, controls, rtol=0, atol=1e-4)


def quadrotor_problem(mass, second, batch=2):
    body = sim.Quadrotor(dt=1 / 15).double()
    state = body.hover_state(batch, dtype=F64)
    example = torch.zeros(batch, 4, dtype=F64)
    parameters = {**body.parameters_per_world(batch), "mass": mass}
    dynamics = planners.StageDynamics(body, state, example, {"parameters": parameters}, second=second)
    goal = torch.tensor([[0.4, -0.2, 0.3], [0.1, 0.5, -0.1]], dtype=F64)
    hover = torch.tensor([0.75 * 9.81, 0.0, 0.0, 0.0], dtype=F64)

    def cost(x, u):
        return (x[..., :3] - goal).square().sum(-1) + 0.01 * (u - hover).square().sum(-1)

    def final(x):
        return 10.0 * (x[..., :3] - goal).square().sum(-1) + x[..., 7:10].square().sum(-1)

    x0 = dynamics.state_packing.pack(state)
    return (dynamics, cost, final), x0, hover.expand(batch, 12, 4).clone()


LOW = torch.tensor([4.0, -1.0, -1.0, -1.0], dtype=F64)
HIGH = torch.tensor([9.0, 1.0, 1.0, 1.0], dtype=F64)


@pytest.fixture(scope="module")
def flight():
    """A plan for the quadrotor's kernel with the gradient by its mass, and the loss as a function of the mass."""
    weight = torch.randn(2, 12, 4, dtype=F64, generator=torch.Generator().manual_seed(0))

    def plan(mass, **options):
        functions, x0, start = quadrotor_problem(mass, "differences")
        return functions[0], planners.ilqr(*functions, x0, start, low=LOW, high=HIGH, **options)

    mass = torch.tensor([0.75, 0.8], dtype=F64, requires_grad=True)
    dynamics, found = plan(mass)
    (slope,) = torch.autograd.grad((found.controls * weight).sum(), mass)
    return plan, weight, mass.detach(), dynamics, found, slope


def test_quadrotor_reaches_the_optimum_of_a_general_solver(flight):
    _, _, mass, _, plan, _ = flight
    assert plan.converged.all()
    assert ((plan.controls == LOW) | (plan.controls == HIGH)).sum() > 5
    functions, x0, _ = quadrotor_problem(mass, "differences")
    near = (plan.controls.detach() + 0.05).clamp(min=LOW, max=HIGH)
    bounds = torch.stack([LOW, HIGH], -1).numpy()
    value, controls = by_scipy(functions, x0, near, bounds)
    assert plan.cost.sum().item() == pytest.approx(value, abs=1e-8)
    torch.testing.assert_close(plan.controls.detach(), controls, rtol=0, atol=1e-4)


def test_implicit_gradient_through_a_kernel_equals_differences_of_the_plan(flight):
    plan, weight, mass, dynamics, _, slope = flight
    assert 0.0 < dynamics.difference_error < 1e-4
    step = 1e-4 * torch.eye(2, dtype=F64)
    with torch.no_grad():
        difference = [
            ((plan(mass + e)[1].controls - plan(mass - e)[1].controls) * weight).sum() / 2e-4 for e in step
        ]
    torch.testing.assert_close(slope, torch.stack(difference), rtol=1e-5, atol=1e-5)


def loss(gravity, x0, **options):
    """A mix of states and controls of a pendulum's plan; the cost at the optimum is far from zero."""
    generator = torch.Generator().manual_seed(1)
    plan = planners.ilqr(
        *pendulum(gravity), x0, torch.zeros(2, 30, 1, dtype=F64), low=-5.0, high=5.0, **options
    )
    weights = [torch.randn(x.shape, dtype=F64, generator=generator) for x in (plan.states, plan.controls)]
    return (plan.states * weights[0]).sum() + (plan.controls * weights[1]).sum()


def slopes(**options):
    inputs = [GRAVITY.clone().requires_grad_(), HANGING.clone().requires_grad_()]
    return torch.autograd.grad(loss(*inputs, **options), inputs)


def test_implicit_gradient_equals_differences_and_gauss_newton_differs():
    for ours, index in zip(slopes(), range(2), strict=True):
        values = [GRAVITY, HANGING]
        expected = torch.zeros_like(values[index])
        for i in range(expected.numel()):
            move = torch.zeros_like(expected)
            move.view(-1)[i] = 1e-5
            ends = [loss(*(v + s * move if k == index else v for k, v in enumerate(values))) for s in (1, -1)]
            expected.view(-1)[i] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    with gp.implicit.record() as reports:
        rough = slopes(gradient="gauss_newton")
    exact = slopes()
    assert (rough[1] - exact[1]).norm() > 0.1 * exact[1].norm()
    assert reports[0].difference > 0.01
    assert "gauss_newton, differs from the exact one by" in str(reports[0])


def test_unrolling_tends_to_the_exact_gradient():
    exact = slopes()[1]
    errors = [(slopes(gradient="unroll", unroll=k)[1] - exact).norm().item() for k in (1, 10, 100, 1000)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6 < errors[1]


def test_gauss_newton_is_exact_where_the_dynamics_is_linear():
    A = (torch.eye(2, dtype=F64) + 0.1).requires_grad_()
    B = torch.ones(2, 1, dtype=F64)

    def controls(**options):
        plan = planners.ilqr(
            lambda x, u: x @ A.T + u @ B.T,
            lambda x, u: x.square().sum(-1) + u.square().sum(-1),
            lambda x: x.square().sum(-1),
            HANGING,
            torch.zeros(2, 6, 1, dtype=F64),
            **options,
        )
        assert plan.converged.all() and plan.iterations <= 2
        return plan.controls

    regulator = planners.lqr(A, B, torch.eye(2, dtype=F64), torch.eye(1, dtype=F64), HANGING, 6)
    torch.testing.assert_close(controls(), regulator.controls)
    for options in ({}, {"hessian": "gauss_newton"}):
        ours = torch.autograd.grad(controls(**options).sum(), A)[0]
        theirs = torch.autograd.grad(
            planners.lqr(A, B, torch.eye(2, dtype=F64), torch.eye(1, dtype=F64), HANGING, 6).controls.sum(), A
        )[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_state_constraint_and_its_gradient_equal_a_general_solver():
    step, cost, final = pendulum(GRAVITY)

    def solved(limit):
        return planners.ilqr(
            step,
            cost,
            final,
            HANGING,
            torch.zeros(2, 15, 1, dtype=F64),
            low=-20.0,
            high=20.0,
            constraint=lambda x: x[..., 1:] - limit[:, None],
        )

    limit = torch.tensor([2.5, 2.0], dtype=F64, requires_grad=True)
    plan = solved(limit)
    assert plan.converged.all() and plan.violation.max() < 1e-7
    assert ((plan.states[..., 1] - limit[:, None]).abs() < 1e-6).sum() > 4

    def value(flat, sample):
        u = torch.from_numpy(flat.copy())[None, :, None].requires_grad_()
        found = total(pendulum(GRAVITY[sample]), HANGING[sample : sample + 1], u).sum()
        found.backward()
        return found.item(), u.grad.numpy().ravel()

    def rates(flat, sample):
        x, every = HANGING[sample], []
        for u in torch.from_numpy(flat.copy()):
            x = pendulum(GRAVITY[sample])[0](x, u[None])
            every.append(x[1])
        return (limit[sample].detach() - torch.stack(every)).numpy()

    for sample in range(2):
        bound = {"type": "ineq", "fun": rates, "args": (sample,)}
        found = minimize(
            value, np.zeros(15), (sample,), jac=True, constraints=bound, bounds=[(-20, 20)] * 15, method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )  # fmt: skip
        assert plan.cost[sample].item() == pytest.approx(found.fun, abs=1e-6)
    weight = torch.randn(2, 15, 1, dtype=F64, generator=torch.Generator().manual_seed(2))
    (ours,) = torch.autograd.grad((plan.controls * weight).sum(), limit)
    with torch.no_grad():
        ends = [((solved(limit + h).controls) * weight).sum((1, 2)) for h in (1e-4, -1e-4)]
    torch.testing.assert_close(ours, (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-4)


def test_constraints_that_cannot_be_kept_are_reported():
    gravity = GRAVITY.clone().requires_grad_()
    with pytest.warns(RuntimeWarning, match="1 of 2 samples did not converge"):
        plan = planners.ilqr(
            *pendulum(gravity),
            torch.tensor([[0.3, 0.0], [0.3, -2.0]], dtype=F64),
            torch.zeros(2, 8, 1, dtype=F64),
            low=-1.0,
            high=1.0,
            constraint=lambda x: -1.9 - x[..., 1:],
            iterations=30,
        )
    assert plan.converged.tolist() == [True, False] and plan.violation[1] > 0.1
    (slope,) = torch.autograd.grad(plan.controls.sum(), gravity)
    assert slope.isfinite().all() and slope[1] == 0.0


def test_a_saddle_has_no_gradient_and_a_warning():
    bend = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)  # of the second, u = 0 is a maximum

    saddle = planners.ilqr(
        lambda x, u: x - bend[:, None] * u.square(),
        lambda x, u: u.square().sum(-1),
        lambda x: x[..., 0],
        torch.ones(2, 1, dtype=F64),
        torch.zeros(2, 1, 1, dtype=F64),
        hessian="gauss_newton",
    )
    assert saddle.converged.all()  # without second derivatives, the solver cannot know better
    with pytest.warns(RuntimeWarning, match=r"1 of 2 samples stand still .*\(sample 1"):
        (slope,) = torch.autograd.grad(saddle.states.sum() + saddle.controls.sum(), bend)
    assert slope[1] == 0.0 and slope.isfinite().all()


@pytest.mark.parametrize("gradient", ["implicit", "gauss_newton", "unroll"])
def test_a_cost_that_is_singular_is_masked_and_has_no_gradient(gradient):
    weight = torch.tensor(
        [1.0, 0.0], dtype=F64, requires_grad=True
    )  # the controls of the second matter to nothing
    with pytest.warns(RuntimeWarning, match=r"1 of 2 samples did not converge .*\(samples 1\)"):
        plan = planners.ilqr(
            lambda x, u: x + weight[:, None] * u,
            lambda x, u: weight * u.square().sum(-1),
            lambda x: (x - 1.0).square().sum(-1),
            torch.zeros(2, 1, dtype=F64),
            torch.zeros(2, 4, 1, dtype=F64),
            gradient=gradient,
        )
    assert plan.converged.tolist() == [True, False] and plan.controls.isfinite().all()
    (slope,) = torch.autograd.grad(plan.controls.sum(), weight)
    assert slope[0] != 0.0 and slope[1] == 0.0


def test_samples_that_diverge_are_masked_and_have_no_gradient():
    growth = torch.tensor([0.5, 1e200], dtype=F64, requires_grad=True)
    with pytest.warns(RuntimeWarning, match=r"1 of 2 samples did not converge .*\(samples 1\)"):
        plan = planners.ilqr(
            lambda x, u: growth[:, None] * x * x + u,
            lambda x, u: u.square().sum(-1) + x.square().sum(-1),
            lambda x: x.square().sum(-1),
            torch.ones(2, 1, dtype=F64),
            torch.zeros(2, 5, 1, dtype=F64),
        )
    assert plan.converged.tolist() == [True, False]
    (slope,) = torch.autograd.grad(plan.controls[0].sum(), growth, retain_graph=True)
    assert slope[0] != 0.0 and slope[1] == 0.0


def test_a_model_that_refuses_what_is_not_finite_is_never_given_it():
    push = torch.tensor([1.0, 9.0], dtype=F64, requires_grad=True)
    lost = torch.zeros(2, dtype=torch.bool)

    def careful(x, u):
        if not (x.isfinite().all() and u.isfinite().all()):
            raise InputError("not finite")
        after = torch.where(x.abs() > 2.0, torch.nan, x + 0.1 * push[:, None] + u)  # it breaks beyond 2
        lost.logical_or_((~after.isfinite()).any(-1).reshape(-1, 2).any(0))
        return after

    with pytest.warns(RuntimeWarning, match=r"1 of 2 samples did not converge .*\(samples 1\)"):
        plan = planners.ilqr(
            careful,
            lambda x, u: 1e-3 * u.square().sum(-1),
            lambda x: (
                1.0 + 100.0 * (x[..., 0] - 1.0).square()
            ).sqrt(),  # Newton's first step goes much too far
            torch.full((2, 1), -1.9, dtype=F64),
            torch.zeros(2, 8, 1, dtype=F64),
            low=-1.0,
            high=torch.tensor([[1.0], [-0.95]], dtype=F64),
        )
    assert lost.all()
    assert plan.converged.tolist() == [True, False]
    (slope,) = torch.autograd.grad(plan.controls[0].sum(), push)
    assert slope.isfinite().all() and slope[1] == 0.0 and slope[0] != 0.0


def test_a_warm_start_takes_fewer_iterations():
    functions = pendulum(GRAVITY)
    cold = planners.ilqr(*functions, HANGING, torch.zeros(2, 30, 1, dtype=F64), low=-5.0, high=5.0)
    warm = planners.ilqr(*functions, HANGING + 1e-4, cold.controls, low=-5.0, high=5.0)
    assert warm.converged.all() and warm.iterations < cold.iterations


def test_float32_and_captured_weights():
    net = torch.nn.Linear(1, 1)
    x0 = torch.ones(3, 1)
    plan = planners.ilqr(
        lambda x, u: x + 0.1 * torch.tanh(net(x)) + u,
        lambda x, u: u.square().sum(-1),
        lambda x: (x - 2.0).square().sum(-1),
        x0,
        torch.zeros(3, 4, 1),
        low=torch.tensor([-0.5]),
    )
    assert plan.converged.all()
    plan.states[:, -1].sum().backward()
    assert net.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not planners.ilqr(
            lambda x, u: x + u,
            lambda x, u: u.square().sum(-1),
            lambda x: x.square().sum(-1),
            x0,
            torch.zeros(3, 2, 1),
        ).controls.requires_grad


class Slide(gp.Stage):
    """A mass with drag, whose second derivatives are written by hand; its first are made not twice differentiable."""

    contract = gp.Contract(inputs={"state": "B 2", "control": "B 1", "drag": "B"}, outputs={"state": "B 2"})

    def forward(self, state, control, drag):
        return _Slide.apply(state, control, drag)


class SlideByHand(Slide):
    """With the derivative of its vector-Jacobian product."""

    def hvp(self, inputs, cotangent, direction):
        speed, push = inputs["state"][:, 1], cotangent[:, 1]
        drag, d_speed, d_drag = inputs["drag"], direction["state"][:, 1], direction["drag"]
        sign = torch.sign(speed)
        zero = torch.zeros_like(speed)
        return {
            "state": torch.stack([zero, -0.2 * push * sign * (drag * d_speed + speed * d_drag)], -1),
            "control": torch.zeros_like(inputs["control"]),
            "drag": -0.2 * push * sign * speed * d_speed,
        }


class _Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, state, control, drag):
        ctx.save_for_backward(state, control, drag)
        return _slide(state, control, drag)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, seed):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            return torch.autograd.grad(_slide(*leaves), leaves, seed)


def _slide(state, control, drag):
    speed = state[..., 1] + 0.1 * (control[..., 0] - drag * state[..., 1] * state[..., 1].abs())
    return torch.stack([state[..., 0] + 0.1 * state[..., 1], speed], -1)


def sliding(stage, drag, x0=None, **options):
    second = options.pop("second", "auto")
    x0 = torch.tensor([[0.0, 1.0], [0.5, 2.0]], dtype=F64) if x0 is None else x0
    control = torch.zeros(2, 10, 1, dtype=F64)
    step = planners.StageDynamics(stage, x0, control[:, 0], {"drag": drag}, second=second)
    return planners.ilqr(
        step,
        lambda x, u: 0.1 * u.square().sum(-1),
        lambda x: (x[..., 0] - 3.0).square() + x[..., 1].square(),
        x0,
        control,
        **options,
    )


def test_second_derivatives_by_hand_and_by_differences_equal_those_of_autograd():
    drag = torch.tensor([0.5, 0.8], dtype=F64, requires_grad=True)
    x0 = torch.tensor([[0.0, 1.0], [0.5, 2.0]], dtype=F64)
    plain = planners.ilqr(
        lambda x, u: _slide(x, u, drag),
        lambda x, u: 0.1 * u.square().sum(-1),
        lambda x: (x[..., 0] - 3.0).square() + x[..., 1].square(),
        x0,
        torch.zeros(2, 10, 1, dtype=F64),
    )
    (expected,) = torch.autograd.grad(plain.controls.square().sum(), drag)
    for stage, second in ((SlideByHand(), "auto"), (Slide(), "differences")):
        plan = sliding(stage, drag, second=second)
        torch.testing.assert_close(plan.controls, plain.controls, rtol=1e-8, atol=1e-8)
        (slope,) = torch.autograd.grad(plan.controls.square().sum(), drag)
        torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-7)


def test_a_stage_without_second_derivatives_is_refused_unless_it_does_without():
    drag = torch.tensor([0.5, 0.8], dtype=F64, requires_grad=True)
    for options in ({}, {"hessian": "gauss_newton"}, {"gradient": "gauss_newton"}):
        with pytest.raises(ContractError, match=r"\(Slide\) has no second derivatives.*hvp"):
            sliding(Slide(), drag, **options)
    plan = sliding(Slide(), drag, hessian="gauss_newton", gradient="gauss_newton")
    assert plan.converged.all()
    assert torch.autograd.grad(plan.controls.sum(), drag)[0].abs().min() > 0
    with pytest.raises(InputError, match="need float64"):
        sliding(Slide(), drag.detach().float(), x0=torch.ones(2, 2), second="differences")


def test_refusals():
    functions, start = pendulum(GRAVITY), torch.zeros(2, 5, 1, dtype=F64)
    high = torch.tensor([[1.0], [-2.0]], dtype=F64)
    with pytest.raises(InputError, match=r"control 0 of sample 1 has the bounds -1\.0 and -2\.0"):
        planners.ilqr(*functions, HANGING, start, low=-1.0, high=high)
    with pytest.raises(InputError, match="x0 of sample 1 is NaN"):
        planners.ilqr(*functions, torch.tensor([[0.0, 0.0], [math.nan, 0.0]], dtype=F64), start)
    with pytest.raises(InputError, match="one of implicit, gauss_newton, unroll"):
        planners.ilqr(*functions, HANGING, start, gradient="newton")
    with pytest.raises(ShapeError, match=r"x0 \(B, n\) and controls \(B, T, m\)"):
        planners.ilqr(*functions, HANGING, start[0])
    with pytest.raises(ShapeError, match=r"final gave \(2, 2\)"):
        planners.ilqr(functions[0], functions[1], torch.square, HANGING, start)
    with pytest.raises(ShapeError, match=r"low has shape \(3,\)"):
        planners.ilqr(*functions, HANGING, start, low=torch.zeros(3))
    body = sim.Quadrotor(dt=0.1)
    with pytest.raises(ContractError, match="no input"):
        planners.StageDynamics(body, body.hover_state(1), torch.zeros(1, 4), {"wnd": torch.zeros(1, 3)})
    with pytest.raises(InputError, match="one of auto, differences"):
        planners.StageDynamics(body, body.hover_state(1), torch.zeros(1, 4), second="exact")


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slopes()
