import math

import pytest
import torch

import gradpath as gp
from gradpath import planners
from gradpath.errors import InputError

F64 = torch.float64
PLANS = torch.randn(2, 3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
COSTS = torch.tensor([[1.0, 0.2, 3.0], [0.5, math.inf, 0.1]], dtype=F64)


def test_soft_selection_is_a_mean_and_hard_selection_the_cheapest():
    stage = planners.SelectPlan(tau=0.5)
    soft = stage.run({"plans": PLANS, "costs": COSTS})
    weights = torch.softmax(-COSTS / 0.5, -1)
    torch.testing.assert_close(soft["plan"], torch.einsum("bn,bntm->btm", weights, PLANS))
    with gp.mode("hard"):
        hard = stage.run({"plans": PLANS, "costs": COSTS})
    torch.testing.assert_close(hard["plan"], torch.stack([PLANS[0, 1], PLANS[1, 2]]))
    torch.testing.assert_close(hard["log_probability"], weights[[0, 1], [1, 2]].log())
    costs = torch.tensor([[1.0, 0.2, 3.0]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda c, p: stage(p, c)["plan"], (costs, PLANS[:1].clone().requires_grad_())
    )
    with gp.mode("straight_through"):
        through = stage(PLANS[:1], costs)["plan"]
    torch.testing.assert_close(through, PLANS[:1, 1])
    ours, theirs = (
        torch.autograd.grad(p.sum(), costs)[0] for p in (through, stage(PLANS[:1], costs)["plan"])
    )
    torch.testing.assert_close(ours, theirs)


def test_the_score_function_trains_a_choice_whose_outcome_has_no_gradient():
    stage = planners.SelectPlan("score_function")
    outcome = torch.tensor([1.0, 5.0, 3.0], dtype=F64)
    scores = torch.tensor([0.3, -0.2, 0.1], dtype=F64, requires_grad=True)
    plans = torch.arange(3, dtype=F64).view(1, 3, 1, 1).expand(20_000, 3, 1, 1)
    found = stage.run(
        {"plans": plans, "costs": -scores.expand(20_000, 3), "generator": torch.Generator().manual_seed(1)}
    )
    chosen = outcome[found["plan"].long().flatten()].detach()
    surrogate = (found["log_probability"] * (chosen - chosen.mean())).mean()
    (slope,) = torch.autograd.grad(surrogate, scores)
    exact = torch.autograd.grad((torch.softmax(scores, -1) * outcome).sum(), scores)[0]
    torch.testing.assert_close(slope, exact, rtol=0, atol=0.05)
    share = found["weights"].mean(0)
    torch.testing.assert_close(share, torch.softmax(scores, -1).detach(), rtol=0, atol=0.02)
    best = stage.run({"plans": plans[:1], "costs": -scores.expand(1, 3)})
    assert best["plan"].item() == 0.0


def test_no_possible_plan_is_an_error():
    with pytest.raises(InputError, match="costs of world 1 are"):
        planners.SelectPlan().run(
            {"plans": PLANS, "costs": torch.tensor([[1.0] * 3, [math.inf] * 3], dtype=F64)}
        )
    with pytest.raises(InputError, match="costs of world 0 are"):
        planners.SelectPlan().run({"plans": PLANS, "costs": COSTS * torch.nan})
    with pytest.raises(InputError, match="one of relaxed, score_function"):
        planners.SelectPlan("hard")


def test_a_recurrent_policy_remembers_within_its_bounds():
    torch.manual_seed(0)
    policy = planners.RecurrentPolicy(4, low=(-1.0, 0.0), high=(1.0, 2.0), size=5)
    rollout = gp.Rollout(
        gp.Pipeline(policy=policy), length=3, carry={"memory": "policy.memory"}, record=["policy.command"]
    )
    command = rollout(feature=100.0 * torch.randn(6, 4))["policy.command"]
    assert command.shape == (3, 6, 2)
    assert (command >= policy.head.low).all() and (command <= policy.head.high).all()
    assert not torch.allclose(command[0], command[2])
