"""Triangle meshes as arrays: files, primitives, and the topology that renderers and distances need."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from gradpath.connectivity import connected_components, pair_edges
from gradpath.errors import InputError


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """A triangle mesh in its own frame, on the CPU. An asset: worlds place instances of it by pose and scale.

    Attributes:
        vertices: Positions [m], shape (V, 3), float.
        faces: Vertex indices, shape (F, 3), int32, counter-clockwise seen from outside.
    Raises:
        InputError: no faces, an index out of range, or a vertex that is not finite.
    """

    vertices: torch.Tensor
    faces: torch.Tensor

    def __post_init__(self) -> None:
        vertices, faces = torch.as_tensor(self.vertices), torch.as_tensor(self.faces)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise InputError(
                f"mesh vertices: expected shape (V, 3), got {tuple(vertices.shape)}; pass positions"
            )
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise InputError(
                f"mesh faces: expected shape (F, 3), got {tuple(faces.shape)}; triangulate the mesh"
            )
        if len(faces) == 0:
            raise InputError(
                "mesh has no faces, so nothing to see or to touch; a point cloud needs meshing first"
            )
        if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
            raise InputError(
                f"mesh faces name vertices {int(faces.min())} to {int(faces.max())} of {len(vertices)}; "
                "indices start at 0"
            )
        finite = torch.isfinite(vertices).all(-1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise InputError(f"mesh vertex {bad} is {vertices[bad].tolist()}; remove or repair it")
        if not vertices.is_floating_point():
            vertices = vertices.to(torch.get_default_dtype())
        object.__setattr__(self, "vertices", vertices.detach().cpu().contiguous())
        object.__setattr__(self, "faces", faces.detach().cpu().to(torch.int32).contiguous())

    def __repr__(self) -> str:
        return f"TriangleMesh({len(self.vertices)} vertices, {len(self.faces)} faces)"

    @classmethod
    def load(cls, path: str | Path, scale: float = 1.0) -> "TriangleMesh":
        """Read a mesh file (OBJ, PLY, STL, GLB and what else trimesh reads); all parts of a scene are merged.

        Args:
            path: The file.
            scale: Factor on the coordinates, 0.001 for a file in millimetres.
        Raises:
            InputError: the file is missing, unreadable, or holds no triangles.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"mesh file {str(path)!r} does not exist; check the path and the working directory"
            )
        try:
            loaded: Any = trimesh.load(path, force="mesh", process=False)
        except Exception as error:  # the readers of trimesh raise whatever their format raises
            raise InputError(f"mesh file {str(path)!r} cannot be read: {error}; re-export it") from error
        if len(getattr(loaded, "faces", ())) == 0:
            raise InputError(f"mesh file {str(path)!r} holds no triangles; export it with faces")
        # Formats repeat a vertex for each of its normals and texture coordinates (STL: for each face).
        loaded.merge_vertices(merge_tex=True, merge_norm=True)
        vertices = torch.tensor(np.asarray(loaded.vertices) * scale, dtype=torch.float32)
        return cls(vertices, torch.tensor(np.asarray(loaded.faces), dtype=torch.int32))

    @classmethod
    def box(cls) -> "TriangleMesh":
        """Box with half extents 1: an instance's scale is its half extents."""
        return _from_trimesh(trimesh.creation.box(extents=(2.0, 2.0, 2.0)))

    @classmethod
    def icosphere(cls, level: int = 2) -> "TriangleMesh":
        """Sphere of radius 1 from an icosahedron subdivided `level` times: 20 * 4**level faces."""
        return _from_trimesh(trimesh.creation.icosphere(subdivisions=level, radius=1.0))

    @classmethod
    def cylinder(cls, segments: int = 16) -> "TriangleMesh":
        """Cylinder of radius 1 along z, from z = -1 to 1: scale by (radius, radius, half length)."""
        return _from_trimesh(trimesh.creation.cylinder(radius=1.0, height=2.0, sections=segments))

    @classmethod
    def cone(cls, segments: int = 16) -> "TriangleMesh":
        """Cone along z: base of radius 1 at z = -1, tip at z = 1."""
        cone = trimesh.creation.cone(radius=1.0, height=2.0, sections=segments)
        cone.apply_translation((0.0, 0.0, -1.0))
        return _from_trimesh(cone)

    @classmethod
    def capsule(cls, radius: float = 1.0, half_length: float = 1.0, segments: int = 16) -> "TriangleMesh":
        """Capsule along z: a cylinder of `half_length` [m] with half spheres of `radius` [m] at its ends.

        Its proportions do not survive a scale that differs by axis, so it is made in the size wanted.
        """
        made = trimesh.creation.capsule(radius=radius, height=2 * half_length, count=(segments, segments))
        made.apply_translation(
            -made.bounds.mean(axis=0)
        )  # centred, whatever the version of trimesh makes of it
        return _from_trimesh(made)

    @classmethod
    def merge(cls, meshes: Sequence["TriangleMesh"]) -> "TriangleMesh":
        """Join meshes into one, vertices and faces in order; nothing is welded.

        Raises:
            InputError: the list is empty.
        """
        if not meshes:
            raise InputError("merge: got no meshes; pass at least one")
        starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
        faces = torch.cat([mesh.faces + int(start) for mesh, start in zip(meshes, starts, strict=True)])
        return cls(torch.cat([mesh.vertices for mesh in meshes]), faces)

    @functools.cached_property
    def normals(self) -> torch.Tensor:
        """Outward unit normals of the faces, shape (F, 3); zero for a face without area."""
        a, b, c = self.vertices[self.faces.long()].unbind(1)
        normals = torch.linalg.cross(b - a, c - a)
        return torch.nn.functional.normalize(normals, dim=-1)

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the edges and the faces beside them.

        Returns:
            edges: Vertex pairs, smaller index first, shape (E, 2), int32.
            faces: The two adjacent faces, shape (E, 2), int32; -1 beside a boundary. An edge of more than two
                faces (not a manifold) appears once for each of them, as a boundary.
        """
        return self._edges

    @functools.cached_property
    def _edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        edges, beside = pair_edges(self.faces.numpy())
        return torch.from_numpy(np.sort(edges[:, :2], axis=1)), torch.from_numpy(beside)

    def components(self) -> torch.Tensor:
        """Return the component of each face, connected over shared vertices, shape (F,), int32, from 0."""
        return torch.from_numpy(connected_components(self.faces.numpy()))


def _from_trimesh(mesh: Any) -> TriangleMesh:
    vertices = torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    return TriangleMesh(vertices, torch.tensor(np.asarray(mesh.faces), dtype=torch.int32))
