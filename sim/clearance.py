"""Distance from a vehicle to every obstacle of its world."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.distances import Shape, mesh_distance, shape_distance
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.stage import Stage

# Which of an instance's three scales a shape takes as its sizes (see `Shape`).
_SIZES = {
    Shape.SPHERE: (0, 0, 0),
    Shape.BOX: (0, 1, 2),
    Shape.CYLINDER: (0, 2, 2),
    Shape.CAPSULE: (0, 2, 2),
    Shape.PLANE: (0, 0, 0),
}


class Clearance(Stage):
    """Signed distance from a body's origin to obstacles that are placed by pose and scale, as a scene's instances are.

    The scale of an instance multiplies a shape of unit size: half extents of a box, radius (x) and half length (z) of a
    cylinder or capsule, radius (x) of a sphere, and one uniform factor (x) for a mesh.

    Args:
        shapes: What the obstacles are: a `Shape` (or its number), or a closed mesh.
        counts: Instances of each; one of each by default.

    Inputs: `pose` (B, 7); `obstacles` with `pose` (B, I, 7) and `scale` (B, I, 3).
    Outputs: `distance` (B, I) [m], negative inside; exact, for soft and hard mode alike.
    Gradients: exact in poses and scales; the nearest feature of a mesh is held fixed.

    Raises:
        InputError: no shapes, or a count that is not positive.
    """

    contract = Contract(
        inputs={"pose": "B 7", "obstacles": {"pose": "B I 7", "scale": "B I 3"}},
        outputs={"distance": "B I"},
    )
    kind: Tensor
    size_index: Tensor
    analytic: Tensor

    def __init__(self, shapes: Sequence[int | TriangleMesh], counts: Sequence[int] | None = None):
        super().__init__()
        counts = [1] * len(shapes) if counts is None else list(counts)
        if not shapes or len(counts) != len(shapes) or min(counts) < 1:
            raise InputError(
                f"clearance needs shapes and one positive count each, got {len(shapes)} and {counts}"
            )
        kinds: list[int] = []
        places: list[int] = []
        self.meshes: list[tuple[TriangleMesh, slice]] = []
        first = 0
        for shape, count in zip(shapes, counts, strict=True):
            if isinstance(shape, TriangleMesh):
                self.meshes.append((shape, slice(first, first + count)))
            else:
                places += range(first, first + count)
                kinds += [int(Shape(shape))] * count
            first += count
        self.instances = first
        self.register_buffer("kind", torch.tensor(kinds, dtype=torch.int32), persistent=False)
        sizes = [_SIZES[Shape(kind)] for kind in kinds]
        self.register_buffer("size_index", torch.tensor(sizes).reshape(-1, 3), persistent=False)
        self.register_buffer("analytic", torch.tensor(places, dtype=torch.int64), persistent=False)

    def forward(self, pose: Tensor, obstacles: Mapping[str, Tensor]) -> Tensor:
        """Measure every pair of one body and one obstacle of its world."""
        point = pose[:, :3]
        place, scale = obstacles["pose"], obstacles["scale"]
        parts: list[Tensor] = []
        order: list[Tensor] = []
        if len(self.kind):
            size = scale[:, self.analytic].gather(2, self.size_index.expand(len(pose), -1, -1))
            parts.append(shape_distance(point, self.kind, place[:, self.analytic], size))
            order.append(self.analytic)
        for mesh, where in self.meshes:
            parts.append(mesh_distance(point[:, None], place[:, where], scale[:, where, 0], mesh)[:, 0])
            order.append(torch.arange(where.start, where.stop, device=pose.device))
        return torch.cat(parts, dim=1)[:, torch.argsort(torch.cat(order))]
