"""Images of the `edge` silhouette rule: alpha, depth and the weights of what every pixel sees, with their gradients."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath import kernels
from gradpath.render import composite, contours, scatter
from gradpath.render.image import Image, Launcher
from gradpath.render.topology import Topology

# The quintic step of this half-width has at its centre the slope of a Gaussian's cumulative of width 1.
SUPPORT = 15.0 / 16.0 * math.sqrt(2.0 * math.pi)


class EdgeState(NamedTuple):
    """What is known of every pixel, without gradient; meaning as in `layers` and `contours`.

    The last three are of no elements in a hard image, which has no contours.
    """

    depths: Tensor
    hits: Tensor
    distances: Tensor
    nearest: Tensor
    sums: Tensor


class EdgeLauncher(Launcher):
    """The kernels of the edge rule, bound to the tensors of one call; `radius` is where edges end [pixels]."""

    def __init__(self, image: Image, topology: Topology, points: Tensor, cameras: Tensor, radius: float):
        super().__init__(image, topology, points, cameras, radius)
        self.radius = radius
        self.blend = composite.make(self.scalar)
        self.edges = kernels.array(topology.edges, wp.vec4i)
        self.edge_info = kernels.array(topology.edge_info, wp.vec2i)

    def state(self, soft: bool) -> EdgeState:
        """Find layers, and for a soft image contours."""
        depths, hits = self.layers()
        if not soft:
            empty = depths.new_empty(0)
            return EdgeState(depths, hits, empty, hits.new_empty(0), empty)
        distances, sums = self.new(4).fill_(self.radius), self.new(4).zero_()
        nearest = self.new(4, dtype=torch.int32).fill_(-1)
        model = (self.edges, self.edge_info, self.face_info)
        given = (self.points, self.cameras, self.limits, self.tile)
        state = (self.vec3(depths), kernels.array(hits, wp.vec3i))
        out = (self.vec4(distances), kernels.array(nearest, wp.vec4i), self.vec4(sums))
        kernel = contours.make(self.scalar).gather
        self.launch(kernel, (*model, *given, *state, *out), (self.blocks,))
        return EdgeState(depths, hits, distances, nearest, sums)

    def composite(self, state: EdgeState) -> tuple[Tensor, Tensor]:
        """Alpha and depth."""
        alpha, depth = self.new(), self.new()
        given = (self.limits, self.vec3(state.depths), self.vec4(state.distances), self.vec4(state.sums))
        out = (self.number(alpha), self.number(depth))
        self.launch(self.blend.composite, (*given, *out), (self.image.height, self.image.width))
        return alpha, depth

    def uncomposite(self, state: EdgeState, g_alpha: Tensor, g_depth: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the vertices and the intrinsics from those of alpha and depth."""
        g_points, g_cameras = self.new_gradients()
        soft = state.distances.numel() > 0
        if not soft:  # without contours every hit is opaque, and its depth has the gradient of its plane
            state = state._replace(distances=self.new(4).fill_(self.radius), sums=self.new(4).zero_())
        g_distances, fringes = self.new(4).zero_(), self.new(4).zero_()
        image = (self.vec3(state.depths), kernels.array(state.hits, wp.vec3i))
        given = (self.points, self.cameras, self.limits, *image)
        seeds = (self.number(g_alpha), self.number(g_depth))
        out = (self.vec4(g_distances), self.vec4(fringes), self.vec3(g_points), self.vec4(g_cameras))
        edges = (self.vec4(state.distances), self.vec4(state.sums))
        self.launch(
            self.blend.uncomposite,
            (self.faces, *given, *edges, *seeds, *out),
            (self.image.height, self.image.width),
        )
        if soft:
            self._scatter(state, g_distances, fringes, g_points, g_cameras)
        return g_points, g_cameras

    def weigh(self, state: EdgeState) -> Tensor:
        """Weights of the two fringes, the three layers and the background, shape (B, H, W, 6)."""
        weights = self.new(6)
        given = (self.limits, self.vec3(state.depths), self.vec4(state.distances), self.vec4(state.sums))
        self.launch(self.blend.weigh, (*given, self.number(weights)), (self.image.height, self.image.width))
        return weights

    def unweigh(self, state: EdgeState, g_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the vertices and the intrinsics from those of the weights."""
        g_points, g_cameras = self.new_gradients()
        g_distances = self.new(4)
        given = (self.limits, self.vec3(state.depths), self.vec4(state.distances), self.vec4(state.sums))
        seeds = (self.number(g_weights), self.vec4(g_distances))
        self.launch(self.blend.unweigh, (*given, *seeds), (self.image.height, self.image.width))
        self._scatter(state, g_distances, torch.zeros_like(g_distances), g_points, g_cameras)
        return g_points, g_cameras

    def _scatter(
        self, state: EdgeState, g_distances: Tensor, fringes: Tensor, g_points: Tensor, g_cameras: Tensor
    ) -> None:
        model = (self.edges, self.edge_info, self.face_info)
        given = (self.points, self.cameras, self.limits)
        image = (self.vec3(state.depths), kernels.array(state.hits, wp.vec3i))
        seeds = (kernels.array(state.nearest, wp.vec4i), self.vec4(g_distances), self.vec4(fringes))
        out = (self.vec3(g_points), self.vec4(g_cameras))
        kernel = scatter.make(self.scalar).scatter
        self.launch(kernel, (*model, *given, *image, *seeds, *out), (self.topology.edges.shape[0],))


Frame = tuple[Image, Topology, float]  # the arguments of a launcher that are no tensors: size, mesh, radius


def find_state(frame: Frame, points: Tensor, cameras: Tensor, soft: bool) -> EdgeState:
    """Find what every pixel sees; without gradient."""
    image, topology, radius = frame
    run = EdgeLauncher(image, topology, points.detach(), cameras.detach(), radius)
    return run.state(soft)


def hard_image(image: Image, state: EdgeState) -> tuple[Tensor, Tensor]:
    """Alpha of 0 or 1 and the depth of the nearest surface, without gradient."""
    hit = state.hits[..., 0] >= 0
    return hit.to(state.depths.dtype), torch.where(hit, state.depths[..., 0], image.far)


class _Composite(torch.autograd.Function):
    """Alpha and depth of a state; saves vertices, intrinsics and image-sized state."""

    @staticmethod
    def forward(ctx: Any, frame: Frame, points: Tensor, cameras: Tensor, *state: Tensor) -> Any:
        ctx.frame = frame
        ctx.save_for_backward(points, cameras, *state)
        image, topology, radius = frame
        held = EdgeState(*state)
        if held.distances.numel() == 0:
            return hard_image(image, held)
        return EdgeLauncher(image, topology, points, cameras, radius).composite(held)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_alpha: Tensor, g_depth: Tensor) -> Any:
        run, state = _again(ctx)
        g_points, g_cameras = run.uncomposite(state, g_alpha.contiguous(), g_depth.contiguous())
        return None, g_points, g_cameras, None, None, None, None, None


class _Weigh(torch.autograd.Function):
    """Weights of what every pixel sees, front to back and the background last, shape (B, H, W, 6)."""

    @staticmethod
    def forward(ctx: Any, frame: Frame, points: Tensor, cameras: Tensor, *state: Tensor) -> Any:
        ctx.frame = frame
        ctx.save_for_backward(points, cameras, *state)
        image, topology, radius = frame
        return EdgeLauncher(image, topology, points, cameras, radius).weigh(EdgeState(*state))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_weights: Tensor) -> Any:
        run, state = _again(ctx)
        g_points, g_cameras = run.unweigh(state, g_weights.contiguous())
        return None, g_points, g_cameras, None, None, None, None, None


def composite_image(frame: Frame, points: Tensor, cameras: Tensor, state: EdgeState) -> tuple[Tensor, Tensor]:
    """Alpha and depth of a state, differentiable in the vertices and the intrinsics."""
    return _Composite.apply(frame, points, cameras, *state)


def weigh_image(frame: Frame, points: Tensor, cameras: Tensor, state: EdgeState) -> Tensor:
    """Weights of what every pixel of a soft image sees, (B, H, W, 6); differentiable as alpha and depth are."""
    return _Weigh.apply(frame, points, cameras, *state)


def _again(ctx: Any) -> tuple[EdgeLauncher, EdgeState]:
    """The launcher and the state of a forward pass."""
    points, cameras, *state = ctx.saved_tensors
    image, topology, radius = ctx.frame
    return EdgeLauncher(image, topology, points, cameras, radius), EdgeState(*state)


def edge_kernels() -> Sequence[Any]:
    """Factories of the kernels that draw alpha, depth and weights."""
    return (
        lambda scalar: contours.make(scalar).gather,
        lambda scalar: composite.make(scalar).composite,
        lambda scalar: composite.make(scalar).uncomposite,
        lambda scalar: composite.make(scalar).weigh,
        lambda scalar: composite.make(scalar).unweigh,
        lambda scalar: scatter.make(scalar).scatter,
    )
