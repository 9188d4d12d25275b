"""A stereo depth camera: what it makes of ideal depth."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath import relax
from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.relax_core import Temperature
from gradpath.stage import Stage


class StereoDepth(Stage):
    """Depth as a stereo camera measures it: by disparity, with noise, rounding, limits and holes.

    Disparity is focal * baseline / depth, in pixels; noise and rounding that are uniform there grow with the square of
    the depth. What is out of range or lost is a hole.

    Args:
        focal: Focal length [px].
        baseline: Distance between the two cameras [m].
        min_range: Nearest measurable depth [m].
        max_range: Farthest measurable depth [m].
        noise: Standard deviation of the disparity [px].
        subpixel: Disparity is rounded to multiples of this [px]; zero for none.
        dropout: Share of pixels that are lost anywhere.
        edge_dropout: Share of pixels that are lost where the depth jumps by more than `edge` of itself to a neighbour.
        edge: Relative size of such a jump.
        tau: Temperature of the rounding, in multiples of `subpixel`.

    Inputs: `depth` [m] (B, 1, H, W); optional `generator`, without which there is no noise and nothing is lost.
    Outputs: `depth` [m] (B, 1, H, W), zero in holes; `valid` (B, 1, H, W), 1 or 0, without gradient.
    Gradients: to the depth, relaxed where it is rounded; zero in holes. A pixel that is NaN or infinite is a hole.

    Raises:
        InputError: a range that is empty or not positive, or a value out of range.
    """

    contract = Contract(
        inputs={"depth": "B 1 H W", "generator": "generator"},
        outputs={"depth": "B 1 H W", "valid": "B 1 H W"},
        gradient="relaxed",
        detached=("valid",),
    )

    def __init__(
        self,
        focal: float = 60.0,
        baseline: float = 0.1,
        min_range: float = 0.3,
        max_range: float = 12.0,
        noise: float = 0.1,
        subpixel: float = 0.125,
        dropout: float = 0.01,
        edge_dropout: float = 0.3,
        edge: float = 0.1,
        tau: Temperature = 0.2,
    ):
        super().__init__()
        shares = 0.0 <= dropout <= 1.0 and 0.0 <= edge_dropout <= 1.0
        positive = focal > 0 and baseline > 0 and edge > 0
        if not (positive and 0.0 < min_range < max_range and noise >= 0.0 and subpixel >= 0.0 and shares):
            raise InputError(
                "StereoDepth needs focal, baseline and edge above zero, 0 < min_range < max_range, noise and subpixel "
                f"at least zero and dropouts in [0, 1], got {focal=}, {baseline=}, {edge=}, {min_range=}, "
                f"{max_range=}, {noise=}, {subpixel=}, {dropout=}, {edge_dropout=}"
            )
        self.scale = focal * baseline
        self.min_range, self.max_range = min_range, max_range
        self.noise, self.subpixel, self.tau = noise, subpixel, tau
        self.dropout, self.edge_dropout, self.edge = dropout, edge_dropout, edge

    def forward(self, depth: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Measure one image per world."""
        seen = depth.isfinite() & (depth >= self.min_range) & (depth <= self.max_range)
        disparity = self.scale / torch.where(seen, depth, self.max_range)
        if generator is not None:
            draw = torch.rand(depth.shape, generator=generator, dtype=depth.dtype, device=depth.device)
            lost = torch.where(self._at_edge(depth), max(self.dropout, self.edge_dropout), self.dropout)
            seen = seen & (draw >= lost)
            noise = torch.randn(depth.shape, generator=generator, dtype=depth.dtype, device=depth.device)
            disparity = disparity + self.noise * noise
        if self.subpixel > 0:
            disparity = relax.quantize(disparity, self.subpixel, tau=self.tau)
        # Noise may carry a far point to infinity; it is then as far as can be measured.
        limited = disparity.clamp(self.scale / self.max_range, self.scale / self.min_range)
        return {"depth": torch.where(seen, self.scale / limited, 0.0), "valid": seen.to(depth.dtype)}

    @torch.no_grad()
    def _at_edge(self, depth: Tensor) -> Tensor:
        """Where the depth jumps to the pixel beside or below, or from the one before."""
        result = torch.zeros_like(depth, dtype=torch.bool)
        for axis in (-1, -2):
            near, far = (
                depth.narrow(axis, 0, depth.shape[axis] - 1),
                depth.narrow(axis, 1, depth.shape[axis] - 1),
            )
            jump = (near - far).abs() > self.edge * torch.minimum(near, far)
            result.narrow(axis, 0, depth.shape[axis] - 1).logical_or_(jump)
            result.narrow(axis, 1, depth.shape[axis] - 1).logical_or_(jump)
        return result
