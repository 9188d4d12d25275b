"""From depth images to points and back."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath.errors import ShapeError
from gradpath.geometry import pose_apply


def unproject(depth: Tensor, K: Tensor) -> Tensor:
    """Return the points that a depth image sees, in the camera frame.

    Args:
        depth: Distance along the optical axis [m], (B, 1, H, W), differentiable.
        K: Intrinsics in pixels, (3, 3) or (B, 3, 3), differentiable.
    Returns:
        (B, H, W, 3) [m]. Pixel centres are at +0.5.
    """
    if depth.ndim != 4 or depth.shape[1] != 1 or K.shape[-2:] != (3, 3):
        raise ShapeError(
            f"unproject: expected depth (B, 1, H, W) and K (3, 3) or (B, 3, 3), got {tuple(depth.shape)} and "
            f"{tuple(K.shape)}"
        )
    rows = torch.arange(depth.shape[2], dtype=depth.dtype, device=depth.device) + 0.5
    columns = torch.arange(depth.shape[3], dtype=depth.dtype, device=depth.device) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    rays = (torch.linalg.inv(K)[..., None, None, :, :] @ pixels[..., None])[..., 0]
    return depth[:, 0, ..., None] * rays


def point_cloud(
    depth: Tensor,
    K: Tensor,
    pose: Tensor | None = None,
    *,
    min_range: float = 0.0,
    max_range: float = torch.inf,
) -> tuple[Tensor, Tensor]:
    """Return the points of a depth image in the world, and which of them were measured.

    Args:
        depth: Distance along the optical axis [m], (B, 1, H, W), differentiable.
        K: Intrinsics in pixels, (3, 3) or (B, 3, 3), differentiable.
        pose: Of the camera in the world, (B, 7), differentiable; the camera frame is kept without it.
        min_range: A depth at or below it counts as not measured [m].
        max_range: The same for one at or above it.
    Returns:
        Points (B, H W, 3) [m] and whether they are valid, (B, H W) bool. A pixel that is NaN, infinite or out of range
        is not valid: its point is at the camera, and its gradient is zero.
    """
    valid = depth.isfinite() & (depth > min_range) & (depth < max_range)
    points = unproject(torch.where(valid, depth, 0.0), K).flatten(1, 2)
    if pose is not None:
        points = pose_apply(pose[:, None], points)
    return points, valid.flatten(1)


def project(points: Tensor, K: Tensor) -> Tensor:
    """Return where points in the camera frame are seen, (..., N, 3) [m] to (..., N, 2) pixels.

    Args:
        points: In front of the camera; one at or behind it is seen as if 1 mm in front. Differentiable.
        K: Intrinsics in pixels, (3, 3) or (..., 3, 3), differentiable.
    """
    seen = points @ K.mT
    return seen[..., :2] / seen[..., 2:].clamp_min(1e-3)
