import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.optimize import least_squares
from torch.autograd import gradcheck

import gradpath as gp
from gradpath import geometry, grids, perception
from gradpath.errors import InputError, ShapeError

F64 = torch.float64
K = torch.tensor([[80.0, 0.0, 32.0], [0.0, 82.0, 24.0], [0.0, 0.0, 1.0]], dtype=F64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def poses(batch, seed=0):
    turn = geometry.quat_exp(0.4 * random(batch, 3, seed=seed))
    return geometry.pose(0.2 * random(batch, 3, seed=seed + 1) + torch.tensor([0.0, 0.0, 3.0]), turn)


def test_unprojection_inverts_projection():
    depth = 1.0 + random(2, 1, 6, 8).abs()
    points = perception.unproject(depth, K)
    pixels = perception.project(points.flatten(1, 2), K).unflatten(1, (6, 8))
    columns, rows = torch.arange(8, dtype=F64) + 0.5, torch.arange(6, dtype=F64) + 0.5
    torch.testing.assert_close(pixels[..., 0], columns.expand(2, 6, 8))
    torch.testing.assert_close(pixels[..., 1], rows[:, None].expand(2, 6, 8))
    torch.testing.assert_close(points[..., 2], depth[:, 0])
    assert gradcheck(perception.unproject, (depth.requires_grad_(), K.clone().requires_grad_()))


def test_pixels_that_were_not_measured_are_masked_and_have_no_gradient():
    depth = torch.full((1, 1, 2, 3), 2.0, dtype=F64)
    depth[0, 0, 0] = torch.tensor([math.nan, math.inf, 50.0])
    depth.requires_grad_()
    pose = poses(1).requires_grad_()
    points, valid = perception.point_cloud(depth, K, pose, max_range=10.0)
    assert valid.tolist() == [[False] * 3 + [True] * 3]
    points.square().sum().backward()
    assert depth.grad.isfinite().all() and pose.grad.isfinite().all()
    assert (depth.grad[0, 0, 0] == 0).all() and (depth.grad[0, 0, 1] != 0).all()
    with pytest.raises(ShapeError, match="expected depth"):
        perception.unproject(depth[0], K)


def test_soft_argmax_is_the_mean_pixel_and_hard_the_hottest():
    rows, columns = torch.meshgrid(
        torch.arange(24.0, dtype=F64), torch.arange(32.0, dtype=F64), indexing="ij"
    )
    centre = torch.tensor([11.3, 9.8], dtype=F64)
    square = (columns + 0.5 - centre[0]) ** 2 + (rows + 0.5 - centre[1]) ** 2
    heat = (-square / (2 * 1.5**2)).expand(2, 1, -1, -1).clone().requires_grad_()
    place, spread = perception.spatial_soft_argmax(heat)
    torch.testing.assert_close(place, centre.expand(2, 1, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread, torch.full((2, 1, 2), 1.5, dtype=F64), rtol=0, atol=1e-3)
    with gp.mode("hard"):
        place, spread = perception.spatial_soft_argmax(heat)
    assert place[0, 0].tolist() == [11.5, 9.5] and spread.max() < 1e-5
    small = random(1, 2, 3, 4).requires_grad_()
    assert gradcheck(lambda h: perception.spatial_soft_argmax(h, tau=0.7), (small,))


POINTS = 0.5 * random(3, 10, 3, seed=5)


def test_pnp_recovers_the_pose_with_and_without_a_start():
    true = poses(3)
    pixels = perception.project(geometry.pose_apply(true[:, None], POINTS), K)
    turn = geometry.quat_exp(torch.full((3, 3), 0.1, dtype=F64))
    near = geometry.pose_compose(true, geometry.pose(torch.full((3, 3), 0.05, dtype=F64), turn))
    for init in (None, near):
        found = perception.pnp(POINTS, pixels, K, init)
        torch.testing.assert_close(found[:, :3], true[:, :3], rtol=0, atol=1e-8)
        sign = torch.sign((found[:, 3:] * true[:, 3:]).sum(-1, keepdim=True))
        torch.testing.assert_close(found[:, 3:] * sign, true[:, 3:], rtol=0, atol=1e-8)


def test_pnp_with_noise_is_the_least_squares_pose_and_its_gradient_that_of_the_minimum():
    true, weights = poses(3), torch.rand(3, 10, dtype=F64, generator=torch.Generator().manual_seed(7))
    pixels = perception.project(geometry.pose_apply(true[:, None], POINTS), K) + 3.0 * random(
        3, 10, 2, seed=8
    )
    found = perception.pnp(POINTS, pixels, K, true, weights=weights)

    def residuals(u, sample):
        move = geometry.pose(torch.from_numpy(u[:3]), geometry.quat_exp(torch.from_numpy(u[3:])))
        pose = geometry.pose_compose(true[sample], move)
        gap = perception.project(geometry.pose_apply(pose, POINTS[sample]), K) - pixels[sample]
        return (weights[sample, :, None].sqrt() * gap).flatten().numpy()

    for sample in range(3):
        best = least_squares(residuals, np.zeros(6), args=(sample,), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
        move = geometry.pose(torch.from_numpy(best[:3]), geometry.quat_exp(torch.from_numpy(best[3:])))
        pose = geometry.pose_compose(true[sample], move)
        torch.testing.assert_close(found[sample, :3], pose[:3], rtol=0, atol=1e-5)

    seed = random(3, 3, seed=9)

    def where(points, pixels, weights):
        return (perception.pnp(points, pixels, K, true, weights=weights)[:, :3] * seed).sum()

    inputs = [POINTS.clone(), pixels, weights]
    slopes = torch.autograd.grad(where(*(t.requires_grad_() for t in inputs)), inputs)
    rough = torch.autograd.grad(
        (
            perception.pnp(*inputs[:2], K, true, weights=inputs[2], gradient="gauss_newton")[:, :3] * seed
        ).sum(),
        inputs,
    )
    for index, slope in enumerate(slopes):
        move = random(*slope.shape, seed=10 + index)
        ends = []
        for sign in (1e-5, -1e-5):
            moved = [t.detach() + (sign * move if i == index else 0.0) for i, t in enumerate(inputs)]
            ends.append(where(*moved))
        expected = (ends[0] - ends[1]) / 2e-5
        assert (slope * move).sum().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
        assert (rough[index] - slope).norm() > 1e-3 * slope.norm()


def test_bad_correspondences_are_refused():
    pixels = random(3, 10, 2)
    with pytest.raises(InputError, match="pixels of sample 1 are NaN"):
        perception.pnp(POINTS, pixels.index_fill(0, torch.tensor(1), math.nan), K)
    with pytest.raises(InputError, match="6 points or more without init, got 4"):
        perception.pnp(POINTS[:, :4], pixels[:, :4], K)
    with pytest.raises(InputError, match="zero or more"):
        perception.pnp(POINTS, pixels, K, weights=-torch.ones(3, 10, dtype=F64))
    with pytest.raises(ShapeError, match=r"points \(B, N, 3\)"):
        perception.pnp(POINTS, pixels[:, :5], K)


@pytest.mark.parametrize("shape", [(13, 17), (7, 9, 8)])
def test_hard_distance_field_is_the_euclidean_one(shape):
    occupied = (torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) > 0.9).to(F64)
    with gp.mode("hard"):
        field = perception.distance_field(occupied, 0.2)
    for sample in range(2):
        solid = occupied[sample].numpy() > 0.5
        expected = 0.2 * (distance_transform_edt(~solid) - distance_transform_edt(solid))
        torch.testing.assert_close(field[sample], torch.from_numpy(expected))
    soft = [(perception.distance_field(occupied, 0.2, tau=t) - field).abs().max() for t in (0.3, 0.03, 0.003)]
    assert soft[0] > soft[1] > soft[2] and soft[2] < 0.03
    empty = perception.distance_field(torch.zeros(1, *shape), 0.2, max_distance=3.0)
    torch.testing.assert_close(empty, torch.full_like(empty, 3.0), rtol=0, atol=0.01)
    assert perception.distance_field(torch.ones(1, *shape), 0.2, max_distance=3.0).max() < -2.9


def test_occupancy_counts_points_at_nodes_and_between_them():
    points = torch.tensor([[[0.2, 0.4], [0.3, 0.4], [9.0, 0.0], [0.0, 0.0]]], dtype=F64)
    valid = torch.tensor([[True, True, True, False]])
    grid = perception.occupancy(points, valid, torch.zeros(2, dtype=F64), 0.2, (4, 5))
    expected = torch.zeros(1, 4, 5, dtype=F64)
    expected[0, 1, 2], expected[0, 2, 2] = 1 - math.exp(-1.5), 1 - math.exp(-0.5)
    torch.testing.assert_close(grid, expected)
    cloud = torch.rand(2, 6, 3, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    origin = torch.tensor([-0.01, -0.02, -0.03], dtype=F64, requires_grad=True)
    every = torch.ones(2, 6, dtype=torch.bool)
    assert gradcheck(lambda p, o: perception.occupancy(p, every, o, 0.31, (4, 4, 4)), (cloud, origin))
    with pytest.raises(InputError, match="two nodes"):
        perception.occupancy(cloud, every, origin, 0.3, (4, 4, 1))
    with pytest.raises(InputError, match="less than 0"):
        perception.distance_field(torch.full((1, 3, 3), -1.0), 0.1)


def test_gradient_from_the_distance_at_a_point_back_to_the_depth_image():
    depth = 1.0 + 0.1 * torch.rand(1, 1, 4, 5, dtype=F64, generator=torch.Generator().manual_seed(3))
    pose = geometry.pose_identity(1, dtype=F64)
    origin = torch.tensor([-0.9, -0.9, 0.0], dtype=F64)
    query = torch.tensor([[[-0.35, -0.25, 0.5]]], dtype=F64)

    def distance(depth, pose):
        points, valid = perception.point_cloud(depth, K, pose)
        grid = perception.occupancy(points, valid, origin, 0.15, (8, 8, 10))
        field = perception.distance_field(grid, 0.15, max_distance=2.0, tau=0.3)
        return grids.interpolate(field, query, origin, 0.15)

    value = distance(depth, pose)
    assert 0.3 < float(value) < 0.8
    assert gradcheck(distance, (depth.requires_grad_(), pose.requires_grad_()), rtol=1e-4)
