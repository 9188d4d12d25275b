import numpy as np
import pytest
import torch
import trimesh

from gradpath import geometry
from gradpath.distances import Shape, collides, mesh_distance, shape_distance
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh

F64 = torch.float64
IDENTITY = geometry.pose_identity(1, 1, dtype=F64)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def distance_to(shape: Shape, point: tuple[float, ...], size: tuple[float, ...]) -> float:
    return float(
        shape_distance(tensor(*point)[None], torch.tensor([shape]), IDENTITY, tensor(*size)[None, None])
    )


@pytest.mark.parametrize(
    "shape, point, size, expected",
    [
        (Shape.SPHERE, (3, 4, 0), (2, 0, 0), 3),
        (Shape.SPHERE, (0, 0, 0), (2, 0, 0), -2),
        (Shape.BOX, (4, 6, 0.5), (1, 2, 3), 5),  # from an edge
        (Shape.BOX, (3, 4, 4), (1, 2, 3), 3),  # from a corner
        (Shape.BOX, (0.5, 0, 0), (1, 2, 3), -0.5),
        (Shape.BOX, (0, 0, -3.5), (1, 2, 3), 0.5),
        (Shape.CYLINDER, (4, 0, 5), (1, 1, 0), 5),  # from the rim
        (Shape.CYLINDER, (0, 0, 0.25), (2, 1, 0), -0.75),
        (Shape.CYLINDER, (0, 3, 0), (2, 1, 0), 1),
        (Shape.CAPSULE, (3, 0, 5), (1, 1, 0), 4),
        (Shape.CAPSULE, (0.25, 0, 0.5), (1, 1, 0), -0.75),
        (Shape.PLANE, (7, -2, -1.5), (0, 0, 0), -1.5),
    ],
)
def test_closed_forms(shape, point, size, expected):
    assert distance_to(shape, point, size) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("shape", list(Shape))
def test_distance_has_unit_gradient_and_leads_to_the_surface(shape):
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.randn(1, 200, 3, dtype=F64, generator=generator)
    points.requires_grad_()
    rotation = geometry.quat_normalize(torch.randn(1, 1, 4, dtype=F64, generator=generator))
    pose = geometry.pose(tensor(0.3, -0.2, 0.1), rotation)
    size = tensor(0.8, 0.6, 1.1)[None, None]
    distance = shape_distance(points, torch.tensor([shape]), pose, size)
    (gradient,) = torch.autograd.grad(distance.sum(), points)
    torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(1, 200, dtype=F64))
    onto = points - distance * gradient
    again = shape_distance(onto.detach(), torch.tensor([shape]), pose, size)
    torch.testing.assert_close(again, torch.zeros_like(again), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize(
    "point", [(0, 0, 0), (0, 0, 0.6), (0.8, 0.6, 1.1), (0.8, 0, 0), (0, 0, 1.7), (0, 2, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_centres_axes_edges_and_corners(shape, point, dtype):
    inputs = [
        torch.tensor([point], dtype=dtype),
        IDENTITY.to(dtype),
        torch.tensor([[[0.8, 0.6, 1.1]]], dtype=dtype),
    ]
    points, pose, size = (x.requires_grad_() for x in inputs)
    distance = shape_distance(points, torch.tensor([shape]), pose, size)
    gradients = torch.autograd.grad(distance.sum(), (points, pose, size), materialize_grads=True)
    assert torch.isfinite(distance).all() and all(torch.isfinite(g).all() for g in gradients)


def test_points_and_kinds_broadcast_over_worlds():
    pose = geometry.pose_identity(2, 3)
    size = torch.ones(2, 3, 3)
    kind = torch.tensor([Shape.SPHERE, Shape.BOX, Shape.PLANE])
    points = torch.randn(2, 4, 3)
    many = shape_distance(points, kind, pose, size)
    assert many.shape == (2, 4, 3)
    torch.testing.assert_close(shape_distance(points[:, 1], kind, pose, size), many[:, 1])
    torch.testing.assert_close(shape_distance(points, kind.expand(2, 3).clone(), pose, size), many)
    torch.testing.assert_close(collides(points, 0.3, kind, pose, size), (many < 0.3).any(-1))


def brute_force(mesh: TriangleMesh, points: torch.Tensor) -> np.ndarray:
    """Unsigned distance to the nearest of all triangles, by trimesh's own closest point."""
    triangles = mesh.vertices.double()[mesh.faces.long()].numpy()
    found = []
    for point in points.reshape(-1, 3).numpy():
        closest = trimesh.triangles.closest_point(triangles, np.broadcast_to(point, (len(triangles), 3)))
        found.append(np.linalg.norm(closest - point, axis=1).min())
    return np.array(found).reshape(points.shape[:-1])


def test_mesh_distance_agrees_with_brute_force_under_pose_and_scale():
    generator = torch.Generator().manual_seed(1)
    mesh = TriangleMesh.capsule(0.5, 0.7, 8)
    pose = geometry.pose(
        torch.randn(2, 3, 3, dtype=F64, generator=generator),
        geometry.quat_normalize(torch.randn(2, 3, 4, dtype=F64, generator=generator)),
    )
    scale = 0.5 + torch.rand(2, 3, dtype=F64, generator=generator)
    points = 2 * torch.randn(2, 20, 3, dtype=F64, generator=generator)
    local = (
        geometry.pose_apply(geometry.pose_inverse(pose)[:, None], points[:, :, None])
        / scale[:, None, :, None]
    )
    expected = torch.from_numpy(brute_force(mesh, local)) * scale[:, None]
    torch.testing.assert_close(
        mesh_distance(points, pose, scale, mesh).abs(), expected, atol=1e-12, rtol=1e-12
    )
    single = mesh_distance(points.float(), pose.float(), scale.float(), mesh)
    torch.testing.assert_close(single.abs().double(), expected, atol=1e-5, rtol=1e-5)


def test_mesh_and_shape_give_the_same_box_inside_and_outside():
    generator = torch.Generator().manual_seed(2)
    points = 1.5 * torch.randn(1, 500, 3, dtype=F64, generator=generator)
    pose = geometry.pose(tensor(0.1, 0.2, 0.3), geometry.quat_exp(tensor(0.4, 0.5, -0.6)))[None, None]
    box = shape_distance(points, torch.tensor([Shape.BOX]), pose, torch.full((1, 1, 3), 1.5, dtype=F64))
    mesh = mesh_distance(points, pose, torch.full((1, 1), 1.5, dtype=F64), TriangleMesh.box())
    assert (box < 0).any() and (box > 0).any()
    torch.testing.assert_close(mesh, box, atol=1e-12, rtol=1e-12)


def test_mesh_gradient_is_the_normal_on_the_surface():
    for point, normal in (((1.0, 0.2, 0.1), (1.0, 0.0, 0.0)), ((0.3, -0.2, -1.0), (0.0, 0.0, -1.0))):
        points = tensor(*point)[None].requires_grad_()
        distance = mesh_distance(points, IDENTITY, torch.ones(1, 1, dtype=F64), TriangleMesh.box())
        (gradient,) = torch.autograd.grad(distance.sum(), points)
        assert distance.item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(gradient, tensor(*normal)[None])


def test_a_point_that_is_not_finite_gives_no_distance():
    nowhere = torch.full((1, 3), torch.nan)
    assert mesh_distance(nowhere, IDENTITY.float(), torch.ones(1, 1), TriangleMesh.box()).isnan().all()
    assert shape_distance(nowhere, torch.tensor([0]), IDENTITY.float(), torch.ones(1, 1, 3)).isnan().all()


def test_empty_batches():
    mesh = TriangleMesh.box()
    assert mesh_distance(
        torch.zeros(2, 0, 3), geometry.pose_identity(2, 3), torch.ones(2, 3), mesh
    ).shape == (2, 0, 3)
    assert shape_distance(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int32), torch.zeros(0, 0, 7), torch.zeros(0, 0, 3)
    ).shape == (0, 0)


def test_bad_input_is_named():
    one = torch.ones(1, 1)
    with pytest.raises(InputError, match=r"kinds run from 0 to 9.*SPHERE=0"):
        shape_distance(
            torch.zeros(1, 3), torch.tensor([0, 9]), geometry.pose_identity(1, 2), torch.ones(1, 2, 3)
        )
    with pytest.raises(ShapeError, match="expand what all worlds share"):
        mesh_distance(torch.zeros(2, 3), geometry.pose_identity(1, 1), one, TriangleMesh.box())
    with pytest.raises(ShapeError, match="one dtype"):
        mesh_distance(torch.zeros(1, 3), IDENTITY, one, TriangleMesh.box())
    with pytest.raises(ShapeError, match=r'"size".*expected "B I vec3"'):
        shape_distance(torch.zeros(1, 3), torch.tensor([0]), geometry.pose_identity(1, 1), one)


@pytest.mark.parametrize("wrong", [-1.0, torch.nan, torch.inf])
def test_sizes_that_no_solid_has_are_refused(wrong):
    size = torch.ones(1, 1, 3)
    size[..., 2] = wrong
    with pytest.raises(InputError, match=f"shape_distance: a size is {wrong}"):
        shape_distance(torch.zeros(1, 3), torch.tensor([1]), IDENTITY.float(), size)
    for scale in (wrong, 0.0):
        with pytest.raises(InputError, match="mesh_distance: the scale of instance 0 of world 0"):
            mesh_distance(torch.zeros(1, 3), IDENTITY.float(), torch.full((1, 1), scale), TriangleMesh.box())
