"""What a rasterizer needs to know of a mesh besides positions: edges, their faces, connected components."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradpath.connectivity import connected_components, pair_edges
from gradpath.errors import InputError, ShapeError

INDEX_DTYPES = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


class Incidence(NamedTuple):
    """The places that belong to each vertex, vertex by vertex: those of vertex v are places[starts[v] : starts[v + 1]].

    Attributes:
        starts: Shape (V + 1,), int32.
        places: Shape (N,), int32, ascending for each vertex.
    """

    starts: Tensor
    places: Tensor

    @staticmethod
    def of(vertices: Tensor) -> "Incidence":
        """Group places 0 to N - 1 by their vertex, shape (N,)."""
        ends = torch.bincount(vertices).cumsum(0)
        starts = torch.nn.functional.pad(ends, (1, 0))
        return Incidence(starts.to(torch.int32), torch.argsort(vertices, stable=True).to(torch.int32))


@dataclass(frozen=True, eq=False)
class Topology:
    """Connectivity of a triangle soup, as int32 tensors on one device.

    Attributes:
        faces: Vertex indices, shape (F, 3).
        face_info: Component of each face, and 1 where its component is open (seen from both sides), shape (F, 2).
        edges: For each edge its ends a and b and the vertices opposite to it in its two faces, shape (E, 4).
            The first face traverses the edge from a to b; the last entry is -1 at a boundary.
        edge_info: As `face_info`, for edges, shape (E, 2).
        edge_corners: Where the faces beside an edge hold its ends, as indices into the flattened `faces`: a and b in
            the first face, a and b in the second (or the first again, at a boundary), shape (E, 4).
    """

    faces: Tensor
    face_info: Tensor
    edges: Tensor
    edge_info: Tensor
    edge_corners: Tensor

    @staticmethod
    def of(faces: Tensor) -> "Topology":
        """Topology of faces of shape (F, 3); cached by content, so that calling it every step is cheap.

        Raises:
            ShapeError: faces are no tensor, or not of an integer dtype.
            InputError: faces of another shape, none, or with a negative index.
        """
        if not isinstance(faces, Tensor):
            raise ShapeError(f"faces: expected a tensor, got {type(faces).__name__}; use torch.as_tensor")
        if faces.dtype not in INDEX_DTYPES:
            raise ShapeError(
                f"faces: expected an integer dtype, got {faces.dtype}; convert with .to(torch.int32)"
            )
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise InputError(f"faces must have shape (F, 3), got {tuple(faces.shape)}")
        if faces.shape[0] == 0:
            raise InputError(
                "a mesh without faces cannot be rendered; check the file or the filter before it"
            )
        data = np.ascontiguousarray(faces.detach().cpu().numpy(), dtype=np.int32)
        return _cached(data.tobytes(), str(faces.device))

    def to(self, device: torch.device | str) -> "Topology":
        """The same topology on another device."""
        tensors = (self.faces, self.face_info, self.edges, self.edge_info, self.edge_corners)
        return Topology(*(t.to(device) for t in tensors))

    @cached_property
    def vertex_count(self) -> int:
        """The least number of vertices that the faces ask for."""
        return int(self.faces.max()) + 1

    @cached_property
    def corners_at(self) -> Incidence:
        """The corners of faces, indices into the flattened `faces`, that lie at each vertex."""
        return Incidence.of(self.faces.reshape(-1))

    @cached_property
    def ends_at(self) -> Incidence:
        """The ends of edges, indices into the flattened first two columns of `edges`, that lie at each vertex."""
        return Incidence.of(self.edges[:, :2].reshape(-1))


@lru_cache(maxsize=64)
def _cached(data: bytes, device: str) -> Topology:
    return _build(np.frombuffer(data, dtype=np.int32).reshape(-1, 3)).to(device)


def _build(faces: np.ndarray) -> Topology:
    if faces.min() < 0:
        raise InputError(f"faces hold the negative vertex index {faces.min()}")
    edges, beside = pair_edges(faces)
    component = connected_components(faces)
    is_open = np.zeros(component.max() + 1, dtype=np.int32)
    is_open[component[beside[edges[:, 3] < 0, 0]]] = 1
    face_info = np.stack([component, is_open[component]], axis=1)
    corners = [
        3 * face + np.argmax(faces[face] == edges[:, end, None], axis=1)
        for face in (beside[:, 0], np.where(beside[:, 1] < 0, beside[:, 0], beside[:, 1]))
        for end in (0, 1)
    ]
    arrays = (faces, face_info, edges, face_info[beside[:, 0]], np.stack(corners, axis=1))
    return Topology(*(torch.from_numpy(np.array(a, dtype=np.int32)) for a in arrays))
