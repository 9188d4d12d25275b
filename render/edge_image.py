"""Images of the `edge` silhouette rule: alpha, depth and the weights of what every pixel sees, with their gradients."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath import kernels
from gradpath.render import composite, contours, incidence, layers, scatter
from gradpath.render.image import Image, Launcher
from gradpath.render.topology import Topology

# The quintic step of this half-width has at its centre the slope of a Gaussian's cumulative of width 1.
SUPPORT = 15.0 / 16.0 * math.sqrt(2.0 * math.pi)


class EdgeState(NamedTuple):
    """What is known of every pixel, without gradient; meaning as in `layers` and `contours`.

    Where `covered` is 0, `depths` and `hits` are not written. Of `distances`, `nearest` and `sums`, shape (B H W, 4),
    only the rows are written that `records` names: it is 1 + the row of a pixel, 0 for one without contours. A hard
    image has no rows. On the CPU what is not written needs no memory, which comes with the first touch.
    """

    covered: Tensor
    depths: Tensor
    hits: Tensor
    records: Tensor
    distances: Tensor
    nearest: Tensor
    sums: Tensor

    def hard(self) -> "EdgeState":
        """The same surfaces without contours."""
        none = self.depths.new_empty(0, 4)
        return EdgeState(*self[:3], torch.zeros_like(self.records), none, none.to(torch.int32), none)


class EdgeLauncher(Launcher):
    """The kernels of the edge rule, bound to the tensors of one call; `radius` is where edges end [pixels]."""

    def __init__(self, image: Image, topology: Topology, points: Tensor, radius: float):
        super().__init__(image, topology, points, radius)
        self.radius = radius
        self.blend = composite.make(self.scalar)
        self.edges = kernels.array(topology.edges, wp.vec4i)
        self.edge_info = kernels.array(topology.edge_info, wp.vec2i)

    def surfaces(self, state: EdgeState) -> tuple[Any, ...]:
        """Layers of a state as kernels take them."""
        return (
            kernels.array(state.covered, wp.uint8),
            self.vec3(state.depths),
            kernels.array(state.hits, wp.vec3i),
        )

    def contours(self, state: EdgeState) -> tuple[Any, ...]:
        """The nearest contours of a state as kernels take them."""
        return kernels.array(state.records, wp.int32), kernels.array(state.nearest, wp.vec4i)

    def state(self, soft: bool) -> EdgeState:
        """Find layers, and for a soft image contours."""
        found, records = self.layers(), self.new_flags(torch.int32)
        if not soft:
            none = self.like.new_empty(0, 4)
            return EdgeState(*found, records, none, none.to(torch.int32), none)
        rows = (self.new_rows(4), self.new_rows(4, dtype=torch.int32), self.new_rows(4))
        state = EdgeState(*found, records, *rows)
        given = (self.edges, self.edge_info, self.face_info, self.points)
        records_out, nearest = self.contours(state)
        out = (records_out, self.vec4(state.distances), nearest, self.vec4(state.sums))
        rest = (*self.surfaces(state), *out)
        self.launch_blocks(contours.make(self.scalar).gather, given, rest, self.tile)
        return state

    def _mix(self, state: EdgeState) -> tuple[Any, ...]:
        """What composition looks at in a state."""
        covered, depths, _hits = self.surfaces(state)
        records = kernels.array(state.records, wp.int32)
        return covered, depths, records, self.vec4(state.distances), self.vec4(state.sums)

    def composite(self, state: EdgeState, with_depth: bool) -> tuple[Tensor, Tensor]:
        """Alpha and depth, the latter of no elements if it is not asked for."""
        alpha, depth = self.new(), self.new() if with_depth else self.none()
        out = (self.number(alpha), self.number(depth))
        self.launch_blocks(self.blend.composite, (), (*self._mix(state), *out), self.patch)
        return alpha, depth

    def uncomposite(self, state: EdgeState, g_alpha: Tensor, g_depth: Tensor | None) -> Tensor:
        """Gradient of the vertices from those of alpha and depth."""
        g_points, g_layers = torch.zeros_like(self.like), self.like.new_empty(0, 3)
        if (
            state.distances.numel() > 0
        ):  # without contours every hit is opaque, and its depth that of its plane
            g_layers, g_distances, fringes = self.new_rows(3), self.new_rows(4), self.new_rows(4)
            out = (self.vec3(g_layers), self.vec4(g_distances), self.vec4(fringes))
            seeds = (self.number(g_alpha), self.number(self.none() if g_depth is None else g_depth))
            self.launch_blocks(self.blend.uncomposite, (), (*self._mix(state), *seeds, *out), self.patch)
            self._scatter(state, g_distances, fringes, g_points)
        if g_depth is not None:
            self._unraster(state, g_layers, g_depth, g_points)
        return g_points

    def weigh(self, state: EdgeState) -> Tensor:
        """Weights of the two fringes, the three layers and the background, shape (B, H, W, 6)."""
        weights = self.new(6)
        self.launch_blocks(self.blend.weigh, (), (*self._mix(state), self.number(weights)), self.patch)
        return weights

    def unweigh(self, state: EdgeState, g_weights: Tensor) -> Tensor:
        """Gradient of the vertices from that of the weights."""
        g_points, g_distances, fringes = torch.zeros_like(self.like), self.new_rows(4), self.new_rows(4)
        seeds = (self.number(g_weights), self.vec4(g_distances), self.vec4(fringes))
        self.launch_blocks(self.blend.unweigh, (), (*self._mix(state), *seeds), self.patch)
        self._scatter(state, g_distances, fringes, g_points)
        return g_points

    def _unraster(self, state: EdgeState, g_layers: Tensor, g_depth: Tensor, g_points: Tensor) -> None:
        """Add the gradient of depths to the corners of the faces that were hit."""
        faces = self.topology.faces.shape[0]
        covered, _depths, hits = self.surfaces(state)
        corners = self.like.new_empty(self.worlds, faces, 3, 3)
        given = (self.faces, self.face_info, self.points, self.limits)
        seeds = (kernels.array(state.records, wp.int32), self.vec3(g_layers), self.number(g_depth))
        kernel = layers.make(self.scalar).unraster
        self.launch(kernel, (*given, covered, hits, *seeds, self.vec3(corners)), faces)
        self.collect(self.topology.corners_at, corners.flatten(1, 2), g_points)

    def _scatter(self, state: EdgeState, g_distances: Tensor, fringes: Tensor, g_points: Tensor) -> None:
        """Add the gradient of distances and fringes to the ends of the contours."""
        edges = self.topology.edges.shape[0]
        ends = self.like.new_empty(self.worlds, edges, 2, 3)
        given = (self.edges, self.edge_info, self.face_info, self.points, self.limits)
        seen = (*self.surfaces(state), *self.contours(state))
        seeds = (self.vec4(g_distances), self.vec4(fringes))
        kernel = scatter.make(self.scalar).scatter
        self.launch(kernel, (*given, *seen, *seeds, self.vec3(ends)), edges)
        self.collect(self.topology.ends_at, ends.flatten(1, 2), g_points)


Frame = tuple[Image, Topology, float]  # the arguments of a launcher that are no tensors: size, mesh, radius


def find_state(frame: Frame, points: Tensor, soft: bool) -> EdgeState:
    """Find what every pixel sees; without gradient."""
    image, topology, radius = frame
    return EdgeLauncher(image, topology, points.detach(), radius).state(soft)


def hard_image(image: Image, state: EdgeState) -> tuple[Tensor, Tensor]:
    """Alpha of 0 or 1 and the depth of the nearest surface, without gradient."""
    hit = state.covered > 0
    return hit.to(state.depths.dtype), torch.where(hit, state.depths[..., 0], image.far)


class _Composite(torch.autograd.Function):
    """Alpha and depth of a state; saves vertices and image-sized state."""

    @staticmethod
    def forward(ctx: Any, frame: Frame, with_depth: bool, points: Tensor, *state: Tensor) -> Any:
        ctx.frame = frame
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(points, *state)
        held = EdgeState(*state)
        if held.distances.numel() == 0:
            return hard_image(frame[0], held)
        return EdgeLauncher(frame[0], frame[1], points, frame[2]).composite(held, with_depth)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_alpha: Tensor | None, g_depth: Tensor | None) -> Any:
        run, state = _again(ctx)
        g_alpha = run.new().zero_() if g_alpha is None else g_alpha.contiguous()
        g_points = run.uncomposite(state, g_alpha, None if g_depth is None else g_depth.contiguous())
        return None, None, g_points, *(None,) * len(EdgeState._fields)


class _Weigh(torch.autograd.Function):
    """Weights of what every pixel sees, front to back and the background last, shape (B, H, W, 6)."""

    @staticmethod
    def forward(ctx: Any, frame: Frame, points: Tensor, *state: Tensor) -> Any:
        ctx.frame = frame
        ctx.save_for_backward(points, *state)
        return EdgeLauncher(frame[0], frame[1], points, frame[2]).weigh(EdgeState(*state))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_weights: Tensor) -> Any:
        run, state = _again(ctx)
        g_points = run.unweigh(state, g_weights.contiguous())
        return None, g_points, *(None,) * len(EdgeState._fields)


def composite_image(
    frame: Frame, points: Tensor, state: EdgeState, with_depth: bool
) -> tuple[Tensor, Tensor]:
    """Alpha and depth of a state, differentiable in the vertices; a depth that is not asked for has no elements."""
    return _Composite.apply(frame, with_depth, points, *state)


def weigh_image(frame: Frame, points: Tensor, state: EdgeState) -> Tensor:
    """Weights of what every pixel of a soft image sees, (B, H, W, 6); differentiable as alpha and depth are."""
    return _Weigh.apply(frame, points, *state)


def _again(ctx: Any) -> tuple[EdgeLauncher, EdgeState]:
    """The launcher and the state of a forward pass."""
    points, *state = ctx.saved_tensors
    image, topology, radius = ctx.frame
    return EdgeLauncher(image, topology, points, radius), EdgeState(*state)


def edge_kernels() -> Sequence[Any]:
    """Factories of the kernels that draw alpha, depth and weights."""
    return (
        lambda scalar: layers.make(scalar).raster,
        lambda scalar: layers.make(scalar).unraster,
        lambda scalar: contours.make(scalar).gather,
        lambda scalar: composite.make(scalar).composite,
        lambda scalar: composite.make(scalar).uncomposite,
        lambda scalar: composite.make(scalar).weigh,
        lambda scalar: composite.make(scalar).unweigh,
        lambda scalar: scatter.make(scalar).scatter,
        lambda scalar: incidence.make(scalar).collect,
    )
