"""What every rasterization launches its kernels with: the size of the image, the mesh, the tensors of one call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor

from gradpath import kernels
from gradpath.kernel_launch import SCALARS
from gradpath.render import layers
from gradpath.render.topology import Topology

GPU_TILE = 8


class Image(NamedTuple):
    """Size of an image and the range of depth that it shows [m]."""

    height: int
    width: int
    near: float
    far: float


def tile_shape(device: torch.device, width: int, height: int) -> tuple[int, int]:
    """Width and height of the block of pixels that one thread draws: the image on the CPU, where threads are worlds."""
    return (width, height) if device.type == "cpu" else (GPU_TILE, GPU_TILE)


class Launcher:
    """Binds kernels to one image, one mesh, and the vertices and intrinsics of one call.

    Args:
        image: Size and range.
        topology: Faces and edges.
        points: Vertices in the camera frame [m], shape (B, V, 3), contiguous.
        cameras: fx, fy, cx, cy [pixels], shape (B, 4), contiguous.
        reach: How far from a contour or face its pixels lie [pixels].
    """

    def __init__(self, image: Image, topology: Topology, points: Tensor, cameras: Tensor, reach: float):
        self.image, self.topology, self.device = image, topology, points.device
        self.scalar = SCALARS[points.dtype]
        shared = layers.make(self.scalar)
        self._vec2, self._vec3, self._vec4 = shared.vec2, shared.vec3, shared.vec4
        self.worlds = points.shape[0]
        self.like = points
        self.points = self.vec3(points)
        self.cameras = self.vec4(cameras)
        self.limits = shared.vec3(image.near, image.far, reach)
        self.faces = kernels.array(topology.faces, wp.vec3i)
        self.face_info = kernels.array(topology.face_info, wp.vec2i)
        width, height = tile_shape(self.device, image.width, image.height)
        self.tile = wp.vec2i(width, height)
        self.blocks = -(-image.width // width) * -(-image.height // height)

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
        """Return an uninitialized image-sized tensor; the kernels write every element."""
        shape = (self.worlds, self.image.height, self.image.width, *inner)
        return torch.empty(shape, dtype=dtype or self.like.dtype, device=self.device)

    def new_gradients(self) -> tuple[Tensor, Tensor]:
        """Return zeroed gradients of the vertices and the intrinsics."""
        g_cameras = torch.zeros(self.worlds, 4, dtype=self.like.dtype, device=self.device)
        return torch.zeros_like(self.like), g_cameras

    def launch(self, kernel: Any, args: Sequence[Any], dim: Sequence[int]) -> None:
        """Launch over all worlds and the axes `dim`."""
        kernels.launch_worlds(kernel, self.worlds, args, self.device, dim=dim)

    def layers(self) -> tuple[Tensor, Tensor]:
        """Find the three nearest surfaces of every pixel: depths [m] and faces, shapes (B, H, W, 3)."""
        depths, hits = self.new(3).fill_(layers.EMPTY), self.new(3, dtype=torch.int32).fill_(-1)
        out = (self.vec3(depths), kernels.array(hits, wp.vec3i))
        given = (self.faces, self.face_info, self.points, self.cameras, self.limits, self.tile)
        self.launch(layers.make(self.scalar).raster, (*given, *out), (self.blocks,))
        return depths, hits
