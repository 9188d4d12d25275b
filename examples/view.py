"""The place of a camera in an ablation: a pose whose gradient from the image can be weakened or stopped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gradpath as gp


class View(gp.Stage):
    """The pose that the camera sees from: the body's, with a factor on the gradient that comes back from the image.

    The factor is 1 but for ablations; the gradient that arrives here is what the renderer gives to the pose.

    Args:
        factor: What the gradient is multiplied with; 0 stops it.

    Inputs: `pose` (B, 7). Outputs: `pose` (B, 7). Gradients: exact, scaled by the factor.
    """

    contract: gp.Contract

    def __init__(self, factor: float = 1.0):
        super().__init__()
        gradient = "exact" if factor == 1.0 else "surrogate" if factor else "none"
        self.contract = gp.Contract(inputs={"pose": "B 7"}, outputs={"pose": "B 7"}, gradient=gradient)
        self.factor = factor

    def forward(self, pose: Tensor) -> Tensor:
        """Return the pose."""
        return _ScaleGradient.apply(pose, self.factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
