"""Spheres from arrays: outlines, gradients to centres and radii, labels."""

import math

import pytest
import torch

import gradpath as gp
from gradpath.errors import InputError, ShapeError
from gradpath.render import Attribute, pinhole, rasterize, spheres

F64 = torch.float64
K = pinhole(96, 96, math.radians(60))


def draw(points, topology, **options):
    return rasterize(points, topology, K=K, height=96, width=96, far=10.0, **options)


def test_a_ball_covers_the_area_of_its_outline():
    """The outline of a sphere on the axis is a circle of radius f tan(asin(r / z))."""
    centre = torch.tensor([[[0.0, 0.0, 4.0]]], dtype=F64)
    with gp.mode("hard"):
        image = draw(*spheres(centre, 0.8, level=4))
    radius = float(K[0, 0]) * math.tan(math.asin(0.8 / 4.0))
    assert float(image["alpha"].sum()) == pytest.approx(math.pi * radius**2, rel=0.01)
    assert float(image["depth"].min()) == pytest.approx(3.2, abs=0.01)


def test_gradients_reach_centres_and_radii():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 5, 3, generator=generator, dtype=F64) * 0.7 + torch.tensor([0.0, 0.0, 4.0])
    radii = 0.2 + 0.2 * torch.rand(2, 5, generator=generator, dtype=F64)
    weight = torch.randn(2, 96, 96, generator=generator, dtype=F64)

    def value(centres, radii):
        image = draw(*spheres(centres, radii))
        return ((image["alpha"] + image["depth"].log()) * weight).sum()

    x, r = centres.clone().requires_grad_(), radii.clone().requires_grad_()
    value(x, r).backward()
    for leaf, other in ((x, False), (r, True)):
        direction = torch.randn(leaf.shape, generator=generator, dtype=F64)
        moves = [sign * 1e-7 * direction for sign in (1, -1)]
        high, low = (float(value(centres, radii + m) if other else value(centres + m, radii)) for m in moves)
        assert float((leaf.grad * direction).sum()) == pytest.approx((high - low) / 2e-7, rel=1e-5)


def test_spheres_are_labelled_in_their_order():
    centres = torch.tensor([[[-0.6, 0.0, 4.0], [0.6, 0.0, 4.0], [0.6, 0.0, 6.0]]])
    points, topology = spheres(centres, torch.tensor([0.3, 0.2, 0.5]))
    label = Attribute.one_hot(torch.arange(3).repeat_interleave(len(topology.faces) // 3), 3)
    with gp.mode("hard"):
        image = draw(points, topology, channels="label", attributes={"label": label})["label"][0]
    shown = image.sum((0, 1))
    assert bool((shown > 20).all())
    f = float(K[0, 0])
    assert image[48, int(48 - 0.6 * f / 4)].argmax() == 0 and image[48, int(48 + 0.6 * f / 4)].argmax() == 1


def test_bad_spheres_are_refused():
    centres = torch.zeros(1, 2, 3)
    with pytest.raises(ShapeError, match='expected centres "B N 3"'):
        spheres(centres[0], 0.1)
    with pytest.raises(InputError, match="got no points"):
        spheres(centres[:, :0], 0.1)
    with pytest.raises(InputError, match=r"must be positive, got -1\.0"):
        spheres(centres, torch.tensor([1.0, -1.0]))
    with pytest.raises(ShapeError, match=r"got \(3,\)"):
        spheres(centres, torch.ones(3))
