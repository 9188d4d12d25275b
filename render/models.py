"""Meshes with their materials from files: OBJ with MTL, GLB, and what else trimesh reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.render.attributes import Attribute
from gradpath.render.shading import Look
from gradpath.render.textures import Texture


@dataclass(frozen=True, eq=False)
class Model:
    """A mesh and how it looks.

    Attributes:
        mesh: The shape; vertices that differ only in texture coordinates are one, so that seams are no edges.
        look: Colours, texture coordinates and textures, for `picture`.
    """

    mesh: TriangleMesh
    look: Look

    @classmethod
    def load(cls, path: str | Path, scale: float = 1.0) -> "Model":
        """Read a file with all its parts: positions, texture coordinates, textures, colours of materials and vertices.

        Colours are as the file has them, divided by 255 and without gamma; all surfaces are matte.

        Args:
            path: The file; images and MTL files are looked for beside it.
            scale: Factor on the coordinates, 0.001 for a file in millimetres.
        Raises:
            InputError: the file is missing, unreadable, holds no triangles, or has a texture without coordinates.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"model file {str(path)!r} does not exist; check the path and the working directory"
            )
        try:
            scene: Any = trimesh.load_scene(path, process=False)
            parts = [part for part in scene.dump() if len(getattr(part, "faces", ())) > 0]
        except Exception as error:  # the readers of trimesh raise whatever their format raises
            raise InputError(f"model file {str(path)!r} cannot be read: {error}; re-export it") from error
        models = [model for part in parts if (model := _read(part, path, scale)) is not None]
        if not models:
            raise InputError(f"model file {str(path)!r} holds no triangles; export it with faces")
        return cls.merge(models)

    @classmethod
    def merge(cls, models: Sequence["Model"]) -> "Model":
        """Join models into one, vertices and faces in order; nothing is welded.

        Raises:
            InputError: the list is empty.
            ShapeError: colours or coordinates per world, with an axis B; models have one look for all.
        """
        mesh = TriangleMesh.merge([model.mesh for model in models])
        parts = [_Look.of(model) for model in models]
        colour = _stack([part.colour for part in parts])
        uv = _stack([part.uv for part in parts]) if any(m.look.uv is not None for m in models) else None
        if not any(part.textures for part in parts):
            return cls(mesh, Look(colour, uv))
        starts = np.cumsum([0, *(len(part.textures) for part in parts[:-1])]).tolist()
        texture_of = torch.cat(
            [
                torch.where(part.texture_of < 0, -1, part.texture_of + start)
                for part, start in zip(parts, starts, strict=True)
            ]
        )
        textures = [texture for part in parts for texture in part.textures]
        return cls(mesh, Look(colour, uv, textures, texture_of))


@dataclass
class _Look:
    """A look with nothing left out: a row for each corner, a texture, or none, for each face."""

    colour: Attribute
    uv: Attribute
    textures: list[Texture]
    texture_of: Tensor  # (F,)

    @staticmethod
    def of(model: Model) -> "_Look":
        look, faces = model.look, model.mesh.faces
        count = len(model.mesh.vertices)
        default = 0 if look.textures else -1
        texture_of = torch.full((len(faces),), default) if look.texture_of is None else look.texture_of
        return _Look(
            colour=_indexed(torch.ones(count, 3) if look.colour is None else look.colour, faces),
            uv=_indexed(torch.zeros(count, 2) if look.uv is None else look.uv, faces),
            textures=look.textures,
            texture_of=texture_of,
        )


def _indexed(values: Tensor | Attribute, faces: Tensor) -> Attribute:
    """The attribute with an index of its own."""
    given = values if isinstance(values, Attribute) else Attribute(values)
    if given.values.ndim != 2:
        raise ShapeError(
            f"models to merge have one look for all worlds, shape (A, C), got {tuple(given.values.shape)}"
        )
    return Attribute(given.values, faces if given.index is None else given.index)


def _stack(attributes: Sequence[Attribute]) -> Attribute:
    """Rows below rows."""
    starts = np.cumsum([0, *(len(attribute.values) for attribute in attributes[:-1])]).tolist()
    index = [attribute.index + start for attribute, start in zip(attributes, starts, strict=True)]
    return Attribute(
        torch.cat([attribute.values.float() for attribute in attributes]), torch.cat(index).int()
    )


def _read(part: Any, path: Path, scale: float) -> Model | None:
    """One part of a file; None where none of its faces has an area."""
    vertices, faces = np.asarray(part.vertices) * scale, np.asarray(part.faces)
    colours, rows = torch.ones(1, 3), np.zeros_like(faces)
    uv, image = None, None
    visual = part.visual
    if visual.kind == "vertex":
        colours, rows = _tensor(np.asarray(visual.vertex_colors)[:, :3] / 255.0), faces
    elif visual.kind == "face":
        colours = _tensor(np.asarray(visual.face_colors)[:, :3] / 255.0)
        rows = np.repeat(np.arange(len(faces))[:, None], 3, axis=1)
    elif visual.kind == "texture":
        colours = _tensor(_factor(visual.material))[None]
        image = _image(visual.material)
        if visual.uv is not None:
            uv = _tensor(np.asarray(visual.uv)[:, :2])
        elif image is not None:
            raise InputError(
                f"model file {str(path)!r} has a texture, but no texture coordinates; re-export it"
            )
    # Formats repeat a vertex for each of its normals and texture coordinates.
    unique, inverse = np.unique(vertices, axis=0, return_inverse=True)
    welded = inverse.reshape(-1)[faces]
    kept = (welded[:, 0] != welded[:, 1]) & (welded[:, 1] != welded[:, 2]) & (welded[:, 2] != welded[:, 0])
    if not kept.any():
        return None
    mesh = TriangleMesh(_tensor(unique), _rows(welded[kept]))
    look = Look(
        Attribute(colours, _rows(rows[kept])),
        None if uv is None else Attribute(uv, _rows(faces[kept])),
        None if image is None else Texture(_tensor(image)),
    )
    return Model(mesh, look)


def _factor(material: Any) -> np.ndarray:
    """Colour that a material multiplies its texture with; white where the file names none."""
    for name in ("baseColorFactor", "diffuse"):
        value = getattr(material, name, None)
        if value is not None:
            value = np.asarray(value)[:3]
            return value / 255.0 if np.issubdtype(value.dtype, np.integer) else value.astype(np.float64)
    return np.ones(3)


def _image(material: Any) -> np.ndarray | None:
    for name in ("baseColorTexture", "image"):
        image = getattr(material, name, None)
        if image is not None:
            return np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    return None


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def _rows(index: np.ndarray) -> Tensor:
    return torch.tensor(index, dtype=torch.int32)
