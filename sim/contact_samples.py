"""Example inputs of the contact operations, for the tests of their gradients."""

from typing import Any

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.bodies import WORLD
from gradpath.meshes import TriangleMesh
from gradpath.sim.contact_assets import Assets
from gradpath.sim.contact_edges import EDGE_PROBE
from gradpath.sim.contact_geometry import CAPSULE_SLIDING
from gradpath.sim.shapes import ShapeKind, Shapes

_KINDS = (
    ShapeKind.SPHERE,
    ShapeKind.BOX,
    ShapeKind.BOX,
    ShapeKind.CYLINDER,
    ShapeKind.CAPSULE,
    ShapeKind.CAPSULE,
    ShapeKind.MESH,
    ShapeKind.PLANE,
    ShapeKind.HEIGHT_FIELD,
)
_SPHERE, _BOX, _OTHER_BOX, _CYLINDER, _CAPSULE, _OTHER_CAPSULE, _MESH, _PLANE, _HEIGHTS = range(len(_KINDS))
_ROWS = (  # shape a, probe, shape b, face of a mesh
    (_SPHERE, 0, _PLANE, 0),
    (_SPHERE, 0, _BOX, 0),
    (_SPHERE, 0, _CYLINDER, 0),
    (_SPHERE, 0, _CAPSULE, 0),
    (_SPHERE, 0, _MESH, 5),
    (_SPHERE, 0, _HEIGHTS, 0),
    (_CAPSULE, CAPSULE_SLIDING, _OTHER_CAPSULE, 0),
    (_CAPSULE, 3, _BOX, 0),
    (_BOX, 3, _PLANE, 0),
    (_BOX, 5, _OTHER_BOX, 0),
    (_BOX, EDGE_PROBE + 16 * 5 + 10, _OTHER_BOX, 0),
    (_CYLINDER, 0, _PLANE, 0),
    (_CYLINDER, 4, _PLANE, 0),
    (_CYLINDER, 1, _HEIGHTS, 0),
    (_MESH, 2, _CYLINDER, 0),
    (_OTHER_BOX, 2, _MESH, -3),
)


def sample_shapes() -> Shapes:
    """Return one shape or two of every kind, each on a body of its own, grounds on none."""
    count = len(_KINDS)
    generator = torch.Generator().manual_seed(3)
    size = 0.2 + 0.2 * torch.rand(count, 3, dtype=torch.float64, generator=generator)
    size[_HEIGHTS] = torch.tensor([2.0, 2.0, 0.3])
    mesh: list[Any] = [None] * count
    mesh[_MESH] = TriangleMesh.icosphere(0)
    heights: list[Tensor | None] = [None] * count
    heights[_HEIGHTS] = torch.rand(3, 4, dtype=torch.float64, generator=generator)
    return Shapes(
        names=("",) * count,
        kind=_KINDS,
        body=(*range(_PLANE), WORLD, WORLD),
        mesh=tuple(mesh),
        heights=tuple(heights),
        group=(1,) * count,
        mask=(1,) * count,
        exclude=frozenset(),
        pose=geometry.pose_identity(count, dtype=torch.float64),
        size=size,
        friction=torch.full((count,), 0.5, dtype=torch.float64),
    )


def _random(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def contact_samples(batch: int) -> dict[str, Any]:
    """Inputs of `place_contacts`."""
    random = _random(0)
    shapes = sample_shapes()
    assets = Assets(shapes)
    count = len(_KINDS)
    local = geometry.pose(0.05 * random(batch, count, 3), geometry.quat_normalize(random(batch, count, 4)))
    local[:, _PLANE:, 3:] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    return {
        "pose": geometry.pose(
            0.3 * random(batch, _PLANE, 3), geometry.quat_normalize(random(batch, _PLANE, 4))
        ),
        "shape_pose": local,
        "size": shapes.size.expand(batch, -1, -1).clone(),
        "vertices": assets.vertices,
        "heights": assets.heights,
        "table": torch.tensor([_ROWS], dtype=torch.int32),
        "shapes": assets.shapes,
        "faces": assets.faces,
        "width": 2e-3,
    }


def push_samples(batch: int) -> dict[str, Any]:
    """Inputs of `push_bodies`: three contacts of two bodies, with slip from below to above where friction creeps."""
    random = _random(1)
    return {
        "point": random(batch, 3, 3),
        "normal": torch.nn.functional.normalize(random(batch, 3, 3), dim=-1),
        "depth": 1e-2 * random(batch, 3),
        "weight": 0.5 + 0.1 * random(batch, 3),
        "pose": geometry.pose(random(batch, 2, 3), geometry.quat_normalize(random(batch, 2, 4))),
        "linear": torch.tensor([0.01, 1.0]).double()[:, None] * random(batch, 2, 3),
        "angular": torch.tensor([0.01, 1.0]).double()[:, None] * random(batch, 2, 3),
        "law": torch.tensor([1e3, 0.5, 0.7]).double() * (1 + 0.1 * random(batch, 3, 3)),
        "bodies": torch.tensor([[[0, -1], [0, 1], [1, -1]]], dtype=torch.int32),
        "width": 1e-2,
        "scale": 0.1,
    }
