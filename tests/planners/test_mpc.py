import pytest
import torch

import gradpath as gp
from gradpath import planners, sim
from gradpath.errors import ContractError, InputError

F64 = torch.float64


class Pendulum(gp.Stage):
    """A pendulum whose length can be learned."""

    contract = gp.Contract(
        inputs={"state": {"angle": "B", "rate": "B"}, "control": "B 1", "wind": "B"},
        outputs={"state": {"angle": "B", "rate": "B"}},
    )

    def __init__(self, length=1.0):
        super().__init__()
        self.length = torch.nn.Parameter(torch.tensor(length, dtype=F64))

    def forward(self, state, control, wind=None):
        push = control[:, 0] if wind is None else control[:, 0] + wind
        rate = state["rate"] + 0.1 * (push - 9.81 / self.length * torch.sin(state["angle"]))
        return {"angle": state["angle"] + 0.1 * rate, "rate": rate}


def cost(state, control, goal):
    return (state["angle"] - goal).square() + 0.01 * control.square().sum(-1)


def final(state, goal):
    return 5.0 * (state["angle"] - goal).square() + state["rate"].square()


def controller(length=1.2, **options):
    return planners.MPC(
        Pendulum(length), cost, 12, [-4.0], [4.0], final=final, targets={"goal": "B"}, **options
    ).double()


STATE = {"angle": torch.tensor([0.2, -0.4], dtype=F64), "rate": torch.tensor([0.0, 1.0], dtype=F64)}
GOAL = torch.tensor([0.4, 0.2], dtype=F64)
NEAR = torch.tensor([0.3, 0.0], dtype=F64)


def closed_loop(planner, goal, steps=15):
    wires = {"plan.state": "state", "body.state": "state", "body.control": "plan.control"}
    pipeline = gp.Pipeline(plan=planner, body=Pendulum(), wires=wires)
    rollout = gp.Rollout(pipeline, length=steps, carry={"state": "body.state", "plan": "plan.plan"}, memory=4,
                         record=["plan.control"])  # fmt: skip
    return rollout(STATE, goal=goal)


def test_it_swings_to_the_goal_in_a_rollout_and_starts_from_the_plan_before():
    trajectory = closed_loop(controller(), GOAL)
    assert trajectory["plan.converged"].all()
    assert trajectory["plan.control"].abs().max() <= 4.0
    assert (trajectory["body.state.angle"][-1] - GOAL).abs().max() < 0.25
    with gp.implicit.record() as reports:
        closed_loop(controller(), GOAL, steps=4)
    assert reports[1].iterations < reports[0].iterations


def test_gradient_through_a_closed_loop_equals_differences():
    def loss(length, goal, grad=False):
        planner = controller(length)
        with torch.set_grad_enabled(grad):
            trajectory = closed_loop(planner, goal, steps=4)
            value = trajectory["body.state.angle"].square().sum() + trajectory["plan.control"].sum()
        return value, planner.model.length

    goal = NEAR.clone().requires_grad_()
    value, length = loss(1.2, goal, grad=True)
    slopes = torch.autograd.grad(value, (length, goal))
    by_length = (loss(1.2 + 1e-5, NEAR)[0] - loss(1.2 - 1e-5, NEAR)[0]) / 2e-5
    by_goal = [
        (loss(1.2, NEAR + e)[0] - loss(1.2, NEAR - e)[0]) / 2e-5 for e in 1e-5 * torch.eye(2, dtype=F64)
    ]
    assert slopes[0] != 0 and (slopes[1] != 0).all()
    torch.testing.assert_close(slopes[0], by_length, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slopes[1], torch.stack(by_goal), rtol=1e-5, atol=1e-5)


def test_inputs_of_the_model_are_passed_on():
    planner = controller(passed=["wind"])
    wind = torch.tensor([1.0, -0.5], dtype=F64, requires_grad=True)
    goal = torch.tensor(
        [0.3, 1.2], dtype=F64
    )  # the control of the first world is free, that of the second is not
    calm = planner.run({"state": STATE, "goal": goal, "wind": torch.zeros(2, dtype=F64)})
    windy = planner.run({"state": STATE, "goal": goal, "wind": wind})
    free = (windy["control"].abs() < 4.0)[:, 0]
    assert free.tolist() == [True, False]
    assert (calm["control"] - windy["control"])[free].abs().min() > 1e-3
    (slope,) = torch.autograd.grad(windy["control"].sum(), wind)
    assert (slope[free] != 0).all() and (slope[~free] == 0).all()


@pytest.mark.parametrize(
    "options", [{"second": "differences"}, {"gradient": "gauss_newton", "hessian": "gauss_newton"}]
)
def test_it_plans_with_a_kernel(options):
    body = sim.Quadrotor(dt=0.1)
    hover = torch.tensor([7.36, 0.0, 0.0, 0.0], dtype=F64)

    def approach(state, control, goal):
        return (state["pose"][..., :3] - goal).square().sum(-1) + 0.01 * (control - hover).square().sum(-1)

    def arrive(state, goal):
        return 5.0 * (state["pose"][..., :3] - goal).square().sum(-1) + state["velocity"].square().sum(-1)

    def made(**options):
        low, high = [2.0, -3.0, -3.0, -3.0], [15.0, 3.0, 3.0, 3.0]
        given = {"final": arrive, "targets": {"goal": "B 3"}, "initial": hover.tolist(), **options}
        return planners.MPC(body, approach, 10, low, high, **given).double()

    planner = made(**options)
    state = body.hover_state(2, dtype=F64)
    goal = torch.tensor([[0.5, 0.1, 0.2], [-0.3, 0.4, 0.1]], dtype=F64, requires_grad=True)
    found = planner.run({"state": state, "goal": goal})
    assert found["converged"].all()
    (slope,) = torch.autograd.grad(found["control"].sum(), goal)
    assert slope.isfinite().all() and slope.abs().sum() > 0
    if "second" in options:
        with pytest.raises(ContractError, match=r"\(Quadrotor\) has no second derivatives"):
            made().run({"state": state, "goal": goal})


def test_refusals():
    with pytest.raises(InputError, match="low <= high"):
        planners.MPC(Pendulum(), cost, 12, [4.0], [-4.0], final=final)
    with pytest.raises(ContractError, match="is 'B 1', and low has 2 numbers"):
        planners.MPC(Pendulum(), cost, 12, [4.0, 4.0], [5.0, 5.0], final=final)
    with pytest.raises(InputError, match="or two functions"):
        planners.MPC(Pendulum(), cost, 12, [-4.0], [4.0])
    with pytest.raises(ContractError, match='no input "gust"'):
        planners.MPC(Pendulum(), cost, 12, [-4.0], [4.0], final=final, passed=["gust"])
    with pytest.raises(InputError, match="one of implicit, gauss_newton, unroll"):
        planners.MPC(Pendulum(), cost, 12, [-4.0], [4.0], final=final, gradient="exact")
    bad = {**STATE, "angle": STATE["angle"] * torch.nan}
    with pytest.raises(InputError, match="x0 of sample 0 is NaN"):
        controller().run({"state": bad, "goal": GOAL})


def test_a_loose_tolerance_takes_fewer_iterations_and_gives_nearly_the_same():
    with gp.implicit.record() as reports:
        exact, loose = (
            controller(tolerance=tolerance).run({"state": STATE, "goal": GOAL})["control"]
            for tolerance in (None, 0.1)
        )
    assert reports[1].iterations < reports[0].iterations
    assert 0.0 < (exact - loose).abs().max() < 0.05
