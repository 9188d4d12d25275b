"""What a rasterizer needs to know of a mesh besides positions: edges, their faces, connected components."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gradpath.errors import InputError


@dataclass(frozen=True)
class Topology:
    """Connectivity of a triangle soup, as int32 tensors on one device.

    Attributes:
        faces: Vertex indices, shape (F, 3).
        face_info: Component of each face, and 1 where its component is open (seen from both sides), shape (F, 2).
        edges: For each edge its ends a and b and the vertices opposite to it in its two faces, shape (E, 4).
            The first face traverses the edge from a to b; the last entry is -1 at a boundary.
        edge_info: As `face_info`, for edges, shape (E, 2).
    """

    faces: Tensor
    face_info: Tensor
    edges: Tensor
    edge_info: Tensor

    @staticmethod
    def of(faces: Tensor) -> "Topology":
        """Topology of faces of shape (F, 3); cached by content, so that calling it every step is cheap."""
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
        tensors = (self.faces, self.face_info, self.edges, self.edge_info)
        return Topology(*(t.to(device) for t in tensors))

    @property
    def vertex_count(self) -> int:
        """The least number of vertices that the faces ask for."""
        return self._vertex_count

    def __post_init__(self):
        object.__setattr__(self, "_vertex_count", int(self.faces.max()) + 1)


@lru_cache(maxsize=64)
def _cached(data: bytes, device: str) -> Topology:
    return _build(np.frombuffer(data, dtype=np.int32).reshape(-1, 3)).to(device)


def _build(faces: np.ndarray) -> Topology:
    if faces.min() < 0:
        raise InputError(f"faces hold the negative vertex index {faces.min()}")
    edges, edge_faces = _pair_edges(faces)
    component = _components(len(faces), edge_faces)
    is_open = np.zeros(component.max() + 1, dtype=np.int32)
    is_open[component[edge_faces[edges[:, 3] < 0, 0]]] = 1
    face_info = np.stack([component, is_open[component]], axis=1)
    arrays = (faces, face_info, edges, face_info[edge_faces[:, 0]])
    return Topology(*(torch.from_numpy(np.array(a, dtype=np.int32)) for a in arrays))


def _pair_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join half-edges into edges (a, b, opposite, opposite or -1) with their faces (face, face or -1).

    An edge shared by more than two faces has no inside and outside: its half-edges all count as boundary.
    """
    count = len(faces)
    half = np.stack([faces, np.roll(faces, -1, axis=1), np.roll(faces, -2, axis=1)], axis=-1).reshape(-1, 3)
    face = np.repeat(np.arange(count), 3)
    key = np.sort(half[:, :2], axis=1)
    _, group, size = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    pairs = start[size == 2]
    first, second = order[pairs], order[pairs + 1]
    single = order[(size != 2)[group[order]]]
    none = np.full(len(single), -1)
    edges = np.concatenate(
        [np.column_stack([half[first], half[second, 2]]), np.column_stack([half[single], none])]
    )
    edge_faces = np.concatenate(
        [np.column_stack([face[first], face[second]]), np.column_stack([face[single], none])]
    )
    return edges, edge_faces


def _components(count: int, edge_faces: np.ndarray) -> np.ndarray:
    """Label faces that hang together through shared edges; labels start at 0."""
    label = np.arange(count)
    links = edge_faces[edge_faces[:, 1] >= 0]
    while True:
        lowest = label.copy()
        np.minimum.at(lowest, links[:, 0], label[links[:, 1]])
        np.minimum.at(lowest, links[:, 1], label[links[:, 0]])
        lowest = lowest[lowest]
        if np.array_equal(lowest, label):
            return np.unique(label, return_inverse=True)[1].reshape(-1)
        label = lowest
