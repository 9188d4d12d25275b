import pytest
import torch

import gradpath as gp
from gradpath import geometry, grids, planners, sim
from gradpath.distances import Shape
from gradpath.errors import ContractError, InputError, ShapeError
from gradpath.meshes import TriangleMesh

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_interpolation_is_exact_for_multilinear_values_and_flat_beyond_the_grid():
    x, y, z = torch.meshgrid(*(0.5 * torch.arange(n, dtype=F64) for n in (4, 5, 3)), indexing="ij")

    def function(p):
        return 1.0 + 2.0 * p[..., 0] - p[..., 1] * p[..., 2] + p[..., 0] * p[..., 1] * p[..., 2]

    values = function(torch.stack([x, y, z], -1)).expand(2, -1, -1, -1)
    points = torch.rand(2, 50, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.5, 2.0, 1.0]
    )
    origin = torch.tensor([[0.3, -0.2, 1.0], [0.0, 0.0, 0.0]], dtype=F64)
    found = grids.interpolate(values, points + origin[:, None], origin, 0.5)
    torch.testing.assert_close(found, function(points))
    far = torch.tensor([[[9.0, 9.0, 9.0]], [[-9.0, 0.0, 0.0]]], dtype=F64)
    found = grids.interpolate(values, far, torch.zeros(3, dtype=F64), 0.5)[:, 0]
    torch.testing.assert_close(found, torch.stack([values[0, -1, -1, -1], values[0, 0, 0, 0]]))
    assert grids.interpolate(values, far * torch.nan, origin, 0.5).isnan().all()
    with pytest.raises(ShapeError, match="two nodes or more"):
        grids.interpolate(values[:, :1], points, origin, 0.5)


def test_terms_equal_what_they_say():
    path = {"position": random(6, 2, 3), "velocity": random(6, 2, 3, seed=1), "pose": random(6, 2, 7, seed=2)}
    goal = random(2, 3, seed=3)
    costs = planners.Costs(
        goal=planners.Goal(running=0.5, terminal=2.0),
        slow=planners.Limit("velocity", most=1.0, running=3.0),
        smooth=planners.Effort("pose[2:4]", rest=(1.0, 0.0), running=0.1),
    )
    distance = (path["position"] - goal).square().sum(-1)
    excess = (path["velocity"].norm(dim=-1) - 1.0).clamp_min(0.0).square()
    bent = (path["pose"][..., 2] - 1.0).square() + path["pose"][..., 3].square()
    shares = costs.shares(path, goal=goal)
    torch.testing.assert_close(shares["goal"], 0.5 * distance.mean(0) + 2.0 * distance[-1])
    torch.testing.assert_close(shares["slow"], 3.0 * excess.mean(0))
    torch.testing.assert_close(shares["smooth"], 0.1 * bent.mean(0))
    torch.testing.assert_close(costs(path, goal=goal), sum(shares.values()))
    still = torch.zeros(3, 1, 3, dtype=F64, requires_grad=True)
    planners.Costs(a=planners.Limit("velocity", most=0.0))({"velocity": still}).sum().backward()
    assert torch.equal(still.grad, torch.zeros_like(still))


SPHERE = TriangleMesh.icosphere(3)


def sources():
    """A ball of radius 0.5 at (1, 0, 0), four times over."""
    centre = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    pose = geometry.pose(centre, geometry.quat_identity(dtype=F64)).expand(2, 1, 7)
    axis = torch.linspace(-1.0, 3.0, 81, dtype=F64)
    nodes = torch.stack(torch.meshgrid(axis, axis - 1.0, axis - 1.0, indexing="ij"), -1)
    field = ((nodes - centre).norm(dim=-1) - 0.5).expand(2, -1, -1, -1)
    size = torch.full((2, 1, 3), 0.5, dtype=F64)
    return {
        "shapes": (planners.ToShapes((int(Shape.SPHERE),)), {"obstacles": {"pose": pose, "size": size}}),
        "mesh": (planners.ToMesh(SPHERE), {"obstacles": {"pose": pose, "scale": size[..., 0]}}),
        "field": (planners.ToField((-1.0, -2.0, -2.0), 0.05), {"field": field}),
        "points": (planners.ToPoints(0.5), {"cloud": centre.expand(2, 1, 3)}),
    }


@pytest.mark.parametrize("kind", ["shapes", "mesh", "field", "points"])
def test_every_source_keeps_away_from_the_same_ball(kind):
    source, inputs = sources()[kind]
    position = torch.tensor([1.0, 0.0, 0.0], dtype=F64) + random(5, 2, 3) * 0.7
    position.requires_grad_()
    costs = planners.Costs(clear=planners.Collision(source, margin=0.8))
    expected = (0.8 - ((position - torch.tensor([1.0, 0.0, 0.0])).norm(dim=-1) - 0.5)).clamp_min(0.0).square()
    tolerance = {"mesh": 2e-2, "field": 2e-2}.get(kind, 1e-9)
    found = costs({"position": position}, **inputs)
    torch.testing.assert_close(found, expected.mean(0), rtol=tolerance, atol=tolerance)
    ours, theirs = (torch.autograd.grad(c.sum(), position)[0] for c in (found, expected.mean(0)))
    torch.testing.assert_close(ours, theirs, rtol=8 * tolerance, atol=8 * tolerance)


def test_a_planner_avoids_a_ball_with_second_derivatives_by_differences():
    source, inputs = sources()["shapes"]
    costs = planners.Costs(
        goal=planners.Goal(terminal=20.0),
        effort=planners.Effort("control", running=0.02),
        clear=planners.Collision(source, margin=0.3, running=30.0),
    )

    def plan(shift, **options):
        start = torch.tensor([[0.0, 0.1, 0.0], [0.0, -0.2, 0.1]], dtype=options.pop("dtype", F64))
        moved = {"obstacles": {**inputs["obstacles"], "pose": inputs["obstacles"]["pose"].to(start) + shift}}
        moved["obstacles"]["size"] = moved["obstacles"]["size"].to(start)
        goal = start.new_tensor([[2.0, 0.0, 0.0]])
        return planners.ilqr(
            lambda x, u: x + 0.1 * u,
            lambda x, u: costs.step({"position": x}, u, goal=goal, **moved),
            lambda x: costs.end({"position": x}, goal=goal, **moved),
            start,
            torch.full((2, 15, 3), 0.5, dtype=start.dtype),
            **options,
        )

    shift = torch.zeros(2, 1, 7, dtype=F64, requires_grad=True)
    found = plan(shift)
    assert found.converged.all()
    assert ((found.states - torch.tensor([1.0, 0.0, 0.0])).norm(dim=-1) > 0.5).all()
    (slope,) = torch.autograd.grad(found.states[..., 1].sum(), shift)
    move = torch.zeros(2, 1, 7, dtype=F64)
    move[..., 1] = 1e-5
    with torch.no_grad():
        ends = [plan(s * move).states[..., 1].sum((1,)) for s in (1, -1)]
    torch.testing.assert_close(slope[:, 0, 1], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-4)
    with pytest.raises(ContractError, match="cost has no second derivatives"):
        plan(shift.detach().float(), dtype=torch.float32)


def test_costs_steer_an_mpc_that_is_saved_with_them(tmp_path):
    costs = planners.Costs(
        goal=planners.Goal("pose[:3]", running=1.0, terminal=0.0),  # nothing counts at the end
        effort=planners.Effort("control", rest=(7.36, 0.0, 0.0, 0.0), running=0.01),
        rest=planners.Effort("velocity", running=0.1),
    )
    body = sim.Quadrotor(dt=0.1)
    planner = planners.MPC(
        body, costs, 6, [2.0, -3.0, -3.0, -3.0], [15.0, 3.0, 3.0, 3.0],
        targets={"goal": "B 3"}, initial=[7.36, 0.0, 0.0, 0.0], second="differences",
    ).double()  # fmt: skip
    inputs = {"state": body.hover_state(1, dtype=F64), "goal": torch.ones(1, 3, dtype=F64)}
    found = planner.run(inputs)
    assert found["converged"].all() and found["control"][0, 0] > 7.36
    gp.save(planner, tmp_path)
    torch.testing.assert_close(
        gp.load(tmp_path).double().run(inputs)["plan"], found["plan"], rtol=1e-5, atol=1e-5
    )


def test_bad_costs_are_refused():
    with pytest.raises(InputError, match="no terms"):
        planners.Costs()
    with pytest.raises(InputError, match='weights of "a"'):
        planners.Costs(a=planners.Goal(terminal=-1.0))
    with pytest.raises(InputError, match='asks for "jerk", and there is position'):
        planners.Costs(a=planners.Effort("jerk"))({"position": torch.zeros(2, 1, 3)})
    with pytest.raises(InputError, match="no term has a terminal weight"):
        planners.Costs(a=planners.Effort("state")).end(torch.zeros(2, 3))
    with pytest.raises(InputError, match="not the name of a quantity"):
        planners.Costs(a=planners.Effort("pose[3]"))({"pose": torch.zeros(2, 1, 7)})
    with pytest.raises(InputError, match="holds no points"):
        planners.Costs(a=planners.Collision(planners.ToPoints()))(
            {"position": torch.zeros(2, 1, 3)}, cloud=torch.zeros(1, 0, 3)
        )
