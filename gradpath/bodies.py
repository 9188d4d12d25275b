"""What a simulator tells a renderer of its bodies: frames that are fixed in them, and what is drawn of them."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gradpath.meshes import TriangleMesh

WORLD = -1  # the body of what does not move


@dataclass(frozen=True)
class Frame:
    """A named frame that is fixed in a body, such as a link behind a fixed joint.

    Attributes:
        body: Index of the body; `WORLD` for what does not move.
        pose: Pose in the frame of the body, shape (7,).
    """

    body: int
    pose: Tensor


@dataclass(eq=False)
class MeshFile:
    """A mesh in a file that exists; read when it is first needed, because a robot may have hundreds.

    Attributes:
        path: The file.
    """

    path: Path
    _mesh: TriangleMesh | None = field(default=None, repr=False)

    def read(self) -> TriangleMesh:
        """Return the mesh, in the units of its file.

        Raises:
            InputError: the file cannot be read as triangles.
        """
        if self._mesh is None:
            self._mesh = TriangleMesh.load(self.path)
        return self._mesh


@dataclass(frozen=True, eq=False)
class Skin:
    """An image on a mesh.

    Attributes:
        image: Rows from the top, shape (H, W, 3), uint8; or the file it is in.
        uv: Texture coordinates, u to the right and v up, (0, 0) in the lower left corner, shape (A, 2); None where the
            file of the mesh has them.
        index: The row of `uv` of each corner of each face, shape (F, 3), int32; None where `uv` is.
    """

    image: Tensor | Path
    uv: Tensor | None = None
    index: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Visual:
    """What a renderer draws of a body: a mesh, placed and scaled in the frame of the body.

    Attributes:
        name: Name in the file; may be empty.
        body: Index of the body; `WORLD` for what does not move.
        mesh: The mesh, or the file it is in. Primitives are meshes already.
        pose: Pose of the mesh in the frame of the body, shape (7,).
        scale: Factor on the mesh along its own x, y, z, shape (3,); a negative one mirrors it.
        colour: Red, green, blue, alpha in [0, 1]; nothing is drawn where alpha is zero. None for the colours and
            textures of the mesh's own file.
        skin: The image on it, times the colour; None for none but that of the mesh's own file.
    """

    name: str
    body: int
    mesh: MeshFile | TriangleMesh
    pose: Tensor
    scale: Tensor
    colour: tuple[float, float, float, float] | None
    skin: Skin | None = None
