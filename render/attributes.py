"""What surfaces carry besides their shape: colours, normals, labels, texture coordinates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.render.topology import INDEX_DTYPES


@dataclass(frozen=True, eq=False)
class Attribute:
    """Values on a mesh, interpolated linearly over each face.

    A tensor in place of an `Attribute` means values per vertex.

    Args:
        values: Rows of C values, shape (A, C), or (B, A, C) where worlds differ; differentiable.
        index: The row of each corner of each face, shape (F, 3), of an integer dtype; by default that of its vertex.
            Texture coordinates with seams have more rows than vertices, values per face have one row per face.
        background: Value where there is no surface: a number, or a tensor that broadcasts to (B, H, W, C), such as
            an image; differentiable.
    Raises:
        ShapeError: values that are no floating tensor of such a shape, an index of another shape or dtype.
    """

    values: Tensor
    index: Tensor | None = None
    background: float | Tensor = 0.0

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim not in (2, 3):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(f"attribute values: expected floats of shape (A, C) or (B, A, C), got {got}")
        index = self.index
        if index is not None and (index.dtype not in INDEX_DTYPES or index.ndim != 2 or index.shape[1] != 3):
            raise ShapeError(
                f"attribute index: expected integers of shape (F, 3), got {index.dtype} {tuple(index.shape)}"
            )

    @classmethod
    def per_face(cls, values: Tensor, background: float | Tensor = 0.0) -> "Attribute":
        """Values that are constant on each face, shape (F, C) or (B, F, C)."""
        if not isinstance(values, Tensor) or values.ndim < 2:
            raise ShapeError("values per face: expected a tensor of shape (F, C) or (B, F, C)")
        rows = torch.arange(values.shape[-2], dtype=torch.int32, device=values.device)
        return cls(values, rows[:, None].expand(-1, 3), background)

    @classmethod
    def one_hot(cls, ids: Tensor, count: int) -> "Attribute":
        """Labels of faces, shape (F,), of `count` kinds: drawn softly, channel k is the probability of label k.

        Raises:
            InputError: a label outside of 0 to count - 1.
        """
        if ids.numel() == 0 or int(ids.min()) < 0 or int(ids.max()) >= count:
            raise InputError(f"labels must lie between 0 and {count - 1}; got {ids.tolist()[:8]} ...")
        unit = torch.eye(count, dtype=torch.get_default_dtype(), device=ids.device)
        return cls(unit, ids.to(torch.int32)[:, None].expand(-1, 3))


def face_normals(points: Tensor, faces: Tensor) -> Tensor:
    """Unit normals of faces, shape (..., F, 3), from vertices (..., V, 3) and indices (F, 3); exact gradients.

    They point to where the vertices run counter-clockwise; a face without area has the normal zero.
    """
    a, b, c = points[..., faces.long(), :].unbind(-2)
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)


def vertex_normals(points: Tensor, faces: Tensor) -> Tensor:
    """Unit normals of vertices, shape (..., V, 3): means of those of their faces by area; exact gradients.

    Vertices that are shared give a smooth look; a box that should look like one needs four vertices per side.
    """
    corners = points[..., faces.long(), :]
    a, b, c = corners.unbind(-2)
    areas = torch.linalg.cross(b - a, c - a)
    index = faces.long().T.reshape(-1)
    summed = torch.zeros_like(points).index_add(-2, index, torch.cat([areas, areas, areas], dim=-2))
    return torch.nn.functional.normalize(summed, dim=-1)
