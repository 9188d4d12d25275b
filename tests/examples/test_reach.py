"""Reaching: the arm, its scenes, its gradients, planners that know the ball, and a small training."""

import dataclasses

import numpy as np
import pinocchio as pin
import pytest
import torch

import gradpath as gp
from gradpath import geometry, perception
from gradpath.errors import InputError, NonFiniteError
from gradpath.examples import reach, reach_arm, reach_stages
from gradpath.examples.reach_figures import load_evaluation, reach_figures
from gradpath.examples.reach_scene import FIELD_OF_VIEW, MOUNT, RADIUS, HandCamera, draw_scenes
from gradpath.render import pinhole
from gradpath.train import evaluate, train

F64 = torch.float64
OPTIONS = reach.ReachOptions(worlds=2, height=16, width=16, seconds=0.15)


def test_the_arm_is_the_one_of_the_file_and_stands_still_without_a_command():
    arm = reach_arm.Arm(0.05, 4)
    q = draw_scenes(3, (0,)).q.double()
    state = arm.rest(q)
    after = arm(state, torch.zeros(3, 7, dtype=F64))
    assert (after["state"]["q"] - q).abs().max() < 1e-9 and after["state"]["qd"].abs().max() < 1e-9
    model = pin.buildModelFromUrdf(str(reach_arm.robot_file()))
    data = model.createData()
    for row in range(3):
        full = np.concatenate([q[row].numpy(), [0.04, 0.04]])
        pin.framesForwardKinematics(model, data, full)
        tool = data.oMf[model.getFrameId(reach_arm.TOOL)]
        np.testing.assert_allclose(state["tool"][row, :3], tool.translation, atol=1e-9)
        behind = tool.translation - reach_arm.LEVER * tool.rotation[:, 2]
        np.testing.assert_allclose(state["tool"][row, 3:], behind, atol=1e-9)
        gravity = pin.computeGeneralizedGravity(model, data, full)[:7]
        np.testing.assert_allclose(after["torque"][row], gravity, atol=1e-9)


def test_without_weight_a_step_is_the_same_as_with_torques_against_it():
    q, control = (
        draw_scenes(2, (1,)).q.double(),
        torch.tensor([[3.0, -8.0, 2.0, 4.0, 1.0, -1.0, 0.3]], dtype=F64),
    )
    for dt, apart in ((0.02, 2e-2), (0.005, 1.5e-3)):
        with_gravity, without = (
            reach_arm.Arm(dt, 1, weightless)(reach_arm.Arm(dt).rest(q), control.expand(2, 7))["state"]["qd"]
            for weightless in (False, True)
        )
        assert (with_gravity - without).abs().max() < apart * without.abs().max()


def test_a_step_that_no_number_can_follow_gives_nan_and_no_error():
    arm = reach_arm.Arm(0.1)
    q = draw_scenes(2, (2,)).q
    state = arm.rest(q)
    state["qd"][1] = 1e25
    after = arm(state, torch.zeros(2, 7))["state"]
    assert after["tool"][0].isfinite().all() and after["tool"][1].isnan().all()


def test_angles_bring_the_upright_tool_to_a_point():
    arm, scenes = reach_arm.Arm(0.05), draw_scenes(8, (3,))
    q = arm.angles(scenes.q, scenes.target)
    assert (arm.places(q)[1] - reach_arm.upright(scenes.target)).abs().max() < 2e-3


def test_scenes_are_repeatable_and_show_the_ball_where_it_is():
    scenes = draw_scenes(64, (4,))
    again = draw_scenes(64, (4,))
    for field in dataclasses.fields(scenes):
        assert torch.equal(getattr(scenes, field.name), getattr(again, field.name))
    hand, _ = reach_arm.Arm(0.05).places(scenes.q)
    camera = geometry.pose_compose(hand, torch.tensor(MOUNT))
    local = geometry.pose_apply(geometry.pose_inverse(camera), scenes.target)
    pixel = perception.project(local[:, None], pinhole(48, 48, FIELD_OF_VIEW).float())[:, 0]
    inside = ((pixel > 2.0) & (pixel < 46.0)).all(-1)
    assert inside.float().mean() > 0.75
    with gp.mode("hard"):
        rgb, depth = HandCamera(48, 48)(hand, scenes.inputs)
    row, column = pixel[inside, 1].long(), pixel[inside, 0].long()
    near = depth[inside, 0][torch.arange(len(row)), row, column]
    ahead = local[inside].norm(dim=-1)  # the ray through the centre meets the ball a radius before it
    surface = local[inside, 2] * (1.0 - RADIUS / ahead)
    shown = (near - surface).abs() < 0.01
    assert shown.float().mean() > 0.85  # something else may stand before it
    colour = rgb[inside][torch.arange(len(row)), :, row, column][shown]
    assert (colour[:, 0] > 2.0 * colour[:, 1:].amax(-1)).float().mean() > 0.95


@pytest.fixture(scope="module")
def whole():
    """The complete pipeline in float64 over three steps, with plans that are found and differentiated exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        planner = reach_stages.TorqueMPC(horizon=3, gradient="implicit", iterations=60, tolerance=1e-10)
        step = reach.build_step(OPTIONS, stages={"planner": planner}).double()
    scenes = draw_scenes(2, (5,))
    given = reach.arguments(scenes, OPTIONS, 0, step)
    given = gp.tree.map_leaves(lambda leaf: leaf.double() if isinstance(leaf, torch.Tensor) else leaf, given)
    return reach.build_rollout(step, 3), reach.reach_losses("both"), given


def value(whole, changes=None):
    rollout, losses, given = whole
    given = {**given, **(changes or {}), "generator": torch.Generator().manual_seed(1)}
    return losses(rollout(**given)).total


@pytest.mark.parametrize("what", ["finder", "weights", "target"])
def test_gradient_of_the_whole_objective_equals_central_differences(whole, what):
    rollout, _, given = whole
    stages = rollout.step.stages
    generator = torch.Generator().manual_seed(2)
    target = given["target"].clone().requires_grad_()
    leaves = {
        "finder": list(stages["find"].parameters()),
        "weights": [stages["planner"].log_weights],
        "target": [target],
    }[what]
    changes = {"target": target} if what == "target" else None
    slopes = torch.autograd.grad(value(whole, changes), leaves)
    directions = [torch.randn(leaf.shape, generator=generator, dtype=F64) for leaf in leaves]
    size, found = 1e-6, []
    with torch.no_grad():
        for sign in (1.0, -2.0):
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(sign * size * direction)
            found.append(float(value(whole, changes)))
        for leaf, direction in zip(leaves, directions, strict=True):
            leaf.add_(size * direction)
    expected = (found[0] - found[1]) / (2 * size)
    along = sum(float((slope * direction).sum()) for slope, direction in zip(slopes, directions, strict=True))
    assert along == pytest.approx(expected, rel=1e-4) and along != 0.0


@pytest.mark.parametrize("encoder", ["keypoint", "conv", "vit"])
@pytest.mark.parametrize("planner", ["mpc", "pd"])
def test_every_part_that_learns_has_a_gradient(encoder, planner):
    task = reach.ReachTask(dataclasses.replace(OPTIONS, encoder=encoder, planner=planner))
    model = task.build()
    task.losses()(task.forward(model, 0)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # The key bias of attention and the bias before a softmax cancel.
        assert parameter.grad.any() or name.endswith(("in_proj_bias", "heat.bias")), name


def test_the_choices_of_ablations_do_what_they_say():
    def gradients(**options):
        task = reach.ReachTask(dataclasses.replace(OPTIONS, **options))
        model = task.build()
        losses = task.losses()
        trajectory = task.forward(model, 0)
        losses(trajectory).total.backward()
        stages = model.step.stages
        return (
            model,
            trajectory,
            [p.grad for p in stages["find"].parameters()],
            stages["planner"].log_weights.grad,
        )

    _, seen, full, weights = gradients()
    assert weights.any()
    _, _, frozen, weights = gradients(planner_learns=False)
    assert weights is None and all(torch.equal(a, b) for a, b in zip(full, frozen, strict=True))
    _, unchanged, off, _ = gradients(renderer_gradient="off")
    assert torch.equal(seen["error.distance"], unchanged["error.distance"])
    assert not torch.equal(full[0], off[0]) and off[0].any()
    _, blind, _, _ = gradients(camera="blank")
    assert not torch.equal(blind["track.measured"], seen["track.measured"])
    model, _, alone, weights = gradients(loss="perception", planner_learns=False)
    assert weights is None and alone[0].any() and model.cut == 1


def test_planners_that_know_where_the_ball_is_reach_it():
    scenes = draw_scenes(4, (6,))
    options = reach.ReachOptions()
    for name in ("mpc", "pd"):
        stages = {"body": reach_arm.Arm(reach.DT, reach.SUBSTEPS), "planner": reach_stages.planner(name)}
        step = reach.build_told(stages)
        with torch.no_grad():
            motion = reach.build_rollout(step, options.evaluation_length)(
                **reach.arguments(scenes, options, 0, step)
            )
        assert motion["error.distance"][-1].max() < 0.015, name
        assert motion["planner.control"].abs().le(torch.tensor(reach_arm.TORQUES) + 1e-4).all()
    falling = reach_stages.without_torque(scenes.q, options.evaluation_length, reach.DT)
    assert (falling[-1, :, :3] - scenes.target).norm(dim=-1).min() > 0.1


class BrokenCamera(HandCamera):
    """One pixel of the second world is no number."""

    def forward(self, hand, scene):
        rgb, depth = super().forward(hand, scene)
        rgb = rgb.clone()
        rgb[1, 0, 3, 3] = torch.nan
        return rgb, depth


class BrokenTask(reach.ReachTask):
    def build(self):
        step = reach.build_step(self.options, stages={"camera": BrokenCamera(16, 16)})
        return reach.build_rollout(step, self.options.length)


def test_where_no_plan_is_found_the_arm_brakes():
    scenes, arm = draw_scenes(2, (5,)), reach_arm.Arm(0.05, 4)
    state = arm.rest(scenes.q)
    state["qd"] = torch.tensor([[0.5, -1.0, 0.8, 1.0, -0.5, 0.3, 1.0], [0.0] * 7])
    planner = reach_stages.TorqueMPC(iterations=1, tolerance=1e-12)
    goal = reach_arm.upright(scenes.target)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        out = planner(state=state, goal=goal, plan=torch.ones(2, 6, 7))
    assert not out["converged"].any() and not out["plan"].any()
    assert (out["control"].abs() <= planner.limits).all() and not out["control"][1].any()
    after = arm(state, out["control"])["state"]["qd"]
    assert (after[0].abs() < 0.85 * state["qd"][0].abs()).all()  # 0.65, were torques not held


def test_pixels_that_are_not_numbers_are_not_measured_and_training_names_them(tmp_path):
    track, hand = reach_stages.Track(), reach_arm.Arm(0.05).places(draw_scenes(2, (7,)).q)[0]
    belief = reach_stages.start_belief(2)
    position = torch.tensor([[0.0, 0.0, 0.3], [torch.nan, 0.0, 0.3]])
    after = track(position, torch.tensor([-3.0, torch.nan]), hand, belief)["belief"]
    assert after["mean"].isfinite().all() and torch.equal(after["mean"][1], belief["mean"][1])
    assert not torch.equal(after["mean"][0], belief["mean"][0])

    with pytest.raises(NonFiniteError, match=r"camera.*world 1|world 1.*camera"):
        train(BrokenTask(dataclasses.replace(OPTIONS, iterations=1)), tmp_path)


def test_it_trains_evaluates_and_draws(tmp_path):
    options = dataclasses.replace(OPTIONS, iterations=2, evaluation_worlds=6, evaluation_seconds=0.1)
    assert train(reach.ReachTask(options), tmp_path).finished
    metrics = evaluate(tmp_path)
    for name in ("trained", "blindfolded", "pd_with_pose", "mpc_with_pose", "zero_torque"):
        assert metrics[name]["trials"] == 6
        assert metrics[f"{name}_median_mm"]["low"] <= metrics[f"{name}_median_mm"]["value"]
    data = load_evaluation(tmp_path)
    error = np.linalg.norm(
        reach_arm.Arm(0.05).places(torch.tensor(data["q"][-1]))[1][:, :3] - data["scene_target"], axis=-1
    )
    np.testing.assert_allclose(error, data["error_trained"][-1], atol=1e-4)
    figures = reach_figures(tmp_path)
    assert len(figures) == 3 and figures[1].mp4 and figures[0].png and figures[2].png


def test_refusals():
    with pytest.raises(InputError, match="no encoder"):
        reach_stages.finder("ear", 16, 16)
    with pytest.raises(InputError, match="no planner"):
        reach_stages.planner("hope")
    for name in ("seconds", "evaluation_seconds", "noise"):
        with pytest.raises(InputError, match=name):
            reach.ReachOptions(**{name: -1.0})
    with pytest.raises(InputError, match="evaluation_worlds"):
        reach.ReachOptions(evaluation_worlds=0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_it_reaches_balls_in_unseen_scenes(tmp_path):
    metrics = reach.main(run=tmp_path)
    assert metrics["trained_median_mm"]["value"] < 10.0 and metrics["trained"]["share"] >= 0.9
    assert metrics["blindfolded"]["high"] < 0.1 and metrics["zero_torque"]["high"] < 0.1


def test_the_example_trains_and_evaluates_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reach.ReachOptions, "length", property(lambda self: 2))
    monkeypatch.setattr(reach.ReachOptions, "evaluation_length", property(lambda self: 2))
    small = {"iterations": 1, "worlds": 2, "evaluation_worlds": 2, "planner": "pd", "run": tmp_path}
    metrics = reach.main(**small)
    log = (tmp_path / "training/metrics.jsonl").read_text()
    assert reach.main(**small)["trained_median_mm"] == metrics["trained_median_mm"]
    assert (tmp_path / "training/metrics.jsonl").read_text() == log
