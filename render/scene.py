"""Scenes: a few meshes, drawn many times in every world, each with its own pose and scale, and the links of robots."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradpath.bodies import WORLD, Visual
from gradpath.config import Configured
from gradpath.errors import InputError, ShapeError
from gradpath.geometry import check_poses, check_scales, pose_identity
from gradpath.meshes import TriangleMesh
from gradpath.render.culling import Part, Parts, View, bounding_spheres
from gradpath.render.links import link_models
from gradpath.render.models import Model
from gradpath.render.shading import Look
from gradpath.render.topology import Topology

WORTH_ASKING = 20_000  # vertices in all worlds; with fewer, asking what is seen takes longer than drawing it


class Scene(Configured):
    """Which meshes a world holds, and how many instances of each; the same for all worlds, so that they batch.

    Instances are numbered mesh after mesh: with `Scene([box, tree], counts=[2, 3])`, instances 0 and 1 are boxes. A
    world that needs fewer moves the rest out of sight. The bodies of a robot that have something to draw come after
    them, one instance each, in the order of their indices: what stands still first.

    Args:
        meshes: The meshes, in their own frames [m].
        counts: Instances of each mesh; one of each by default.
        links: What is drawn of the bodies of a robot, `sim.Model.visuals`. Their files are read here.

    Attributes:
        vertices: Vertices of all instances in the frames of their meshes or bodies, shape (V, 3).
        owner: Instance of each vertex, shape (V,), int32.
        kind: Class of each instance, shape (I,), int32: the number of its mesh, one more for all links.
        topology: Faces and edges over these vertices.
        instances: Number of instances I, links included.
        placed: Number of instances that a call gives poses and scales.
        bodies: Body of each link, in the order of the instances.

    Raises:
        InputError: nothing to draw, a count that is not positive, or links that `links` cannot be drawn from.
    """

    def __init__(
        self,
        meshes: Sequence[TriangleMesh] = (),
        counts: Sequence[int] | None = None,
        links: Sequence[Visual] = (),
    ):
        counts = [1] * len(meshes) if counts is None else list(counts)
        self._links = link_models(links)
        if not (meshes or self._links) or len(counts) != len(meshes) or min(counts, default=1) < 1:
            raise InputError(
                f"a scene needs meshes and one positive count each, got {len(meshes)} and {counts}, or links that are "
                f"drawn, got {len(links)} visuals of which {len(self._links)} bodies show something"
            )
        self._meshes = [mesh for mesh, count in zip(meshes, counts, strict=True) for _ in range(count)]
        self.placed, self.bodies = len(self._meshes), tuple(self._links)
        drawn = [*self._meshes, *(model.mesh for model in self._links.values())]
        self.instances = len(drawn)
        sizes = torch.tensor([len(mesh.vertices) for mesh in drawn])
        merged = TriangleMesh.merge([TriangleMesh(mesh.vertices.double(), mesh.faces) for mesh in drawn])
        self.vertices = merged.vertices
        self.owner = torch.repeat_interleave(torch.arange(self.instances), sizes).to(torch.int32)
        kinds = torch.tensor([*counts, *([len(self.bodies)] if self.bodies else [])])
        self.kind = torch.repeat_interleave(torch.arange(len(kinds)), kinds).to(torch.int32)
        self.topology = Topology.of(merged.faces)
        self._spheres = bounding_spheres(self.vertices, self.owner, self.instances)
        self._parts = Parts(self.topology, self.owner, self.instances)

    def __repr__(self) -> str:
        return f"Scene({self.placed} instances, {len(self.bodies)} links, {len(self.topology.faces)} faces)"

    @property
    def instance_of_face(self) -> Tensor:
        """Instance of each face, shape (F,), int32."""
        return self.owner[self.topology.faces[:, 0].cpu().long()]

    def place(
        self, obstacles: Mapping[str, Tensor] | None, bodies: Tensor | None, name: str
    ) -> tuple[Tensor, Tensor]:
        """Return poses (B, I, 7) and scales (B, I, 3) of all instances, from those of meshes and the poses of bodies.

        Args:
            obstacles: `pose` and `scale` of the instances of meshes, (B, P, 7) and (B, P, 3), differentiable; None
                where there are none.
            bodies: Poses of the bodies of the robot in the world, (B, N, 7), differentiable; None where there are none.
            name: What errors name.
        Raises:
            ShapeError: something else than a pose and a scale for each instance of a mesh, or too few bodies.
            InputError: a pose that is none, or a scale that is not positive; not looked for on a GPU.
        """
        poses: list[Tensor] = []
        scales: list[Tensor] = []
        if self.placed:
            given = obstacles or {}
            for part, size in (("pose", 7), ("scale", 3)):
                if part not in given or given[part].ndim != 3 or given[part].shape[1:] != (self.placed, size):
                    got = str(tuple(given[part].shape)) if part in given else "none"
                    raise ShapeError(
                        f"{name}, obstacles: {part}: expected shape (B, {self.placed}, {size}), got {got}; the scene "
                        f"has {self.placed} instances of meshes: give each a place, out of sight if it is not there"
                    )
            check_poses(given["pose"], f"{name}, obstacles")
            check_scales(given["scale"], f"{name}, obstacles")
            poses, scales = [given["pose"]], [given["scale"]]
        if self.bodies:
            poses.append(body_poses(bodies, self.bodies, name))
            scales.append(torch.ones_like(poses[-1][..., :3]))
        return torch.cat(poses, dim=1), torch.cat(scales, dim=1)

    def seen_part(self, poses: Tensor, scales: Tensor, view: View) -> Part | None:
        """Return the instances that any camera may see; None for all, or where there is nothing to gain.

        On a GPU nothing is left out: the answer would have to be waited for.
        """
        if poses.is_cuda or self.instances == 1 or len(poses) * len(self.vertices) < WORTH_ASKING:
            return None
        seen = view.seen_by_any(self._spheres, poses, scales)
        if bool(seen.all()):
            return None
        if not bool(seen.any()):
            seen[0] = True  # a picture of nothing is drawn from something
        return self._parts.take(seen)

    def look(self, colours: Sequence[Sequence[float]] | None = None) -> Look:
        """How everything looks: links as the robot's file says, meshes in colours of their own.

        Args:
            colours: One for each mesh, or one for each of its instances; white by default.
        Raises:
            InputError: another number of colours.
        """
        kinds = self.kind[: self.placed]
        meshes = int(kinds.max()) + 1 if self.placed else 0
        colours = [(1.0, 1.0, 1.0)] * self.placed if colours is None else colours
        if len(colours) not in (meshes, self.placed):
            raise InputError(
                f"expected a colour for each of {meshes} meshes or {self.placed} instances, got {len(colours)}"
            )
        table = torch.tensor(colours, dtype=torch.get_default_dtype())
        if len(colours) != self.placed:
            table = table[kinds.long()]
        dressed = [
            Model(mesh, Look(colour.expand(len(mesh.vertices), 3)))
            for mesh, colour in zip(self._meshes, table, strict=True)
        ]
        return Model.merge([*dressed, *self._links.values()]).look

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


def body_poses(bodies: Tensor | None, indices: Sequence[int], name: str) -> Tensor:
    """Return the poses of some bodies, shape (B, len(indices), 7), from those of all; `WORLD` is the world itself.

    Args:
        bodies: Poses of the bodies of a robot in the world, (B, N, 7), differentiable.
        indices: Which of them.
        name: What errors name.
    Raises:
        ShapeError: no poses, or of too few bodies.
        InputError: a pose that is none; not looked for on a GPU.
    """
    needed = max(indices) + 1
    if bodies is None or bodies.ndim != 3 or bodies.shape[1] < needed:
        got = "none" if bodies is None else str(tuple(bodies.shape))
        raise ShapeError(
            f"{name}, bodies: expected shape (B, N, 7) with N at least {needed}, got {got}; a link is drawn or "
            "carries the camera: pass the poses of all bodies of the robot, which sim.Articulation has as an output"
        )
    check_poses(bodies, f"{name}, bodies")
    still = pose_identity(len(bodies), 1, dtype=bodies.dtype, device=bodies.device)
    chosen = torch.tensor([0 if body == WORLD else body + 1 for body in indices], device=bodies.device)
    return torch.cat([still, bodies], dim=1)[:, chosen]
