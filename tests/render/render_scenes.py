"""Scenes that the tests of the renderer share."""

import math

import numpy as np
import torch
import trimesh

from gradpath.render import pinhole

F64 = torch.float64
K = pinhole(64, 48, math.radians(77))


def joined(*parts: trimesh.Trimesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (1, V, 3) in the camera frame and faces of several meshes."""
    mesh = trimesh.util.concatenate(parts)
    return torch.tensor(mesh.vertices)[None], torch.tensor(np.array(mesh.faces), dtype=torch.int32)


def at(mesh: trimesh.Trimesh, position, angle=0.0, axis=(1.0, 2.0, 0.3)) -> trimesh.Trimesh:
    """Turn a mesh about an axis through the origin, then move it."""
    mesh.apply_transform(trimesh.transformations.rotation_matrix(angle, axis))
    mesh.apply_translation(position)
    return mesh


def clutter() -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping solids at several depths, among them one that passes beside and through the camera plane."""
    return joined(
        at(trimesh.creation.box((1, 1, 1)), (-0.4, 0.1, 4.0), 0.7),
        at(trimesh.creation.icosphere(2, radius=0.8), (0.5, 0.2, 5.0)),
        at(trimesh.creation.cylinder(0.3, 3, sections=16), (0.1, 0.1, 3.0), 1.4, (1.0, 0.2, 0.3)),
        at(trimesh.creation.torus(0.9, 0.3, 16, 12), (-1.5, -0.4, 6.0), 1.0, (1.0, 0.2, 0.3)),
        at(trimesh.creation.box((2, 1, 6)), (0.0, 2.0, 2.5)),
    )
