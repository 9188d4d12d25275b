"""Keypoints from heat maps."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath import relax
from gradpath.errors import ShapeError
from gradpath.relax_core import Temperature


def spatial_soft_argmax(heat: Tensor, *, tau: Temperature = 1.0) -> tuple[Tensor, Tensor]:
    """Return where each heat map is hottest, and how spread out it is.

    Args:
        heat: (B, C, H, W), differentiable.
        tau: Temperature of the softmax over pixels.
    Returns:
        Keypoints (B, C, 2), column then row in pixels, pixel centres at +0.5; and their standard deviations
        (B, C, 2) [px]. Soft: the mean under softmax(heat / tau). Hard: the centre of the hottest pixel, spread zero.
    References: Levine et al. 2016, End-to-End Training of Deep Visuomotor Policies.
    """
    if heat.ndim != 4:
        raise ShapeError(f"spatial_soft_argmax: expected heat (B, C, H, W), got {tuple(heat.shape)}")
    weights = relax.one_hot(heat.flatten(2), tau=tau).unflatten(-1, heat.shape[2:])
    places, spreads = [], []
    for axis in (-1, -2):
        grid = torch.arange(heat.shape[axis], dtype=heat.dtype, device=heat.device) + 0.5
        along = weights.sum(-2 if axis == -1 else -1)
        place = (along * grid).sum(-1)
        variance = (along * (grid - place[..., None]).square()).sum(-1)
        places.append(place)
        spreads.append((variance + 1e-12).sqrt())
    return torch.stack(places, -1), torch.stack(spreads, -1)
