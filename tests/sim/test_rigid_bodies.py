import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.autograd import gradcheck

from gradpath import geometry, sim
from gradpath.errors import InputError, ShapeError
from gradpath.sim import GRAVITY, ShapeKind, Shapes

F64 = torch.float64
CUBE = (0.1, 0.1, 0.1)
WIDTH = 2e-3


def solids(
    kind: ShapeKind, size, count: int = 1, *, contact=None, friction: float = 0.5, **options
) -> sim.RigidBodies:
    """Solids of 1 kg over the ground."""
    kinds, sizes = [kind] * count + [ShapeKind.PLANE], [size] * (count + 1)
    shapes = Shapes.of(kinds, [*range(count), sim.WORLD], sizes, friction=friction)
    mass = torch.ones(count, dtype=F64)
    inertia = sim.solid_inertia(kind, shapes.size[:count], mass)
    values = {"stiffness": 2e4, "damping": 1.0, **(contact or {})}
    return sim.RigidBodies(sim.Contact(shapes, **values), mass, inertia, **options)


def state(
    position, velocity=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0, 1.0), spin=(0.0, 0.0, 0.0)
) -> dict[str, Tensor]:
    """One body in one world, or many bodies from a list of positions."""
    position = torch.tensor(position, dtype=F64).reshape(-1, 3)
    count = len(position)
    twist = torch.tensor([*velocity, *spin], dtype=F64).expand(1, count, 6)
    return {"pose": geometry.pose(position, torch.tensor(rotation, dtype=F64))[None], "velocity": twist}


def run(body: sim.RigidBodies, now: dict[str, Tensor], steps: int) -> list[dict[str, Tensor]]:
    states = []
    with torch.no_grad():
        for _ in range(steps):
            now = body(now)
            states.append(now)
    return states


def resting_height(half: float, corners: int, stiffness: float, weight: float = GRAVITY) -> float:
    """Where `corners` springs of softplus carry a body."""
    return half - WIDTH * math.log(math.expm1(weight / (corners * stiffness * WIDTH)))


def test_heights_of_hard_bounces_go_with_the_square_of_the_restitution():
    body = solids(ShapeKind.SPHERE, (0.1, 0, 0), dt=0.01, restitution=0.6, contact={"stiffness": 1e3})
    heights = torch.stack([s["pose"][0, 0, 2] - 0.1 for s in run(body, state((0, 0, 0.6)), 160)])
    fall = math.sqrt(2 * 0.5 / GRAVITY)
    time = 0.01 * torch.arange(1, 161, dtype=F64)
    start, speed = fall, GRAVITY * fall
    for _ in range(3):  # every arc is the parabola that it should be
        speed *= 0.6
        inside = (time > start) & (time < start + 2 * speed / GRAVITY)
        t = time[inside] - start
        torch.testing.assert_close(heights[inside], speed * t - 0.5 * GRAVITY * t * t, atol=1e-6, rtol=0)
        assert speed**2 / (2 * GRAVITY) == pytest.approx(0.5 * 0.36 ** (_ + 1))
        start += 2 * speed / GRAVITY


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_smooth_bounces_converge_to_an_accurate_solution_of_their_own_equation(damping):
    stiffness = 1e4

    def law(_, y):
        depth, closing = 0.1 - y[0], -y[1]
        pressed = WIDTH * (max(depth, 0) / WIDTH + math.log1p(math.exp(-abs(depth) / WIDTH)))
        factor = 1 + damping * closing if closing > 0 else math.exp(damping * closing)
        return [y[1], stiffness * pressed * factor - GRAVITY]

    exact = solve_ivp(law, (0, 0.7), [0.4, 0.0], rtol=1e-10, atol=1e-12, max_step=1e-3).y[0, -1]
    errors = []
    for steps in (700, 1400):
        contact = {"stiffness": stiffness, "damping": damping}
        body = solids(ShapeKind.SPHERE, (0.1, 0, 0), dt=0.7 / steps, contact=contact)
        errors.append(abs(float(run(body, state((0, 0, 0.4)), steps)[-1]["pose"][0, 0, 2]) - exact))
    assert errors[0] < 6e-3 and errors[1] < 0.65 * errors[0]


@pytest.mark.parametrize(("degrees", "slides"), [(-2.0, False), (2.0, True)])
def test_a_block_creeps_below_the_angle_of_friction_and_slides_above(degrees, slides):
    angle = math.atan(0.5) + math.radians(degrees)
    gravity = (GRAVITY * math.sin(angle), 0.0, -GRAVITY * math.cos(angle))
    body = solids(ShapeKind.BOX, CUBE, dt=1e-3, gravity=gravity)
    start = state((0, 0, resting_height(0.1, 4, 2e4, GRAVITY * math.cos(angle))))
    speed = torch.stack([s["velocity"][0, 0, 0] for s in run(body, start, 1500)])
    if slides:
        gain = float(speed[-1] - speed[499])
        assert gain == pytest.approx(GRAVITY * (math.sin(angle) - 0.5 * math.cos(angle)), rel=0.1)
    else:
        assert speed[750:].abs().max() < 5 * body.contact.slip_speed


def test_the_stopping_distance_is_that_of_coulomb():
    body = solids(ShapeKind.BOX, CUBE, dt=1e-3)
    end = run(body, state((0, 0, resting_height(0.1, 4, 2e4)), velocity=(2.0, 0.0, 0.0)), 1000)[-1]
    assert float(end["pose"][0, 0, 0]) == pytest.approx(2.0**2 / (2 * 0.5 * GRAVITY), rel=0.01)
    assert end["velocity"][0, 0, 0].abs() < 5e-3


@pytest.mark.parametrize("dt", [1 / 250, 1 / 100])
def test_a_stack_of_five_boxes_stands(dt):
    body = solids(ShapeKind.BOX, CUBE, 5, dt=dt, contact={"stiffness": 1e4, "damping": 3.0})
    shift = [0.003 * (-1) ** i for i in range(5)]  # not quite on top of each other
    start = state([(x, 0.0, 0.105 + 0.203 * i) for i, x in enumerate(shift)])
    states = run(body, start, round(5 / dt))
    end = states[-1]
    assert (end["pose"][0, :, 0] - torch.tensor(shift)).abs().max() < 2e-3
    assert end["pose"][0, :, 2].diff().min() > 0.2 and end["pose"][0, :, 3:5].abs().max() < 1e-3
    assert end["velocity"].abs().max() < 2e-3
    moved = end["pose"][..., :3] - states[-round(1 / dt)]["pose"][..., :3]
    assert moved.abs().max() < 2e-4  # in the last second


@pytest.mark.parametrize("kind", [ShapeKind.CYLINDER, ShapeKind.CAPSULE, ShapeKind.BOX, ShapeKind.CONVEX])
def test_solids_come_to_rest_on_the_ground(kind):
    size = CUBE if kind == ShapeKind.BOX else (0.1, 0.1, 0.1)
    shapes = Shapes.of([kind, ShapeKind.PLANE], [0, sim.WORLD], [size] * 2, mesh=[sim_mesh(), None])
    inertia = sim.solid_inertia(ShapeKind.BOX, torch.tensor([CUBE], dtype=F64), torch.ones(1, dtype=F64))
    body = sim.RigidBodies(sim.Contact(shapes, 5e3, 2.0), torch.ones(1, dtype=F64), inertia, dt=1 / 300)
    tilt = geometry.quat_from_axis_angle(torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor(0.2).double())
    end = run(body, state((0, 0, 0.25), rotation=tilt.tolist()), 900)[-1]
    assert end["velocity"].abs().max() < 0.1
    assert 0.09 < float(end["pose"][0, 0, 2]) < 0.115 + 0.1 * (kind == ShapeKind.CAPSULE)


def sim_mesh():
    from gradpath.meshes import TriangleMesh

    return TriangleMesh.box()


def test_free_rotation_keeps_its_momentum_and_flips():
    moments = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))[None]
    contact = sim.Contact(Shapes.of([ShapeKind.SPHERE], [0], [(0.1, 0, 0)]))
    body = sim.RigidBodies(contact, torch.ones(1, dtype=F64), moments, dt=0.01, gravity=(0.0, 0.0, 0.0))
    states = run(body, state((0, 0, 0), spin=(0.01, 3.0, 0.02)), 1500)

    def momentum(s):
        turn = geometry.quat_to_matrix(s["pose"][0, 0, 3:])
        return turn @ moments[0] @ turn.mT @ s["velocity"][0, 0, 3:]

    for s in states[::300]:
        torch.testing.assert_close(momentum(s), momentum(states[0]), atol=1e-10, rtol=0)
    axis = torch.stack([geometry.quat_to_matrix(s["pose"][0, 0, 3:])[1, 1] for s in states])
    assert axis.min() < -0.95 and axis.max() > 0.95  # about its middle axis it turns over


def test_gradients_of_bodies_in_contact_are_exact():
    size = torch.tensor([(0.1, 0.12, 0.08), (0.1, 0, 0), (0, 0, 0)], dtype=F64)
    kinds = [ShapeKind.BOX, ShapeKind.SPHERE, ShapeKind.PLANE]
    mass = torch.tensor([1.0, 0.7], dtype=F64)
    inertia = sim.solid_inertia(ShapeKind.BOX, size[:2] + 0.1, mass)
    tilt = geometry.quat_from_axis_angle(torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor(0.1).double())
    start = torch.tensor([[[0.0, 0.0, 0.09, *tilt.tolist()], [0.03, 0.02, 0.262, 0, 0, 0, 1]]], dtype=F64)
    twist = 0.3 * torch.randn(1, 2, 6, dtype=F64, generator=torch.Generator().manual_seed(0))

    def end(start, twist, mass, inertia, friction, size, wrench):
        shapes = Shapes.of(kinds, [0, 1, sim.WORLD], size, friction=friction)
        body = sim.RigidBodies(sim.Contact(shapes, 3e3), mass, inertia, dt=0.01, substeps=5)
        pose = geometry.pose(start[..., :3], geometry.quat_normalize(start[..., 3:]))
        now = {"pose": pose, "velocity": twist}
        for _ in range(2):
            now = body(now, wrench)
        return now["pose"], now["velocity"]

    friction = torch.tensor([0.5, 0.6, 0.4], dtype=F64)
    wrench = torch.randn(1, 2, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    inputs = [t.clone().requires_grad_() for t in (start, twist, mass, inertia, friction, size, wrench)]
    assert gradcheck(end, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_gradients_of_a_hard_bounce_with_friction_are_exact():
    body = solids(
        ShapeKind.SPHERE, (0.1, 0, 0), dt=0.02, restitution=0.7, friction=0.2, contact={"stiffness": 1e3}
    )
    start = state((0, 0, 0.31), velocity=(1.0, 0.2, -1.0), spin=(3.0, -50.0, 2.0))

    def end(position, velocity, restitution):
        body.restitution = restitution
        now = {"pose": torch.cat([position, start["pose"][..., 3:]], -1), "velocity": velocity}
        for _ in range(12):
            now = body(now)
        return now["pose"], now["velocity"]

    elastic = torch.full((2,), 0.7, dtype=F64)
    inputs = [t.clone().requires_grad_() for t in (start["pose"][..., :3], start["velocity"], elastic)]
    assert gradcheck(end, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
    assert end(*inputs)[1][0, 0, 2] > 0


def test_inertias_of_solids_are_those_of_many_points():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400_000, 3, dtype=F64, generator=generator) * 2 - 1
    x, y = 0.3, 0.5
    box = points * torch.tensor([x, y, 0.2])
    round_box = points * torch.tensor([x, x, x + y])
    radius = round_box[:, :2].norm(dim=-1)
    beyond = (round_box[:, 2].abs() - y).clamp(min=0)
    inside = {
        ShapeKind.BOX: box,
        ShapeKind.SPHERE: round_box[round_box.norm(dim=-1) < x],
        ShapeKind.CYLINDER: round_box[(radius < x) & (round_box[:, 2].abs() < y)],
        ShapeKind.CAPSULE: round_box[torch.hypot(radius, beyond) < x],
    }
    for kind, found in inside.items():
        square = (found * found).mean(0)
        expected = torch.diag(square.sum() - square)
        inertia = sim.solid_inertia(kind, torch.tensor([x, y, 0.2], dtype=F64), torch.tensor(1.0, dtype=F64))
        torch.testing.assert_close(inertia, expected, rtol=1e-2, atol=0)


def test_many_bodies_fall_together():
    generator = torch.Generator().manual_seed(0)
    count = 100
    body = solids(
        ShapeKind.SPHERE, (0.1, 0, 0), count, dt=1 / 300, contact={"stiffness": 5e3, "damping": 2.0}
    )
    assert body.contact.sweeps
    grid = torch.stack(torch.meshgrid(*[torch.arange(5)] * 2, torch.arange(4), indexing="ij"), -1).reshape(
        -1, 3
    )
    position = 0.22 * grid + 0.01 * torch.randn(count, 3, generator=generator) + torch.tensor([0, 0, 0.15])
    end = run(body, state(position.tolist()), 150)[-1]
    distance = torch.cdist(end["pose"][0, :, :3], end["pose"][0, :, :3]) + torch.eye(count)
    assert distance.min() > 0.17 and end["pose"][0, :, 2].min() > 0.07
    assert torch.isfinite(end["velocity"]).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mass": torch.tensor([-1.0])}, InputError, "masses"),
        ({"inertia": torch.zeros(1, 3, 3)}, InputError, "positive definite"),
        ({"inertia": torch.eye(3)}, ShapeError, "inertia"),
        ({"dt": 0.0}, InputError, "dt"),
        ({"gravity": (0.0, 1.0)}, ShapeError, "gravity"),
        ({"contact": sim.Contact(Shapes.of([ShapeKind.SPHERE], [1], [(0.1, 0, 0)]))}, ShapeError, "body 1"),
    ],
)
def test_bad_input_is_refused(change, error, words):
    contact = sim.Contact(Shapes.of([ShapeKind.SPHERE], [0], [(0.1, 0, 0)]))
    values = {"contact": contact, "mass": torch.ones(1), "inertia": torch.eye(3)[None], "dt": 0.01}
    with pytest.raises(error, match=words):
        sim.RigidBodies(**(values | change))
