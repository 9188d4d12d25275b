"""Signed distances from points to shapes and triangle meshes, differentiable in points, poses and sizes.

Distances are exact, in metres, negative inside. Half way between two faces the gradient is that of one of them; at
the centre of a ball or on the axis of a cylinder, where every direction leads out, it is zero. It is never NaN.
"""

import weakref
from typing import Any

import torch
import warp as wp

from gradpath import geometry, kernels
from gradpath.distance_kernels import Shape, make_mesh_query, make_shape_distance
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh

__all__ = ["Shape", "collides", "mesh_distance", "shape_distance"]


def _shape_samples(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    count = 2 * len(Shape)
    rotation = geometry.quat_normalize(random(batch, count, 4))
    return {
        "points": 1.5 * random(batch, 4, 3),
        "kind": torch.arange(count, dtype=torch.int32).expand(batch, count) % len(Shape),
        "pose": geometry.pose(random(batch, count, 3), rotation),
        "size": 0.2 + random(batch, count, 3).abs(),
    }


_shape_distance = kernels.Op(
    "shape_distance",
    make_shape_distance,
    inputs={"points": "B P vec3", "kind": "B I int32", "pose": "B I transform", "size": "B I vec3"},
    outputs={"distance": "B P I scalar"},
    launch="B P I",
    samples=_shape_samples,
)


def shape_distance(
    points: torch.Tensor, kind: torch.Tensor, pose: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    """Signed distance from points to spheres, boxes, cylinders, capsules and planes.

    Args:
        points: World positions [m], shape (B, 3) or (B, P, 3), differentiable.
        kind: `Shape` of each instance, shape (I,) or (B, I), any integer dtype. Another number gives NaN on a
            GPU, where looking would stall the stream.
        pose: World pose of each instance, shape (B, I, 7), differentiable.
        size: What `Shape` says [m], shape (B, I, 3), differentiable.
    Returns:
        Distances [m], negative inside, shape (B, I) or (B, P, I).
    Raises:
        ShapeError: a tensor has another shape, dtype or device than these.
        InputError: a kind is no `Shape`, or a size is negative or not finite; not looked for on a GPU.
    Gradients: exact; at a centre or an edge, those of one side.
    """
    if (
        kind.device.type == "cpu"
        and kind.numel()
        and not 0 <= int(kind.min()) <= int(kind.max()) < len(Shape)
    ):
        names = ", ".join(f"{shape.name}={shape.value}" for shape in Shape)
        raise InputError(
            f"shape_distance: kinds run from {int(kind.min())} to {int(kind.max())}; known: {names}"
        )
    _check_sizes(size)
    kind = kind.to(torch.int32)
    if kind.ndim == 1:
        kind = kind.expand(pose.shape[0], -1)
    if points.ndim == 2:
        return _shape_distance(points.unsqueeze(1), kind, pose, size).squeeze(1)
    return _shape_distance(points, kind, pose, size)


def _check_sizes(size: torch.Tensor) -> None:
    if size.is_cuda:
        return
    good = (size >= 0) & (size < torch.inf)
    if not bool(good.all()):
        raise InputError(
            f"shape_distance: a size is {float(size[~good][0])}; sizes are zero or more, and finite, look for the sign"
        )


def collides(
    points: torch.Tensor, radius: float, kind: torch.Tensor, pose: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    """Return whether a ball of `radius` [m] at each point touches any shape; bool, (B,) or (B, P).

    The other arguments are those of `shape_distance`. Not differentiable.
    """
    with torch.no_grad():
        return (shape_distance(points, kind, pose, size) < radius).any(-1)


class _Query:
    """A mesh on a device: Warp's bounding volume tree, and the arrays of each float dtype."""

    def __init__(self, mesh: TriangleMesh, device: torch.device):
        self._points = mesh.vertices.to(device, torch.float32).contiguous()
        self.faces = mesh.faces.to(device)
        self.vertices = {dtype: mesh.vertices.to(device, dtype) for dtype in (torch.float32, torch.float64)}
        indices = kernels.array(self.faces.reshape(-1), wp.int32)
        self.tree = wp.Mesh(points=kernels.array(self._points, wp.vec3), indices=indices)


_queries: weakref.WeakKeyDictionary[TriangleMesh, dict[torch.device, _Query]] = weakref.WeakKeyDictionary()


def _closest_points(
    points: torch.Tensor, pose: torch.Tensor, scale: torch.Tensor, mesh: TriangleMesh
) -> tuple[torch.Tensor, torch.Tensor]:
    """Closest surface points and outward directions (B, P, I, 3), in the frame of the mesh."""
    device, dtype = points.device, points.dtype
    on_device = _queries.setdefault(mesh, {})
    if device not in on_device:
        on_device[device] = _Query(mesh, device)
    query = on_device[device]
    scalar = kernels.element_type("scalar", wp.float32 if dtype == torch.float32 else wp.float64)
    vec3, transform = kernels.element_type("vec3", scalar), kernels.element_type("transform", scalar)
    dim = (points.shape[0], points.shape[1], pose.shape[1])
    closest = torch.zeros(*dim, 3, dtype=dtype, device=device)
    outward = torch.zeros_like(closest)
    if 0 not in dim:
        arguments = [
            query.tree.id,
            kernels.array(query.vertices[dtype], vec3),
            kernels.array(query.faces, wp.int32),
            kernels.array(points.contiguous(), vec3),
            kernels.array(pose.contiguous(), transform),
            kernels.array(scale.contiguous(), scalar),
            kernels.array(closest, vec3),
            kernels.array(outward, vec3),
        ]
        kernels.launch(kernels.specialize(make_mesh_query, dtype), dim, arguments, device)
    return closest, outward


def mesh_distance(
    points: torch.Tensor, pose: torch.Tensor, scale: torch.Tensor, mesh: TriangleMesh
) -> torch.Tensor:
    """Signed distance from points to instances of a triangle mesh.

    Args:
        points: World positions [m], shape (B, 3) or (B, P, 3), differentiable.
        pose: World pose of each instance, shape (B, I, 7), differentiable.
        scale: Uniform scale of each instance, positive, shape (B, I), differentiable.
        mesh: The mesh, shared by all worlds and instances. Inside and outside need it closed; for an open one the
            sign is the side of the nearest face.
    Returns:
        Distances [m], negative inside, shape (B, I) or (B, P, I).
    Raises:
        ShapeError: a tensor has another shape or dtype than these.
        InputError: a scale is not positive and finite; not looked for on a GPU.
    Gradients: exact. The nearest point is found without gradient and held fixed in the frame of the mesh, which
        loses nothing: as it minimizes the distance, its own motion does not change it to first order.
    """
    if points.ndim == 2:
        return mesh_distance(points.unsqueeze(1), pose, scale, mesh).squeeze(1)
    shapes = tuple(points.shape), tuple(pose.shape), tuple(scale.shape)
    batch, items = points.shape[0], pose.shape[1] if pose.ndim > 1 else 0
    if points.ndim != 3 or shapes != ((batch, points.shape[1], 3), (batch, items, 7), (batch, items)):
        raise ShapeError(
            f"mesh_distance: expected points (B, P, 3), pose (B, I, 7), scale (B, I), got {shapes}; "
            "expand what all worlds share"
        )
    if not points.dtype == pose.dtype == scale.dtype or points.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"mesh_distance: expected one dtype, float32 or float64, got points {points.dtype}, pose {pose.dtype}, "
            f"scale {scale.dtype}; convert them with .to()"
        )
    geometry.check_scales(scale, "mesh_distance")
    closest, outward = _closest_points(points, pose, scale, mesh)
    position, rotation = pose[:, None, :, :3], pose[:, None, :, 3:]
    local = geometry.quat_rotate(geometry.quat_conjugate(rotation), points[:, :, None] - position)
    return (outward * (local - scale[:, None, :, None] * closest)).sum(-1)


_SAMPLE_MESH = TriangleMesh.icosphere(1)


def _mesh_samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(batch, 3, 8, dtype=torch.float64, generator=generator)
    rotation = geometry.quat_normalize(random[..., 3:7])
    return {
        "points": 1.5 * torch.randn(batch, 5, 3, dtype=torch.float64, generator=generator),
        "pose": geometry.pose(random[..., :3], rotation),
        "scale": 0.3 + random[..., 7].abs(),
        "mesh": _SAMPLE_MESH,
    }


kernels.register("mesh_distance", kernels=[make_mesh_query], fn=mesh_distance, samples=_mesh_samples)
