"""What every rasterization launches its kernels with: the size of the image, the mesh, the tensors of one call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor

from gradpath import kernels
from gradpath.kernel_launch import SCALARS
from gradpath.render import incidence, layers
from gradpath.render.topology import Incidence, Topology

GPU_TILE = 8


class Image(NamedTuple):
    """Size of an image and the range of depth that it shows [m]."""

    height: int
    width: int
    near: float
    far: float


def homogeneous(points: Tensor, cameras: Tensor, image: Image) -> Tensor:
    """Vertices as the kernels take them: (u z, v z, z) with u and v in pixels from the centre of the image.

    Args:
        points: Vertices as a pinhole camera sees them [m], shape (B, V, 3); differentiable.
        cameras: fx, fy, cx, cy [pixels], shape (B, 4); differentiable.
        image: Size of the image.
    Returns:
        Shape (B, V, 3), contiguous.
    """
    focal, centre = cameras.split(2, dim=1)
    middle = centre.new_tensor([0.5 * image.width, 0.5 * image.height])
    scale = torch.nn.functional.pad(focal, (0, 1), value=1.0)
    shift = torch.nn.functional.pad(centre - middle, (0, 1))
    return torch.addcmul(points * scale[:, None], points[..., 2:], shift[:, None])


def strips(worlds: int) -> int:
    """Into how many strips of rows an image is cut on the CPU, for every thread to have some in few images, too."""
    threads = kernels.get_threads()
    return 1 if worlds >= 2 * threads else -(-2 * threads // max(worlds, 1))


def tile_shape(device: torch.device, width: int, height: int, worlds: int) -> tuple[int, int]:
    """Width and height of the block of pixels that one thread draws."""
    return (width, -(-height // strips(worlds))) if device.type == "cpu" else (GPU_TILE, GPU_TILE)


class Launcher:
    """Binds kernels to one image, one mesh, and the vertices of one call.

    Args:
        image: Size and range.
        topology: Faces and edges.
        points: Vertices in homogeneous coordinates of the image, shape (B, V, 3), contiguous.
        reach: How far from a contour or face its pixels lie [pixels].
    """

    def __init__(self, image: Image, topology: Topology, points: Tensor, reach: float):
        self.image, self.topology, self.device = image, topology, points.device
        self.scalar = SCALARS[points.dtype]
        shared = layers.make(self.scalar)
        self._vec3, self._vec4 = shared.vec3, shared.vec4
        self.worlds = points.shape[0]
        self.like = points
        self.points = self.vec3(points)
        self.limits = shared.vec3(image.near, image.far, reach)
        self.faces = kernels.array(topology.faces, wp.vec3i)
        self.face_info = kernels.array(topology.face_info, wp.vec2i)
        # Blocks of pixels for threads that look at all faces, and for threads that look at their pixels alone.
        self.tile = tile_shape(self.device, image.width, image.height, self.worlds)
        self.patch = self.tile if self.device.type == "cpu" else (1, 1)

    def number(self, tensor: Tensor) -> Any:
        """Wrap a tensor of scalars."""
        return kernels.array(tensor, self.scalar)

    def vec3(self, tensor: Tensor) -> Any:
        """Wrap a tensor whose last axis is a vector."""
        return kernels.array(tensor, self._vec3)

    def vec4(self, tensor: Tensor) -> Any:
        """Wrap a tensor whose last axis is a vector."""
        return kernels.array(tensor, self._vec4)

    def new(self, *inner: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialized image-sized tensor."""
        shape = (self.worlds, self.image.height, self.image.width, *inner)
        return torch.empty(shape, dtype=dtype or self.like.dtype, device=self.device)

    def none(self, *inner: int) -> Tensor:
        """Return an image-sized tensor without pixels: what is not asked for."""
        return self.like.new_empty(0, 0, 0, *inner)

    def new_rows(self, inner: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialized tensor with a row for each pixel at most, for what few pixels have."""
        return self.new(inner, dtype=dtype).flatten(0, 2)

    def new_flags(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return a zero for each pixel: what other tensors hold of it is not written yet."""
        return self.new(dtype=dtype).zero_()

    def launch(self, kernel: Any, args: Sequence[Any], each: int) -> None:
        """Launch over all worlds and what there is of each: faces, edges, vertices, blocks of pixels."""
        kernels.launch_worlds(kernel, self.worlds * each, args, self.device)

    def launch_blocks(
        self, kernel: Any, given: Sequence[Any], rest: Sequence[Any], shape: tuple[int, int]
    ) -> None:
        """Launch over blocks of pixels, whose shape the kernel takes between the arguments `given` and the `rest`."""
        width, height = shape
        blocks = -(-self.image.width // width) * -(-self.image.height // height)
        self.launch(kernel, (*given, self.limits, wp.vec2i(width, height), *rest), blocks)

    def layers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Find the three nearest surfaces of every pixel: whether there is one, depths [m] and faces."""
        covered, depths, hits = self.new_flags(), self.new(3), self.new(3, dtype=torch.int32)
        out = (kernels.array(covered, wp.uint8), self.vec3(depths), kernels.array(hits, wp.vec3i))
        given = (self.faces, self.face_info, self.points)
        self.launch_blocks(layers.make(self.scalar).raster, given, out, self.tile)
        return covered, depths, hits

    def collect(self, places: Incidence, parts: Tensor, g_points: Tensor) -> None:
        """Add what was found at the corners of faces or the ends of edges, shape (B, N, 3), to their vertices."""
        model = (kernels.array(places.starts, wp.int32), kernels.array(places.places, wp.int32))
        kernel = incidence.make(self.scalar).collect
        self.launch(kernel, (*model, self.vec3(parts), self.vec3(g_points)), g_points.shape[1])

    def collect_rows(self, places: Incidence, parts: Tensor, g_rows: Tensor) -> None:
        """Add what was found there, shape (B, N, C), to rows of attributes, shape (B, A, C)."""
        model = (kernels.array(places.starts, wp.int32), kernels.array(places.places, wp.int32))
        kernel = incidence.make(self.scalar).collect_rows
        self.launch(kernel, (*model, self.number(parts), self.number(g_rows)), g_rows.shape[1])
