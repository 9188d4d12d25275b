"""Colour pictures: what surfaces look like under lights, read off the pieces that pixels see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.geometry import quat_rotate
from gradpath.render.attributes import Attribute, face_normals, vertex_normals
from gradpath.render.lights import Light, illuminate
from gradpath.render.pieces import Fragments
from gradpath.render.textures import Texture, face_detail

SHADINGS = ("flat", "gouraud", "phong")


@dataclass(frozen=True, eq=False)
class Look:
    """How the surfaces of a mesh look.

    Args:
        colour: Colours per vertex (V, 3), (B, V, 3) or an `Attribute`, times whatever the texture has; white without.
        uv: Texture coordinates of two channels, per vertex or as an `Attribute`.
        texture: The image on the surface, or several, which `texture_of` chooses from.
        texture_of: Which texture each face has, -1 for none, shape (F,), int; needed for several textures.
        normals: Normals per vertex (V, 3), (B, V, 3) or an `Attribute`, in the frame of the lights; by default
            `vertex_normals`. Flat shading takes those of the faces.
        specular: Colour of reflections, from 0 for a matte surface to 1.
        shininess: Exponent of reflections; the larger, the smaller the spot.
    Raises:
        InputError: a texture without coordinates, or several without `texture_of`.
    """

    colour: Tensor | Attribute | None = None
    uv: Tensor | Attribute | None = None
    texture: Texture | Sequence[Texture] | None = None
    texture_of: Tensor | None = None
    normals: Tensor | Attribute | None = None
    specular: float | Tensor = 0.0
    shininess: float | Tensor = 32.0

    def __post_init__(self) -> None:
        if self.texture is not None and self.uv is None:
            raise InputError(
                "a texture needs texture coordinates; pass uv= per vertex, or an Attribute with seams"
            )
        if len(self.textures) > 1 and self.texture_of is None:
            raise InputError(
                f"{len(self.textures)} textures need texture_of=, the number of the texture of each face"
            )

    @property
    def textures(self) -> list[Texture]:
        """The textures, none, one or several."""
        if self.texture is None:
            return []
        return [self.texture] if isinstance(self.texture, Texture) else list(self.texture)


def picture(
    pieces: Fragments,
    points: Tensor,
    look: Look | None = None,
    lights: Sequence[Light] = (),
    *,
    eye: Tensor | None = None,
    shading: str = "phong",
    background: float | Tensor = 0.0,
) -> Tensor:
    """Shade every piece, then blend: a colour picture.

    Args:
        pieces: What the pixels see, from `fragments`.
        points: The vertices in the frame of the lights [m], shape (B, V, 3), differentiable; vertices in the camera
            frame with lights in the camera frame, or both in the world.
        look: Colours, textures and reflections; a white matte surface by default.
        lights: The lights; without any, surfaces have their own colours, as if they shone.
        eye: Where the camera is in that frame, shape (B, 3), for reflections; the origin by default.
        shading: Where light is computed: "flat", once for each face; "gouraud", at the vertices; "phong", at every
            pixel, with interpolated normals. Open surfaces are lit on the side that is seen, but for "gouraud".
        background: A grey value, a colour (3,), or an image that broadcasts to (B, H, W, 3), such as `sky` gives.
    Returns:
        Linear RGB, shape (B, H, W, 3); not clamped.
    Raises:
        InputError: another word for `shading`.
        ShapeError: arguments that do not fit the mesh.
    Gradients: exact for vertices, intrinsics, colours, textures, coordinates, normals, lights, eye and background.
    References: Phong 1975; Gouraud 1971.
    """
    look = look or Look()
    if shading not in SHADINGS:
        raise InputError(f"unknown shading {shading!r}; choose from {SHADINGS}")
    albedo = _albedo(pieces, look, points)
    if not lights:
        return pieces.blend(albedo, background)
    eye = points.new_zeros(points.shape[0], 3) if eye is None else eye
    if shading == "phong":
        diffuse, specular = _lit_pieces(look, pieces, points, lights, eye)
    else:
        light = (_lit_faces if shading == "flat" else _lit_corners)(look, pieces, points, lights, eye)
        diffuse, specular = pieces.interpolate(light).split(3, dim=-1)
    return pieces.blend(albedo * diffuse + look.specular * specular, background)


def _albedo(pieces: Fragments, look: Look, points: Tensor) -> Tensor:
    """Colour of the surface itself at every piece, (B, H, W, P, 3)."""
    if look.colour is None:
        colour = points.new_ones(*pieces.faces.shape[:3], pieces.count, 3)
    else:
        colour = pieces.interpolate(look.colour)
    if not look.textures:
        return colour
    coordinates = look.uv if isinstance(look.uv, Attribute) else Attribute(look.uv)  # type: ignore[arg-type]
    if coordinates.values.shape[-1] != 2:
        raise ShapeError(f"uv: expected 2 channels, got {coordinates.values.shape[-1]}")
    faces, focal = pieces.topology.faces, pieces.intrinsics[:, 0] * pieces.intrinsics[:, 1]
    rows = faces if coordinates.index is None else coordinates.index
    detail = face_detail(pieces.bent, faces, coordinates.values.to(points), rows, focal)
    uv = pieces.interpolate(coordinates)
    base = pieces.interpolate(Attribute.per_face(detail))[..., 0]
    depth = pieces.interpolate(pieces.bent[..., 2:])[..., 0]
    base = base + 1.5 * torch.where(depth > 0, depth, 1.0).log2()
    if look.texture_of is None:
        (texture,) = look.textures
        return colour * texture.sample(uv, base + 0.5 * math.log2(texture.texels))
    labels = look.texture_of.to(points)[:, None]
    chosen = pieces.interpolate(Attribute.per_face(labels)).detach().round()
    for number, texture in enumerate(look.textures):
        value = texture.sample(uv, base + 0.5 * math.log2(texture.texels))
        colour = torch.where(chosen == number, colour * value, colour)
    return colour


def _facing(pieces: Fragments, points: Tensor, eye: Tensor) -> Tensor | None:
    """-1 for faces of open surfaces that show their back to the eye, else 1, (B, F, 1); None where all are closed."""
    is_open = pieces.topology.face_info[:, 1:] == 1
    if not bool(is_open.any()):
        return None
    faces = pieces.topology.faces
    corner = points[:, faces[:, 0].long()].detach()
    away = (face_normals(points.detach(), faces) * (corner - eye.detach()[:, None])).sum(-1, keepdim=True) > 0
    return torch.where(away & is_open, -1.0, 1.0).to(points)


def _lit_pieces(
    look: Look, pieces: Fragments, points: Tensor, lights: Sequence[Light], eye: Tensor
) -> tuple[Tensor, Tensor]:
    """Diffuse and specular light at every piece."""
    normals = vertex_normals(points, pieces.topology.faces) if look.normals is None else look.normals
    normal = pieces.interpolate(normals)
    if (side := _facing(pieces, points, eye)) is not None:
        normal = normal * pieces.interpolate(Attribute.per_face(side))
    return illuminate(pieces.interpolate(points), normal, lights, eye, look.shininess)


def _lit_faces(
    look: Look, pieces: Fragments, points: Tensor, lights: Sequence[Light], eye: Tensor
) -> Attribute:
    """Diffuse and specular light at the centres of faces, six channels."""
    faces = pieces.topology.faces
    normals = face_normals(points, faces)
    if (side := _facing(pieces, points, eye)) is not None:
        normals = normals * side
    light = illuminate(points[:, faces.long()].mean(2), normals, lights, eye, look.shininess)
    return Attribute.per_face(torch.cat(light, dim=-1))


def _lit_corners(
    look: Look, pieces: Fragments, points: Tensor, lights: Sequence[Light], eye: Tensor
) -> Attribute:
    """Diffuse and specular light wherever there is a normal: at vertices, or at corners of faces; six channels."""
    faces = pieces.topology.faces
    normals = vertex_normals(points, faces) if look.normals is None else look.normals
    normals = normals if isinstance(normals, Attribute) else Attribute(normals)
    where = points
    if normals.index is not None:  # every row of normals lies at the vertex of the corners that use it
        owner = torch.zeros(normals.values.shape[-2], dtype=torch.long, device=points.device)
        owner[normals.index.long().reshape(-1)] = faces.long().reshape(-1)
        where = points[:, owner]
    values = normals.values.to(points).expand(points.shape[0], -1, 3)
    light = illuminate(where, values, lights, eye, look.shininess)
    return replace(normals, values=torch.cat(light, dim=-1), background=0.0)


def sky(
    pose: Tensor,
    K: Tensor,
    height: int,
    width: int,
    zenith: Sequence[float] = (0.35, 0.55, 0.9),
    horizon: Sequence[float] = (0.85, 0.9, 0.95),
    ground: Sequence[float] = (0.45, 0.42, 0.38),
) -> Tensor:
    """A background: the sky by elevation, over a plain ground, blended over one degree at the horizon.

    Args:
        pose: Camera in the world, shape (B, 7).
        K: Intrinsics, shape (3, 3) or (B, 3, 3).
        height: Rows of the image.
        width: Columns of the image.
        zenith: Colour straight up.
        horizon: Colour just above the horizon.
        ground: Colour below it.
    Returns:
        Shape (B, height, width, 3); differentiable in the pose and K.
    """
    row = torch.arange(height, dtype=pose.dtype, device=pose.device)[:, None] + 0.5
    column = torch.arange(width, dtype=pose.dtype, device=pose.device) + 0.5
    K = K.to(pose).expand(pose.shape[0], 3, 3)[:, None, None]
    x, y = (column - K[..., 0, 2]) / K[..., 0, 0], (row - K[..., 1, 2]) / K[..., 1, 1]
    x, y = torch.broadcast_tensors(x, y)
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    rays = quat_rotate(pose[:, None, None, 3:], rays)
    elevation = torch.atan2(rays[..., 2:], torch.linalg.vector_norm(rays[..., :2], dim=-1, keepdim=True))
    colours = [
        torch.tensor(tuple(c), dtype=pose.dtype, device=pose.device) for c in (zenith, horizon, ground)
    ]
    up = (elevation / (0.5 * math.pi)).clamp(min=0.0).clamp(min=1e-6).sqrt()
    above = torch.sigmoid(elevation * (4.0 * 180.0 / math.pi))
    return above * (up * colours[0] + (1.0 - up) * colours[1]) + (1.0 - above) * colours[2]
