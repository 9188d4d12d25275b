"""What touches, where, and by which law.

The normal force is `stiffness * width * softplus(depth / width)`, times a dissipation that is proportional to it
(Hunt and Crossley): both are continuously differentiable where bodies touch. Friction is Coulomb's, regularized to
`friction * force * v / sqrt(|v|^2 + slip_speed^2)`. Over a time step these become impulses, which all contacts of a
world find together: `gradpath.sim.contact_law` and `contact_solve`.

References: Hunt and Crossley 1975, Coefficient of restitution interpreted as damping in vibroimpact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import warp as wp
from torch import Tensor

from gradpath import geometry, kernels
from gradpath.config import Configured
from gradpath.errors import InputError, ShapeError
from gradpath.sim.contact_assets import Assets
from gradpath.sim.contact_geometry import make_find_faces, make_place_contacts
from gradpath.sim.contact_kernels import make_push_bodies
from gradpath.sim.contact_pairs import Probes, all_pairs, bounding_radius, may_touch, near_pairs, pack
from gradpath.sim.contact_rows import REACH
from gradpath.sim.contact_samples import contact_samples, push_samples
from gradpath.sim.contact_sweep import make_sweep
from gradpath.sim.shapes import Shapes

place_contacts = kernels.Op(
    "place_contacts",
    make_place_contacts,
    inputs={
        "pose": "B N transform",
        "shape_pose": "B G transform",
        "size": "B G vec3",
        "vertices": "V vec3",
        "heights": "H scalar",
        "table": "R C 4 int32",
        "shapes": "G 5 int32",
        "faces": "F 3 int32",
    },
    constants={"width": "scalar"},
    outputs={
        "point": "B C vec3",
        "normal": "B C vec3",
        "depth": "B C scalar",
        "weight": "B C scalar",
    },
    launch="B C",
    samples=contact_samples,
    helpers=[make_find_faces, make_sweep],
)

push_bodies = kernels.Op(
    "push_bodies",
    make_push_bodies,
    inputs={
        "point": "B C vec3",
        "normal": "B C vec3",
        "depth": "B C scalar",
        "weight": "B C scalar",
        "pose": "B N transform",
        "linear": "B N vec3",
        "angular": "B N vec3",
        "law": "B C vec3",
        "bodies": "R C 2 int32",
    },
    constants={"width": "scalar", "scale": "scalar"},
    outputs={"push": "B N vec3", "twist": "B N vec3"},
    launch="B C",
    samples=push_samples,
)


@dataclass(frozen=True)
class ContactPoints:
    """Contacts of a batch of worlds, C in each; those of weight zero do not count.

    Attributes:
        shapes: The two shapes of each, shape (1 or B, C, 2), int64; -1 where there is none.
        bodies: Their bodies, -1 for what stands still, shape (1 or B, C, 2), int32.
        point: In the world, in the middle of the overlap [m], shape (B, C, 3).
        normal: From the second shape to the first, shape (B, C, 3).
        depth: Of the overlap, negative apart [m], shape (B, C).
        weight: Share of the contact, shape (B, C).
    """

    shapes: Tensor
    bodies: Tensor
    point: Tensor
    normal: Tensor
    depth: Tensor
    weight: Tensor


class Contact(Configured):
    """The contact of some shapes: what may touch, what it is made of, and how it pushes.

    Args:
        shapes: The shapes, and the bodies that they are fixed to.
        stiffness: Of each shape [N/m], a number or shape (G,) or (B, G), differentiable. Of a contact: the mean of
            both shapes; so for damping and friction.
        damping: Dissipation relative to the elastic force [s/m]: a body that comes at speed v loses about
            `damping * v` of its speed.
        friction: Coefficient; that of the shapes by default.
        width: Of the softplus [m]. The static force at depth zero is `0.69 * stiffness * width`.
        slip_speed: Speed at which friction has 0.7 of its limit [m/s]; below, a held body creeps.
        broad_phase: `"all"`: every pair that may touch, always; the quicker for a few shapes. `"sweep"`: sort and sweep
            in each call. `"auto"`: by the number of pairs.

    Raises:
        InputError: a value that is negative or not finite, or a mesh or height field that is missing.
        ShapeError: a parameter of another shape.
    Gradients: exact in poses, velocities, sizes, poses of shapes, heights, stiffness, damping and friction. Pairs, and
        which face of a mesh is near, are found without gradient and held fixed.
    """

    def __init__(
        self,
        shapes: Shapes,
        stiffness: float | Tensor = 1e4,
        damping: float | Tensor = 0.5,
        friction: float | Tensor | None = None,
        *,
        width: float = 2e-3,
        slip_speed: float = 1e-2,
        broad_phase: str = "auto",
    ):
        if not (0 < width < torch.inf and 0 < slip_speed < torch.inf):
            raise InputError(f"contact: width and slip_speed are positive, got {width} and {slip_speed}")
        if broad_phase not in ("auto", "all", "sweep"):
            raise InputError(f'contact: broad_phase is "auto", "all" or "sweep", got {broad_phase!r}')
        self.shapes, self.width, self.slip_speed = shapes, width, slip_speed
        self.stiffness = law_by_shape(shapes, "stiffness", stiffness)
        self.damping = law_by_shape(shapes, "damping", damping)
        self.friction = law_by_shape(shapes, "friction", shapes.friction if friction is None else friction)
        self._assets = Assets(shapes)
        self._probes = Probes(shapes, self._assets)
        self._allowed = may_touch(shapes)
        pairs = all_pairs(self._allowed)
        few = int(self._probes.expand(pairs)[1].shape[0]) <= 2048 if len(pairs) <= 2048 else False
        self.sweeps = broad_phase == "sweep" or (broad_phase == "auto" and not few)
        self._static = None if self.sweeps else self._probes.expand(pairs)[0][None]

    def find(self, pose: Tensor) -> Tensor:
        """Find what is near at `pose` (B, N, 7): a table for `points`, (1 or B, C, 4), int32, without gradient."""
        with torch.no_grad():
            return self._find(pose, *self._placed(pose))

    def points(self, pose: Tensor, table: Tensor | None = None) -> ContactPoints:
        """Place the contacts of bodies at `pose` (B, N, 7): those of a table from `find`, or those found there."""
        shape_pose, size = self._placed(pose)
        if table is None:
            with torch.no_grad():
                table = self._find(pose, shape_pose, size)
        assets = self._assets
        index = assets.shapes.to(pose.device)
        point, normal, depth, weight = place_contacts(
            pose,
            shape_pose,
            size,
            assets.vertices.to(pose),
            assets.heights.to(pose),
            table,
            index,
            assets.faces.to(pose.device),
            width=self.width,
        )
        pair = table[..., 0:3:2].long()
        if any(self.shapes.margin):
            margin = depth.new_tensor(self.shapes.margin)
            depth = depth + margin[pair.clamp(min=0)].sum(-1)
        bodies = torch.where(pair < 0, -1, index[:, 1].long()[pair.clamp(min=0)]).to(torch.int32)
        return ContactPoints(pair, bodies, point, normal, depth, weight)

    def _placed(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Poses (B, G, 7) and sizes (B, G, 3) of the shapes."""
        worlds = pose.shape[0]
        return _per_world(self.shapes.pose, worlds, 2, pose), _per_world(self.shapes.size, worlds, 2, pose)

    def _find(self, pose: Tensor, shape_pose: Tensor, size: Tensor) -> Tensor:
        table = self._swept(pose, shape_pose, size) if self._static is None else self._static.to(pose.device)
        if all(place is None for place in self._assets.places) or 0 in table.shape or len(pose) == 0:
            return table
        table = table.repeat(len(pose) // len(table), 1, 1)
        found = self._assets.on(pose.device)
        scalar = kernels.element_type("scalar", wp.float32 if pose.dtype == torch.float32 else wp.float64)
        vec3, transform = kernels.element_type("vec3", scalar), kernels.element_type("transform", scalar)
        arguments = [
            kernels.array(pose.contiguous(), transform),
            kernels.array(shape_pose.contiguous(), transform),
            kernels.array(size.contiguous(), vec3),
            kernels.array(self._assets.vertices.to(pose), vec3),
            kernels.array(self._assets.shapes.to(pose.device), wp.int32),
            found.ids,
            kernels.array(found.first_face, wp.int32),
            kernels.array(found.farthest, wp.float32),
            kernels.array(table, wp.int32),
        ]
        kernel = kernels.specialize(make_find_faces, pose.dtype)
        kernels.launch(kernel, tuple(table.shape[:2]), arguments, pose.device)
        return table

    def _swept(self, pose: Tensor, shape_pose: Tensor, size: Tensor) -> Tensor:
        body = torch.tensor(self.shapes.body, device=pose.device)
        placed = geometry.pose_compose(pose[:, body.clamp(min=0)], shape_pose)
        placed = torch.where((body < 0)[:, None], shape_pose, placed)
        radius = bounding_radius(self.shapes, self._assets, size) + 0.5 * REACH * self.width
        if any(self.shapes.margin):
            radius = radius + radius.new_tensor(self.shapes.margin)
        world, pairs = near_pairs(placed[..., :3], radius, self._allowed)
        contacts, pair = self._probes.expand(pairs.cpu())
        return pack(contacts, world.cpu()[pair], pose.shape[0]).to(pose.device)

    def wrenches(self, pose: Tensor, velocity: Tensor, law: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the wrench of all contacts on each body at one instant.

        What moves bodies is not this but the impulse over a time step, which `RigidBodies` and `contact_step` find.

        Args:
            pose: World poses of the bodies, shape (B, N, 7), differentiable.
            velocity: Of their origins and their turning, in world axes: linear [m/s], then angular [rad/s],
                shape (B, N, 6), differentiable.
            law: Replaces `stiffness`, `damping` or `friction` of the shapes for this call, shape (G,) or (B, G).
        Returns:
            Force [N], then torque about the body's origin [N m], in world axes, shape (B, N, 6).
        Raises:
            ShapeError: a tensor has another shape.
            InputError: a pose that is none; not looked for on a GPU.
        Gradients: exact in all.
        """
        if velocity.shape != (*pose.shape[:2], 6):
            raise ShapeError(
                f"contact: expected velocity (B, N, 6) for poses {tuple(pose.shape)}, got {tuple(velocity.shape)}"
            )
        geometry.check_poses(pose, "contact")
        contacts = self.points(pose)
        push, twist = push_bodies(
            contacts.point, contacts.normal, contacts.depth, contacts.weight, pose, velocity[..., :3],
            velocity[..., 3:], self.law_of(contacts, pose, law), contacts.bodies, width=self.width,
            scale=self.slip_speed,
        )  # fmt: skip
        return torch.cat([push, twist], -1)

    def law_of(
        self, contacts: ContactPoints, pose: Tensor, law: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Stiffness, damping and friction of each contact, shape (B, C, 3)."""
        given: dict[str, Any] = {name: getattr(self, name) for name in ("stiffness", "damping", "friction")}
        given |= {name: law_by_shape(self.shapes, name, value) for name, value in (law or {}).items()}
        worlds = pose.shape[0]
        by_shape = torch.stack([_per_world(value, worlds, 1, pose) for value in given.values()], -1)
        pair = contacts.shapes.clamp(min=0).expand(worlds, -1, -1).flatten(1)
        both = by_shape.gather(1, pair[..., None].expand(-1, -1, 3)).unflatten(1, (-1, 2))
        return both.mean(2)


def relative_velocity(contacts: ContactPoints, pose: Tensor, velocity: Tensor) -> Tensor:
    """Velocity of the first body at each contact as the second sees it [m/s], shape (B, C, 3)."""
    worlds = len(pose)
    world = torch.arange(worlds, device=pose.device)[:, None]
    bodies = contacts.bodies.expand(worlds, -1, -1).long()

    def at(body: Tensor) -> Tensor:
        moves, body = (body >= 0)[..., None], body.clamp(min=0)
        twist, arm = velocity[world, body], contacts.point - pose[world, body, :3]
        return (twist[..., :3] + torch.linalg.cross(twist[..., 3:], arm)) * moves

    return at(bodies[..., 0]) - at(bodies[..., 1])


def _per_world(value: Tensor, worlds: int, rank: int, like: Tensor) -> Tensor:
    value = value.to(like)
    return value.expand(worlds, *value.shape) if value.ndim == rank else value


def law_by_shape(shapes: Shapes, name: str, value: float | Tensor) -> Tensor:
    """Return a property of each shape, shape (G,) or (B, G), from a number or a tensor of that shape; checked."""
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point():
        tensor = tensor.double()
    if tensor.ndim == 0:
        tensor = tensor.expand(len(shapes))
    if tensor.ndim not in (1, 2) or tensor.shape[-1] != len(shapes):
        raise ShapeError(
            f"contact {name}: expected a number, shape ({len(shapes)},) or (B, {len(shapes)}), one of each shape, "
            f"got {tuple(tensor.shape)}"
        )
    if not tensor.is_cuda and not bool(((tensor >= 0) & (tensor < torch.inf)).all()):
        raise InputError(f"contact {name}: expected finite values, zero or more, got {tensor.tolist()}")
    return tensor
