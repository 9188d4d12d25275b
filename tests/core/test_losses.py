import math
from types import MappingProxyType

import pytest
import torch

import gradpath as gp
from gradpath.losses import lookup


def values():
    pose = torch.arange(2 * 3 * 7, dtype=torch.float64).reshape(2, 3, 7).requires_grad_()
    return {
        "body.state": {"pose": pose, "speed": torch.ones(2, 3)},
        "goal": torch.ones(3, 7, dtype=torch.float64),
    }


def test_total_is_the_weighted_sum_of_means_and_differentiates():
    losses = gp.Losses(
        whole=(2.0, lambda trajectory: trajectory["body.state"]["pose"].square().mean()),
        worlds=(3, lambda pose, goal: (pose[-1] * goal).sum(-1), "body.state.pose", "goal"),
        steps=(0.5, lambda pose: pose.sum(-1), "body.state.pose"),
    )
    given = values()
    pose = given["body.state"]["pose"]
    got = losses(given)
    expected = 2 * pose.square().mean() + 3 * pose[-1].sum(-1).mean() + 0.5 * pose.sum(-1).mean()
    torch.testing.assert_close(got.total, expected)
    assert got.total.shape == got["worlds"].shape == ()
    torch.testing.assert_close(got.weighted["worlds"], 3 * got.terms["worlds"])
    (gradient,) = torch.autograd.grad(got.total, pose, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, pose)[0])


def test_numbers_and_table():
    got = gp.Losses(goal=(5.0, lambda v: v["x"]))({"x": torch.tensor(0.25)})
    assert got.item_dict() == {"total": 1.25, "goal": 0.25}
    assert [line.split() for line in got.table().splitlines()] == [
        ["loss", "value", "weighted"],
        ["goal", "0.25", "1.25"],
        ["total", "1.25"],
    ]
    with pytest.raises(gp.ContractError, match=r'no loss "gaol" \(did you mean "goal"\?\)'):
        got["gaol"]


def test_a_missing_value_names_the_loss_and_what_is_there():
    losses = gp.Losses(clearance=(1.0, torch.sum, "body.state.psoe"))
    with pytest.raises(gp.ContractError) as error:
        losses(values())
    assert str(error.value) == (
        'loss "clearance" is attached to "body.state.psoe" (did you mean "body.state.pose"?), which is not there; '
        "there are body.state.pose, body.state.speed, goal"
    )


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(2, 3, 4), r"one per step and world \(T, B\), got \(2, 3, 4\)"),
        (torch.zeros(0), r"got \(0,\)"),
        (1.0, "expected a floating tensor, got a float"),
        (torch.ones(2, dtype=torch.bool), "got torch.bool"),
    ],
)
def test_what_is_not_a_loss(result, message):
    with pytest.raises(gp.ShapeError, match=f'loss "jerk": .*{message}'):
        gp.Losses(jerk=(1.0, lambda v: result))({})


@pytest.mark.parametrize(
    ("shape", "where"), [((), ""), ((4,), " in world 1"), ((3, 2), " at step 1 in world 0")]
)
def test_a_non_finite_loss_names_itself_and_the_world(shape, where):
    bad = torch.zeros(shape)
    bad.view(-1)[min(1 if len(shape) == 1 else 2, bad.numel() - 1)] = torch.inf
    losses = gp.Losses(good=(1.0, lambda v: torch.ones(3)), barrier=(0.0, lambda v: bad))
    with pytest.raises(gp.NonFiniteError) as error:
        losses({})
    assert str(error.value).startswith(f'loss "barrier" is inf{where};')


def test_finite_losses_with_an_infinite_sum():
    huge = torch.tensor(torch.finfo(torch.float32).max)
    with pytest.raises(gp.NonFiniteError, match="their sum is not"):
        gp.Losses(a=(1.0, lambda v: huge), b=(1.0, lambda v: huge))({})


@pytest.mark.parametrize(
    "term", [3.0, (1.0,), ("1", abs), (math.nan, abs), (1.0, 2.0), (1.0, abs, 3), [1.0, abs]]
)
def test_terms_of_another_form(term):
    with pytest.raises(gp.InputError, match='loss "goal": expected'):
        gp.Losses(goal=term)


def test_lookup_takes_the_longest_key_and_any_mapping():
    nested = MappingProxyType({"a.b": {"c": 1}, "a": {"b": {"c": 2, "d": 3}}, "a.b.e": 4})
    assert lookup(nested, "a.b.c") == 1
    assert lookup(nested, "a.b.e") == 4
    assert lookup(nested, "a") == {"b": {"c": 2, "d": 3}}
    for name in ("x", "a.b.x", "a.b.c.x"):
        with pytest.raises(KeyError):
            lookup(nested, name)


def test_losses_by_world_have_the_total_as_their_mean():
    generator = torch.Generator().manual_seed(0)
    values = {"x": torch.randn(5, 3, generator=generator), "w": torch.tensor(2.0)}
    losses = gp.Losses(
        steps=(0.5, lambda x: x.square(), "x"),
        worlds=(2.0, lambda x: x.sum(0), "x"),
        number=(3.0, lambda w: w * w, "w"),
    )
    expected = 0.5 * values["x"].square().mean(0) + 2.0 * values["x"].sum(0) + 12.0
    torch.testing.assert_close(losses.by_world(values), expected)
    torch.testing.assert_close(losses.by_world(values).mean(), losses(values).total)
    assert gp.Losses(number=(1.0, lambda w: w, "w")).by_world(values).shape == ()
