"""Image losses and mesh regularizers: closed forms, and independent versions in numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.render import losses

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_silhouettes_of_overlapping_squares():
    a, b = torch.zeros(1, 20, 20, dtype=F64), torch.zeros(1, 20, 20, dtype=F64)
    a[:, 2:12, 2:12], b[:, 7:17, 2:12] = 1.0, 1.0
    assert float(losses.silhouette_iou(a, b)) == pytest.approx(1 - 50 / 150)
    assert float(losses.silhouette_iou(a, a)) == 0.0
    assert float(losses.silhouette_iou(0 * a, 0 * a)) == 0.0
    both = torch.cat([a, a]), torch.cat([a, b])
    assert float(losses.silhouette_iou(*both)) == pytest.approx(0.5 * (1 - 50 / 150))


def test_depth_up_to_scale():
    depth, target = 1 + rand(3, 6, 8), 1 + rand(3, 6, 8, seed=1)
    assert float(losses.scale_invariant_depth(3 * target, target, share=1.0)) == pytest.approx(0, abs=1e-12)
    assert float(losses.scale_invariant_depth(3 * target, target, share=0.0)) == pytest.approx(
        math.log(3) ** 2
    )
    d = (depth.log() - target.log()).numpy()
    assert float(losses.scale_invariant_depth(depth, target, share=1.0)) == pytest.approx(
        d.reshape(3, -1).var(1).mean()
    )
    mask = torch.zeros(3, 6, 8, dtype=torch.bool)
    mask[:2, :3] = True  # nothing to compare in the third image
    expected = [(d[i, :3] ** 2).mean() - 0.5 * d[i, :3].mean() ** 2 for i in (0, 1)]
    spoiled = torch.where(mask, depth, -1.0)
    assert float(losses.scale_invariant_depth(spoiled, target, mask)) == pytest.approx(np.mean(expected))


def test_differences_at_several_scales():
    image, target = rand(2, 3, 8, 8), rand(2, 3, 8, 8, seed=1)
    expected = []
    for size in (1, 2, 4):
        blocks = (image - target).reshape(2, 3, 8 // size, size, 8 // size, size).mean((3, 5))
        expected.append(float(blocks.abs().mean()))
    assert float(losses.multiscale_l1(image, target, levels=3)) == pytest.approx(np.mean(expected))
    assert torch.isfinite(losses.multiscale_l1(image, target, levels=99))


def test_structural_similarity_equals_its_definition():
    image, target = rand(20, 24), rand(20, 24, seed=1)
    a, b = image.numpy(), target.numpy()

    def mean(x):
        return gaussian_filter(x, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    vary_a, vary_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    covary = mean(a * b) - mean(a) * mean(b)
    top = (2 * mean(a) * mean(b) + 1e-4) * (2 * covary + 9e-4)
    expected = top / ((mean(a) ** 2 + mean(b) ** 2 + 1e-4) * (vary_a + vary_b + 9e-4))
    assert float(losses.ssim(image, target)) == pytest.approx(expected.mean(), rel=1e-6)
    assert float(losses.ssim(image, image)) == pytest.approx(1.0)


def test_regularizers_of_known_meshes():
    plane = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 0]], dtype=F64)
    fan = torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    assert float(losses.flattening(plane, fan)) == pytest.approx(0, abs=1e-12)
    assert float(losses.edge_length(plane, fan)) == pytest.approx((4 * 1.0 + 4 * 0.5) / 8)
    assert float(losses.edge_length(plane, fan, target=1.0)) == pytest.approx(
        4 * (1 - math.sqrt(0.5)) ** 2 / 8
    )
    raised = plane.clone()
    raised[4, 2] = 0.3
    # The middle is 0.3 above its neighbours; a corner is away from the mean of two corners and the middle.
    corner = (torch.tensor([1.0 + 0 + 0.5, 0 + 1 + 0.5, 0.3]).double() / 3).square().sum()
    assert float(losses.laplacian(raised, fan)) == pytest.approx((0.09 + 4 * float(corner)) / 5)
    box = TriangleMesh.box()
    # Of 18 edges, 12 are at right angles, and 6 are diagonals of flat sides.
    assert float(losses.flattening(box.vertices.double(), box.faces)) == pytest.approx(12 / 18)


@pytest.mark.parametrize("name", ["laplacian", "flattening", "edge_length"])
def test_gradients_of_regularizers(name):
    mesh = TriangleMesh.icosphere(1)
    points = mesh.vertices.double()[None] + 0.1 * rand(2, len(mesh.vertices), 3)
    loss = getattr(losses, name)
    assert torch.autograd.gradcheck(lambda x: loss(x, mesh.faces), points.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("name", ["silhouette_iou", "scale_invariant_depth", "multiscale_l1", "ssim"])
def test_gradients_of_image_losses(name):
    image, target = 0.1 + rand(2, 12, 12).requires_grad_(), 0.1 + rand(2, 12, 12, seed=1)
    loss = getattr(losses, name)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), image.detach().requires_grad_(), atol=1e-7)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match="ssim: expected two of the same shape"):
        losses.ssim(rand(1, 12, 12), rand(12, 12))
    with pytest.raises(InputError, match="an odd window that fits"):
        losses.ssim(rand(8, 8), rand(8, 8))
    with pytest.raises(InputError, match="positive depth"):
        losses.scale_invariant_depth(rand(4, 4) - 2, rand(4, 4))
    with pytest.raises(InputError, match="at least one level"):
        losses.multiscale_l1(rand(4, 4), rand(4, 4), levels=0)
    with pytest.raises(InputError, match="no two do"):
        losses.flattening(rand(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(InputError, match="faces ask for vertex 7"):
        losses.laplacian(rand(3, 3), torch.tensor([[0, 1, 7]]))
