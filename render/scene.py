"""Scenes: a few meshes, drawn many times in every world, each time with its own pose and scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradpath.config import Configured
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.render.topology import Topology


class Scene(Configured):
    """Which meshes a world holds, and how many instances of each; the same for all worlds, so that they batch.

    Instances are numbered mesh after mesh: with `Scene([box, tree], counts=[2, 3])`, instances 0 and 1 are boxes. A
    world that needs fewer moves the rest out of sight.

    Args:
        meshes: The meshes, in their own frames [m].
        counts: Instances of each mesh; one of each by default.

    Attributes:
        vertices: Vertices of all instances in the frames of their meshes, shape (V, 3).
        owner: Instance of each vertex, shape (V,), int32.
        kind: Number of the mesh of each instance, shape (I,), int32: its class.
        topology: Faces and edges over these vertices.
        instances: Number of instances I.

    Raises:
        InputError: no meshes, or a count that is not positive.
    """

    def __init__(self, meshes: Sequence[TriangleMesh], counts: Sequence[int] | None = None):
        counts = [1] * len(meshes) if counts is None else list(counts)
        if not meshes or len(counts) != len(meshes) or min(counts) < 1:
            raise InputError(
                f"a scene needs meshes and one positive count each, got {len(meshes)} and {counts}"
            )
        placed = [mesh for mesh, count in zip(meshes, counts, strict=True) for _ in range(count)]
        sizes = torch.tensor([len(mesh.vertices) for mesh in placed])
        merged = TriangleMesh.merge(placed)
        self.instances = len(placed)
        self.vertices = merged.vertices.to(torch.float64)
        self.owner = torch.repeat_interleave(torch.arange(self.instances), sizes).to(torch.int32)
        self.kind = torch.repeat_interleave(torch.arange(len(meshes)), torch.tensor(counts)).to(torch.int32)
        self.topology = Topology.of(merged.faces)

    @property
    def instance_of_face(self) -> Tensor:
        """Instance of each face, shape (F,), int32."""
        return self.owner[self.topology.faces[:, 0].cpu().long()]

    def paint(self, colours: Sequence[Sequence[float]]) -> Tensor:
        """Colours of vertices, shape (V, 3), from one colour for each mesh, or one for each instance.

        Raises:
            InputError: another number of colours.
        """
        if len(colours) not in (int(self.kind.max()) + 1, self.instances):
            raise InputError(
                f"expected a colour for each of {int(self.kind.max()) + 1} meshes or {self.instances} instances, "
                f"got {len(colours)}"
            )
        table = torch.tensor(colours, dtype=torch.get_default_dtype())
        if len(colours) != self.instances:
            table = table[self.kind.long()]
        return table[self.owner.long()]
