import math

import numpy as np
import pytest
import torch

import gradpath as gp
from gradpath.examples import navigate, navigate_maps, navigate_task
from gradpath.examples.navigate_maps import (
    ORIGIN,
    ROBOT,
    SPACING,
    Maps,
    draw_maps,
    path_length,
    shortest_path,
)
from gradpath.train import evaluate, train


def one_pillar(radius, count=1):
    centre = torch.tensor([[[6.0, 0.0]]]).repeat(count, 1, 1)
    start, goal = torch.tensor([[0.5, 0.0]]).expand(count, 2), torch.tensor([[11.5, 0.0]]).expand(count, 2)
    return Maps(centre, torch.full((count, 1), radius), start, goal)


def test_shortest_path_is_two_tangents_and_an_arc():
    maps = one_pillar(1.5)
    path = shortest_path(maps.field()[0], maps.start[0], maps.goal[0])
    around, half = 1.5 + ROBOT, 5.5
    expected = 2 * math.sqrt(half**2 - around**2) + 2 * around * math.asin(around / half)
    assert path_length(path) == pytest.approx(expected, rel=0.01)
    assert path_length(path) > expected - 2 * SPACING
    assert np.allclose(path[[0, -1]], [[0.5, 0.0], [11.5, 0.0]])


def test_a_map_without_a_free_path_has_none():
    field = one_pillar(0.5).field()[0]
    field[60] = 0.0  # a wall
    assert shortest_path(field, torch.tensor([0.5, 0.0]), torch.tensor([11.5, 0.0])) is None
    assert shortest_path(field, torch.tensor([6.0, 0.0]), torch.tensor([11.5, 0.0])) is None


def test_maps_are_repeatable_and_their_field_is_exact_at_the_nodes():
    maps, again, other = draw_maps(3, (1, 2)), draw_maps(3, (1, 2)), draw_maps(3, (1, 3))
    assert torch.equal(maps.centres, again.centres) and not torch.equal(maps.centres, other.centres)
    field = maps.field()
    node = torch.tensor([17.0, 42.0]) * SPACING + torch.tensor(ORIGIN)
    torch.testing.assert_close(field[:, 17, 42], maps.clearance(node.expand(1, 3, 2))[0])
    gaps = (maps.centres[:, :, None] - maps.centres[:, None]).norm(dim=-1)
    gaps = gaps - maps.radii[:, :, None] - maps.radii[:, None] + 100 * torch.eye(navigate_maps.PILLARS)
    assert gaps.min() >= navigate_maps.GAP - 1e-3


class Fixed(gp.Stage):
    """Plans a straight line to the left of the goal, or to the goal."""

    contract = navigate.PathPlanner.contract

    def __init__(self, left):
        super().__init__()
        self.left = left

    def forward(self, image, goal):
        share = torch.arange(1, navigate.KEYPOINTS + 1)[:, None] / navigate.KEYPOINTS
        target = goal.clamp(-2.0, 2.0) + torch.tensor([0.0, self.left])
        return share * target[:, None]


def test_driving_stops_at_pillars_and_at_the_goal_and_counts_metres():
    clear = one_pillar(0.5, count=2)
    clear.centres[..., 1].fill_(4.0)
    found = navigate.drive(Fixed(0.0), clear, seed=0)
    assert found.success.all()
    torch.testing.assert_close(found.length, torch.full((2,), 10.5), rtol=0, atol=0.5)
    blocked = navigate.drive(Fixed(0.0), one_pillar(0.5), seed=0)
    assert not blocked.success.any() and 4.5 < float(blocked.length) < 5.5
    assert navigate.straight(clear).success.all() and not navigate.straight(one_pillar(0.5)).success.any()
    away = navigate.drive(Fixed(2.0), clear, seed=0)
    assert not away.success.any()


def test_score_is_success_weighted_by_path_length():
    result = navigate.Drive(torch.tensor([True, True, False, True]), torch.tensor([10.0, 20.0, 5.0, 4.0]))
    score = navigate.score(result, torch.tensor([10.5, 10.5, 10.5, 10.5]))
    assert score["success"] == 0.75
    assert score["spl"] == pytest.approx((1.0 + 0.5 + 0.0 + 1.0) / 4)
    assert score["low"] < score["spl"] < score["high"]


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_training_lowers_the_cost_of_other_maps_whatever_the_encoder(name, monkeypatch):
    monkeypatch.setattr(navigate, "POOL", 32)
    torch.manual_seed(0)
    planner = navigate.PathPlanner(navigate.encoder(name))
    maps = draw_maps(100, (5,))
    robot, generator = navigate.Robot(maps), torch.Generator().manual_seed(0)
    place, yaw = navigate.random_places(maps, generator)
    image, field = robot.look(place, yaw, generator), maps.field()

    def cost():
        with torch.no_grad():
            path = robot.path(planner, image, place, yaw, maps.goal).sample(40, 2)
            return float(navigate.COSTS(path, goal=navigate.next_goal(maps, place), field=field).mean())

    before = cost()
    navigate.train(planner, iterations=40, batch=24, learning_rate=3e-3, seed=0)
    assert cost() < 0.95 * before
    with pytest.raises(gp.InputError, match="there are conv and vit"):
        navigate.encoder("resnet")


def walled():
    """A map whose seven pillars leave no gap that the robot fits through, beside one with a way."""
    wall = torch.stack([torch.full((7,), 6.0), torch.linspace(-4.3, 4.3, 7)], -1)
    radii = torch.full((2, 7), 0.7)
    centres = torch.stack([wall, wall + torch.tensor([0.0, 6.0])])
    ends = [torch.tensor([[x, 0.0], [x, -2.0]]) for x in (0.5, 11.5)]
    return Maps(centres, radii, *ends)


def test_maps_without_a_free_path_are_counted_and_left_out(monkeypatch):
    maps = walled()
    planner = navigate.PathPlanner(navigate.encoder("conv"))
    monkeypatch.setattr(navigate, "draw_maps", lambda count, seed: maps)
    found = navigate.evaluate(planner, 2, 0)
    assert found["without_free_path"] == 1 and found["A*"]["spl"] == 1.0
    monkeypatch.setattr(navigate, "draw_maps", lambda count, seed: maps.pick(torch.tensor([0])))
    with pytest.raises(gp.InputError, match="none of the 1 maps has a free path"):
        navigate.evaluate(planner, 1, 0)


def test_pixels_that_are_not_numbers_are_named():
    maps = draw_maps(2, (6,))
    planner, image = navigate.PathPlanner(navigate.encoder("conv")), torch.rand(2, 1, 24, 48)
    image[1, 0, 3, 3] = torch.nan
    with pytest.raises(gp.InputError, match="control point of curve 1 is NaN"):
        navigate.Robot(maps).path(planner, image, maps.start, torch.zeros(2), maps.goal)


def test_the_task_trains_as_the_example_and_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(navigate_task, "POOL", 16)
    navigate_task._pool.cache_clear()
    options = navigate_task.NavigateOptions(iterations=3, worlds=6, maps=4)
    task = navigate_task.NavigateTask(options)
    planner = task.build()
    robot, place, yaw, field, generator = task._robots(1)
    path = robot.path(planner, robot.look(place, yaw, generator), place, yaw, robot.maps.goal)
    cost = navigate.COSTS(path.sample(40, 2), goal=navigate.next_goal(robot.maps, place), field=field)
    assert task.losses()(task.forward(planner, 1)).total.item() == pytest.approx(cost.mean().item(), rel=1e-6)
    (_, inputs) = task.sample(1)
    assert planner.run(inputs)["keypoints"].shape == (6, navigate.KEYPOINTS, 2)
    assert train(task, tmp_path).finished
    metrics = evaluate(tmp_path)
    assert metrics["trained"]["trials"] == metrics["maps"] - metrics["without_free_path"] == 4
    assert metrics["weighted_by_path_length"]["value"] <= metrics["trained"]["share"]
    frozen = navigate_task.NavigateTask(navigate_task.NavigateOptions(planner_learns=False)).build()
    assert not any(p.requires_grad for p in frozen.head.parameters())
    assert all(p.requires_grad for p in frozen.encoder.parameters())
    blank = navigate_task.NavigateTask(navigate_task.NavigateOptions(worlds=2, camera="blank"))
    images = blank.sample(0)[1]["image"]
    assert images.std() < 0.05 < task.sample(0)[1]["image"].std()
    with pytest.raises(gp.InputError, match="option maps"):
        navigate_task.NavigateOptions(maps=0)
    navigate_task._pool.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_finds_its_way_on_unseen_maps():
    metrics = navigate.main()
    assert metrics["planner"]["spl"] >= 0.85 * metrics["A*"]["spl"]
    assert metrics["straight"]["spl"] <= 0.5
