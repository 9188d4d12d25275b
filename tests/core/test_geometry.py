import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from gradpath import geometry as geo
from gradpath.errors import InputError, ShapeError


def random_quaternions(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return geo.quat_normalize(torch.randn(*shape, 4, dtype=torch.float64, generator=generator))


def random_vectors(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same_rotation(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close((a * b).sum(-1).abs(), torch.ones(a.shape[:-1], dtype=a.dtype))


def test_rotations_agree_with_scipy():
    a, b, v = random_quaternions(20), random_quaternions(20, seed=2), random_vectors(20)
    ra, rb = Rotation.from_quat(a.numpy()), Rotation.from_quat(b.numpy())
    same_rotation(geo.quat_multiply(a, b), torch.from_numpy((ra * rb).as_quat()))
    torch.testing.assert_close(geo.quat_rotate(a, v), torch.from_numpy(ra.apply(v.numpy())))
    torch.testing.assert_close(geo.quat_to_matrix(a), torch.from_numpy(ra.as_matrix()))
    torch.testing.assert_close(geo.quat_log(a), torch.from_numpy(ra.as_rotvec()))
    same_rotation(geo.quat_exp(v), torch.from_numpy(Rotation.from_rotvec(v.numpy()).as_quat()))
    same_rotation(geo.quat_from_matrix(geo.quat_to_matrix(a)), a)


@pytest.mark.parametrize("axis", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_from_matrix_at_half_turns(axis):
    q = geo.quat_from_axis_angle(torch.tensor(axis, dtype=torch.float64), torch.tensor(math.pi).double())
    matrix = geo.quat_to_matrix(q).requires_grad_()
    back = geo.quat_from_matrix(matrix)
    same_rotation(back, q)
    (gradient,) = torch.autograd.grad(back.sum(), matrix)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("size", [0.0, 1e-12, 9.9e-4, 1.01e-3, 1.0])
def test_exp_and_log_are_right_and_differentiable_at_every_size(size):
    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rotation = (size * direction / direction.norm()).requires_grad_()
    torch.testing.assert_close(geo.quat_log(geo.quat_exp(rotation)), rotation, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(geo.quat_exp, rotation, eps=1e-5, atol=1e-9)
    # The quaternion is not constrained to the sphere here: the gradient holds along rotations.
    assert torch.autograd.gradcheck(lambda r: geo.quat_log(geo.quat_exp(r)), rotation, eps=1e-5, atol=1e-8)


def test_log_takes_the_short_way():
    q = geo.quat_exp(torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64))
    torch.testing.assert_close(geo.quat_log(-q), geo.quat_log(q))
    half_turn = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    log = geo.quat_log(half_turn)
    torch.testing.assert_close(log.norm(), torch.tensor(math.pi).double())
    assert torch.isfinite(torch.autograd.grad(log.sum(), half_turn)[0]).all()


@pytest.mark.parametrize(
    "function, sizes",
    [
        (geo.quat_multiply, (4, 4)),
        (geo.quat_rotate, (4, 3)),
        (geo.quat_normalize, (4,)),
        (geo.quat_to_matrix, (4,)),
        (geo.pose_apply, (7, 3)),
        (geo.pose_compose, (7, 7)),
        (geo.pose_inverse, (7,)),
        (geo.look_at, (3, 3)),
    ],
)
def test_gradients(function, sizes):
    generator = torch.Generator().manual_seed(3)
    inputs = [
        torch.randn(2, size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes
    ]
    assert torch.autograd.gradcheck(function, inputs)


def test_poses_form_a_group():
    a = geo.pose(random_vectors(5), random_quaternions(5))
    b = geo.pose(random_vectors(5, seed=4), random_quaternions(5, seed=5))
    points = random_vectors(5, seed=6)
    torch.testing.assert_close(
        geo.pose_apply(geo.pose_compose(a, b), points), geo.pose_apply(a, geo.pose_apply(b, points))
    )
    torch.testing.assert_close(geo.pose_apply(geo.pose_inverse(a), geo.pose_apply(a, points)), points)
    identity = geo.pose_identity(5, dtype=torch.float64)
    torch.testing.assert_close(geo.pose_compose(a, identity), a)


def test_slerp_moves_evenly_and_stays_finite_between_equal_rotations():
    a, b = random_quaternions(4), random_quaternions(4, seed=7)
    total = geo.quat_log(geo.quat_multiply(geo.quat_conjugate(a), b)).norm(dim=-1)
    part = geo.slerp(a, b, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(
        geo.quat_log(geo.quat_multiply(geo.quat_conjugate(a), part)).norm(dim=-1), total / 4
    )
    q = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(geo.slerp(q, a, torch.tensor(0.5).double()).sum(), q)
    assert torch.isfinite(gradient).all()


def test_look_at_points_z_forward_and_y_down():
    camera = geo.look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 2.0, 3.0]))
    matrix = geo.quat_to_matrix(camera[3:])
    torch.testing.assert_close(matrix[:, 2], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(matrix[:, 1], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(matrix[:, 0], torch.tensor([0.0, -1.0, 0.0]))


def test_leading_axes_broadcast():
    q, points = random_quaternions(3, 1), random_vectors(5)
    assert geo.quat_rotate(q, points).shape == (3, 5, 3)
    assert geo.pose(points, q).shape == (3, 5, 7)


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"quaternion 1 is \[0.0, 0.0, 0.0, 0.0\]"):
        geo.quat_normalize(torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    with pytest.raises(InputError, match="along `up`"):
        geo.look_at(torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(ShapeError, match=r"quat_rotate: v: expected shape \(..., 3\), got \(2, 4\)"):
        geo.quat_rotate(random_quaternions(2), random_quaternions(2))
    with pytest.raises(ShapeError, match="quat_from_matrix"):
        geo.quat_from_matrix(torch.eye(4))


@pytest.mark.parametrize("column, wrong", [(3, 0.5), (6, 1.002), (6, 0.0), (5, math.nan), (1, math.inf)])
def test_poses_that_are_none_are_refused_by_world(column, wrong):
    poses = geo.pose_identity(3, dtype=torch.float64)
    poses[0, 6] = 1.0005  # rounding
    geo.check_poses(poses, "camera")
    poses[1, column] = wrong
    with pytest.raises(InputError, match=r"camera: the pose of world 1 is .* norm 1"):
        geo.check_poses(poses, "camera")
    instances = torch.stack([geo.pose_identity(3, dtype=torch.float64), poses])
    with pytest.raises(InputError, match="camera: the pose of instance 1 of world 1 is"):
        geo.check_poses(instances, "camera")
    with pytest.raises(ShapeError, match="camera: pose: expected shape"):
        geo.check_poses(poses[:, :6], "camera")


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_are_none_are_refused_by_instance(wrong):
    scales = torch.ones(2, 3, 3)
    geo.check_scales(scales, "camera")
    scales[1, 2, 1] = wrong
    for given in (scales, scales[..., 1]):
        with pytest.raises(InputError, match="camera: the scale of instance 2 of world 1 is"):
            geo.check_scales(given, "camera")


def test_heading_is_where_the_x_axis_points():
    q = random_quaternions(50)
    cosine, sine = geo.heading(q)
    ahead = geo.quat_rotate(q, torch.tensor([1.0, 0.0, 0.0], dtype=q.dtype))[:, :2]
    ahead = ahead / (ahead.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    torch.testing.assert_close(torch.stack([cosine, sine], -1), ahead, atol=1e-14, rtol=0)
    up = torch.tensor([0.0, -0.5, 0.0, 0.5], dtype=q.dtype).mul(2**0.5).requires_grad_()  # x axis vertical
    sum(geo.heading(up)).backward()
    assert torch.isfinite(up.grad).all()
