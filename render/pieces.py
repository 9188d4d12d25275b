"""What every pixel sees: pieces of surface and their weights, on which attributes are read, shaded and blended."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath import kernels
from gradpath.errors import InputError, ShapeError
from gradpath.render import interpolate
from gradpath.render.attributes import Attribute
from gradpath.render.edge_image import (
    EdgeLauncher,
    EdgeState,
    Frame,
    composite_image,
    find_state,
    hard_image,
    weigh_image,
)
from gradpath.render.lenses import Lens

SOFT_LAYERS, HARD_LAYERS = (1, 3, 4), (0, -1, -1)  # places of the three layers among the pieces


class Fragments:
    """What every pixel of an image sees, front to back: the split of rasterizing, shading and blending.

    A soft image has five pieces per pixel: the fringe before the first layer, the first layer, the fringe before the
    second layer, the second and the third layer. A hard image has one, the nearest surface. `interpolate` reads
    attributes off the pieces, any torch function may shade them there, `blend` sums them by `weights`:

        pieces = render.fragments(points, faces, K=K, height=48, width=64)
        normal = pieces.interpolate(vertex_normals)                # (B, H, W, 5, 3)
        image = pieces.blend(shade(normal), background=sky)        # (B, H, W, C)

    The fringe of a surface has the values of its outline, at the point that is closest to the pixel.

    Attributes:
        soft: Whether the image is soft.
        count: Number of pieces per pixel, P: 5 or 1.
        points: The vertices, in the camera frame [m], shape (B, V, 3).
        bent: Where a pinhole camera sees the vertices as the lens does, shape (B, V, 3).
        lens: The lens.
        far: Depth of the background [m].
        intrinsics: fx, fy, cx, cy [pixels], shape (B, 4).
        topology: Faces and edges.
        faces: The face of each layer, -1 for none, shape (B, H, W, 3), int32; without gradient.
    """

    def __init__(
        self,
        frame: Frame,
        points: Tensor,
        bent: Tensor,
        cameras: Tensor,
        lens: Lens,
        far: float,
        soft: bool,
        state: EdgeState | None = None,
    ):
        self._frame, self._state = frame, find_state(frame, bent, cameras, soft) if state is None else state
        self.points, self.bent, self.intrinsics = points, bent, cameras
        self.lens, self.far = lens, far
        self.topology, self.soft, self.count = frame[1], soft, 5 if soft else 1
        self.faces = self._state.hits

    def hard(self) -> "Fragments":
        """The nearest surfaces alone."""
        empty = self._state.depths.new_empty(0)
        state = EdgeState(self._state.depths, self._state.hits, empty, self.faces.new_empty(0), empty)
        return Fragments(
            self._frame, self.points, self.bent, self.intrinsics, self.lens, self.far, False, state
        )

    def alpha_depth(self) -> tuple[Tensor, Tensor]:
        """Alpha and depth [m], shapes (B, H, W), differentiable in vertices and intrinsics."""
        alpha, depth = composite_image(self._frame, self.bent, self.intrinsics, self._state)
        return alpha, self.lens.unbend_depth(depth, self.far)

    @cached_property
    def weights(self) -> Tensor:
        """Shares of the pieces in each pixel, the background last, (B, H, W, P + 1); they sum to 1.

        Gradients: vertices and intrinsics exact; a hard image has none.
        """
        if self.soft:
            return weigh_image(self._frame, self.bent, self.intrinsics, self._state)
        alpha, _ = hard_image(self._frame[0], self._state)
        return torch.stack([alpha, 1.0 - alpha], dim=-1)

    def interpolate(self, attribute: Tensor | Attribute) -> Tensor:
        """Read an attribute off every piece.

        Args:
            attribute: Values per vertex, shape (V, C) or (B, V, C), or an `Attribute`.
        Returns:
            Values, shape (B, H, W, P, C); zero for pieces that are not there.
        Raises:
            ShapeError: another number of worlds, or fewer rows than the faces ask for.
        Gradients: attribute, vertices and intrinsics exact; which face or contour is seen is held fixed.
        """
        attribute = attribute if isinstance(attribute, Attribute) else Attribute(attribute)
        worlds, topology = self.points.shape[0], self.topology
        values = attribute.values.to(self.points)
        if values.ndim == 2:
            values = values.expand(worlds, *values.shape)
        rows = topology.faces if attribute.index is None else attribute.index.to(topology.faces)
        if values.shape[0] != worlds or rows.shape != topology.faces.shape:
            raise ShapeError(
                f"attribute: expected {worlds} worlds and an index of {len(topology.faces)} faces, "
                f"got {values.shape[0]} and {len(rows)}; it belongs to another mesh"
            )
        _check_rows(rows, values.shape[1], topology.faces if attribute.index is None else None)
        if not self.lens.affine:
            return self._read(rows, values)
        # Without perspective, the bent mesh shows an attribute times its z; over z, that is linear in the image.
        z = self.bent[:, topology.faces.long().reshape(-1), 2:]
        corners = torch.cat([values[:, rows.long().reshape(-1)] * z, z], dim=-1)
        every = torch.arange(3 * len(rows), dtype=torch.int32, device=rows.device).reshape(-1, 3)
        sums, total = self._read(every, corners).split([values.shape[2], 1], dim=-1)
        return sums / torch.where(total > 0, total, 1.0)

    def _read(self, rows: Tensor, values: Tensor) -> Tensor:
        """Interpolate in the bent mesh."""
        given = (self._frame, self.soft, rows.contiguous(), self.bent, self.intrinsics, values.contiguous())
        flat = _Interpolate.apply(*given, self._state.hits, self._state.nearest)
        return flat.unflatten(-1, (-1, values.shape[2]))

    def blend(self, values: Tensor, background: float | Tensor = 0.0) -> Tensor:
        """Sum values of the pieces, (B, H, W, P, C), and the background by their weights; (B, H, W, C).

        Args:
            values: What `interpolate` gave, or what was made of it.
            background: A number, or a tensor that broadcasts to (B, H, W, C).
        """
        weights = self.weights
        image = torch.einsum("bhwp,bhwpc->bhwc", weights[..., :-1], values)
        if isinstance(background, Tensor) or background != 0.0:
            image = image + weights[..., -1:] * background
        return image

    def draw(self, attribute: Tensor | Attribute) -> Tensor:
        """Interpolate an attribute and blend it over its background, (B, H, W, C)."""
        background = attribute.background if isinstance(attribute, Attribute) else 0.0
        return self.blend(self.interpolate(attribute), background)


def _check_rows(rows: Tensor, count: int, vertices: Tensor | None) -> None:
    """Refuse rows outside of an attribute; on a GPU this is left out, since the answer would be waited for."""
    if rows.device.type == "cpu" and (int(rows.max()) >= count or int(rows.min()) < 0):
        of = "the faces name vertices" if vertices is not None else "the index names rows"
        raise InputError(
            f"attribute: {of} {int(rows.min())} to {int(rows.max())}, but there are {count} rows of values"
        )


class _Interpolate(torch.autograd.Function):
    """Values of all pieces, flat: (B, H, W, P C)."""

    @staticmethod
    def forward(
        ctx: Any,
        frame: Frame,
        soft: bool,
        rows: Tensor,
        points: Tensor,
        cameras: Tensor,
        attributes: Tensor,
        hits: Tensor,
        nearest: Tensor,
    ) -> Tensor:
        ctx.frame, ctx.soft = frame, soft
        ctx.save_for_backward(rows, points, cameras, attributes, hits, nearest)
        run = EdgeLauncher(frame[0], frame[1], points, cameras, frame[2])
        use, channels = interpolate.make(run.scalar), attributes.shape[2]
        values = run.new((5 if soft else 1) * channels)
        size = (frame[0].height, frame[0].width)
        out = (kernels.array(attributes, run.scalar), kernels.array(values, run.scalar))
        run.launch(use.layers, (*_layer_arguments(run, soft, rows, hits), *out), size)
        if soft:
            run.launch(use.fringes, (*_fringe_arguments(run, frame, rows, nearest), *out), size)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_values: Tensor) -> Any:
        rows, points, cameras, attributes, hits, nearest = ctx.saved_tensors
        frame, soft = ctx.frame, ctx.soft
        run = EdgeLauncher(frame[0], frame[1], points, cameras, frame[2])
        use = interpolate.make(run.scalar)
        g_points, g_cameras = run.new_gradients()
        g_attributes = torch.zeros_like(attributes)
        size = (frame[0].height, frame[0].width)
        seeds = (kernels.array(attributes, run.scalar), run.number(g_values.contiguous()))
        out = (run.vec3(g_points), run.vec4(g_cameras), run.number(g_attributes))
        run.launch(use.unlayers, (*_layer_arguments(run, soft, rows, hits), *seeds, *out), size)
        if soft:
            run.launch(use.unfringes, (*_fringe_arguments(run, frame, rows, nearest), *seeds, *out), size)
        return None, None, None, g_points, g_cameras, g_attributes, None, None


def _layer_arguments(run: EdgeLauncher, soft: bool, rows: Tensor, hits: Tensor) -> Sequence[Any]:
    slots = wp.vec3i(*(SOFT_LAYERS if soft else HARD_LAYERS))
    model = (run.faces, kernels.array(rows, wp.vec3i), slots)
    return (*model, run.points, run.cameras, kernels.array(hits, wp.vec3i))


def _fringe_arguments(run: EdgeLauncher, frame: Frame, rows: Tensor, nearest: Tensor) -> Sequence[Any]:
    ends = rows.reshape(-1)[frame[1].edge_corners.long()]
    model = (run.edges, run.edge_info, kernels.array(ends, wp.vec4i))
    return (*model, run.points, run.cameras, run.limits, kernels.array(nearest, wp.vec4i))


def interpolation_kernels() -> Sequence[Any]:
    """Factories of the kernels that interpolate attributes."""
    return (
        lambda scalar: interpolate.make(scalar).layers,
        lambda scalar: interpolate.make(scalar).unlayers,
        lambda scalar: interpolate.make(scalar).fringes,
        lambda scalar: interpolate.make(scalar).unfringes,
    )
