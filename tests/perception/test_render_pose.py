"""Poses by render-and-compare, with the rasterizer passed in: from hard pictures; gradients against differences."""

import math

import pytest
import torch

import gradpath as gp
from gradpath import geometry, perception, render
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh

F64 = torch.float64
BOX = TriangleMesh.box()
TOPOLOGY = render.Topology.of(BOX.faces)
COLOURS = (0.5 + 0.4 * BOX.vertices).double()  # of corners
SIZE = 24


def picture(sigma=1.0, **options):
    def draw(pose, extent):
        points = geometry.pose_apply(pose[:, None], extent[:, None] * BOX.vertices.double())
        return render.rasterize(
            points, TOPOLOGY, K=render.pinhole(SIZE, SIZE, 0.7), height=SIZE, width=SIZE, sigma=sigma,
            channels="colour", attributes={"colour": COLOURS}, **options,
        )["colour"]  # fmt: skip

    return draw


def world(away: float):
    """Two boxes, and starts that are turned by `away` degrees and shifted."""
    generator = torch.Generator().manual_seed(3)
    turn = geometry.quat_normalize(torch.randn(2, 4, generator=generator, dtype=F64))
    axis = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator, dtype=F64), dim=-1)
    true = geometry.pose(torch.tensor([[0.1, -0.05, 4.0], [-0.1, 0.1, 4.4]], dtype=F64), turn)
    off = geometry.pose(
        0.05 * torch.randn(2, 3, generator=generator, dtype=F64), geometry.quat_exp(math.radians(away) * axis)
    )
    extent = torch.tensor([[0.7, 0.6, 0.5], [0.5, 0.8, 0.6]], dtype=F64)
    return true, geometry.pose_compose(true, off), extent


def errors(found, true):
    """Distances [m] and angles [degrees]."""
    between = geometry.pose_compose(geometry.pose_inverse(true), found)
    angle = geometry.quat_log(between[:, 3:]).norm(dim=-1)
    return between[:, :3].norm(dim=-1), angle * 180.0 / math.pi


def test_the_pose_of_a_hard_picture_is_found_from_wide_to_narrow_edges():
    true, init, extent = world(20.0)
    with gp.mode("hard"):
        seen = picture(supersample=8)(true, extent)
    found = init
    for sigma in (2.0, 1.0, 0.35):
        found = perception.render_and_compare(picture(sigma), seen, found, extent)
    distance, angle = errors(found, true)
    assert float(errors(init, true)[1].min()) > 19.0
    assert float(distance.max()) < 0.02 and float(angle.max()) < 0.5
    exact = perception.render_and_compare(picture(2.0), picture(2.0)(true, extent), init, extent)
    distance, angle = errors(exact, true)
    assert float(distance.max()) < 1e-6 and float(angle.max()) < 1e-4


def test_the_gradient_is_that_of_the_pose_where_the_residual_is_not_zero():
    true, init, extent = world(5.0)
    generator = torch.Generator().manual_seed(0)
    seen = picture()(true, extent) + 0.05 * torch.randn(2, SIZE, SIZE, 3, generator=generator, dtype=F64)
    weights = torch.rand(2, SIZE, SIZE, 1, generator=generator, dtype=F64)
    seed = torch.randn(2, 7, generator=generator, dtype=F64)

    def value(seen, extent):
        return (perception.render_and_compare(picture(), seen, init, extent, weights=weights) * seed).sum()

    leaves = [seen.clone().requires_grad_(), extent.clone().requires_grad_()]
    value(*leaves).backward()
    for number, eps in ((0, 1e-4), (1, 1e-5)):
        direction = torch.randn(leaves[number].shape, generator=generator, dtype=F64)
        ends = []
        for sign in (1, -1):
            given = [seen, extent]
            given[number] = (given[number] + sign * eps * direction).requires_grad_()  # to the last digits
            ends.append(value(*given).item())
        slope = (ends[0] - ends[1]) / (2 * eps)
        assert float((leaves[number].grad * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_bad_input_is_refused():
    true, init, extent = world(5.0)
    seen = picture()(true, extent)
    spoiled = seen.clone()
    spoiled[1, 3, 4] = math.nan
    with pytest.raises(InputError, match="needs float64"):
        perception.render_and_compare(picture(), seen.float(), init, extent)
    with pytest.raises(InputError, match="image of sample 1 are not finite"):
        perception.render_and_compare(picture(), spoiled, init, extent)
    with pytest.raises(InputError, match="weights are zero or more"):
        perception.render_and_compare(picture(), seen, init, extent, weights=-torch.ones_like(seen))
    with pytest.raises(ShapeError, match="have a row per sample"):
        perception.render_and_compare(picture(), seen, init, extent[:1])
    with pytest.raises(ShapeError, match=r"render gave \(2, 24, 24, 3\) for 2 poses"):
        perception.render_and_compare(picture(), seen[:, 1:], init, extent)
    with pytest.raises(InputError, match="the pose of world 0"):
        perception.render_and_compare(picture(), seen, 2.0 * init, extent)
