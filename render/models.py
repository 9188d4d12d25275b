"""Meshes with their materials from files: OBJ with MTL, GLB, and what else trimesh reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from gradpath.errors import InputError
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
        if not parts:
            raise InputError(f"model file {str(path)!r} holds no triangles; export it with faces")
        return _join([_Part.of(part, path) for part in parts], scale)


@dataclass
class _Part:
    """One part of a file, over its own vertices."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    colours: np.ndarray  # (V, 3), or (3 F, 3) where colours belong to faces
    colour_index: np.ndarray  # (F, 3)
    uv: np.ndarray  # (V, 2)
    image: np.ndarray | None  # (H, W, 3)

    @staticmethod
    def of(part: Any, path: Path) -> "_Part":
        vertices, faces = np.asarray(part.vertices), np.asarray(part.faces)
        colours, index = np.ones((len(vertices), 3)), faces
        uv, image = np.zeros((len(vertices), 2)), None
        visual = part.visual
        if visual.kind == "vertex":
            colours = np.asarray(visual.vertex_colors)[:, :3] / 255.0
        elif visual.kind == "face":
            colours = np.repeat(np.asarray(visual.face_colors)[:, :3] / 255.0, 3, axis=0)
            index = np.arange(3 * len(faces)).reshape(-1, 3)
        elif visual.kind == "texture":
            colours = colours * _factor(visual.material)
            image = _image(visual.material)
            if image is not None and visual.uv is None:
                raise InputError(
                    f"model file {str(path)!r} has a texture, but no texture coordinates; re-export it"
                )
            if visual.uv is not None:
                uv = np.asarray(visual.uv)[:, :2]
        return _Part(vertices, faces, colours, index, uv, image)


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


def _join(parts: list[_Part], scale: float) -> Model:
    vertices = np.concatenate([part.vertices for part in parts]) * scale
    starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)])
    # A corner of another part, or of another texture coordinate, may lie at the same place.
    owner = np.repeat(np.arange(len(parts)), [len(part.vertices) for part in parts])
    keyed = np.column_stack([owner, vertices])
    unique, inverse = np.unique(keyed, axis=0, return_inverse=True)
    welded = inverse.reshape(-1)[faces]
    kept = (welded[:, 0] != welded[:, 1]) & (welded[:, 1] != welded[:, 2]) & (welded[:, 2] != welded[:, 0])
    mesh = TriangleMesh(_tensor(unique[:, 1:]), torch.tensor(welded[kept], dtype=torch.int32))
    colour_starts = np.cumsum([0, *(len(part.colours) for part in parts[:-1])])
    colour_rows = np.concatenate(
        [part.colour_index + start for part, start in zip(parts, colour_starts, strict=True)]
    )
    colour = Attribute(_tensor(np.concatenate([part.colours for part in parts])), _rows(colour_rows[kept]))
    textured = [part for part in parts if part.image is not None]
    if not textured:
        return Model(mesh, Look(colour))
    uv = Attribute(_tensor(np.concatenate([part.uv for part in parts])), _rows(faces[kept]))
    numbers = np.cumsum([part.image is not None for part in parts]) - 1
    chosen = [number if part.image is not None else -1 for number, part in zip(numbers, parts, strict=True)]
    of_face = np.repeat(chosen, [len(part.faces) for part in parts])[kept]
    textures = [Texture(_tensor(part.image)) for part in textured]
    return Model(mesh, Look(colour, uv, textures, torch.tensor(of_face)))


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def _rows(index: np.ndarray) -> Tensor:
    return torch.tensor(index, dtype=torch.int32)
