"""What is drawn of the bodies of a robot: their visuals, with the colours and images that its file gives them."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from gradpath.bodies import MeshFile, Visual
from gradpath.errors import InputError
from gradpath.geometry import check_poses, pose_apply
from gradpath.meshes import TriangleMesh
from gradpath.render.attributes import Attribute
from gradpath.render.models import Model
from gradpath.render.shading import Look
from gradpath.render.textures import Texture


def link_models(visuals: Iterable[Visual]) -> dict[int, Model]:
    """Return what is drawn of each body, in the frame of the body, by the index of the body.

    Args:
        visuals: Such as `sim.Model.visuals`. Files are read here; the colour and the skin of a visual go before those
            in the file of its mesh. What has the alpha zero is left out, and other values of alpha are opaque.
    Raises:
        InputError: a file that cannot be read, a skin without texture coordinates, a pose or a scale that is none.
    """
    read: dict[Path, Model] = {}
    parts: dict[int, list[Model]] = {}
    for visual in visuals:
        if visual.colour is None or visual.colour[3] > 0.0:
            parts.setdefault(visual.body, []).append(_placed(visual, _dressed(visual, read)))
    return {body: Model.merge(parts[body]) for body in sorted(parts)}


def _dressed(visual: Visual, read: dict[Path, Model]) -> Model:
    """The mesh of a visual in its own frame, as it looks."""
    if isinstance(visual.mesh, MeshFile):
        path = visual.mesh.path
        if path not in read:
            read[path] = Model.load(path)
        model = read[path]
    else:
        model = Model(visual.mesh, Look())
    if visual.colour is None and visual.skin is None:
        return model
    colour = torch.tensor((visual.colour or (1.0, 1.0, 1.0))[:3]).expand(len(model.mesh.vertices), 3)
    if visual.skin is None:
        return Model(model.mesh, Look(colour))
    skin = visual.skin
    uv = model.look.uv if skin.uv is None else Attribute(skin.uv.float(), skin.index)
    if uv is None:
        raise InputError(
            f"visual {visual.name!r} has a texture, but its mesh {visual.mesh} has no texture coordinates; re-export it"
        )
    return Model(model.mesh, Look(colour, uv, Texture(_image(skin.image))))


def _image(source: Tensor | Path) -> Tensor:
    if isinstance(source, Tensor):
        return source.float() / 255.0
    try:
        with Picture.open(source) as picture:
            return torch.tensor(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)
    except OSError as error:
        raise InputError(f"texture {str(source)!r} cannot be read: {error}; convert it to PNG") from error


def _placed(visual: Visual, model: Model) -> Model:
    """The model in the frame of the body; where its scale mirrors, faces are turned around: outside stays outside."""
    scale = visual.scale.double()
    if not bool((torch.isfinite(scale) & (scale != 0.0)).all()):
        raise InputError(
            f"visual {visual.name!r} has the scale {scale.tolist()}; scales are finite and not zero"
        )
    check_poses(visual.pose[None], f"visual {visual.name!r}")
    mesh, look = model.mesh, model.look
    vertices = pose_apply(visual.pose.double(), scale * mesh.vertices.double())
    faces = mesh.faces
    if math.prod(scale.tolist()) < 0.0:
        faces = faces.flip(-1)
        look = replace(look, colour=_flipped(look.colour), uv=_flipped(look.uv))
    return Model(TriangleMesh(vertices, faces), look)


def _flipped(values: Tensor | Attribute | None) -> Tensor | Attribute | None:
    if not isinstance(values, Attribute) or values.index is None:
        return values
    return replace(values, index=values.index.flip(-1))
