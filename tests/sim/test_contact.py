import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import gradpath as gp
from gradpath import geometry, sim
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.sim import ShapeKind, Shapes
from gradpath.sim.contact_pairs import may_touch, near_pairs

F64 = torch.float64
BOX, SPHERE, CAPSULE, CYLINDER = ShapeKind.BOX, ShapeKind.SPHERE, ShapeKind.CAPSULE, ShapeKind.CYLINDER
PLANE, MESH, CONVEX, HEIGHTS = ShapeKind.PLANE, ShapeKind.MESH, ShapeKind.CONVEX, ShapeKind.HEIGHT_FIELD
UPRIGHT = (0.0, 0.0, 0.0, 1.0)


def poses(*rows: tuple[float, ...]) -> Tensor:
    """One world; a row is a position, or a position and a quaternion."""
    return torch.tensor([[*row, *UPRIGHT][:7] if len(row) == 3 else row for row in rows], dtype=F64)[None]


def pair(kinds, sizes, second_is_ground=True, **options) -> sim.Contact:
    shapes = Shapes.of(kinds, body=[0, sim.WORLD if second_is_ground else 1], size=sizes, **options)
    return sim.Contact(shapes)


def deepest(contact: sim.Contact, pose: Tensor) -> tuple[float, list[float], list[float]]:
    """Depth, normal and point of the deepest contact of full weight."""
    points = contact.points(pose)
    depth = torch.where(points.weight > 0.4, points.depth, -torch.inf)
    index = int(depth[0].argmax())
    return float(depth[0, index]), points.normal[0, index].tolist(), points.point[0, index].tolist()


TILTED = geometry.quat_from_axis_angle(torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor(0.3).double())
LYING = geometry.quat_from_axis_angle(
    torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor(math.pi / 2).double()
)
ON_PLANE = {
    SPHERE: ((0.1, 0, 0), UPRIGHT, 0.1),
    BOX: ((0.1, 0.2, 0.3), UPRIGHT, 0.3),
    CAPSULE: ((0.1, 0.2, 0), UPRIGHT, 0.3),
    CYLINDER: ((0.1, 0.2, 0), UPRIGHT, 0.2),
    MESH: ((0.1, 0.2, 0.3), UPRIGHT, 0.3),
    CONVEX: ((0.1, 0.2, -0.3), UPRIGHT, 0.3),
}


@pytest.mark.parametrize("kind", ON_PLANE)
def test_what_stands_on_a_plane_is_as_deep_as_it_should_be(kind):
    size, turn, height = ON_PLANE[kind]
    contact = pair([kind, PLANE], [size, (0, 0, 0)], mesh=[TriangleMesh.box(), None])
    depth, normal, point = deepest(contact, poses((0.3, 0.4, height - 0.01, *turn)))
    assert depth == pytest.approx(0.01, abs=1e-7)
    assert normal == pytest.approx([0, 0, 1])
    assert point[2] == pytest.approx(-0.005, abs=1e-6)


@pytest.mark.parametrize("kind", [BOX, CYLINDER, CAPSULE])
def test_tilted_shapes_touch_a_plane_with_their_lowest_point(kind):
    contact = pair([kind, PLANE], [(0.1, 0.2, 0.3), (0, 0, 0)])
    sine, cosine = math.sin(0.3), math.cos(0.3)
    low = {
        BOX: 0.1 * sine + 0.3 * cosine,
        CYLINDER: 0.1 * sine + 0.2 * cosine,
        CAPSULE: 0.2 * cosine + 0.1,
    }
    depth, *_ = deepest(contact, poses((0, 0, low[kind] - 0.01, *TILTED.tolist())))
    assert depth == pytest.approx(0.01, abs=1e-3 if kind == CYLINDER else 1e-9)


def test_a_cylinder_that_lies_rolls_on_its_side():
    contact = pair([CYLINDER, PLANE], [(0.1, 0.2, 0), (0, 0, 0)])
    for angle in (0.0, 0.1, 0.7):
        roll = geometry.quat_from_axis_angle(torch.tensor([0.0, 0, 1]).double(), torch.tensor(angle).double())
        points = contact.points(poses((0, 0, 0.09, *geometry.quat_multiply(LYING, roll).tolist())))
        touching = (points.weight[0] > 1e-6) & (points.depth[0] > 0)
        assert int(touching.sum()) == 2  # nothing of the rims that it stands on
        assert points.depth[0][touching].tolist() == pytest.approx([0.01, 0.01], abs=1e-4)


BETWEEN = [  # kinds, sizes, position of the first above the second, expected depth
    ((SPHERE, SPHERE), ((0.1, 0, 0), (0.2, 0, 0)), 0.29),
    ((SPHERE, BOX), ((0.1, 0, 0), (0.2, 0.2, 0.2)), 0.29),
    ((SPHERE, CAPSULE), ((0.1, 0, 0), (0.05, 0.2, 0)), 0.34),
    ((SPHERE, CYLINDER), ((0.1, 0, 0), (0.2, 0.2, 0)), 0.29),
    ((SPHERE, MESH), ((0.1, 0, 0), (0.2, 0.2, 0.2)), 0.29),
    ((CAPSULE, CAPSULE), ((0.1, 0.2, 0), (0.1, 0.2, 0)), 0.59),
    ((BOX, BOX), ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)), 0.29),
    ((BOX, BOX), ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)), 0.19),
    ((CYLINDER, BOX), ((0.1, 0.1, 0), (0.2, 0.2, 0.2)), 0.29),
    ((CAPSULE, BOX), ((0.1, 0.1, 0), (0.2, 0.2, 0.2)), 0.39),
    ((MESH, BOX), ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)), 0.29),
    ((BOX, MESH), ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)), 0.29),
    ((SPHERE, HEIGHTS), ((0.1, 0, 0), (1.0, 1.0, 0.5)), 0.59),
]


@pytest.mark.parametrize(("kinds", "sizes", "height"), BETWEEN)
@pytest.mark.parametrize("upside_down", [False, True])
def test_pairs_of_shapes_find_each_other(kinds, sizes, height, upside_down):
    if upside_down:
        kinds, sizes = kinds[::-1], sizes[::-1]
    mesh = [TriangleMesh.box() if kind == MESH else None for kind in kinds]
    heights = [torch.ones(3, 3) if kind == HEIGHTS else None for kind in kinds]
    shapes = Shapes.of(kinds, body=[0, 1], size=sizes, mesh=mesh, heights=heights)
    upper = (0.02, 0.01, height)
    pose = poses((0, 0, 0), upper) if upside_down else poses(upper, (0, 0, 0))
    contact = sim.Contact(shapes)
    depth, normal, _ = deepest(contact, pose)
    assert depth == pytest.approx(0.01, abs=2e-3)
    assert abs(normal[2]) > 0.98
    wrench = contact.wrenches(pose, torch.zeros(1, 2, 6, dtype=F64))
    force = wrench[0, :, :3]
    top = 1 if upside_down else 0
    assert force[top, 2] > 50 and torch.allclose(force.sum(0), torch.zeros(3, dtype=F64), atol=1e-9)
    arms = torch.linalg.cross(pose[0, :, :3], force) + wrench[0, :, 3:]
    assert torch.allclose(arms.sum(0), torch.zeros(3, dtype=F64), atol=1e-9)  # no angular momentum either


def test_crossed_beams_touch_with_their_edges():
    beam = (1.0, 0.1, 0.1)
    contact = pair([BOX, BOX], [beam, beam], second_is_ground=False)
    turn = geometry.quat_from_axis_angle(
        torch.tensor([0.0, 0, 1]).double(), torch.tensor(math.pi / 2).double()
    )
    pose = poses((0.3, 0.2, 0.19, *turn.tolist()), (0, 0, 0))
    points = contact.points(pose)
    touching = points.weight[0] > 0.1
    torch.testing.assert_close(points.depth[0][touching], torch.full((4,), 0.01, dtype=F64))
    assert contact.wrenches(pose, torch.zeros(1, 2, 6).double())[0, 0, 2] > 200

    def force(pose):
        return contact.wrenches(geometry.pose(pose[..., :3], geometry.quat_normalize(pose[..., 3:])), still)

    still = torch.zeros(1, 2, 6, dtype=F64)
    pose = poses((0.3, 0.2, 0.197, 0.02, 0.01, 0.6, 0.8), (0, 0, 0)).requires_grad_()
    assert gradcheck(force, [pose], eps=1e-6, atol=1e-3, rtol=1e-4)


def test_the_support_of_two_equal_boxes_does_not_depend_on_how_they_are_aligned():
    contact = pair([BOX, BOX], [(0.1, 0.1, 0.1)] * 2, second_is_ground=False)
    shift = torch.linspace(-0.05, 0.05, 41, dtype=F64)
    pose = poses((0, 0, 0.199), (0, 0, 0)).repeat(41, 1, 1)
    pose[:, 0, 0] = shift
    pose[:, 0, 1] = 0.03
    lift = contact.wrenches(pose, torch.zeros(41, 2, 6).double())[:, 0, 2]
    assert lift.min() > 0.95 * lift.max()


def test_a_mirrored_mesh_is_solid_where_it_is_drawn():
    mesh = TriangleMesh(TriangleMesh.box().vertices + torch.tensor([2.0, 0.0, 0.0]), TriangleMesh.box().faces)
    contact = pair([SPHERE, MESH], [(0.1, 0, 0), (-0.1, 0.1, 0.1)], mesh=[None, mesh])
    depth, normal, _ = deepest(contact, poses((-0.2, 0.0, 0.19)))
    assert depth == pytest.approx(0.01, abs=1e-6)
    assert normal == pytest.approx([0, 0, 1], abs=1e-6)


def test_a_slope_of_a_height_field_pushes_along_its_normal():
    slope = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    contact = pair([SPHERE, HEIGHTS], [(0.1, 0, 0), (1.0, 1.0, 2.0)], heights=[None, slope])  # 45 degrees
    depth, normal, _ = deepest(contact, poses((0.5, 0.2, 1.5 + 0.09 * math.sqrt(2))))
    assert depth == pytest.approx(0.01)
    assert normal == pytest.approx([-math.sqrt(0.5), 0, math.sqrt(0.5)])


def test_the_force_is_softplus_in_depth_and_friction_is_regularized_coulomb():
    shapes = Shapes.of([SPHERE, PLANE], body=[0, sim.WORLD], size=[(0.1, 0, 0)] * 2, friction=0.4)
    contact = sim.Contact(shapes, stiffness=2e3, damping=0.7, width=1e-3, slip_speed=0.05)
    depth = torch.tensor([-0.004, 0.0, 0.01], dtype=F64)
    pose = poses((0, 0, 0)).repeat(3, 1, 1)
    pose[:, 0, 2] = 0.1 - depth
    velocity = torch.tensor([0.3, 0.0, -0.5, 0.0, 0.0, 0.0], dtype=F64).expand(3, 1, 6)
    wrench = contact.wrenches(pose, velocity)[:, 0]
    elastic = 2e3 * 1e-3 * torch.nn.functional.softplus(depth / 1e-3)
    press = elastic * (1 + 0.7 * 0.5)
    torch.testing.assert_close(wrench[:, 2], press)
    rub = 0.4 * press * 0.3 / math.hypot(0.3, 0.05)
    torch.testing.assert_close(wrench[:, 0], -rub)
    arm = -(0.1 - depth / 2)  # to the middle of the overlap
    torch.testing.assert_close(wrench[:, 4], arm * -rub)
    parting = contact.wrenches(pose, -velocity)[:, 0, 2]
    torch.testing.assert_close(parting, elastic * math.exp(-0.7 * 0.5))


COINCIDENT = [
    (SPHERE, (0.1, 0, 0)),
    (CAPSULE, (0.1, 0.2, 0)),
    (CYLINDER, (0.1, 0.2, 0)),
    (BOX, (0.1, 0.1, 0.1)),
    (MESH, (0.1, 0.1, 0.1)),
]


@pytest.mark.parametrize(("kind", "size"), COINCIDENT)
@pytest.mark.parametrize("height", [0.0, 0.2])
def test_no_gradient_is_nan_at_coincident_points_without_velocity_or_touching_exactly(kind, size, height):
    mesh = [TriangleMesh.box() if kind == MESH else None] * 2 + [None]
    shapes = Shapes.of([kind, kind, PLANE], body=[0, 1, sim.WORLD], size=[size, size, (0, 0, 0)], mesh=mesh)
    contact = sim.Contact(shapes, stiffness=torch.full((3,), 1e3, dtype=F64).requires_grad_())
    pose = poses((0, 0, 0.1), (0, 0, 0.1 + height)).requires_grad_()
    velocity = torch.zeros(1, 2, 6, dtype=F64, requires_grad=True)
    wrench = contact.wrenches(pose, velocity)
    gradients = torch.autograd.grad(wrench.square().sum(), [pose, velocity, contact.stiffness])
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_gradients_reach_every_parameter_of_the_shapes():
    heights = (0.1 * torch.rand(3, 3, dtype=F64)).requires_grad_()
    size = torch.tensor([(0.1, 0, 0), (0.5, 0.5, 1.0)], dtype=F64).requires_grad_()
    pose = geometry.pose_identity(2, dtype=F64).requires_grad_()
    law = [torch.full((2,), value, dtype=F64).requires_grad_() for value in (1e3, 0.5, 0.6)]

    def lift(size, heights, local, stiffness, damping, friction):
        local = geometry.pose(local[..., :3], geometry.quat_normalize(local[..., 3:]))
        shapes = Shapes.of(
            [SPHERE, HEIGHTS], [0, sim.WORLD], size, pose=local, friction=friction, heights=[None, heights]
        )
        contact = sim.Contact(shapes, stiffness, damping)
        velocity = torch.tensor([[[0.1, 0.2, -0.3, 1.0, 0.0, 0.0]]], dtype=F64)
        return contact.wrenches(poses((0.1, 0.2, 0.14)), velocity)

    inputs = [size, heights, pose, *law]
    assert gradcheck(lift, inputs, eps=1e-6, atol=1e-4, rtol=1e-5)
    gradients = torch.autograd.grad(lift(*inputs)[..., :3].sum(), inputs)
    assert all(bool((g != 0).any()) for g in gradients)


def test_the_sweep_finds_the_pairs_that_a_comparison_of_all_finds():
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(3, 60, 3, generator=generator)
    radius = 0.02 + 0.08 * torch.rand(3, 60, generator=generator)
    radius[:, 7] = torch.inf
    allowed = torch.rand(60, 60, generator=generator) < 0.8
    allowed = allowed & allowed.T & ~torch.eye(60, dtype=torch.bool)
    world, pairs = near_pairs(centre, radius, allowed)
    near = (
        (centre[:, :, None] - centre[:, None]).abs() <= (radius[:, :, None] + radius[:, None])[..., None]
    ).all(-1)
    expected = {tuple(index) for index in torch.triu(near & allowed, diagonal=1).nonzero().tolist()}
    assert {(w, a, b) for w, (a, b) in zip(world.tolist(), pairs.tolist(), strict=True)} == expected
    assert len(world) == len(expected) > 100


def test_both_broad_phases_give_the_same_wrenches():
    generator = torch.Generator().manual_seed(1)
    kinds = [SPHERE, BOX, CAPSULE, CYLINDER] * 3 + [PLANE]
    sizes = [(0.1, 0.1, 0.1)] * 13
    shapes = Shapes.of(kinds, [*range(12), sim.WORLD], sizes)
    random = torch.randn(2, 12, 7, dtype=F64, generator=generator)
    pose = geometry.pose(0.2 * random[..., :3], geometry.quat_normalize(random[..., 3:]))
    velocity = torch.randn(2, 12, 6, dtype=F64, generator=generator)
    whole = sim.Contact(shapes, broad_phase="all").wrenches(pose, velocity)
    swept = sim.Contact(shapes, broad_phase="sweep").wrenches(pose, velocity)
    torch.testing.assert_close(swept, whole, rtol=1e-9, atol=1e-3)
    assert whole.abs().max() > 10


def test_what_is_excluded_or_masked_or_stands_still_does_not_touch():
    shapes = Shapes.of([SPHERE] * 4 + [PLANE] * 2, [0, 0, 1, 2, -1, -1], [(0.1, 0, 0)] * 6, exclude=[(0, 1)])
    allowed = may_touch(shapes)
    assert not allowed[0, 1] and not allowed[0, 2] and not allowed[2, 1] and not allowed[4, 5]
    assert allowed[0, 3] and allowed[3, 2] and allowed[0, 4]


def test_a_batch_of_none_and_shapes_that_never_meet_are_fine():
    contact = pair([SPHERE, PLANE], [(0.1, 0, 0)] * 2)
    assert contact.wrenches(torch.zeros(0, 1, 7), torch.zeros(0, 1, 6)).shape == (0, 1, 6)
    alone = sim.Contact(Shapes.of([SPHERE], [0], [(0.1, 0, 0)]))
    assert not alone.wrenches(poses((0, 0, 0)), torch.zeros(1, 1, 6, dtype=F64)).any()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sim.Contact(Shapes.of([SPHERE], [0], [(0.1, 0, 0)]), -1.0), InputError, "stiffness"),
        (lambda: sim.Contact(Shapes.of([SPHERE], [0], [(0.1, 0, 0)]), math.nan), InputError, "stiffness"),
        (
            lambda: sim.Contact(Shapes.of([SPHERE], [0], [(0.1, 0, 0)]), torch.ones(3)),
            ShapeError,
            "one of each",
        ),
        (lambda: sim.Contact(Shapes.of([MESH], [0], [(1.0, 1, 1)])), InputError, "no mesh"),
        (lambda: sim.Contact(Shapes.of([HEIGHTS], [0], [(1.0, 1, 1)])), InputError, "2 x 2"),
        (lambda: sim.Contact(Shapes.of([SPHERE], [0], [(0.1, 0, 0)]), width=0.0), InputError, "width"),
        (
            lambda: sim.Contact(Shapes.of([SPHERE], [0], [(0.1, 0, 0)]), broad_phase="grid"),
            InputError,
            "sweep",
        ),
        (lambda: Shapes.of([SPHERE], [0, 1], [(0.1, 0, 0)]), ShapeError, "bodies"),
    ],
)
def test_bad_input_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_poses_that_are_none_are_refused():
    contact = pair([SPHERE, PLANE], [(0.1, 0, 0)] * 2)
    with pytest.raises(InputError, match="instance 0 of world 0"):
        contact.wrenches(poses((0, 0, math.nan)), torch.zeros(1, 1, 6, dtype=F64))
    with pytest.raises(ShapeError, match="velocity"):
        contact.wrenches(poses((0, 0, 0)), torch.zeros(1, 2, 6, dtype=F64))


def test_a_margin_is_touched_before_the_surface():
    shapes = Shapes.of([SPHERE, PLANE], [0, sim.WORLD], [(0.1, 0, 0)] * 2)
    thick = replace(shapes, margin=(0.01, 0.02))
    pose = poses((0, 0, 0.12))
    for broad_phase in ("all", "sweep"):
        contact = sim.Contact(thick, broad_phase=broad_phase)
        assert float(contact.points(pose).depth) == pytest.approx(0.01)
    assert float(sim.Contact(shapes).points(pose).depth) == pytest.approx(-0.02)
    with pytest.raises(InputError, match="margin"):
        sim.ModelBuilder("ball").add_shape(None, SPHERE, (0.1,), margin=-1.0)


def test_robots_and_bodies_in_contact_are_saved_and_loaded(tmp_path):
    builder = sim.ModelBuilder("ball")
    builder.add_body("ball", joint="free", mass=1.0, inertia=(0.01, 0.01, 0.01))
    builder.add_shape("ball", SPHERE, (0.1,), friction=0.3, margin=0.002)
    builder.add_shape(None, PLANE)
    model = builder.build()
    contact = sim.Contact(model.shapes, stiffness=3e3, damping=0.7, slip_speed=0.02)
    robot = sim.Articulation(model, 0.02, 2, contact=contact)
    twist = torch.tensor([[1.0, 0.0, -1.0, 0.0, 2.0, 0.0]], dtype=F64)
    pose = poses((0, 0, 0.1))
    state = {"q": pose[:, 0], "qd": twist}
    bodies = sim.RigidBodies(contact, torch.ones(1, dtype=F64), 0.01 * torch.eye(3, dtype=F64)[None], 0.02)
    for name, stage, inputs in (
        ("robot", robot, {"state": state, "control": torch.zeros(1, 0, dtype=F64)}),
        ("bodies", bodies, {"state": {"pose": pose, "velocity": twist[:, None]}}),
    ):
        gp.save(gp.Pipeline(body=stage), tmp_path / name)
        again = gp.load(tmp_path / name).body
        torch.testing.assert_close(again(**inputs), stage(**inputs))
