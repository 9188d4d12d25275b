"""The main job, whole: gradients of the complete pipeline, exactness of its checkpoints, its worlds and its result."""

import copy
import dataclasses

import pytest
import torch

import gradpath as gp
from gradpath import sim
from gradpath.errors import InputError
from gradpath.examples import flight
from gradpath.examples.flight_worlds import COUNTS, HIDDEN, draw_worlds, drawn_meshes
from gradpath.runs import read_log
from gradpath.train import resume, train

OPTIONS = flight.FlightOptions(worlds=2, seconds=20 / 12, features=16, height=16, width=20, decay=1.0)


def double(tree):
    if isinstance(tree, dict):
        return {name: double(value) for name, value in tree.items()}
    return tree.double() if isinstance(tree, torch.Tensor) and tree.is_floating_point() else tree


@pytest.fixture(scope="module")
def whole():
    """The complete pipeline in float64 over 20 steps and 2 worlds, with learnable physics and worlds close ahead."""
    task = flight.FlightTask(OPTIONS)
    body = sim.Quadrotor(dt=1 / OPTIONS.control_rate, substeps=4, mass=flight.MASS, learnable=True)
    step = task.build().step.replace(body=body).double()
    rollout = flight.build_rollout(OPTIONS, step)
    (state,), inputs = task.sample(0)
    obstacles = double(inputs["obstacles"])
    obstacles["pose"][:, :, 0] *= 0.4  # into reach of 20 steps
    return rollout, task.losses(), double(state), obstacles, inputs["goal"].double()


def objective(whole, state, obstacles):
    rollout, losses, _, _, goal = whole
    trajectory = rollout(state, obstacles=obstacles, goal=goal, generator=torch.Generator().manual_seed(4))
    return losses(trajectory).total


def directional(whole, change, apply, size=1e-7):
    """Central difference of the objective along one direction.

    The step is small because the image jumps where an edge sweeps over a pixel centre beside another contour.
    """
    with torch.no_grad():
        high = objective(whole, *apply(size, change))
        low = objective(whole, *apply(-size, change))
    return float(high - low) / (2 * size)


@pytest.mark.parametrize("what", ["state", "weights", "obstacle", "mass"])
def test_gradient_of_the_whole_objective_equals_central_differences(whole, what):
    rollout, _, state, obstacles, _ = whole
    generator = torch.Generator().manual_seed(5)

    def draw(tensor):
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    pose = obstacles["pose"].clone().requires_grad_()
    rollout.zero_grad()
    objective(whole, leaves, {**obstacles, "pose": pose}).backward()

    if what == "state":
        change = {name: draw(value) for name, value in state.items()}
        gradient = sum(float((leaves[name].grad * change[name]).sum()) for name in state)

        def apply(size, change):
            return {name: state[name] + size * change[name] for name in state}, obstacles

    elif what == "obstacle":
        change = torch.zeros_like(pose)
        nearest = pose.grad[0].norm(dim=-1).argmax()  # the one that matters most to the first world
        change[0, nearest] = draw(change[0, nearest])
        gradient = float((pose.grad * change).sum())

        def apply(size, change):
            return state, {**obstacles, "pose": obstacles["pose"] + size * change}

    else:
        every = dict(rollout.named_parameters())
        picked = {name: p for name, p in every.items() if name.endswith("mass") == (what == "mass")}
        change = {name: draw(p) for name, p in picked.items()}
        gradient = sum(
            float((p.grad * change[name]).sum()) for name, p in picked.items() if p.grad is not None
        )
        moved = dict.fromkeys(picked, 0.0)

        def apply(size, change):
            for name, p in picked.items():
                p.data += (size - moved[name]) * change[name]
                moved[name] = size
            return state, obstacles

    difference = directional(whole, change, apply)
    if what in ("weights", "mass"):
        with torch.no_grad():
            apply(0.0, change)
    assert abs(gradient) > 1e-6
    assert gradient == pytest.approx(difference, rel=1e-4)


def test_the_gradient_passes_through_the_renderer(whole):
    """Stopping it at the camera's pose changes the gradient of a policy that reacts to what it sees."""
    rollout, losses, state, obstacles, goal = whole
    reactive = copy.deepcopy(rollout.step.plan)
    with torch.no_grad():
        reactive.head.weight.mul_(10.0)
    rollout = flight.build_rollout(OPTIONS, rollout.step.replace(plan=reactive))

    def gradient(rollout):
        rollout.zero_grad()
        losses(
            rollout(state, obstacles=obstacles, goal=goal, generator=torch.Generator().manual_seed(4))
        ).total.backward()
        return torch.cat([p.grad.flatten() for p in rollout.step.encode.parameters()])

    full = gradient(rollout)
    cut = dataclasses.replace(OPTIONS, renderer_gradient="off")
    stages = {name: stage for name, stage in rollout.step.stages.items() if name != "view"}
    blocked = gradient(flight.build_rollout(cut, flight.build_step(cut, stages=stages)))
    assert float((full - blocked).norm()) > 1e-3 * float(full.norm())


def test_snapshots_and_a_plain_graph_give_the_same_gradient():
    """100 steps with noise: bit-equal between memory settings, 1e-12 from one autograd graph in float64."""
    options = dataclasses.replace(OPTIONS, seconds=100 / 12, height=12, width=16)
    task = flight.FlightTask(options)
    rollout, losses = task.build(), task.losses()

    def gradient(memory):
        rollout.zero_grad()
        made = flight.build_rollout(dataclasses.replace(options, memory=memory), rollout.step)
        assert made.length == 100
        losses(task.forward(made, 0)).total.backward()
        plans.append(made.plan())
        return [p.grad.clone() for p in rollout.parameters()]

    plans = []
    kept, recomputed, budgeted = gradient("all"), gradient("8"), gradient("5MB")
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, budgeted, strict=True))
    plan = plans[-1]
    assert 1 < plan.chunk < 100 and plan.tally.extra_steps == plan.extra_steps
    assert plan.budget.peak <= 5e6 and plan.tally.peak == pytest.approx(plan.budget.peak, rel=0.1)

    rollout.double().zero_grad()
    (state,), inputs = task.sample(0)
    inputs = {name: double(value) for name, value in inputs.items()}
    losses(rollout(double(state), **inputs)).total.backward()
    scanned = [p.grad.clone() for p in rollout.parameters()]
    rollout.zero_grad()

    carried, memory = double(state), torch.zeros(2, options.features, dtype=torch.float64)
    _, inputs = task.sample(0)  # a fresh generator
    inputs = {name: double(value) for name, value in inputs.items()}
    rows: dict[str, list] = {}
    for _ in range(options.length):
        values = rollout.step.run(
            {"state": carried, "memory": memory, **inputs}, outputs=[*flight.RECORD, "encode.memory"]
        )
        carried, memory = values["body.state"], values["encode.memory"]
        for name in flight.RECORD:
            rows.setdefault(name, []).append(values[name])
    stacked = {
        name: {key: torch.stack([row[key] for row in row_list]) for key in row_list[0]}
        if isinstance(row_list[0], dict)
        else torch.stack(row_list)
        for name, row_list in rows.items()
    }
    losses(stacked).total.backward()
    for p, g in zip(rollout.parameters(), scanned, strict=True):
        assert float((p.grad - g).norm()) <= 1e-12 * float(p.grad.norm())


def test_worlds_are_drawn_from_their_seed_and_stop_straight_flight():
    worlds = draw_worlds(64, (1, 2))
    again = draw_worlds(64, (1, 2))
    other = draw_worlds(64, (1, 3))
    assert torch.equal(worlds.pose, again.pose)
    assert not torch.equal(worlds.pose, other.pose)
    assert worlds.pose.shape == (64, sum(COUNTS.values()), 7)
    clearance = flight.build_step(OPTIONS).clearance
    least = torch.full((64,), torch.inf)
    for share in torch.linspace(0.0, 0.8, 161):  # the end zone begins at four fifths of the way
        position = worlds.start + share * (worlds.goal - worlds.start)
        pose = torch.cat([position, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(64, 4)], -1)
        least = torch.minimum(least, clearance(pose, worlds.obstacles).amin(-1))
    assert float((least < flight.RADIUS).float().mean()) >= 0.7
    assert bool((clearance(torch.cat([worlds.start, pose[:, 3:]], -1), worlds.obstacles) > 1.0).all())


def test_training_lowers_the_loss_and_the_example_says_so(capsys):
    result = flight.main(iterations=8, worlds=4, seconds=2.5, repeat=True)
    assert result["last_loss"] < result["first_loss"]
    assert capsys.readouterr().out.count("iteration") == 8


def test_evaluation_writes_what_the_report_shows(tmp_path):
    options = dataclasses.replace(
        OPTIONS, evaluation_worlds=4, speed=1.0, control_rate=4.0, height=12, width=16
    )
    task = flight.FlightTask(options)
    metrics = task.evaluate(task.build(), tmp_path)
    for name in ("trained", "blindfolded", "straight"):
        assert metrics[name]["trials"] == 4
    assert metrics["straight"]["share"] == pytest.approx(1.0 - metrics["straight_collided"])  # all arrive
    figures = task.figures(tmp_path)
    assert [figure.title for figure in figures][:2] == ["Flights from above", "Chase view"]
    assert (tmp_path / "flight.mp4").stat().st_size > 1000


def test_outcome_counts_clearance_until_arrival_only():
    pose = torch.zeros(4, 3, 7)
    pose[..., 2] = 1.5
    pose[:, :, 0] = torch.tensor(
        [[10.0, 10.0, 10.0], [25.0, 25.0, 11.0], [25.0, 25.0, 12.0], [25.0, 25.0, 13.0]]
    )
    distance = torch.full((4, 3, 2), 1.0)
    distance[3, 0, 0] = 0.05  # after arrival: no matter
    distance[0, 1, 1] = 0.14  # on the way: a collision
    result = flight.outcome(
        gp.Trajectory({"body.state": {"pose": pose}, "clearance.distance": distance}, {}, {})
    )
    assert result["success"].tolist() == [True, False, False]
    assert result["reached"].tolist() == [True, True, False]


def test_clearance_counts_between_control_steps():
    """A thin post halfway between two control steps, at 6 m/s."""
    step = flight.build_step(OPTIONS)
    worlds = draw_worlds(1, (0,))
    pose, scale = worlds.pose.clone(), worlds.scale.clone()
    pose[..., 2] = HIDDEN
    pose[0, 8, :3] = torch.tensor([23.75, 0.0, 1.5])  # the first cylinder
    scale[0, 8] = torch.tensor([0.05, 0.05, 2.0])
    obstacles = {"pose": pose, "scale": scale}
    states = torch.zeros(3, 1, 7)
    states[:, 0, 0] = torch.tensor([23.0, 23.5, 24.0])
    states[..., 2], states[..., 6] = 1.5, 1.0
    velocity = torch.tensor([6.0, 0.0, 0.0]).expand(3, 1, 3)
    distance = torch.stack([step.clearance(p, obstacles) for p in states])
    recorded = {"body.state": {"pose": states, "velocity": velocity}, "clearance.distance": distance}
    trajectory = gp.Trajectory(recorded, {"obstacles": obstacles}, {})
    assert bool(flight.outcome(trajectory)["success"])
    result = flight.outcome(trajectory, step.clearance, dt=0.5 / 6.0)
    assert not bool(result["success"])
    assert float(result["clearance"]) == pytest.approx(-0.05, abs=0.01)


def test_leaving_the_course_is_no_success():
    """Around, above, below, and not a number."""
    pose = torch.zeros(3, 5, 7)
    pose[..., 0] = torch.tensor([[10.0], [20.0], [25.0]])
    pose[..., 2] = 1.5
    pose[1, 1, 1], pose[1, 2, 2], pose[1, 3, 2], pose[1, 4, 0] = 6.5, 5.5, 0.0, torch.nan
    pose[1, 4, 1] = torch.nan
    recorded = {"body.state": {"pose": pose}, "clearance.distance": torch.full((3, 5, 2), 1.0)}
    result = flight.outcome(gp.Trajectory(recorded, {}, {}))
    assert result["success"].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decay", 2.0),
        ("decay", float("nan")),
        ("speed", 0.0),
        ("control_rate", 0.0),
        ("features", 0),
        ("evaluation_worlds", 0),
        ("noise", -1.0),
        ("memory", "200 apples"),
        ("seconds", -1.0),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"option {name}"):
        flight.FlightOptions(**{name: value})


def test_nothing_is_drawn_smaller_than_it_is():
    meshes, _ = drawn_meshes()
    cylinder, sphere = meshes[1], meshes[2]
    for mesh, axes in ((cylinder, 2), (sphere, 3)):
        corners = mesh.vertices[mesh.faces.long()][..., :axes]
        middles = (
            corners + corners.roll(1, 1)
        ) / 2  # of the edges; of a cylinder's sides, the innermost points
        rim = middles[middles.norm(dim=-1) > 0.9]  # without the spokes of a cylinder's caps
        assert float(rim.norm(dim=-1).min()) >= 1.0 - 1e-6


def test_a_killed_flight_training_resumes_to_the_identical_result(tmp_path, monkeypatch):
    """As `kill -9` leaves it: the third iteration is logged nowhere and saved nowhere."""
    options = dataclasses.replace(OPTIONS, iterations=4, save_every=2, seconds=0.5, height=12, width=16)
    train(flight.FlightTask(options), tmp_path / "whole")

    class Killed(BaseException):
        pass

    measured = flight.FlightTask.measure

    def measure(task, trajectory):
        if (tmp_path / "killed" / "weights.safetensors").exists():
            raise Killed
        return measured(task, trajectory)

    with monkeypatch.context() as patch:
        patch.setattr(flight.FlightTask, "measure", measure)
        with pytest.raises(Killed):
            train(flight.FlightTask(options), tmp_path / "killed")
    assert len(read_log(tmp_path / "killed" / "metrics.jsonl")) == 2
    resume(tmp_path / "killed")
    whole, killed = (
        [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(path)]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "killed" / "metrics.jsonl")
    )
    assert len(whole) == 4
    assert killed == whole
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
