"""Distance from a vehicle to every obstacle of its world."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.distances import Shape, mesh_distance, shape_distance
from gradpath.errors import InputError
from gradpath.geometry import check_poses, check_scales
from gradpath.meshes import TriangleMesh
from gradpath.stage import Stage

# Which of an instance's three scales a shape takes as its sizes (see `Shape`), and whether its scales y and z have to
# equal x: a renderer draws all three, and what is drawn must be what is measured.
_SIZES = {
    Shape.SPHERE: (0, 0, 0),
    Shape.BOX: (0, 1, 2),
    Shape.CYLINDER: (0, 2, 2),
    Shape.CAPSULE: (0, 2, 2),
    Shape.PLANE: (0, 0, 0),
}
_ROUND = {
    Shape.SPHERE: (True, True),
    Shape.BOX: (False, False),
    Shape.CYLINDER: (True, False),
    Shape.CAPSULE: (True, False),
    Shape.PLANE: (False, False),
}
_SCALE_TOLERANCE = 1e-3  # relative; far more than rounding


class Clearance(Stage):
    """Signed distance from a body's origin to obstacles that are placed by pose and scale, as a scene's instances are.

    The scale of an instance multiplies a shape of unit size: half extents of a box, radius (x) and half length (z) of a
    cylinder or of a capsule's segment, radius (x) of a sphere, and one uniform factor (x) for a mesh. The scale y, and
    for a sphere or a mesh the scale z, equal x, so that what is drawn is what is measured.

    Args:
        shapes: What the obstacles are: a `Shape` (or its number), or a closed mesh.
        counts: Instances of each; one of each by default.

    Inputs: `pose` (B, 7); `obstacles` with `pose` (B, I, 7) and `scale` (B, I, 3).
    Outputs: `distance` (B, I) [m], negative inside; exact, for soft and hard mode alike.
    Gradients: exact in poses and scales; the nearest feature of a mesh is held fixed.

    Raises:
        InputError: no shapes, or a count that is not positive. When called, an obstacle's pose that is none, or a
            scale that is not positive or not round where it has to be; not looked for on a GPU.
    """

    contract = Contract(
        inputs={"pose": "B 7", "obstacles": {"pose": "B I 7", "scale": "B I 3"}},
        outputs={"distance": "B I"},
    )
    kind: Tensor
    size_index: Tensor
    analytic: Tensor
    is_round: Tensor

    def __init__(self, shapes: Sequence[int | TriangleMesh], counts: Sequence[int] | None = None):
        super().__init__()
        counts = [1] * len(shapes) if counts is None else list(counts)
        if not shapes or len(counts) != len(shapes) or min(counts) < 1:
            raise InputError(
                f"clearance needs shapes and one positive count each, got {len(shapes)} and {counts}"
            )
        kinds: list[int] = []
        places: list[int] = []
        uniform: list[tuple[bool, bool]] = []
        self.meshes: list[tuple[TriangleMesh, slice]] = []
        first = 0
        for shape, count in zip(shapes, counts, strict=True):
            if isinstance(shape, TriangleMesh):
                self.meshes.append((shape, slice(first, first + count)))
                uniform += [(True, True)] * count
            else:
                uniform += [_ROUND[Shape(shape)]] * count
                places += range(first, first + count)
                kinds += [int(Shape(shape))] * count
            first += count
        self.instances = first
        self.register_buffer("kind", torch.tensor(kinds, dtype=torch.int32), persistent=False)
        sizes = [_SIZES[Shape(kind)] for kind in kinds]
        self.register_buffer("size_index", torch.tensor(sizes).reshape(-1, 3), persistent=False)
        self.register_buffer("is_round", torch.tensor(uniform), persistent=False)
        self.register_buffer("analytic", torch.tensor(places, dtype=torch.int64), persistent=False)

    def forward(self, pose: Tensor, obstacles: Mapping[str, Tensor]) -> Tensor:
        """Measure every pair of one body and one obstacle of its world."""
        point = pose[:, :3]
        place, scale = obstacles["pose"], obstacles["scale"]
        self._check(place, scale)
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

    def _check(self, place: Tensor, scale: Tensor) -> None:
        if scale.is_cuda:
            return
        if scale.shape[1] != self.instances:
            raise InputError(
                f"clearance measures {self.instances} instances, got {scale.shape[1]}; the scene has other counts"
            )
        check_poses(place, "clearance")
        check_scales(scale, "clearance")
        sizes = scale.detach()
        x = sizes[..., :1]
        wrong = ((sizes[..., 1:] - x).abs() > _SCALE_TOLERANCE * x) & self.is_round
        if bool(wrong.any()):
            world, instance, axis = wrong.nonzero()[0].tolist()
            raise InputError(
                f"clearance: the scale of instance {instance} of world {world} is {sizes[world, instance].tolist()}, "
                f"but its shape is round: {'yz'[axis]} would be drawn and not measured; make it equal to x"
            )
