"""Soft and hard rasterization of triangle meshes, differentiable in the vertices and the camera."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.kernel_launch import SCALARS
from gradpath.mode import current_mode
from gradpath.relaxation import relaxation
from gradpath.render.attributes import Attribute, face_normals
from gradpath.render.edge_image import SUPPORT
from gradpath.render.image import Image, homogeneous
from gradpath.render.lenses import Lens, Pinhole
from gradpath.render.pieces import Fragments
from gradpath.render.softras_image import SoftRas, softras_image
from gradpath.render.topology import Topology

CHANNELS = ("alpha", "depth")
SURFACE_CHANNELS = ("normal", "position", "face", "flow")
SILHOUETTES: dict[str, SoftRas | None] = {"edge": None, "softras": SoftRas()}


def _covered(value: dict[str, Tensor], **arguments: Any) -> Tensor | None:
    """What a pixel decides: whether it shows a surface."""
    return value["alpha"] > 0.5 if "alpha" in value else None


@relaxation("rasterize", temperature="sigma", decision=_covered)
def rasterize(
    points_camera: Tensor,
    faces: Tensor | Topology,
    *,
    K: Tensor,
    height: int,
    width: int,
    silhouette: str | SoftRas = "edge",
    sigma: float = 1.0,
    channels: str | Sequence[str] = CHANNELS,
    attributes: Mapping[str, Tensor | Attribute] | None = None,
    points_next: Tensor | None = None,
    lens: Lens | None = None,
    supersample: int = 1,
    near: float = 0.05,
    far: float = 100.0,
    validate: bool = True,
) -> dict[str, Tensor]:
    """Render triangle meshes with a pinhole camera, or through a lens.

    In soft mode the layers along a pixel's ray blend across the visible contours near the pixel: alpha is 1/2 on the
    outline itself, 1 inside and 0 outside from 2.35 sigma on, and the logarithm of depth blends in the same way,
    towards `far` where there is nothing. In hard mode (`gp.mode("hard")`) alpha is 0 or 1 and depth is that of the
    ray through the pixel centre; `gp.mode("straight_through")` gives these values with the gradient of soft mode.
    Other channels blend linearly towards their background, which is zero unless an `Attribute` says otherwise.

    The "softras" rule is that of the literature, for comparison with it: all faces, whichever way they turn, blend over
    each other, and those that reach nearer than `near` are left out. It has alpha and depth only. Hard mode is the
    same for both rules.

    Closed components are seen from outside only and need outward, counter-clockwise faces; open ones are seen from
    both sides. Faces that cross the near plane are drawn up to it.

    Args:
        points_camera: Vertices in the camera frame (x right, y down, z forward) [m], shape (B, V, 3), float32 or
            float64; differentiable.
        faces: Vertex indices, shape (F, 3), of an integer dtype, or their `Topology`, which saves the look-up.
        K: Intrinsics [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, shape (3, 3) or (B, 3, 3); pixel centres are at
            +0.5; differentiable.
        height: Rows of the image.
        width: Columns of the image.
        silhouette: The rule for soft edges: "edge", or "softras" or a `SoftRas` with its options.
        sigma: Width of the edges [pixels]; for "softras" [pixels^2].
        channels: What to return, one name or several: "alpha"; "depth" [m]; "normal", the unit normal of the face in
            the camera frame, towards the camera; "position" in the camera frame [m]; "face", the index of the nearest
            face, or -1; "flow", the motion in the image until `points_next` [pixels], x right and y down; and the
            names in `attributes`.
        attributes: What else the surfaces carry, by name: values per vertex, shape (V, C) or (B, V, C), or an
            `Attribute`; differentiable.
        points_next: The vertices at a second time, in the camera frame of that time, for "flow"; differentiable.
        lens: `Orthographic()`, `Distortion(...)` or `Fisheye(...)`, whose coefficients may be tensors, differentiable;
            a pinhole by default.
        supersample: In hard mode, antialias: draw this many rows and columns of rays in each pixel and take means, of
            depth in its logarithm, as soft images do. Soft images are smooth already, and drawn as without.
        near: Depth from which surfaces are drawn [m].
        far: Depth up to which surfaces are drawn, and depth of the background [m]; finite.
        validate: Refuse non-finite vertices and impossible intrinsics; on a GPU this waits for the device.
    Returns:
        A tensor for each channel: alpha, depth and face (int32) of shape (B, height, width), others
        (B, height, width, C).
    Raises:
        InputError: no faces, an index out of range, non-finite vertices, a K of another form than above, an empty or
            infinite range of depth, sigma not positive and finite, an unknown channel or rule, a channel that the rule
            has not.
        ShapeError: an argument is no tensor, or has another shape or dtype.
    Gradients: vertices, intrinsics and attributes exact; the order of layers, which edges are contours and which of
        them can be seen are held fixed. No memory per pixel and face: the backward pass recomputes from image-sized
        state.
    References: Liu et al. 2019 and Ravi et al. 2020 ("softras"); Olano and Greer 1997 (rays and
        triangles); Sander et al. 2001 (blending across discontinuity edges).
    """
    names = (channels,) if isinstance(channels, str) else tuple(channels)
    attributes = attributes or {}
    known = (*CHANNELS, *SURFACE_CHANNELS, *attributes)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown channels {unknown}; choose from {known}")
    rule = _silhouette(silhouette)
    _check_image(height, width, near, far, sigma)
    points, topology, cameras = _checked(points_camera, faces, K, validate)
    lens, mode = lens or Pinhole(), current_mode()
    if rule is not None and mode != "hard" and (other := [name for name in names if name not in CHANNELS]):
        raise InputError(
            f'the softras rule has alpha and depth, but no {other}; use silhouette="edge" for these'
        )
    factor = supersample if mode == "hard" else 1
    if factor != 1:
        _check_supersample(factor, names, attributes)
        cameras = cameras * factor  # pixel centres are at +0.5, so all four intrinsics scale
    bent = lens.bend(points, near, far).contiguous()
    image = Image(height * factor, width * factor, *lens.bend_range(near, far))
    values: dict[str, Tensor] = {}
    if rule is None or mode != "soft":
        soft = rule is None and mode != "hard"
        pieces = Fragments((image, topology, SUPPORT * sigma), points, bent, cameras, lens, far, soft)
        values = _draw(pieces, names, attributes, points_next)
    if rule is not None and mode != "hard":
        hard = values
        flat = homogeneous(bent, cameras, image)
        alpha, depth = softras_image(image, topology, rule, sigma, "depth" in names, flat)
        values = {"alpha": alpha}
        if "depth" in names:
            values["depth"] = lens.unbend_depth(depth, far)
    elif mode == "straight_through":
        hard = _draw(pieces.hard(), names, attributes, points_next)
    if mode == "straight_through":
        for name in names:
            if values[name].is_floating_point():
                values[name] = values[name] + (hard[name] - values[name]).detach()
    if factor != 1:
        values = {name: _shrink(value, factor, name == "depth") for name, value in values.items()}
        if "flow" in values:  # measured in the finer pixels
            values["flow"] = values["flow"] / factor
    return {name: values[name] for name in names}


def _check_supersample(
    factor: int, names: Sequence[str], attributes: Mapping[str, Tensor | Attribute]
) -> None:
    """Refuse what cannot be a mean of finer pixels."""
    if factor < 1:
        raise InputError(f"supersample is the number of rays along a pixel's side, at least 1; got {factor}")
    if "face" in names:
        raise InputError("a face index cannot be antialiased; draw it without supersample")
    for name, attribute in attributes.items():
        background = attribute.background if isinstance(attribute, Attribute) else 0.0
        if name in names and isinstance(background, Tensor) and background.ndim > 2:
            raise InputError(
                f"attribute {name!r}: a background image has the pixels of the image; blend it by alpha afterwards"
            )


def _shrink(image: Tensor, factor: int, logarithmic: bool) -> Tensor:
    """Means over blocks of pixels, (B, H, W, ...)."""
    image = image.log() if logarithmic else image
    image = image.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).mean((2, 4))
    return image.exp() if logarithmic else image


def fragments(
    points_camera: Tensor,
    faces: Tensor | Topology,
    *,
    K: Tensor,
    height: int,
    width: int,
    sigma: float = 1.0,
    lens: Lens | None = None,
    near: float = 0.05,
    far: float = 100.0,
    validate: bool = True,
) -> Fragments:
    """Find what every pixel sees, to interpolate, shade and blend attributes on it; arguments as in `rasterize`.

    In hard mode (`gp.mode("hard")`) that is the nearest surface alone. There is no straight-through version: draw both
    `fragments(...)` and its `.hard()`.

    Raises:
        InputError, ShapeError: as `rasterize`.
    """
    _check_image(height, width, near, far, sigma)
    points, topology, cameras = _checked(points_camera, faces, K, validate)
    lens = lens or Pinhole()
    image = Image(height, width, *lens.bend_range(near, far))
    bent, soft = lens.bend(points, near, far).contiguous(), current_mode() != "hard"
    return Fragments((image, topology, SUPPORT * sigma), points, bent, cameras, lens, far, soft)


def _draw(
    pieces: Fragments,
    names: Sequence[str],
    attributes: Mapping[str, Tensor | Attribute],
    points_next: Tensor | None,
) -> dict[str, Tensor]:
    """The channels that are asked for, by the edge rule or hard."""
    values: dict[str, Tensor] = {}
    if "depth" in names:
        values["alpha"], values["depth"] = pieces.alpha_depth()
    elif "alpha" in names:
        values["alpha"] = pieces.alpha()
    for name in names:
        if name in attributes:
            values[name] = pieces.draw(attributes[name])
        elif name == "normal":
            values[name] = pieces.draw(Attribute.per_face(facing_normals(pieces)))
        elif name == "position":
            values[name] = pieces.draw(pieces.points)
        elif name == "face":
            values[name] = pieces.faces[..., 0].clone()
        elif name == "flow":
            values[name] = optical_flow(pieces, points_next)
    return values


def optical_flow(pieces: Fragments, points_next: Tensor | None) -> Tensor:
    """Motion of what is seen, in pixels, (B, H, W, 2), until the vertices are at `points_next` (B, V, 3).

    What has come behind a pinhole camera by then has no place in the image; its depth is taken as 1 mm.
    """
    if points_next is None:
        raise InputError(
            "flow is the motion until a second time; pass the vertices at that time as points_next="
        )
    if points_next.shape != pieces.points.shape:
        raise ShapeError(
            f"points_next: expected {tuple(pieces.points.shape)} as points_camera, got {tuple(points_next.shape)}"
        )
    there, here = pieces.interpolate(points_next), pieces.interpolate(pieces.points)
    focal = pieces.intrinsics[:, None, None, None, :2]
    return pieces.blend(focal * (pieces.lens.flat(there) - pieces.lens.flat(here)))


def facing_normals(pieces: Fragments) -> Tensor:
    """Unit normals of faces in the camera frame, (B, F, 3); those of open surfaces turn towards the camera."""
    faces = pieces.topology.faces
    a, b, c = pieces.bent.detach()[:, faces.long()].unbind(2)
    away = (a * torch.linalg.cross(b, c)).sum(-1, keepdim=True) > 0
    turned = away & (pieces.topology.face_info[:, 1:] == 1)
    normals = face_normals(pieces.points, faces)
    return torch.where(turned, -normals, normals)


def _silhouette(silhouette: str | SoftRas) -> SoftRas | None:
    if isinstance(silhouette, SoftRas):
        return silhouette
    if silhouette not in SILHOUETTES:
        raise InputError(f"unknown silhouette rule {silhouette!r}; choose from {tuple(SILHOUETTES)}")
    return SILHOUETTES[silhouette]


def _check_image(height: int, width: int, near: float, far: float, sigma: float) -> None:
    if not (0.0 < sigma < math.inf and 0.0 < near < far < math.inf and height > 0 and width > 0):
        raise InputError(
            "need sigma > 0, 0 < near < far, all finite, and an image of at least one pixel, "
            f"got sigma={sigma}, near={near}, far={far}, height={height}, width={width}"
        )


def _checked(
    points: Tensor, faces: Tensor | Topology, K: Tensor, validate: bool
) -> tuple[Tensor, Topology, Tensor]:
    """Vertices, topology on their device, and intrinsics per world, as the kernels take them."""
    for name, tensor in (("points_camera", points), ("K", K)):
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"{name}: expected a tensor, got {type(tensor).__name__}; use torch.as_tensor")
    topology = faces if isinstance(faces, Topology) else Topology.of(faces)
    if topology.faces.device != points.device:
        topology = topology.to(points.device)
    _check_points(points, topology, validate)
    return points.contiguous(), topology, _intrinsics(K, points, validate).contiguous()


def _check_points(points: Tensor, topology: Topology, validate: bool) -> None:
    if points.ndim != 3 or points.shape[2] != 3:
        raise ShapeError(f'points_camera: expected "B V 3", got {tuple(points.shape)}; add the batch axis')
    if points.dtype not in SCALARS:
        raise ShapeError(
            f"points_camera: expected float32 or float64, got {points.dtype}, too coarse for pixels; convert with .to()"
        )
    if points.shape[1] < topology.vertex_count:
        raise InputError(
            f"faces ask for vertex {topology.vertex_count - 1}, but there are {points.shape[1]} vertices; "
            "the faces belong to another mesh"
        )
    if validate and not bool(torch.isfinite(points).all()):
        world, vertex, _ = (~torch.isfinite(points)).nonzero()[0].tolist()
        raise InputError(
            f"vertex {vertex} of world {world} is {points[world, vertex].tolist()}; "
            "a non-finite pose or vertex would spoil the whole image, find where it came from"
        )


def _intrinsics(K: Tensor, points: Tensor, validate: bool) -> Tensor:
    """Intrinsics as (fx, fy, cx, cy) per world, shape (B, 4)."""
    if K.shape not in ((3, 3), (points.shape[0], 3, 3)):
        raise ShapeError(f"K: expected (3, 3) or ({points.shape[0]}, 3, 3), got {tuple(K.shape)}")
    K = K.to(points)
    if validate and not all(_is_pinhole(entries) for entries in K.detach().reshape(-1, 9).tolist()):
        raise InputError(
            "K needs finite entries, positive focal lengths, no skew and the bottom row [0, 0, 1]: "
            f"[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; got {K.tolist()}"
        )
    flat = torch.stack([K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]], dim=-1)
    return flat.expand(points.shape[0], 4)


def _is_pinhole(entries: list[float]) -> bool:
    """Whether nine entries are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; in Python, as they are too few for tensors."""
    fx, skew, cx, shear, fy, cy, *bottom = entries
    return (
        0.0 < fx < math.inf
        and 0.0 < fy < math.inf
        and math.isfinite(cx)
        and math.isfinite(cy)
        and (skew, shear, *bottom) == (0.0, 0.0, 0.0, 0.0, 1.0)
    )
