"""The pose of a known object from where its points are seen: perspective-n-point, differentiable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradpath import implicit
from gradpath.errors import InputError, ShapeError
from gradpath.geometry import check_poses, pose_apply, pose_compose, quat_from_matrix
from gradpath.geometry import pose as join
from gradpath.perception.clouds import project
from gradpath.perception.pose_search import refine, small_motion


def pnp(
    points: Tensor,
    pixels: Tensor,
    K: Tensor,
    init: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    gradient: Literal["implicit", "gauss_newton"] = "implicit",
    iterations: int = 50,
) -> Tensor:
    """Find the pose that brings points to the pixels where they are seen, and differentiate it.

    Minimizes half the weighted sum of squared distances in the image, by damped Gauss-Newton steps over small motions
    of the pose; the gradient is that of the minimum (`gradpath.implicit.argmin`).

    Args:
        points: In the object's frame [m], (B, N, 3), N at least 3, differentiable.
        pixels: Where they are seen, (B, N, 2), differentiable.
        K: Intrinsics in pixels, (3, 3) or (B, 3, 3), differentiable.
        init: Pose to start from, (B, 7). None: the direct linear transform, which needs six points that are not in
            one plane.
        weights: How much each point counts, (B, N), zero or more, differentiable; one by default.
        gradient: Exact, or without the curvature of the projection.
        iterations: The most steps.
    Returns:
        The pose of the object in the camera frame, (B, 7). Samples that did not converge keep what they have, have a
        gradient of zero, and are named in a warning; `gp.implicit.record()` collects reports.
    Raises:
        ShapeError: shapes that do not fit.
        InputError: too few points, a value that is not finite, or negative weights.
    References: Hartley, Zisserman 2004, section 7; Chen et al. 2020, End-to-End Learnable Geometric Vision.
    """
    _check(points, pixels, weights, init)
    weight = torch.ones_like(pixels[..., 0]) if weights is None else weights
    with torch.no_grad():
        start = _direct_linear(points, pixels, K) if init is None else init.detach()
        still = torch.zeros_like(start[:, :6])
        found = refine(
            start,
            lambda pose: _residuals(still, pose, points, pixels, K, weight).flatten(1),
            lambda pose: _jacobian(pose, points, pixels, K, weight),
            iterations,
        )

    def residuals(u: Tensor, points: Tensor, pixels: Tensor, K: Tensor, weight: Tensor) -> Tensor:
        return _residuals(u, found, points, pixels, K, weight).flatten(1)

    def objective(u: Tensor, *given: Tensor) -> Tensor:
        return 0.5 * residuals(u, *given).square().sum(-1)

    motion = implicit.argmin(
        objective,
        torch.zeros_like(found[:, :6]),
        points,
        pixels,
        K,
        weight,
        gradient=gradient,
        residuals=residuals if gradient == "gauss_newton" else None,
    )
    return pose_compose(found, small_motion(motion))


def _residuals(u: Tensor, found: Tensor, points: Tensor, pixels: Tensor, K: Tensor, weight: Tensor) -> Tensor:
    """Weighted distances in the image after a small motion u (..., B, 6) of the pose, (..., B, N, 2)."""
    moved = pose_apply(pose_compose(found, small_motion(u))[..., None, :], points)
    return weight[..., None].clamp_min(1e-30).sqrt() * (project(moved, K) - pixels)


def _jacobian(pose: Tensor, points: Tensor, pixels: Tensor, K: Tensor, weight: Tensor) -> Tensor:
    """Derivatives of the residuals by a small motion, (B, 2 N, 6), by autograd."""
    with torch.enable_grad():
        # All residuals of a sample by its own motion: one copy of the motion per residual.
        count = points.shape[1] * 2
        u = torch.zeros(count, len(pose), 6, dtype=pose.dtype, device=pose.device, requires_grad=True)
        value = _residuals(u, pose, points, pixels, K, weight).flatten(-2)
        unit = torch.eye(count, dtype=pose.dtype, device=pose.device)[:, None].expand(count, len(pose), count)
        return torch.autograd.grad(value, u, unit)[0].transpose(0, 1)


def _direct_linear(points: Tensor, pixels: Tensor, K: Tensor) -> Tensor:
    """A first pose from the projection matrix that fits best in the algebraic sense."""
    one = torch.ones_like(pixels[..., :1])
    seen = torch.cat([pixels, one], -1) @ torch.linalg.inv(K).mT
    world = torch.cat([points, one], -1)
    zero = torch.zeros_like(world)
    x, y = seen[..., :1], seen[..., 1:2]
    rows = torch.cat([torch.cat([world, zero, -x * world], -1), torch.cat([zero, world, -y * world], -1)], 1)
    matrix = torch.linalg.svd(rows).Vh[:, -1].reshape(-1, 3, 4)
    left, sizes, right = torch.linalg.svd(matrix[:, :, :3])
    sign = torch.sign(torch.linalg.det(left @ right))[:, None]
    rotation = sign[..., None] * (left @ right)
    position = sign * matrix[:, :, 3] / sizes.mean(-1, keepdim=True).clamp_min(1e-12)
    return join(position, quat_from_matrix(rotation))


def _check(points: Tensor, pixels: Tensor, weights: Tensor | None, init: Tensor | None) -> None:
    if points.ndim != 3 or points.shape[2] != 3 or pixels.shape != (*points.shape[:2], 2):
        raise ShapeError(
            f"pnp: expected points (B, N, 3) and pixels (B, N, 2), got {tuple(points.shape)} and {tuple(pixels.shape)}"
        )
    least = 6 if init is None else 3
    if points.shape[1] < least:
        raise InputError(
            f"pnp: {least} points or more {'without init' if init is None else ''}, got {points.shape[1]}; fewer leave "
            "the pose open"
        )
    for name, value in (("points", points), ("pixels", pixels), ("weights", weights)):
        if value is not None and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).flatten(1).any(-1).nonzero()[0])
            raise InputError(
                f"pnp: {name} of sample {bad} are NaN or infinite; give such points the weight zero"
            )
    if weights is not None and (weights.shape != points.shape[:2] or bool((weights < 0).any())):
        raise InputError(f"pnp: weights are (B, N), zero or more, got {tuple(weights.shape)}")
    if init is not None:
        check_poses(init, "pnp")
