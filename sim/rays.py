"""Range rays: how far it is to the first surface along each, as a lidar or a time-of-flight sensor measures."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import trimesh
import warp as wp
from torch import Tensor

from gradpath import geometry, kernels
from gradpath.bodies import WORLD, MeshFile
from gradpath.contract import Contract
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.sim.ray_kernels import make_find_hits
from gradpath.sim.shapes import ShapeKind, Shapes
from gradpath.stage import Stage


class _Meshes:
    """Warp's trees of the meshes among some shapes, on each device that asked."""

    def __init__(self, shapes: Shapes):
        self.shapes = shapes
        self._on: dict[torch.device, tuple[wp.array, list[wp.Mesh]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made anew: a tree cannot be copied."""
        return _Meshes, (self.shapes,)

    def on(self, device: torch.device) -> wp.array:
        """The identifiers of the meshes, 0 for other shapes."""
        if device not in self._on:
            wp.init()
            trees = [self._tree(g, device) for g in range(len(self.shapes))]
            place = wp.device_from_torch(device)
            ids: Any = wp.array([0 if t is None else t.id for t in trees], dtype=wp.uint64, device=place)
            self._on[device] = ids, [t for t in trees if t is not None]
        return self._on[device][0]

    def _tree(self, index: int, device: torch.device) -> wp.Mesh | None:
        kind, mesh = self.shapes.kind[index], self.shapes.mesh[index]
        if kind not in (ShapeKind.MESH, ShapeKind.CONVEX):
            return None
        if mesh is None:
            raise InputError(f"cast_rays: shape {index} is a {kind.name} without a mesh; give it one")
        mesh = mesh.read() if isinstance(mesh, MeshFile) else mesh
        if kind == ShapeKind.CONVEX:
            hull = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False).convex_hull
            mesh = TriangleMesh(torch.tensor(hull.vertices), torch.tensor(hull.faces))
        points = mesh.vertices.to(device, torch.float32).contiguous()
        return wp.Mesh(
            points=wp.clone(kernels.array(points, wp.vec3)),
            indices=wp.clone(kernels.array(mesh.faces.to(device).reshape(-1), wp.int32)),
        )


class RayCaster:
    """Casts rays against shapes.

    Args:
        shapes: What is hit, with the bodies that they are fixed to: those of a model, or `Shapes.of(...)`. Spheres,
            boxes, cylinders, capsules, planes, meshes and convex hulls.

    Raises:
        InputError: there are none, a height field, or a mesh that is missing.
    """

    def __init__(self, shapes: Shapes):
        if not len(shapes):
            raise InputError(
                "cast_rays: there are no shapes to hit; a model without collision shapes has none"
            )
        for index, kind in enumerate(shapes.kind):
            if kind == ShapeKind.HEIGHT_FIELD:
                raise InputError(
                    f"cast_rays: shape {index} is a height field, which rays do not hit; give it as a mesh"
                )
        self.shapes = shapes
        self._meshes = _Meshes(shapes)
        self._kind = torch.tensor([int(kind) for kind in shapes.kind], dtype=torch.int32)

    def __call__(
        self, start: Tensor, direction: Tensor, pose: Tensor | None = None, max_range: float = 100.0
    ) -> Tensor:
        """Return the distance along each ray to the first surface that it enters.

        A ray that starts inside of a shape does not see that shape, so a sensor may sit inside of its own housing.

        Args:
            start: Where the rays begin, in the world [m], shape (B, R, 3), differentiable.
            direction: Of the rays, of any length but zero, shape (B, R, 3), differentiable.
            pose: World poses of the bodies, shape (B, N, 7), differentiable; not needed where all shapes stand still.
            max_range: What is returned where nothing is nearer [m].
        Returns:
            Distances [m], shape (B, R).
        Raises:
            ShapeError: a tensor of another shape or dtype, or a body without a pose.
            InputError: a pose that is none, a ray that is not finite or has no direction; not looked for on a GPU.
        Gradients: exact in rays, poses, and poses and sizes of the shapes. What is hit, and where on it, is found
            without gradient; the tangent plane there moves with everything, which is all that counts to first order.
            Where a ray passes from one shape to another, the distance jumps, and the gradient does not see it.
        """
        self._check(start, direction, pose, max_range)
        unit = torch.nn.functional.normalize(direction, dim=-1)
        placed, size = self._placed(start, pose)
        with torch.no_grad():
            shape, point, normal, growth = self._find(start, unit, placed, size, max_range)
        hit, index = shape >= 0, shape.clamp(min=0).long()[..., None]
        at = placed.gather(1, index.expand(-1, -1, 7))
        own = size.gather(1, index.expand(-1, -1, 3))
        ahead = geometry.quat_rotate(at[..., 3:], point) + at[..., :3] - start
        facing = geometry.quat_rotate(at[..., 3:], normal)
        gap = (facing * ahead).sum(-1) + (growth * (own - own.detach())).sum(-1)
        closing = (facing * unit).sum(-1)
        # Where nothing is hit both are zero: divided by something else, so that no NaN comes back.
        distance = gap / torch.where(hit, closing, torch.ones_like(closing))
        return torch.where(hit, distance, torch.full_like(distance, max_range))

    def _check(self, start: Tensor, direction: Tensor, pose: Tensor | None, max_range: float) -> None:
        if start.ndim != 3 or start.shape[2] != 3 or start.shape != direction.shape:
            raise ShapeError(
                f"cast_rays: expected start and direction of shape (B, R, 3), got {tuple(start.shape)} and "
                f"{tuple(direction.shape)}"
            )
        if not max_range > 0:
            raise InputError(f"cast_rays: max_range is above zero, got {max_range}")
        last = max(self.shapes.body)
        if last >= 0 and (pose is None or pose.ndim != 3 or pose.shape[1] <= last or len(pose) != len(start)):
            raise ShapeError(
                f"cast_rays: shapes are fixed to bodies up to {last}; expected pose ({len(start)}, {last + 1} or more, "
                f"7), got {None if pose is None else tuple(pose.shape)}"
            )
        dtypes = {start.dtype, direction.dtype, *(() if pose is None else (pose.dtype,))}
        if len(dtypes) > 1 or start.dtype not in (torch.float32, torch.float64):
            raise ShapeError(f"cast_rays: rays and poses share a dtype, float32 or float64, got {dtypes}")
        if start.is_cuda:
            return
        if pose is not None:
            geometry.check_poses(pose, "cast_rays")
        length = torch.linalg.vector_norm(direction.detach(), dim=-1) + 0.0 * start.detach().sum(-1)
        if not bool((length > 0).all() and (length < torch.inf).all()):
            world, ray = (~((length > 0) & (length < torch.inf))).nonzero()[0].tolist()
            raise InputError(
                f"cast_rays: ray {ray} of world {world} starts at {start[world, ray].tolist()} in the direction "
                f"{direction[world, ray].tolist()}; it needs finite numbers and a direction"
            )

    def _placed(self, start: Tensor, pose: Tensor | None) -> tuple[Tensor, Tensor]:
        """World poses, of unit quaternions, and sizes of all shapes in all worlds."""
        shapes, worlds = self.shapes, len(start)
        own = shapes.pose.to(start).expand(worlds, len(shapes), 7)
        own = torch.cat([own[..., :3], geometry.quat_normalize(own[..., 3:])], -1)
        size = shapes.size.to(start).expand(worlds, len(shapes), 3)
        if pose is None or max(shapes.body) < 0:
            return own, size
        body = torch.tensor(shapes.body, device=start.device)
        bodies = torch.cat([pose[..., :3], geometry.quat_normalize(pose[..., 3:])], -1)
        moved = geometry.pose_compose(bodies[:, body.clamp(min=0)], own)
        return torch.where((body == WORLD)[:, None], own, moved), size

    def _find(
        self, start: Tensor, unit: Tensor, placed: Tensor, size: Tensor, max_range: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scalar = kernels.element_type("scalar", wp.float32 if start.dtype == torch.float32 else wp.float64)
        vec3, transform = kernels.element_type("vec3", scalar), kernels.element_type("transform", scalar)
        worlds, rays = start.shape[:2]
        shape = torch.full((worlds, rays), -1, dtype=torch.int32, device=start.device)
        point, normal, growth = torch.zeros(3, worlds, rays, 3, dtype=start.dtype, device=start.device)
        if worlds * rays:
            arguments: list[Any] = [
                kernels.array(self._kind.to(start.device), wp.int32),
                self._meshes.on(start.device),
                kernels.array(placed.contiguous(), transform),
                *(kernels.array(tensor.contiguous(), vec3) for tensor in (size, start, unit)),
                max_range,
                kernels.array(shape, wp.int32),
                *(kernels.array(tensor, vec3) for tensor in (point, normal, growth)),
            ]
            kernels.launch(
                kernels.specialize(make_find_hits, start.dtype), (worlds, rays), arguments, start.device
            )
        return shape, point, normal, growth


def ray_fan(count: int, field_of_view: float = 2 * math.pi, elevations: Sequence[float] = (0.0,)) -> Tensor:
    """Return the directions of a spinning lidar, x ahead, y left, z up: `count` for each elevation.

    Args:
        count: Rays of one elevation, from right to left; of a full turn, the last is one short of the first.
        field_of_view: Angle that they cover [rad].
        elevations: Angles above the horizontal plane [rad].
    Returns:
        Unit vectors, shape (count * elevations, 3), float64, elevation by elevation.
    Raises:
        InputError: no rays, or more than a turn.
    """
    if count < 1 or not 0 < field_of_view <= 2 * math.pi + 1e-9 or not elevations:
        raise InputError(
            f"ray_fan: expected at least one ray and elevation, and a field of view up to 2 pi, got {count}, "
            f"{len(elevations)} and {field_of_view}"
        )
    full = field_of_view >= 2 * math.pi - 1e-9
    steps = torch.arange(count, dtype=torch.float64) / (count if full else max(count - 1, 1))
    azimuth = field_of_view * (steps - (0.5 if count > 1 else 0.0))
    rise = torch.tensor(list(elevations), dtype=torch.float64)[:, None]
    flat = torch.stack([azimuth.cos(), azimuth.sin()], -1)[None] * rise.cos()[..., None]
    return torch.cat([flat, rise.sin()[..., None].expand(-1, count, 1)], -1).reshape(-1, 3)


class RangeRays(Stage):
    """A lidar or time-of-flight sensor: ranges along rays that are fixed in it.

    Args:
        shapes: What the rays hit, as for `RayCaster`.
        directions: Of the rays in the frame of the sensor, shape (R, 3), such as `ray_fan(...)`.
        max_range: Longest range, returned where nothing is nearer [m].
        noise: Standard deviation of the noise [m].
        relative_noise: The same, in proportion to the range.

    Inputs: `sensor`, the pose of the sensor in the world (B, 7); optional `pose` of the bodies that shapes are fixed to
    (B, N, 7); optional `generator`, without which there is no noise.
    Outputs: `range` (B, R) [m]. Noise is added to what is hit only; the sum stays between zero and the longest range.
    Gradients: exact in poses, and in poses and sizes of the shapes; see `RayCaster`.

    Raises:
        InputError: as `RayCaster`; directions that are none; a range that is not positive, or negative noise.
    """

    contract = Contract(
        inputs={"sensor": "B 7", "pose": "B N 7", "generator": "generator"}, outputs={"range": "B R"}
    )
    directions: Tensor

    def __init__(
        self,
        shapes: Shapes,
        directions: Tensor,
        max_range: float = 30.0,
        noise: float = 0.0,
        relative_noise: float = 0.0,
    ):
        super().__init__()
        if directions.ndim != 2 or directions.shape[1] != 3 or not bool((directions.norm(dim=1) > 0).all()):
            raise InputError(
                f"range rays: expected directions (R, 3) of any length but zero, got {tuple(directions.shape)}"
            )
        if not max_range > 0 or noise < 0 or relative_noise < 0:
            raise InputError(
                f"range rays: expected max_range above zero and noise of zero or more, got {max_range}, {noise} and "
                f"{relative_noise}"
            )
        self.max_range, self.noise, self.relative_noise = max_range, noise, relative_noise
        self.caster = RayCaster(shapes)
        self.register_buffer("directions", directions.clone(), persistent=False)

    def forward(
        self, sensor: Tensor, pose: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Measure one scan per world."""
        geometry.check_poses(sensor, "range rays")
        rays = self.directions.to(sensor).expand(len(sensor), -1, 3)
        way = geometry.quat_rotate(sensor[:, None, 3:], rays)
        start = sensor[:, None, :3].expand_as(way)
        distance = self.caster(start, way, pose, self.max_range)
        if generator is None or self.noise == self.relative_noise == 0.0:
            return distance
        drawn = torch.randn(distance.shape, generator=generator, dtype=distance.dtype, device=distance.device)
        measured = distance + drawn * (self.noise + self.relative_noise * distance)
        return torch.where(distance < self.max_range, measured.clamp(0.0, self.max_range), distance)


@functools.cache
def _sample_shapes() -> Shapes:
    kinds = [
        ShapeKind.SPHERE,
        ShapeKind.BOX,
        ShapeKind.CYLINDER,
        ShapeKind.CAPSULE,
        ShapeKind.MESH,
        ShapeKind.PLANE,
    ]
    meshes = [TriangleMesh.icosphere(1) if kind == ShapeKind.MESH else None for kind in kinds]
    size = torch.tensor([[0.5, 0.4, 0.6]] * len(kinds), dtype=torch.float64)
    return Shapes.of(kinds, [0, 1, 2, 3, 4, WORLD], size, mesh=meshes)


def _samples(batch: int) -> dict[str, Tensor]:
    """Rays that are sure to hit each shape somewhere in its middle, from above."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    place = torch.tensor([[2.0 * g, 0.0, 2.0] for g in range(5)], dtype=torch.float64)
    pose = geometry.pose(place + 0.1 * random(5, 3), geometry.quat_normalize(random(5, 4)))
    aim = torch.cat([pose[..., :3], pose.new_tensor([[-3.0, 1.0, 0.0]]).expand(batch, 1, 3)], 1)
    start = aim + torch.tensor([0.3, 0.2, 3.0], dtype=torch.float64) + 0.2 * random(6, 3)
    shapes = _sample_shapes()
    return {
        "start": start,
        "direction": (aim + 0.05 * random(6, 3) - start) * 0.7,
        "pose": pose,
        "shape_pose": shapes.pose.expand(batch, 6, 7),
        "size": shapes.size.expand(batch, 6, 3),
    }


def _cast_samples(start: Tensor, direction: Tensor, pose: Tensor, shape_pose: Tensor, size: Tensor) -> Tensor:
    moved = replace(_sample_shapes(), pose=shape_pose, size=size)
    return RayCaster(moved)(start, direction, pose)


kernels.register("cast_rays", kernels=[make_find_hits], fn=_cast_samples, samples=_samples)
