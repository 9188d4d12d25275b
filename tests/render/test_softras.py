"""The softras rule against PyTorch3D's formula, written out in plain torch over all pixels and faces."""

import math

import pytest
import torch

import gradpath as gp
from gradpath import geometry
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.render import SoftRas, pinhole, rasterize

F64 = torch.float64
NEAR, FAR = 0.5, 20.0


def cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def dense(points, faces, K, height, width, sigma, gamma=None, cutoff=None):
    """Alpha and depth (B, H, W) as PyTorch3D's rasterizer, sigmoid_alpha_blend and softmax_rgb_blend compute them.

    Without a cutoff, every face covers every pixel; with one, faces count within PyTorch3D's blur radius.
    """
    corners = points[:, faces.long()]  # B F 3 3
    rows = [dense_row(corners, K, y, width, sigma, gamma, cutoff) for y in range(height)]
    return torch.stack([alpha for alpha, _ in rows], 1), torch.stack([depth for _, depth in rows], 1)


def dense_row(corners, K, y, width, sigma, gamma, cutoff):
    u = torch.arange(width) + 0.5
    pixel = torch.stack([u, torch.full_like(u, y + 0.5)], -1).to(corners).reshape(1, -1, 1, 2)
    z = corners[..., 2]
    flat = torch.stack([K[0, 0] * corners[..., 0] / z + K[0, 2], K[1, 1] * corners[..., 1] / z + K[1, 2]], -1)
    flat = flat[:, None]  # B 1 F 3 2
    area = cross(flat[..., 1, :] - flat[..., 0, :], flat[..., 2, :] - flat[..., 0, :])
    squares, shares = [], []
    for k in range(3):
        start, end = flat[..., k, :], flat[..., (k + 1) % 3, :]
        along, away = end - start, pixel - start
        t = ((away * along).sum(-1) / (along * along).sum(-1)).clamp(0, 1)
        squares.append((away - t[..., None] * along).square().sum(-1))
        shares.append(cross(flat[..., (k + 2) % 3, :] - end, pixel - end) / area)
    share = torch.stack(shares, -1)  # barycentric in the image
    inside = (share > 0).all(-1)
    distance = torch.stack(squares, -1).amin(-1)
    signed = torch.where(inside, -distance, distance)
    probability = torch.sigmoid(-signed / sigma)
    drawn = z.amin(-1)[:, None] > NEAR
    if cutoff is not None:
        drawn = drawn & (signed < sigma * math.log(1 / cutoff - 1))
    probability = torch.where(drawn, probability, 0.0)
    alpha = 1 - (1 - probability).prod(-1)
    if gamma is None:
        return alpha, torch.zeros_like(alpha)
    corrected = share / z[:, None]
    corrected = corrected / corrected.sum(-1, keepdim=True)
    clipped = corrected.clamp(0, 1)
    clipped = clipped / clipped.sum(-1, keepdim=True).clamp(min=1e-5)
    depth = (clipped * z[:, None]).sum(-1)
    inverse = torch.where(drawn, (FAR - depth) / (FAR - NEAR), 0.0)
    largest = inverse.amax(-1, keepdim=True).clamp(min=1e-10)
    weight = probability * ((inverse - largest) / gamma).exp()
    background = ((1e-10 - largest[..., 0]) / gamma).exp().clamp(min=1e-10)
    return alpha, ((weight * depth).sum(-1) + background * FAR) / (weight.sum(-1) + background)


def ball(level: int, views: int, distance: float = 2.7) -> tuple[torch.Tensor, torch.Tensor]:
    """An icosphere seen from several sides, in the camera frame."""
    mesh = TriangleMesh.icosphere(level)
    azimuth = torch.arange(views, dtype=F64) * (2 * math.pi / views)
    eye = distance * torch.stack([azimuth.cos(), azimuth.sin(), torch.full_like(azimuth, 0.3)], -1)
    into = geometry.pose_inverse(geometry.look_at(eye, torch.zeros(3, dtype=F64)))
    return geometry.pose_apply(into[:, None], mesh.vertices.to(F64)), mesh.faces


def pair(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A dented ball before another, at another place in each world; no two vertices are equally far away."""
    points, faces = ball(1, batch)
    shift = torch.tensor([0.6, -0.3, 1.4], dtype=F64)
    both = torch.cat([0.5 * points, points + shift], 1)
    both = both + 0.02 * torch.randn(both.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    return both, torch.cat([faces, faces + points.shape[1]])


def test_alpha_equals_the_formula_over_all_faces():
    """The case of the literature: 1280 faces, 8 views, 64 x 64, sigma 1e-4 in squared NDC."""
    points, faces = ball(3, 8)
    K = pinhole(64, 64, math.radians(60))
    sigma = 1e-4 * 32**2
    compared = [0, 3, 5]
    expected, _ = dense(points[compared], faces, K, 64, 64, sigma)
    for dtype, tolerance in ((F64, 1e-6), (torch.float32, 1e-4)):
        alpha = rasterize(
            points.to(dtype),
            faces,
            K=K,
            height=64,
            width=64,
            silhouette="softras",
            sigma=sigma,
            channels="alpha",
        )["alpha"][compared]
        assert float((alpha - expected).abs().max()) < tolerance
        assert float(alpha.double().sum()) == pytest.approx(float(expected.sum()), rel=1e-6)


@pytest.mark.parametrize("gamma", [1e-4, 0.03])
@pytest.mark.parametrize("cutoff", [1e-4, 1e-8])
def test_values_and_gradients_equal_the_formula(gamma, cutoff):
    points, faces = pair()
    K = pinhole(24, 20, math.radians(60)).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(2, 2, 20, 24, generator=generator, dtype=F64)

    def run(draw):
        x = points.clone().requires_grad_()
        alpha, depth = draw(x)
        ((alpha * weights[0]).sum() + (depth * weights[1]).sum()).backward()
        gradient, K.grad, camera = x.grad, None, K.grad
        return alpha.detach(), depth.detach(), gradient, camera

    def ours(x):
        rule = SoftRas(gamma=gamma, cutoff=cutoff)
        image = rasterize(x, faces, K=K, height=20, width=24, silhouette=rule, sigma=0.7, near=NEAR, far=FAR)
        return image["alpha"], image["depth"]

    expected = run(lambda x: dense(x, faces, K, 20, 24, 0.7, gamma, cutoff))
    found = run(ours)
    for value, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9)
    for value, other in zip(found[2:], expected[2:], strict=True):
        scale = float(other.abs().max())
        if other.shape == (3, 3):  # the formula has no use for the other entries
            other = other * torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])
        assert float((value - other).abs().max()) < 1e-6 * scale


def test_alpha_alone_has_the_same_gradient_and_no_depth():
    points, faces = pair()
    K = pinhole(24, 20, math.radians(60))

    def gradient(channels):
        x = points.clone().requires_grad_()
        image = rasterize(x, faces, K=K, height=20, width=24, silhouette="softras", channels=channels)
        image["alpha"].square().sum().backward()
        return x.grad

    torch.testing.assert_close(gradient("alpha"), gradient(("alpha", "depth")), rtol=1e-12, atol=1e-12)


def test_hard_mode_is_the_same_for_both_rules():
    points, faces = pair()
    K = pinhole(24, 20, math.radians(60))
    with gp.mode("hard"):
        images = [
            rasterize(points, faces, K=K, height=20, width=24, silhouette=rule)
            for rule in ("edge", "softras")
        ]
    assert all(torch.equal(images[0][name], images[1][name]) for name in ("alpha", "depth"))
    with gp.mode("straight_through"):
        x = points.clone().requires_grad_()
        through = rasterize(x, faces, K=K, height=20, width=24, silhouette="softras")
    assert torch.allclose(through["depth"], images[0]["depth"])
    through["alpha"].square().sum().backward()
    soft = points.clone().requires_grad_()
    alpha = rasterize(soft, faces, K=K, height=20, width=24, silhouette="softras")["alpha"]
    (2 * images[0]["alpha"] * alpha).sum().backward()
    torch.testing.assert_close(x.grad, soft.grad)


def test_degenerate_faces_and_vertices_behind_the_camera_have_finite_gradients():
    points = torch.tensor(
        [
            [
                [0.0, 0.0, 3.0],
                [0.0, 0.0, 3.0],
                [1.0, 0.0, 3.0],
                [0.5, 1e-9, 3.0],
                [0.0, 1.0, -2.0],
                [0.2, 1.0, 3.0],
            ]
        ],
        dtype=F64,
        requires_grad=True,
    )
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [2, 3, 4], [0, 2, 5]], dtype=torch.int32)
    K = pinhole(16, 16, math.radians(60))
    image = rasterize(points, faces, K=K, height=16, width=16, silhouette="softras", sigma=2.0)
    (image["alpha"].sum() + image["depth"].sum()).backward()
    assert bool(torch.isfinite(image["depth"]).all()) and 0.7 < float(image["alpha"].detach().max()) < 0.8
    assert bool(torch.isfinite(points.grad).all())


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="cutoff between"):
        SoftRas(cutoff=0.7)
    with pytest.raises(InputError, match="gamma > 0"):
        SoftRas(gamma=0.0)
    points, faces = pair()
    with pytest.raises(InputError, match="unknown silhouette rule"):
        rasterize(points, faces, K=pinhole(8, 8, 1.0), height=8, width=8, silhouette="soft")
