"""Damped Gauss-Newton steps over poses, for what sees an object and asks where it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradpath.geometry import pose as join
from gradpath.geometry import pose_compose, quat_exp


def small_motion(u: Tensor) -> Tensor:
    """The pose (..., 7) of a small motion (..., 6): translation [m], then rotation vector [rad]."""
    return join(u[..., :3], quat_exp(u[..., 3:]))


def refine(
    pose: Tensor,
    residuals: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """Minimize the sum of squared residuals of each sample over small motions of its pose, without gradients.

    Args:
        pose: Where to start, (B, 7).
        residuals: Poses (B, 7) to (B, m).
        jacobian: Derivatives of the residuals by a small motion after the pose, (B, m, 6).
        iterations: The most steps; fewer where all have become shorter than 1e-10.
    Returns:
        The poses, (B, 7). No sample gets worse.
    """
    damping = torch.full_like(pose[:, 0], 1e-4)
    eye = torch.eye(6, dtype=pose.dtype, device=pose.device)
    left = residuals(pose)
    for _ in range(iterations):
        slope = jacobian(pose)
        normal = slope.mT @ slope
        scaled = damping[:, None, None] * normal.diagonal(dim1=-2, dim2=-1)[..., None] * eye + 1e-12 * eye
        step, failed = torch.linalg.solve_ex(normal + scaled, -(slope.mT @ left[..., None]))
        step = torch.where((failed == 0)[:, None], step[..., 0], 0.0)
        trial = pose_compose(pose, small_motion(step))
        trial = torch.cat([trial[:, :3], trial[:, 3:] / trial[:, 3:].norm(dim=-1, keepdim=True)], -1)
        after = residuals(trial)
        better = after.square().sum(-1) < left.square().sum(-1)
        pose = torch.where(better[:, None], trial, pose)
        left = torch.where(better[:, None], after, left)
        damping = torch.where(better, damping / 10.0, 10.0 * damping).clamp(1e-12, 1e6)
        if (step.abs().amax(-1) < 1e-10).all():
            break
    return pose
