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
from gradpath.render import incidence, interpolate
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
from gradpath.render.image import homogeneous
from gradpath.render.lenses import Lens
from gradpath.render.topology import Incidence, Topology

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
        self.points, self.bent, self.intrinsics = points, bent, cameras
        self._frame, self._flat = frame, homogeneous(bent, cameras, frame[0])
        self._state = find_state(frame, self._flat, soft) if state is None else state
        self.lens, self.far = lens, far
        self.topology, self.soft, self.count = frame[1], soft, 5 if soft else 1

    @cached_property
    def faces(self) -> Tensor:
        """The face of each layer, -1 for none, shape (B, H, W, 3), int32; without gradient."""
        return torch.where(self._state.covered[..., None] > 0, self._state.hits, -1)

    def hard(self) -> "Fragments":
        """The nearest surfaces alone."""
        given = (self._frame, self.points, self.bent, self.intrinsics, self.lens, self.far)
        return Fragments(*given, False, self._state.hard())

    def alpha_depth(self) -> tuple[Tensor, Tensor]:
        """Alpha and depth [m], shapes (B, H, W), differentiable in vertices and intrinsics."""
        alpha, depth = composite_image(self._frame, self._flat, self._state, with_depth=True)
        return alpha, self.lens.unbend_depth(depth, self.far)

    def alpha(self) -> Tensor:
        """Alpha alone, which costs less than with depth."""
        return composite_image(self._frame, self._flat, self._state, with_depth=False)[0]

    @cached_property
    def weights(self) -> Tensor:
        """Shares of the pieces in each pixel, the background last, (B, H, W, P + 1); they sum to 1.

        Gradients: vertices and intrinsics exact; a hard image has none.
        """
        if self.soft:
            return weigh_image(self._frame, self._flat, self._state)
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
        given = (self._frame, self.soft, rows.contiguous(), self._flat, values.contiguous())
        flat = _Interpolate.apply(*given, *self._state)
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
        ctx: Any, frame: Frame, soft: bool, rows: Tensor, points: Tensor, attributes: Tensor, *state: Tensor
    ) -> Tensor:
        ctx.frame, ctx.soft = frame, soft
        ctx.save_for_backward(rows, points, attributes, *state)
        run, held = EdgeLauncher(frame[0], frame[1], points, frame[2]), EdgeState(*state)
        use = interpolate.make(run.scalar)
        values = run.new((5 if soft else 1) * attributes.shape[2])
        out = (run.number(attributes), run.number(values))
        covered, _depths, hits = run.surfaces(held)
        given = (run.faces, kernels.array(rows, wp.vec3i), _slots(soft), run.points)
        run.launch_blocks(use.layers, given, (covered, hits, *out), run.patch)
        if soft:
            given = (run.edges, run.edge_info, kernels.array(_end_rows(rows, frame[1]), wp.vec4i), run.points)
            run.launch_blocks(use.fringes, given, (*run.contours(held), *out), run.patch)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_values: Tensor) -> Any:
        rows, points, attributes, *state = ctx.saved_tensors
        run, held = EdgeLauncher(ctx.frame[0], ctx.frame[1], points, ctx.frame[2]), EdgeState(*state)
        g_points, g_attributes = torch.zeros_like(points), torch.zeros_like(attributes)
        seeds = (run.number(attributes), run.number(g_values.contiguous()))
        _uninterpolate_layers(run, held, ctx.soft, rows, seeds, g_points, g_attributes)
        if ctx.soft:
            _uninterpolate_fringes(run, held, rows, seeds, g_points, g_attributes)
        return None, None, None, g_points, g_attributes, *(None,) * len(held)


def _uninterpolate_layers(
    run: EdgeLauncher,
    state: EdgeState,
    soft: bool,
    rows: Tensor,
    seeds: Sequence[Any],
    g_points: Tensor,
    g_attributes: Tensor,
) -> None:
    """Add gradients through the layers to vertices and attributes."""
    count, worlds, topology = rows.shape[0], run.worlds, run.topology
    corners = g_points.new_empty(worlds, count, 3, 3)
    parts = g_points.new_zeros(worlds, count, 3, g_attributes.shape[2])
    covered, _depths, hits = run.surfaces(state)
    model = (run.faces, run.face_info, kernels.array(rows, wp.vec3i), _slots(soft))
    out = (run.vec3(corners), run.number(parts))
    given = (*model, run.points, run.limits, covered, hits)
    run.launch(interpolate.make(run.scalar).unlayers, (*given, *seeds, *out), count)
    run.collect(topology.corners_at, corners.flatten(1, 2), g_points)
    same = rows.data_ptr() == topology.faces.data_ptr()
    places = topology.corners_at if same else Incidence.of(rows.reshape(-1))
    run.collect_rows(places, parts.flatten(1, 2), g_attributes)


def _uninterpolate_fringes(
    run: EdgeLauncher,
    state: EdgeState,
    rows: Tensor,
    seeds: Sequence[Any],
    g_points: Tensor,
    g_attributes: Tensor,
) -> None:
    """Add gradients through the fringes to vertices and attributes."""
    count, worlds, topology = run.topology.edges.shape[0], run.worlds, run.topology
    ends = g_points.new_empty(worlds, count, 2, 3)
    parts = g_points.new_zeros(worlds, count, 4, g_attributes.shape[2])
    end_rows = _end_rows(rows, topology)
    model = (run.edges, run.edge_info, kernels.array(end_rows, wp.vec4i))
    given = (*model, run.points, run.limits, *run.contours(state))
    out = (run.vec3(ends), run.number(parts))
    run.launch(interpolate.make(run.scalar).unfringes, (*given, *seeds, *out), count)
    run.collect(topology.ends_at, ends.flatten(1, 2), g_points)
    run.collect_rows(Incidence.of(end_rows.reshape(-1)), parts.flatten(1, 2), g_attributes)


def _slots(soft: bool) -> Any:
    return wp.vec3i(*(SOFT_LAYERS if soft else HARD_LAYERS))


def _end_rows(rows: Tensor, topology: Topology) -> Tensor:
    """Rows of attributes at both ends of edges, in the first face beside them and the second, shape (E, 4)."""
    return rows.reshape(-1)[topology.edge_corners.long()]


def interpolation_kernels() -> Sequence[Any]:
    """Factories of the kernels that interpolate attributes."""
    return (
        lambda scalar: interpolate.make(scalar).layers,
        lambda scalar: interpolate.make(scalar).unlayers,
        lambda scalar: interpolate.make(scalar).fringes,
        lambda scalar: interpolate.make(scalar).unfringes,
        lambda scalar: incidence.make(scalar).collect_rows,
    )
