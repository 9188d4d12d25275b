"""Images on surfaces: mip-mapped, sampled between texels and between levels, differentiable in all of it."""

import itertools
import math
from functools import cached_property

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError

WRAPS = ("repeat", "clamp")


class Texture:
    """An image that is laid on surfaces by texture coordinates.

    Coordinates are (u, v) with u to the right and v up, (0, 0) being the lower left corner of the image and (1, 1) its
    upper right one, as in OBJ files. Levels of detail halve the image until one texel is left.

    Args:
        image: Rows from the top, shape (H, W, C), or (B, H, W, C) where worlds differ; floating; differentiable.
        wrap: What lies outside of 0 to 1: "repeat" or "clamp".
    Raises:
        ShapeError: an image of another shape or dtype, or without texels.
        InputError: another word for `wrap`.
    References: Williams 1983, "Pyramidal parametrics".
    """

    def __init__(self, image: Tensor, wrap: str = "repeat"):
        shaped = isinstance(image, Tensor) and image.ndim in (3, 4) and image.numel() > 0
        if not shaped or not image.is_floating_point():
            got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ShapeError(f"texture: expected floats of shape (H, W, C) or (B, H, W, C), got {got}")
        if wrap not in WRAPS:
            raise InputError(f"unknown wrap {wrap!r}; choose from {WRAPS}")
        self.image, self.wrap = image, wrap

    @cached_property
    def levels(self) -> list[Tensor]:
        """The image and its halves, each (B or 1, H, W, C); texels are means over what they cover."""
        level = self.image if self.image.ndim == 4 else self.image.unsqueeze(0)
        levels = [level]
        while max(level.shape[1:3]) > 1:
            size = max(1, level.shape[1] // 2), max(1, level.shape[2] // 2)
            channels_first = level.permute(0, 3, 1, 2)
            level = torch.nn.functional.adaptive_avg_pool2d(channels_first, size).permute(0, 2, 3, 1)
            levels.append(level)
        return levels

    @property
    def texels(self) -> int:
        """Number of texels of the finest level."""
        return math.prod(self.levels[0].shape[1:3])

    def sample(self, uv: Tensor, level: Tensor | None = None) -> Tensor:
        """Read the texture.

        Args:
            uv: Coordinates, shape (B, ..., 2); differentiable.
            level: Level of detail, 0 being the full image, shape (B, ...); between two, both are mixed;
                differentiable. Without it, the full image is read.
        Returns:
            Values, shape (B, ..., C).
        Raises:
            ShapeError: the texture has another number of worlds.
        """
        if self.levels[0].shape[0] not in (1, uv.shape[0]):
            raise ShapeError(
                f"texture: it has {self.levels[0].shape[0]} worlds, but is drawn in {uv.shape[0]}; "
                "give one image, or one each"
            )
        top = len(self.levels) - 1
        if level is None or top == 0:
            return self._bilinear(torch.zeros_like(uv[..., 0], dtype=torch.long), uv)
        level = level.clamp(0.0, top)
        lower = level.detach().floor().clamp(max=top - 1)
        number = lower.long()
        share = (level - lower).unsqueeze(-1)
        return torch.lerp(self._bilinear(number, uv), self._bilinear(number + 1, uv), share)

    @cached_property
    def _chain(self) -> tuple[Tensor, Tensor]:
        """All levels behind each other, (B or 1, N, C), and the height, width and start of each, (L, 3)."""
        flat = [level.flatten(1, 2) for level in self.levels]
        sizes = [[*level.shape[1:3], 0] for level in self.levels]
        for before, after in itertools.pairwise(sizes):
            after[2] = before[2] + before[0] * before[1]
        return torch.cat(flat, dim=1), torch.tensor(sizes, device=self.image.device)

    def _bilinear(self, number: Tensor, uv: Tensor) -> Tensor:
        """Read one level at each place, between its four nearest texels."""
        texels, sizes = self._chain
        height, width, start = sizes[number].unbind(-1)
        x = uv[..., 0] * width - 0.5
        y = (1.0 - uv[..., 1]) * height - 0.5
        left, upper = x.detach().floor(), y.detach().floor()
        fx, fy = (x - left).unsqueeze(-1), (y - upper).unsqueeze(-1)
        columns = [self._inside(left.long() + step, width) for step in (0, 1)]
        rows = [self._inside(upper.long() + step, height) * width + start for step in (0, 1)]
        if texels.shape[0] > 1:
            world = torch.arange(texels.shape[0], device=uv.device) * texels.shape[1]
            rows = [row + world.reshape(-1, *[1] * (uv.ndim - 2)) for row in rows]
        flat = texels.flatten(0, 1).to(uv)
        above, below = (torch.lerp(flat[row + columns[0]], flat[row + columns[1]], fx) for row in rows)
        return torch.lerp(above, below, fy)

    def _inside(self, index: Tensor, size: Tensor) -> Tensor:
        if self.wrap == "repeat":
            return index.remainder(size)
        return torch.minimum(index.clamp(min=0), size - 1)


def face_detail(points_camera: Tensor, faces: Tensor, uv: Tensor, uv_index: Tensor, focal: Tensor) -> Tensor:
    """What each face adds to its level of detail: half the log2 of texture area per pixel at a depth of 1 m.

    The level of detail at a pixel is this, plus half the log2 of the texels, plus 3/2 log2 of the depth: the area of
    texture that a pixel shows, seen at whatever angle. By area and not by the longer side, so that surfaces that are
    seen at a slant are sharper, and alias along the slant.

    Args:
        points_camera: Vertices (B, V, 3) in the frame of a pinhole camera.
        faces: Vertex indices (F, 3).
        uv: Coordinates (A, 2) or (B, A, 2).
        uv_index: Rows of `uv`, (F, 3).
        focal: Product of the focal lengths [pixels^2], shape (B,).
    Returns:
        Shape (B, F, 1); differentiable in all of them; very large where a face is seen edge on.
    """
    a, b, c = points_camera[:, faces.long()].unbind(2)
    volume = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    p, q, r = uv[..., uv_index.long(), :].unbind(-2)
    first, second = q - p, r - p
    area = (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]).abs()
    least = torch.finfo(points_camera.dtype).tiny
    ratio = area.clamp(min=least).log2() - volume.clamp(min=least).log2() - focal[:, None].log2()
    return (0.5 * ratio).unsqueeze(-1)
