"""Which faces of a triangle mesh hang together, and over which edges; on arrays, without positions."""

import numpy as np


def pair_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join the half-edges of faces into edges.

    Args:
        faces: Vertex indices, shape (F, 3).
    Returns:
        edges: The ends a and b in the order in which the first face has them, and the vertices opposite to the edge
            in its two faces, shape (E, 4); the last is -1 at a boundary.
        edge_faces: These faces, shape (E, 2); the second is -1 at a boundary.

    An edge of more than two faces (not a manifold) appears once for each of them, as a boundary.
    """
    half = np.stack([faces, np.roll(faces, -1, axis=1), np.roll(faces, -2, axis=1)], axis=-1).reshape(-1, 3)
    face = np.repeat(np.arange(len(faces)), 3)
    _, group, size = np.unique(np.sort(half[:, :2], axis=1), axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    start = np.cumsum(size) - size
    pairs = start[size == 2]
    first, second = order[pairs], order[pairs + 1]
    single = order[(size != 2)[group[order]]]
    none = np.full(len(single), -1)
    edges = [np.column_stack([half[first], half[second, 2]]), np.column_stack([half[single], none])]
    beside = [np.column_stack([face[first], face[second]]), np.column_stack([face[single], none])]
    return np.concatenate(edges).astype(np.int32), np.concatenate(beside).astype(np.int32)


def connected_components(faces: np.ndarray) -> np.ndarray:
    """Return the component of each face, connected over shared vertices, shape (F,), int32, from 0."""
    label = np.arange(faces.max() + 1)
    while True:  # every vertex takes the smallest label it can reach
        smallest = label.copy()
        np.minimum.at(smallest, faces.ravel(), np.repeat(label[faces].min(axis=1), 3))
        smallest = smallest[smallest]
        if np.array_equal(smallest, label):
            break
        label = smallest
    _, component = np.unique(label[faces[:, 0]], return_inverse=True)
    return component.reshape(-1).astype(np.int32)
