"""Soft and hard rasterization of triangle meshes, differentiable in the vertices and the camera."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath import kernels
from gradpath.errors import InputError, ShapeError
from gradpath.kernel_launch import SCALARS
from gradpath.mode import current_mode
from gradpath.relaxation import relaxation
from gradpath.render import composite, contours, layers, scatter
from gradpath.render.topology import Topology

CHANNELS = ("alpha", "depth")
SILHOUETTES = ("edge",)

# The quintic step of this half-width has at its centre the slope of a Gaussian's cumulative of width 1.
SUPPORT = 15.0 / 16.0 * math.sqrt(2.0 * math.pi)
GPU_TILE = 8


class Image(NamedTuple):
    """What a rasterization needs besides tensors."""

    height: int
    width: int
    near: float
    far: float
    radius: float
    soft: bool


def _covered(value: dict[str, Tensor], **arguments: Any) -> Tensor | None:
    """What a pixel decides: whether it shows a surface."""
    return value["alpha"] > 0.5 if "alpha" in value else None


@relaxation("rasterize", temperature="sigma", decision=_covered)
def rasterize(
    points_camera: Tensor,
    faces: Tensor | Topology,
    *,
    K: Tensor,
    height: int,
    width: int,
    silhouette: str = "edge",
    sigma: float = 1.0,
    channels: str | Sequence[str] = CHANNELS,
    near: float = 0.05,
    far: float = 100.0,
    validate: bool = True,
) -> dict[str, Tensor]:
    """Render triangle meshes with a pinhole camera.

    In soft mode the layers along a pixel's ray blend across the visible contours near the pixel: alpha is 1/2 on the
    outline itself, 1 inside and 0 outside from 2.35 sigma on, and the logarithm of depth blends in the same way,
    towards `far` where there is nothing. In hard mode (`gp.mode("hard")`) alpha is 0 or 1 and depth is that of the
    ray through the pixel centre; `gp.mode("straight_through")` gives these values with the gradient of soft mode.

    Closed components are seen from outside only and need outward, counter-clockwise faces; open ones are seen from
    both sides. Faces that cross the near plane are drawn up to it.

    Args:
        points_camera: Vertices in the camera frame (x right, y down, z forward) [m], shape (B, V, 3), float32 or
            float64; differentiable.
        faces: Vertex indices, shape (F, 3), of an integer dtype, or their `Topology`, which saves the look-up.
        K: Intrinsics [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, shape (3, 3) or (B, 3, 3); pixel centres are at
            +0.5; differentiable.
        height: Rows of the image.
        width: Columns of the image.
        silhouette: The rule for soft edges; "edge".
        sigma: Width of the edges [pixels].
        channels: Which of "alpha" and "depth" to return; one, or several.
        near: Depth from which surfaces are drawn [m].
        far: Depth up to which surfaces are drawn, and depth of the background [m]; finite.
        validate: Refuse non-finite vertices and impossible intrinsics; on a GPU this waits for the device.
    Returns:
        A tensor of shape (B, height, width) for each channel.
    Raises:
        InputError: no faces, an index out of range, non-finite vertices, a K of another form than above, an empty or
            infinite range of depth, sigma not positive and finite, an unknown channel or rule.
        ShapeError: an argument is no tensor, or has another shape or dtype.
    Gradients: vertices and intrinsics exact; the order of layers, which edges are contours and which of them can be
        seen are held fixed. No memory per pixel and face: the backward pass recomputes from image-sized state.
    References: Olano and Greer 1997 (rays and triangles); Sander et al. 2001 (blending across discontinuity edges).
    """
    for name, tensor in (("points_camera", points_camera), ("K", K)):
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"{name}: expected a tensor, got {type(tensor).__name__}; use torch.as_tensor")
    topology = faces if isinstance(faces, Topology) else Topology.of(faces)
    if topology.faces.device != points_camera.device:
        topology = topology.to(points_camera.device)
    channels = (channels,) if isinstance(channels, str) else channels
    unknown = [name for name in channels if name not in CHANNELS]
    if unknown:
        raise InputError(f"unknown channels {unknown}; choose from {CHANNELS}")
    if silhouette not in SILHOUETTES:
        raise InputError(f"unknown silhouette rule {silhouette!r}; choose from {SILHOUETTES}")
    if not (0.0 < sigma < math.inf and 0.0 < near < far < math.inf and height > 0 and width > 0):
        raise InputError(
            "need sigma > 0, 0 < near < far, all finite, and an image of at least one pixel, "
            f"got sigma={sigma}, near={near}, far={far}, height={height}, width={width}"
        )
    _check_points(points_camera, topology, validate)
    cameras = _intrinsics(K, points_camera, validate)
    mode = current_mode()
    image = Image(height, width, near, far, SUPPORT * sigma, mode != "hard")
    alpha, depth, hard_alpha, hard_depth = _Rasterize.apply(image, topology, points_camera, cameras)
    if mode == "straight_through":
        alpha = alpha + (hard_alpha - alpha).detach()
        depth = depth + (hard_depth - depth).detach()
    values = {"alpha": alpha, "depth": depth}
    return {name: values[name] for name in channels}


def _check_points(points: Tensor, topology: Topology, validate: bool) -> None:
    if points.ndim != 3 or points.shape[2] != 3:
        raise ShapeError(f'points_camera: expected "B V 3", got {tuple(points.shape)}; add the batch axis')
    if points.dtype not in SCALARS:
        raise ShapeError(
            f"points_camera: expected float32 or float64, got {points.dtype}, too coarse for pixels; convert with .to()"
        )
    if points.shape[1] < topology.vertex_count:
        raise InputError(
            f"faces ask for vertex {topology.vertex_count - 1}, but there are {points.shape[1]} vertices; "
            "the faces belong to another mesh"
        )
    if validate and not bool(torch.isfinite(points).all()):
        world, vertex, _ = (~torch.isfinite(points)).nonzero()[0].tolist()
        raise InputError(
            f"vertex {vertex} of world {world} is {points[world, vertex].tolist()}; "
            "a non-finite pose or vertex would spoil the whole image, find where it came from"
        )


def _intrinsics(K: Tensor, points: Tensor, validate: bool) -> Tensor:
    """Intrinsics as (fx, fy, cx, cy) per world, shape (B, 4)."""
    if K.shape not in ((3, 3), (points.shape[0], 3, 3)):
        raise ShapeError(f"K: expected (3, 3) or ({points.shape[0]}, 3, 3), got {tuple(K.shape)}")
    K = K.to(points)
    if validate and not all(_is_pinhole(entries) for entries in K.detach().reshape(-1, 9).tolist()):
        raise InputError(
            "K needs finite entries, positive focal lengths, no skew and the bottom row [0, 0, 1]: "
            f"[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; got {K.tolist()}"
        )
    flat = torch.stack([K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]], dim=-1)
    return flat.expand(points.shape[0], 4)


def _is_pinhole(entries: list[float]) -> bool:
    """Whether nine entries are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; in Python, as they are too few for tensors."""
    fx, skew, cx, shear, fy, cy, *bottom = entries
    return (
        0.0 < fx < math.inf
        and 0.0 < fy < math.inf
        and math.isfinite(cx)
        and math.isfinite(cy)
        and (skew, shear, *bottom) == (0.0, 0.0, 0.0, 0.0, 1.0)
    )


class _Rasterize(torch.autograd.Function):
    """Launches the kernels of this package; saves vertices, intrinsics and image-sized state."""

    @staticmethod
    def forward(ctx: Any, image: Image, topology: Topology, points: Tensor, cameras: Tensor) -> Any:
        points, cameras = points.contiguous(), cameras.contiguous()
        run = _Launcher(image, topology, points, cameras)
        depths, hits = run.layers()
        hard_alpha = (hits[..., 0] >= 0).to(points.dtype)
        hard_depth = torch.where(hits[..., 0] >= 0, depths[..., 0], image.far)
        if image.soft:
            distances, nearest, sums = run.contours(depths, hits)
            alpha, depth = run.composite(depths, distances, sums)
            edges = [distances, nearest, sums]
        else:
            alpha, depth, edges = hard_alpha.clone(), hard_depth.clone(), []
        ctx.image, ctx.topology = image, topology
        ctx.save_for_backward(points, cameras, depths, hits, *edges)
        ctx.mark_non_differentiable(hard_alpha, hard_depth)
        return alpha, depth, hard_alpha, hard_depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_alpha: Tensor, g_depth: Tensor, *_: Any) -> Any:
        points, cameras, depths, hits, *soft = ctx.saved_tensors
        run = _Launcher(ctx.image, ctx.topology, points, cameras)
        if soft:
            distances, nearest, sums = soft
        else:  # without contours every hit is opaque, and its depth has the gradient of its plane
            distances = torch.full(
                (*depths.shape[:3], 4), ctx.image.radius, dtype=points.dtype, device=points.device
            )
            nearest = torch.full_like(distances, -1, dtype=torch.int32)
            sums = torch.zeros_like(distances)
        g_points, g_cameras = run.adjoint(
            depths, hits, distances, nearest, sums, g_alpha.contiguous(), g_depth.contiguous()
        )
        return None, None, g_points, g_cameras


def tile_shape(device: torch.device, width: int, height: int) -> tuple[int, int]:
    """Width and height of the block of pixels that one thread draws: the image on the CPU, where threads are worlds."""
    return (width, height) if device.type == "cpu" else (GPU_TILE, GPU_TILE)


class _Launcher:
    """The kernels of one image size and mesh, bound to the tensors of one call."""

    def __init__(self, image: Image, topology: Topology, points: Tensor, cameras: Tensor):
        self.image, self.topology, self.device = image, topology, points.device
        scalar = SCALARS[points.dtype]
        self.near_kernels, self.edge_kernels = layers.make(scalar), contours.make(scalar)
        self.blend_kernels, self.scatter = composite.make(scalar), scatter.make(scalar).scatter
        self.worlds = points.shape[0]
        self.like = points
        self.points = self.vec3(points)
        self.cameras = self.vec4(cameras)
        self.limits = self.near_kernels.vec3(image.near, image.far, image.radius)
        self.faces = kernels.array(topology.faces, wp.vec3i)
        self.face_info = kernels.array(topology.face_info, wp.vec2i)
        self.edges = kernels.array(topology.edges, wp.vec4i)
        self.edge_info = kernels.array(topology.edge_info, wp.vec2i)
        width, height = tile_shape(self.device, image.width, image.height)
        self.tile = wp.vec2i(width, height)
        self.blocks = -(-image.width // width) * -(-image.height // height)

    def vec3(self, tensor: Tensor) -> Any:
        return kernels.array(tensor, self.near_kernels.vec3)

    def vec4(self, tensor: Tensor) -> Any:
        return kernels.array(tensor, self.near_kernels.vec4)

    def new(self, *inner: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialized image-sized tensor; the kernels write every element."""
        shape = (self.worlds, self.image.height, self.image.width, *inner)
        return torch.empty(shape, dtype=dtype or self.like.dtype, device=self.device)

    def launch(self, kernel: Any, args: Sequence[Any], dim: Sequence[int]) -> None:
        kernels.launch_worlds(kernel, self.worlds, args, self.device, dim=dim)

    def layers(self) -> tuple[Tensor, Tensor]:
        depths, hits = self.new(3), self.new(3, dtype=torch.int32)
        out = (self.vec3(depths), kernels.array(hits, wp.vec3i))
        given = (self.faces, self.face_info, self.points, self.cameras, self.limits, self.tile)
        self.launch(self.near_kernels.raster, (*given, *out), (self.blocks,))
        return depths, hits

    def contours(self, depths: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distances, nearest, sums = self.new(4), self.new(4, dtype=torch.int32), self.new(4)
        model = (self.edges, self.edge_info, self.face_info)
        given = (self.points, self.cameras, self.limits, self.tile)
        state = (self.vec3(depths), kernels.array(hits, wp.vec3i))
        out = (self.vec4(distances), kernels.array(nearest, wp.vec4i), self.vec4(sums))
        self.launch(self.edge_kernels.gather, (*model, *given, *state, *out), (self.blocks,))
        return distances, nearest, sums

    def composite(self, depths: Tensor, distances: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        alpha, depth = self.new(), self.new()
        scalar = SCALARS[self.like.dtype]
        given = (self.limits, self.vec3(depths), self.vec4(distances), self.vec4(sums))
        out = (kernels.array(alpha, scalar), kernels.array(depth, scalar))
        self.launch(self.blend_kernels.composite, (*given, *out), (self.image.height, self.image.width))
        return alpha, depth

    def adjoint(
        self,
        depths: Tensor,
        hits: Tensor,
        distances: Tensor,
        nearest: Tensor,
        sums: Tensor,
        g_alpha: Tensor,
        g_depth: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the vertices and the intrinsics."""
        scalar = SCALARS[self.like.dtype]
        g_points = torch.zeros_like(self.like)
        g_cameras = torch.zeros(self.worlds, 4, dtype=self.like.dtype, device=self.device)
        g_distances, fringes = self.new(4), self.new(4)
        out = (self.vec3(g_points), self.vec4(g_cameras))
        image = (self.vec3(depths), kernels.array(hits, wp.vec3i))
        given = (self.points, self.cameras, self.limits, *image)
        between = (self.vec4(g_distances), self.vec4(fringes))
        seeds = (kernels.array(g_alpha, scalar), kernels.array(g_depth, scalar))
        self.launch(
            self.blend_kernels.uncomposite,
            (self.faces, *given, self.vec4(distances), self.vec4(sums), *seeds, *between, *out),
            (self.image.height, self.image.width),
        )
        if self.image.soft:
            edges = (self.edges, self.edge_info, self.face_info)
            state = (kernels.array(nearest, wp.vec4i), *between)
            self.launch(self.scatter, (*edges, *given, *state, *out), (self.topology.edges.shape[0],))
        return g_points, g_cameras


def _samples(batch: int) -> dict[str, Any]:
    """Two tetrahedra, one before the other, at another place in each world."""
    generator = torch.Generator().manual_seed(11)
    corners = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    shapes = torch.cat(
        [0.5 * corners + torch.tensor([-0.3, 0.1, 3.0]), corners + torch.tensor([0.5, -0.2, 6.0])]
    )
    shift = 0.1 * torch.randn(batch, 8, 3, generator=generator, dtype=torch.float64)
    face = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], dtype=torch.int32)
    K = torch.tensor([[9.0, 0.0, 5.1], [0.0, 9.0, 4.2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return {
        "points_camera": shapes.to(torch.float64) + shift,
        "faces": torch.cat([face, face + 4]),
        "K": K.expand(batch, 3, 3),
    }


def _small(points_camera: Tensor, faces: Tensor, K: Tensor) -> dict[str, Tensor]:
    """The operation on a small image; K without its constant entries, whose change is refused."""
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).to(K)
    K = K * mask + (K * (1.0 - mask)).detach()
    return rasterize(points_camera, faces, K=K, height=8, width=10, far=20.0, validate=False)


kernels.register(
    "rasterize",
    kernels=[
        lambda scalar: layers.make(scalar).raster,
        lambda scalar: contours.make(scalar).gather,
        lambda scalar: composite.make(scalar).composite,
        lambda scalar: composite.make(scalar).uncomposite,
        lambda scalar: scatter.make(scalar).scatter,
    ],
    fn=_small,
    samples=_samples,
)
