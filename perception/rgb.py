"""A colour camera: from light to what is in the image file."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gradpath import relax
from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.relax_core import Temperature
from gradpath.stage import Stage

DARK = 1e-5  # of full light, added so that gradients in the dark are finite


class RgbSensor(Stage):
    """A colour camera: blur, exposure, shot and read noise, saturation and gamma.

    Args:
        exposure: Factor on the light.
        gamma: The image is light to the power 1 / gamma.
        shot_noise: Standard deviation at full light, of noise that grows with the root of the light.
        read_noise: Standard deviation of noise that does not.
        blur: Standard deviation of the optics' blur [px]; zero for none.
        motion_steps: Positions that motion blur is averaged over.
        tau: Temperature of the saturation.

    Inputs: `image`, linear light (B, 3, H, W), zero or more; optional per world: `exposure` (B,) and `gamma` (B,),
    which replace the stage's own; `motion` (B, 2), how far the image moves to the right and down during the exposure
    [px]; `generator`, without which there is no noise.
    Outputs: `image` (B, 3, H, W), from 0 to 1. Gradients: to all inputs, relaxed at saturation.

    Raises:
        InputError: an option out of range.
    """

    contract = Contract(
        inputs={
            "image": "B 3 H W",
            "exposure": "B",
            "gamma": "B",
            "motion": "B 2",
            "generator": "generator",
        },
        outputs={"image": "B 3 H W"},
        gradient="relaxed",
    )

    def __init__(
        self,
        exposure: float = 1.0,
        gamma: float = 2.2,
        shot_noise: float = 0.02,
        read_noise: float = 0.005,
        blur: float = 0.0,
        motion_steps: int = 8,
        tau: Temperature = 0.005,
    ):
        super().__init__()
        if not (exposure > 0 and gamma > 0 and min(shot_noise, read_noise, blur) >= 0 and motion_steps >= 2):
            raise InputError(
                "RgbSensor needs exposure and gamma above zero, noise and blur at least zero and motion_steps at "
                f"least 2, got {exposure=}, {gamma=}, {shot_noise=}, {read_noise=}, {blur=}, {motion_steps=}"
            )
        self.exposure, self.gamma, self.tau = exposure, gamma, tau
        self.shot_noise, self.read_noise, self.blur = shot_noise, read_noise, blur
        self.motion_steps = motion_steps

    def forward(
        self,
        image: Tensor,
        exposure: Tensor | None = None,
        gamma: Tensor | None = None,
        motion: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Take one picture per world."""
        light = _blurred(image, self.blur) if self.blur > 0 else image
        if motion is not None:
            light = _moved(light, motion, self.motion_steps)
        light = light * (self.exposure if exposure is None else exposure[:, None, None, None])
        if generator is not None:
            draw = torch.randn((2, *light.shape), generator=generator, dtype=light.dtype, device=light.device)
            # The root's slope is infinite in the dark, where the read noise hides it.
            shot = self.shot_noise * (light.clamp_min(0.0) + DARK).sqrt()
            light = light + shot * draw[0] + self.read_noise * draw[1]
        limited = relax.clip(light, 0.0, 1.0, tau=self.tau)
        power = 1.0 / (self.gamma if gamma is None else gamma[:, None, None, None])
        # Not quite zero, where the slope of the power is infinite; rounding may exceed one.
        return ((limited + DARK) ** power / (1.0 + DARK) ** power).clamp_max(1.0)


def _blurred(image: Tensor, std: float) -> Tensor:
    """Gaussian blur, edges repeated."""
    radius = max(1, round(3.0 * std))
    offset = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.softmax(-0.5 * (offset / std) ** 2, 0)
    flat = image.flatten(0, 1)[:, None]
    padded = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    along = F.conv2d(padded, weights[None, None, None])
    return F.conv2d(along, weights[None, None, :, None]).view_as(image)


def _moved(image: Tensor, motion: Tensor, steps: int) -> Tensor:
    """The mean of the image over positions along a motion, centred; edges repeated."""
    height, width = image.shape[2:]
    rows = torch.arange(height, dtype=image.dtype, device=image.device) + 0.5
    columns = torch.arange(width, dtype=image.dtype, device=image.device) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    size = image.new_tensor([width, height])
    total = torch.zeros_like(image)
    for step in range(steps):
        share = step / (steps - 1) - 0.5
        place = torch.stack([u, v], -1) - share * motion[:, None, None]
        total = total + F.grid_sample(
            image, 2.0 * place / size - 1.0, align_corners=False, padding_mode="border"
        )
    return total / steps
