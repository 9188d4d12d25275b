"""What touches of the bodies of a model: collision shapes as tensors."""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradpath.bodies import MeshFile
from gradpath.errors import ShapeError
from gradpath.geometry import pose_identity
from gradpath.meshes import TriangleMesh


class ShapeKind(enum.IntEnum):
    """Kinds of collision shape, each in its own frame; `size` (3 numbers) means what the comment says, [m].

    The first five have the numbers and sizes of `gradpath.distances.Shape`.
    """

    SPHERE = 0  # radius, -, -
    BOX = 1  # half extents x, y, z
    CYLINDER = 2  # radius, half length along z, -
    CAPSULE = 3  # radius, half length along z of the segment, -
    PLANE = 4  # -, -, -: the half space z < 0 is solid
    MESH = 5  # scale of the mesh along x, y, z; a negative one mirrors it
    CONVEX = 6  # the same; its convex hull is solid
    HEIGHT_FIELD = 7  # half extents x, y, height of 1.0 in the grid


@dataclass(frozen=True, eq=False)
class Shapes:
    """The collision shapes of a model, G of them: what is what as tuples, what has a gradient as tensors.

    Attributes:
        names: Name of each shape; may repeat or be empty.
        kind: What each is.
        body: Index of the body each is fixed to; `WORLD` for what does not move.
        mesh: Mesh of a `MESH` or `CONVEX` shape, else None.
        heights: Heights of a `HEIGHT_FIELD`, shape (rows along y, columns along x), else None.
        group, mask: Bit masks: shapes a and b may touch where `group[a] & mask[b]` or `group[b] & mask[a]`.
        exclude: Pairs of bodies that never touch, smaller index first.
        pose: Pose in the frame of the body, shape (G, 7) or (B, G, 7).
        size: See `ShapeKind` [m], shape (G, 3) or (B, G, 3).
        friction: Coefficient of sliding friction, shape (G,) or (B, G).
        margin: Distance from the surface of each at which it is touched already [m]; empty for none.
    """

    names: tuple[str, ...]
    kind: tuple[ShapeKind, ...]
    body: tuple[int, ...]
    mesh: tuple[MeshFile | TriangleMesh | None, ...]
    heights: tuple[Tensor | None, ...]
    group: tuple[int, ...]
    mask: tuple[int, ...]
    exclude: frozenset[tuple[int, int]]
    pose: Tensor
    size: Tensor
    friction: Tensor
    margin: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def of(
        cls,
        kind: Sequence[int],
        body: Sequence[int],
        size: Tensor | Sequence[Sequence[float]],
        *,
        pose: Tensor | None = None,
        friction: float | Tensor = 0.5,
        mesh: Sequence[MeshFile | TriangleMesh | None] | None = None,
        heights: Sequence[Tensor | None] | None = None,
        exclude: Iterable[tuple[int, int]] = (),
    ) -> "Shapes":
        """Build shapes that may all touch each other, in the frames of their bodies by default.

        Args:
            kind: What each shape is.
            body: Index of the body that each is fixed to; `WORLD` for what does not move.
            size: Shape (G, 3) or (B, G, 3); a list is taken as float64.
            pose: Shape (G, 7) or (B, G, 7); the identity by default.
            friction: A number or shape (G,) or (B, G).
            mesh: Mesh of each shape that is one.
            heights: Heights of each shape that is a field of them.
            exclude: Pairs of bodies that do not touch each other.
        Raises:
            ShapeError: not one of each for every shape.
        """
        size = torch.as_tensor(size, dtype=None if isinstance(size, Tensor) else torch.float64)
        count = len(kind)
        if len(body) != count or size.shape[-2:] != (count, 3):
            raise ShapeError(
                f"shapes: expected {count} bodies and sizes ({count}, 3), one for each kind, got {len(body)} bodies "
                f"and sizes {tuple(size.shape)}"
            )
        friction = torch.as_tensor(friction, dtype=size.dtype)
        return cls(
            names=("",) * count,
            kind=tuple(ShapeKind(k) for k in kind),
            body=tuple(body),
            mesh=tuple(mesh or (None,) * count),
            heights=tuple(heights or (None,) * count),
            group=(1,) * count,
            mask=(1,) * count,
            exclude=frozenset(exclude),
            pose=pose_identity(count, dtype=size.dtype) if pose is None else pose,
            size=size,
            friction=friction.expand(count) if friction.ndim == 0 else friction,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "Shapes":
        """Apply a function to every tensor that may have a gradient."""
        return replace(
            self,
            pose=function(self.pose),
            size=function(self.size),
            friction=function(self.friction),
        )


def no_shapes() -> Shapes:
    """Return the collision shapes of a model that has none."""
    empty = torch.zeros(0, dtype=torch.float64)
    return Shapes((), (), (), (), (), (), (), frozenset(), empty.reshape(0, 7), empty.reshape(0, 3), empty)
