"""Range rays against closed forms and against trimesh."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

import gradpath as gp
from gradpath import geometry, sim
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.sim import ShapeKind, Shapes

F64 = torch.float64


def fixed(kind: ShapeKind, size, pose: Tensor | None = None, mesh: TriangleMesh | None = None) -> Shapes:
    at = None if pose is None else pose.reshape(1, 7)
    return Shapes.of([kind], [sim.WORLD], [size], pose=at, mesh=[mesh])


def cast(shapes: Shapes, start, direction, **options) -> Tensor:
    start, direction = (torch.as_tensor(x, dtype=F64).reshape(1, -1, 3) for x in (start, direction))
    return sim.RayCaster(shapes)(start, direction.expand_as(start), **options)[0]


def random_pose(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    place, turn = (torch.randn(n, dtype=F64, generator=generator) for n in (3, 4))
    return geometry.pose(0.3 * place, geometry.quat_normalize(turn))


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2])
def test_range_and_slopes_to_a_plane(angle):
    plane = fixed(ShapeKind.PLANE, (0.0, 0.0, 0.0))
    start = torch.tensor([[[0.4, -0.2, 2.0]]], dtype=F64, requires_grad=True)
    way = torch.tensor([[[math.sin(angle), 0.0, -math.cos(angle)]]], dtype=F64, requires_grad=True)
    distance = sim.RayCaster(plane)(start, way)
    assert distance.item() == pytest.approx(2.0 / math.cos(angle), rel=1e-14)
    height, turn = torch.autograd.grad(distance.sum(), (start, way))
    torch.testing.assert_close(height[0, 0], torch.tensor([0.0, 0.0, 1 / math.cos(angle)], dtype=F64))
    sideways = torch.tensor(
        [math.cos(angle), 0.0, math.sin(angle)], dtype=F64
    )  # of the ray, as the angle grows
    assert (turn[0, 0] @ sideways).item() == pytest.approx(2.0 * math.tan(angle) / math.cos(angle), abs=1e-12)


def test_range_to_a_sphere_off_the_axis():
    ball = fixed(ShapeKind.SPHERE, (0.5, 0.0, 0.0), geometry.pose_identity(dtype=F64))
    offsets = torch.tensor([0.0, 0.2, 0.49, 0.51])
    starts = [[-3.0, float(y), 0.0] for y in offsets]
    ranges = cast(ball, starts, [1.0, 0.0, 0.0], max_range=9.0)
    expected = [3.0 - math.sqrt(0.25 - float(y) ** 2) for y in offsets[:3]] + [9.0]
    torch.testing.assert_close(ranges, torch.tensor(expected, dtype=F64))


def test_range_to_a_box_from_each_side_and_its_gradient_by_size():
    box = fixed(ShapeKind.BOX, (0.5, 1.0, 1.5))
    size = box.size.clone().requires_grad_()
    starts = torch.tensor(
        [[3, 0, 0], [0, 3, 0], [0, 0, 3], [-3, 0.2, 0], [0.2, -3, 0], [0, 0.1, -3]], dtype=F64
    )
    ways = torch.tensor([[-1, 0, 0], [0, -1, 0], [0, 0, -1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=F64)
    ranges = cast(replace(box, size=size), starts, ways)
    torch.testing.assert_close(ranges, torch.tensor([2.5, 2.0, 1.5, 2.5, 2.0, 1.5], dtype=F64))
    (gradient,) = torch.autograd.grad(ranges.sum(), size)
    torch.testing.assert_close(gradient, torch.full((1, 3), -2.0, dtype=F64))


MESHES = {
    ShapeKind.SPHERE: lambda s: trimesh.creation.icosphere(subdivisions=5, radius=s[0]),
    ShapeKind.BOX: lambda s: trimesh.creation.box(extents=2 * np.asarray(s)),
    ShapeKind.CYLINDER: lambda s: trimesh.creation.cylinder(radius=s[0], height=2 * s[1], sections=512),
    ShapeKind.CAPSULE: lambda s: TriangleMesh.capsule(s[0], s[1], 128),
}


@pytest.mark.parametrize("kind", MESHES)
def test_ranges_agree_with_rays_against_a_fine_mesh(kind):
    size, pose = (0.5, 0.4, 0.7), random_pose(int(kind))
    made = MESHES[kind](size)
    mesh = (
        made
        if isinstance(made, TriangleMesh)
        else TriangleMesh(torch.tensor(made.vertices), torch.tensor(made.faces))
    )
    generator = torch.Generator().manual_seed(0)
    start = 2 * geometry.quat_normalize(torch.randn(400, 4, dtype=F64, generator=generator))[:, :3] + pose[:3]
    way = pose[:3] + 0.3 * torch.randn(400, 3, dtype=F64, generator=generator) - start
    found = cast(fixed(kind, size, pose), start, way)
    vertices = geometry.pose_apply(pose, mesh.vertices.double())
    body = trimesh.Trimesh(vertices.numpy(), mesh.faces.numpy(), process=False)
    place, ray, _ = body.ray.intersects_location(start.numpy(), way.numpy(), multiple_hits=False)
    outside = ~body.contains(start.numpy())
    expected = np.full(400, 100.0)
    expected[ray] = np.linalg.norm(place - start.numpy()[ray], axis=1)
    miss, missed = expected == 100.0, found.numpy() == 100.0
    edge = miss != missed  # at the outline, the mesh is a little smaller
    assert edge[outside].mean() < 0.02 and (~missed).mean() > 0.5
    both = outside & ~miss & ~missed
    assert np.quantile(np.abs(expected - found.numpy())[both], 0.97) < 6e-3


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (0.5, 1.5, 2.0), (-0.7, 1.0, 1.2)])
def test_ranges_to_a_mesh_equal_those_of_trimesh(scale):
    ring = trimesh.creation.torus(1.0, 0.3, major_sections=24, minor_sections=12)
    mesh = TriangleMesh(torch.tensor(ring.vertices), torch.tensor(ring.faces))
    generator = torch.Generator().manual_seed(0)
    start = 3 * torch.nn.functional.normalize(torch.randn(300, 3, dtype=F64, generator=generator), dim=1)
    way = 0.7 * torch.randn(300, 3, dtype=F64, generator=generator) - start
    pose = random_pose(3)
    found = cast(fixed(ShapeKind.MESH, scale, pose, mesh), start, way)
    vertices = geometry.pose_apply(pose, mesh.vertices.double() * torch.tensor(scale, dtype=F64))
    body = trimesh.Trimesh(vertices.numpy(), mesh.faces.numpy(), process=False)
    place, ray, _ = body.ray.intersects_location(start.numpy(), way.numpy(), multiple_hits=False)
    expected = np.full(300, 100.0)
    expected[ray] = np.linalg.norm(place - start.numpy()[ray], axis=1)
    assert 0.2 < (expected < 100).mean() < 0.9
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


def test_a_convex_shape_is_the_hull_of_its_mesh():
    ring = trimesh.creation.torus(1.0, 0.3)
    mesh = TriangleMesh(torch.tensor(ring.vertices), torch.tensor(ring.faces))
    through = ([0.0, 0.0, 3.0], [0.0, 0.0, -1.0])
    assert cast(fixed(ShapeKind.MESH, (1.0, 1.0, 1.0), mesh=mesh), *through).item() == 100.0
    hull = cast(fixed(ShapeKind.CONVEX, (1.0, 1.0, 1.0), mesh=mesh), *through).item()
    assert hull == pytest.approx(2.7, abs=0.02)


@pytest.mark.parametrize("kind", [*MESHES, ShapeKind.MESH, ShapeKind.PLANE])
def test_a_ray_does_not_see_the_shape_that_it_starts_in(kind):
    mesh = TriangleMesh.icosphere(2) if kind == ShapeKind.MESH else None
    inside = fixed(kind, (0.5, 0.5, 0.5), mesh=mesh)
    behind = Shapes.of([kind, ShapeKind.BOX], [sim.WORLD] * 2, [[0.5] * 3, [0.1] * 3], mesh=[mesh, None])
    behind = replace(behind, pose=torch.cat([inside.pose, geometry.pose_identity(1, dtype=F64)]))
    behind.pose[1, 2] = -2.0
    start = torch.tensor([[0.0, 0.0, -0.1]], dtype=F64)
    assert cast(inside, start, [0.1, 0.0, -1.0]).item() == 100.0
    assert cast(behind, start, [0.0, 0.0, -1.0]).item() == pytest.approx(1.8, rel=1e-9)


def test_the_nearest_of_many_shapes_counts_and_each_world_has_its_poses():
    model = Shapes.of([ShapeKind.SPHERE, ShapeKind.BOX, ShapeKind.PLANE], [0, 1, sim.WORLD], [[0.5] * 3] * 3)
    pose = geometry.pose_identity(2, 2, dtype=F64)
    pose[0, 0, 0], pose[0, 1, 0], pose[1, 0, 0], pose[1, 1, 0] = 3.0, 5.0, 5.0, 3.5
    pose[..., 2] = 1.0
    start, way = torch.tensor([0.0, 0.0, 1.0], dtype=F64), torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    pose.requires_grad_()
    ranges = sim.RayCaster(model)(start.expand(2, 1, 3), way.expand(2, 1, 3), pose)
    torch.testing.assert_close(ranges[:, 0], torch.tensor([2.5, 3.0], dtype=F64))
    (gradient,) = torch.autograd.grad(ranges.sum(), pose)
    torch.testing.assert_close(gradient[:, :, 0], torch.eye(2, dtype=F64))


def test_what_is_beyond_the_longest_range_gives_it_and_no_gradient():
    ball = fixed(ShapeKind.SPHERE, (0.5, 0.0, 0.0))
    start = torch.tensor([[[-3.0, 0.0, 0.0], [-3.0, 2.0, 0.0]]], dtype=F64, requires_grad=True)
    way = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=F64).expand(1, 2, 3)
    ranges = sim.RayCaster(ball)(start, way, max_range=2.0)
    assert ranges.tolist() == [[2.0, 2.0]]
    (gradient,) = torch.autograd.grad(ranges.sum(), start)
    assert (gradient == 0).all()


def test_a_scanner_turns_its_rays_with_its_pose_and_has_noise_on_demand():
    room = fixed(
        ShapeKind.SPHERE,
        (1.0, 0.0, 0.0),
        geometry.pose(torch.tensor([4.0, 0, 0]), torch.tensor([0, 0, 0, 1.0])).double(),
    )
    scanner = sim.RangeRays(room, sim.ray_fan(5, math.pi), max_range=20.0, noise=0.1, relative_noise=0.05)
    upright = geometry.pose_identity(4000, dtype=F64)
    clean = scanner.run({"sensor": upright})["range"]
    torch.testing.assert_close(clean[0], torch.tensor([20.0, 20.0, 3.0, 20.0, 20.0], dtype=F64))
    turned = upright.clone()
    turned[:, 3:] = torch.tensor([0.0, 0.0, math.sin(math.pi / 8), math.cos(math.pi / 8)], dtype=F64)
    assert scanner(turned)[0].argmin() == 1
    noisy = scanner.run({"sensor": upright, "generator": torch.Generator().manual_seed(1)})["range"]
    again = scanner(upright, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noisy, again)
    assert (noisy[:, [0, 1, 3, 4]] == 20.0).all()
    assert noisy[:, 2].std().item() == pytest.approx(0.1 + 0.05 * 3.0, rel=0.05)
    assert noisy[:, 2].mean().item() == pytest.approx(3.0, abs=0.02)


def test_a_scanner_that_was_used_is_copied_and_saved(tmp_path):
    mesh = fixed(ShapeKind.MESH, (1.0, 1.0, 1.0), mesh=TriangleMesh.icosphere(1))
    scanner = sim.RangeRays(mesh, sim.ray_fan(7, 1.0))
    sensor = torch.tensor([[-3.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0]])
    expected = scanner(sensor)
    assert (expected < 30.0).any()
    assert torch.equal(copy.deepcopy(scanner)(sensor), expected)
    gp.save(gp.Pipeline(scan=scanner), tmp_path / "run")
    loaded = gp.load(tmp_path / "run")
    assert torch.equal(loaded(sensor=sensor)["scan.range"], expected)


def test_a_fan_covers_its_angles():
    fan = sim.ray_fan(3, math.pi / 2, elevations=(0.0, 0.3))
    torch.testing.assert_close(fan.norm(dim=1), torch.ones(6, dtype=F64))
    angles = torch.atan2(fan[:3, 1], fan[:3, 0])
    torch.testing.assert_close(angles, torch.tensor([-math.pi / 4, 0.0, math.pi / 4], dtype=F64))
    torch.testing.assert_close(fan[3:, 2], torch.full((3,), math.sin(0.3), dtype=F64))
    turn = sim.ray_fan(8)
    gaps = torch.atan2(turn[:, 1], turn[:, 0]).diff() % (2 * math.pi)
    torch.testing.assert_close(gaps, torch.full((7,), math.pi / 4, dtype=F64))


def test_bad_rays_are_refused():
    plane = fixed(ShapeKind.PLANE, (0.0, 0.0, 0.0))
    caster, ones = sim.RayCaster(plane), torch.ones(2, 3, 3)
    with pytest.raises(InputError, match="ray 1 of world 1 starts at"):
        way = ones.clone()
        way[1, 1] = 0.0
        caster(ones, way)
    with pytest.raises(InputError, match="ray 0 of world 0"):
        caster(ones * math.nan, ones)
    with pytest.raises(ShapeError, match=r"shape \(B, R, 3\), got \(2, 3, 3\) and \(2, 2, 3\)"):
        caster(ones, ones[:, :2])
    with pytest.raises(ShapeError, match="share a dtype"):
        caster(ones, ones.double())
    with pytest.raises(InputError, match="max_range is above zero, got -1"):
        caster(ones, ones, max_range=-1)
    moving = Shapes.of([ShapeKind.SPHERE], [2], [[0.5] * 3])
    with pytest.raises(ShapeError, match="fixed to bodies up to 2"):
        sim.RayCaster(moving)(ones, ones, geometry.pose_identity(2, 2))
    with pytest.raises(InputError, match="no shapes to hit"):
        sim.RayCaster(sim.ModelBuilder("bare").build().shapes)
    with pytest.raises(InputError, match="shape 0 is a height field"):
        sim.RayCaster(fixed(ShapeKind.HEIGHT_FIELD, (1.0, 1.0, 1.0)))
    with pytest.raises(InputError, match="shape 0 is a MESH without a mesh"):
        cast(fixed(ShapeKind.MESH, (1.0, 1.0, 1.0)), [0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="directions"):
        sim.RangeRays(plane, torch.zeros(2, 3))
    with pytest.raises(InputError, match="noise of zero or more"):
        sim.RangeRays(plane, sim.ray_fan(3), noise=-1.0)
    with pytest.raises(InputError, match="ray_fan: expected at least one ray"):
        sim.ray_fan(0)
