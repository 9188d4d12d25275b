"""Images of the `softras` silhouette rule: alpha and depth over all faces, with their gradients."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath import kernels
from gradpath.errors import InputError
from gradpath.render import softras
from gradpath.render.image import Image, Launcher
from gradpath.render.topology import Topology

EPSILON = 1e-10  # least weight of the background, and its normalized inverse depth


@dataclass(frozen=True)
class SoftRas:
    """The silhouette rule of SoftRas in PyTorch3D's form; `silhouette="softras"` is this with its defaults.

    Args:
        gamma: Sharpness of the blend in depth: weights fall by e per `gamma` of normalized inverse depth
            (far - z) / (far - near). PyTorch3D's default.
        cutoff: Faces that cover a pixel with less than this probability are left out, which is PyTorch3D's
            `blur_radius` sigma log(1 / cutoff - 1). Its tutorials use 1e-4; the default changes no digit of alpha, but
            lets nearer faces win the depth of pixels up to 4.3 sqrt(sigma) beside them.
    Raises:
        InputError: gamma not positive and finite, cutoff outside of (0, 0.5).
    """

    gamma: float = 1e-4
    cutoff: float = 1e-8

    def __post_init__(self) -> None:
        if not (0.0 < self.gamma < math.inf and 0.0 < self.cutoff < 0.5):
            raise InputError(
                f"SoftRas needs gamma > 0 and a cutoff between 0 and 0.5, got {self.gamma} and {self.cutoff}"
            )

    def reach(self, sigma: float) -> float:
        """Distance [pixels] at which the probability has fallen to the cutoff; sigma in squared pixels."""
        return math.sqrt(sigma * math.log(1.0 / self.cutoff - 1.0))


class _SoftRasImage(torch.autograd.Function):
    """Alpha and depth; depth is computed where it is asked for, and `far` otherwise."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Image,
        topology: Topology,
        rule: SoftRas,
        sigma: float,
        with_depth: bool,
        points: Tensor,
    ) -> Any:
        ctx.rest = image, topology, rule, sigma, with_depth
        run = Launcher(image, topology, points, rule.reach(sigma))
        clear = run.new().fill_(1.0)
        mix = run.new(3) if with_depth else run.none(3)
        nearest = run.new(dtype=torch.int32) if with_depth else run.none().to(torch.int32)
        out = (run.number(clear), run.vec3(mix), kernels.array(nearest, wp.int32))
        given = (run.faces, run.points)
        kernel_rule = softras.make(run.scalar).vec2(sigma, rule.gamma if with_depth else 0.0)
        run.launch_blocks(softras.make(run.scalar).gather, given, (kernel_rule, *out), run.tile)
        ctx.save_for_backward(points, clear, mix, nearest)
        ctx.set_materialize_grads(False)
        if not with_depth:
            return 1.0 - clear, mix[..., 0]
        background = _background(mix, rule.gamma)
        return 1.0 - clear, (mix[..., 2] + background * image.far) / (mix[..., 1] + background)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_alpha: Tensor | None, g_depth: Tensor | None) -> Any:
        image, topology, rule, sigma, _with_depth = ctx.rest
        points, clear, mix, nearest = ctx.saved_tensors
        run = Launcher(image, topology, points, rule.reach(sigma))
        # As in the kernel: what is covered is left out.
        g_clear = (
            torch.zeros_like(clear) if g_alpha is None else torch.where(clear > 1e-14, -g_alpha * clear, 0.0)
        )
        seeds = run.none(3) if g_depth is None else _depth_seeds(mix, rule.gamma, image.far, g_depth)
        kernel_rule = softras.make(run.scalar).vec2(sigma, 0.0 if g_depth is None else rule.gamma)
        faces = topology.faces.shape[0]
        corners, g_points = points.new_empty(run.worlds, faces, 3, 3), torch.zeros_like(points)
        given = (run.faces, run.points, run.limits, kernel_rule)
        state = (run.vec3(mix), kernels.array(nearest, wp.int32), run.number(g_clear), run.vec3(seeds))
        run.launch(softras.make(run.scalar).scatter, (*given, *state, run.vec3(corners)), faces)
        run.collect(topology.corners_at, corners.flatten(1, 2), g_points)
        return None, None, None, None, None, g_points


def _depth_seeds(mix: Tensor, gamma: float, far: float, g_depth: Tensor) -> Tensor:
    """What a face needs for its part in the gradient of depth, (B, H, W, 3).

    That is: the gradient of depth per weight, depth, and the gradient of the largest inverse depth.
    """
    background = _background(mix, gamma)
    total = mix[..., 1] + background
    depth = (mix[..., 2] + background * far) / total
    per_weight = g_depth / total
    # The largest inverse depth scales all weights but a background at its least, so that one moves against them.
    held = torch.where(background <= EPSILON, background * (far - depth) / gamma, 0.0)
    return torch.stack([per_weight, depth, per_weight * held], dim=-1)


def softras_image(
    image: Image,
    topology: Topology,
    rule: SoftRas,
    sigma: float,
    with_depth: bool,
    points: Tensor,
) -> tuple[Tensor, Tensor]:
    """Alpha and depth (B, H, W), the latter empty where it is not asked for.

    Differentiable in the vertices in homogeneous coordinates, (B, V, 3).
    """
    return _SoftRasImage.apply(image, topology, rule, sigma, with_depth, points)


def _background(mix: Tensor, gamma: float) -> Tensor:
    """Weight of the background beside the weights of `mix`, which are relative to the largest inverse depth."""
    return ((EPSILON - mix[..., 0]) / gamma).exp().clamp(min=EPSILON)
