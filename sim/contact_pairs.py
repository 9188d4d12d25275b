"""Which shapes may touch, which are near, and the table of contacts that pairs of shapes become."""

import itertools

import torch
import warp as wp
from torch import Tensor

from gradpath import kernels
from gradpath.sim.contact_assets import Assets, MeshPlace
from gradpath.sim.contact_edges import EDGE_PROBE
from gradpath.sim.contact_geometry import (
    CAPSULE_ENDS,
    CAPSULE_PROBES,
    CAPSULE_SLIDING,
    CYLINDER_RIM,
    CYLINDER_ROLLING,
)
from gradpath.sim.contact_sweep import make_sweep
from gradpath.sim.shapes import ShapeKind, Shapes

_Class = tuple[ShapeKind, MeshPlace | None]

GROUNDS = (ShapeKind.PLANE, ShapeKind.HEIGHT_FIELD)  # have a surface and no probes


def may_touch(shapes: Shapes) -> Tensor:
    """Return which shapes may touch, by groups, masks and excluded bodies, shape (G, G), bool, symmetric.

    Shapes of one body never touch, nor do two that stand still, nor two grounds.
    """
    count = len(shapes)
    body = torch.tensor(shapes.body, dtype=torch.int64).reshape(count)
    group, mask = torch.tensor(shapes.group).reshape(count), torch.tensor(shapes.mask).reshape(count)
    ground = torch.tensor([kind in GROUNDS for kind in shapes.kind], dtype=torch.bool).reshape(count)
    allowed = (group[:, None] & mask) != 0
    allowed = (allowed | allowed.T) & (body[:, None] != body) & ~(ground[:, None] & ground)
    for first, second in shapes.exclude:
        apart = (body[:, None] == first) & (body == second)
        allowed &= ~(apart | apart.T)
    return allowed


class Probes:
    """How each pair of shapes becomes contacts: probes of one against the surface of the other.

    Shapes of the same kind (and mesh) are one class; a pair of classes has one list of contacts.
    """

    def __init__(self, shapes: Shapes, assets: Assets):
        classes: dict[_Class, int] = {}
        self.of_shape = torch.tensor(
            [
                classes.setdefault((kind, place), len(classes))
                for kind, place in zip(shapes.kind, assets.places, strict=True)
            ],
            dtype=torch.int64,
        ).reshape(-1)
        lists = [_contacts(a, b) for a, b in itertools.product(classes, repeat=2)]
        self.classes = len(classes)
        self.count = torch.tensor([len(rows) for rows in lists], dtype=torch.int64)
        self.start = self.count.cumsum(0) - self.count
        flat = [row for rows in lists for row in rows]
        self.flat = torch.tensor(flat, dtype=torch.int64).reshape(-1, 2)  # is the second shape's, probe

    def expand(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Turn pairs of shapes (P, 2) into contacts.

        Returns:
            Contacts as shape a, probe, shape b and no face yet, shape (C, 4), int32; pair of each, shape (C,).
        """
        kind = self.of_shape[pairs[:, 0]] * self.classes + self.of_shape[pairs[:, 1]]
        count = self.count[kind]
        pair = torch.repeat_interleave(torch.arange(len(pairs)), count)
        within = torch.arange(len(pair)) - (count.cumsum(0) - count)[pair]
        swapped, probe = self.flat[self.start[kind][pair] + within].unbind(-1)
        first, second = pairs[pair].unbind(-1)
        a, b = torch.where(swapped == 1, second, first), torch.where(swapped == 1, first, second)
        return torch.stack([a, probe, b, torch.zeros_like(a)], -1).to(torch.int32), pair


def _contacts(first: _Class, second: _Class) -> list[tuple[int, int]]:
    """The contacts of a pair of classes, as (whether the probe is the second one's, probe)."""
    kinds = first[0], second[0]
    if ShapeKind.SPHERE in kinds:  # a ball finds everything by its centre
        return [(int(kinds[0] != ShapeKind.SPHERE), 0)]
    if kinds == (ShapeKind.CAPSULE, ShapeKind.CAPSULE):
        return [(0, CAPSULE_SLIDING)]
    rows = [(0, probe) for probe in _probes(*first, kinds[1])]
    rows += [(1, probe) for probe in _probes(*second, kinds[0])]
    if kinds == (ShapeKind.BOX, ShapeKind.BOX):
        rows += [(0, EDGE_PROBE + 16 * a + b) for a, b in itertools.product(range(12), repeat=2)]
    return rows


def _probes(kind: ShapeKind, place: MeshPlace | None, other: ShapeKind) -> range:
    """The probes of a shape against the surface of another."""
    if kind in GROUNDS:
        return range(0)
    if kind == ShapeKind.CAPSULE:
        return range(CAPSULE_ENDS if other == ShapeKind.PLANE else CAPSULE_PROBES)
    if kind == ShapeKind.BOX:
        return range(8)
    if kind == ShapeKind.CYLINDER:
        return range(CYLINDER_ROLLING + 2 * CYLINDER_RIM)
    assert place is not None  # a mesh
    return range(place.first_vertex, place.last_vertex)


def all_pairs(allowed: Tensor) -> Tensor:
    """Return every pair of shapes that may touch, shape (P, 2)."""
    return torch.triu(allowed, diagonal=1).nonzero()


def bounding_radius(shapes: Shapes, assets: Assets, size: Tensor) -> Tensor:
    """Radius around the origin of each shape that holds it, (B, G, 3) to (B, G) [m]; infinite for grounds."""
    radii = []
    for index, kind in enumerate(shapes.kind):
        x, y, z = size[:, index].unbind(-1)
        place = assets.places[index]
        if kind in GROUNDS:
            radius = torch.full_like(x, torch.inf)
        elif kind == ShapeKind.SPHERE:
            radius = x
        elif kind == ShapeKind.CAPSULE:
            radius = x + y
        elif kind == ShapeKind.CYLINDER:
            radius = torch.hypot(x, y)
        elif kind == ShapeKind.BOX:
            radius = (x * x + y * y + z * z).sqrt()
        else:
            assert place is not None
            vertices = assets.vertices[place.first_vertex : place.last_vertex].to(size)
            radius = (size[:, index, None] * vertices).norm(dim=-1).amax(-1)
        radii.append(radius)
    return torch.stack(radii, -1)


def near_pairs(centre: Tensor, radius: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Find the pairs of shapes whose bounding balls' boxes overlap, by sorting and sweeping along x.

    Args:
        centre: Centres of the balls, shape (B, G, 3).
        radius: Their radii, may be infinite, shape (B, G).
        allowed: Which may touch, shape (G, G), bool.
    Returns:
        World of each pair, shape (P,), ascending; shapes of each pair, shape (P, 2). Not differentiable.
    """
    worlds, count = radius.shape
    if worlds * count == 0:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64)
    centre, radius = centre.detach().float(), radius.detach().float()
    order = torch.argsort(centre[..., 0] - radius, dim=-1, stable=True)
    centre = centre.gather(1, order[..., None].expand(-1, -1, 3)).contiguous()
    radius = radius.gather(1, order).contiguous()
    shape = order.to(torch.int32).contiguous()
    mask = allowed.to(device=centre.device, dtype=torch.int32).contiguous()
    found = torch.zeros(worlds, count, dtype=torch.int32, device=centre.device)
    first = torch.zeros_like(found)
    pairs = torch.zeros(0, 2, dtype=torch.int32, device=centre.device)
    vec3 = kernels.element_type("vec3", wp.float32)

    def sweep(write: int) -> None:
        arguments = [
            kernels.array(centre, vec3),
            *(kernels.array(t, wp.float32) for t in (radius,)),
            *(kernels.array(t, wp.int32) for t in (shape, mask, first)),
            write,
            *(kernels.array(t, wp.int32) for t in (found, pairs)),
        ]
        kernels.launch(
            kernels.specialize(make_sweep, torch.float32), (worlds, count), arguments, centre.device
        )

    sweep(0)
    ends = found.flatten().cumsum(0)
    first = (ends.reshape(worlds, count) - found).to(torch.int32).contiguous()
    pairs = torch.zeros(int(ends[-1]), 2, dtype=torch.int32, device=centre.device)
    if len(pairs):
        sweep(1)
    world = torch.repeat_interleave(torch.arange(worlds, device=centre.device), found.sum(-1).long())
    return world, pairs.long()


def pack(contacts: Tensor, world: Tensor, worlds: int) -> Tensor:
    """Lay contacts (C, 4) of ascending worlds (C,) out by world, shape (B, most of any, 4); -1 fills the rest."""
    count = torch.bincount(world, minlength=worlds)
    table = contacts.new_full((worlds, int(count.max()) if worlds else 0, 4), -1)
    table[world, torch.arange(len(world)) - (count.cumsum(0) - count)[world]] = contacts
    return table
