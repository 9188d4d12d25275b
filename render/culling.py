"""Which instances no camera can see, and the scene without them."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gradpath.geometry import pose_apply, pose_inverse
from gradpath.render.attributes import Attribute
from gradpath.render.shading import Look
from gradpath.render.topology import Topology


def bounding_spheres(vertices: Tensor, owner: Tensor, instances: int) -> tuple[Tensor, Tensor]:
    """Centres (I, 3) and radii (I,) of spheres around the vertices (V, 3) of each instance, in its own frame."""
    index = owner.long()[:, None].expand(-1, 3)
    low = vertices.new_full((instances, 3), torch.inf).scatter_reduce(0, index, vertices, "amin")
    high = vertices.new_full((instances, 3), -torch.inf).scatter_reduce(0, index, vertices, "amax")
    centre = 0.5 * (low + high)
    away = torch.linalg.vector_norm(vertices - centre[owner.long()], dim=-1)
    radius = vertices.new_zeros(instances).scatter_reduce(0, owner.long(), away, "amax")
    return centre, radius


class View(NamedTuple):
    """What pinhole cameras can see.

    Attributes:
        cameras: Their poses in the world, (B, 7).
        K: Intrinsics, (3, 3).
        size: Rows and columns of the image.
        reach: How far outside of the image a contour counts [pixels].
        depths: Nearest and farthest depth that is drawn [m].
    """

    cameras: Tensor
    K: Tensor
    size: tuple[int, int]
    reach: float
    depths: tuple[float, float]

    @torch.no_grad()
    def seen_by_any(self, spheres: tuple[Tensor, Tensor], poses: Tensor, scales: Tensor) -> Tensor:
        """Return which instances may show in the picture of at least one camera, (I,) bool.

        Args:
            spheres: Of the instances, see `bounding_spheres`.
            poses: Of the instances in the world, (B, I, 7).
            scales: Their scales, (B, I, 3).
        Returns:
            False only where the instance's sphere lies outside of the view of every camera, so that leaving it out
            changes neither a picture nor a gradient.
        """
        centre, radius = (part.to(poses) for part in spheres)
        there = pose_apply(poses, scales * centre)
        x, y, z = pose_apply(pose_inverse(self.cameras)[:, None], there).unbind(-1)
        radius = 1.001 * radius * scales.amax(-1)  # rounding shall not decide
        seen = (z + radius > self.depths[0]) & (z - radius < self.depths[1])
        (fx, _, cx), (_, fy, cy), _ = self.K.tolist()
        for along, focal, middle, end in ((x, fx, cx, self.size[1]), (y, fy, cy, self.size[0])):
            # Planes through the camera and the image's border: a pixel is at focal along / z + middle.
            for sign, edge in ((1.0, middle + self.reach), (-1.0, end - middle + self.reach)):
                seen &= (sign * focal * along + edge * z) > -radius * (focal**2 + edge**2) ** 0.5
        return seen.any(0)


class Part(NamedTuple):
    """Some instances of a scene.

    Attributes:
        topology: Their faces and edges, over their own vertices.
        faces: Which faces of the scene these are.
        vertices: Which vertices of the scene these are.
    """

    topology: Topology
    faces: Tensor
    vertices: Tensor

    def attribute(self, values: Tensor | Attribute) -> Tensor | Attribute:
        """What the part carries of an attribute of the scene."""
        if not isinstance(values, Attribute):
            return values[..., self.vertices.to(values.device), :]
        if values.index is None:
            return replace(values, values=values.values[..., self.vertices.to(values.values.device), :])
        return replace(values, index=values.index[self.faces.to(values.index.device)])

    def look(self, look: Look | None) -> Look | None:
        """How the part looks."""
        if look is None:
            return None
        colour, uv, normals = (
            None if values is None else self.attribute(values)
            for values in (look.colour, look.uv, look.normals)
        )
        of = look.texture_of
        return replace(
            look,
            colour=colour,
            uv=uv,
            normals=normals,
            texture_of=None if of is None else of[self.faces.to(of.device)],
        )


class Parts:
    """Takes instances out of a scene, in time that grows with what is kept.

    Args:
        topology: Of the scene, whose faces and vertices lie instance after instance.
        owner: Instance of each vertex, (V,).
        instances: Their number.
    """

    def __init__(self, topology: Topology, owner: Tensor, instances: int):
        self.topology = topology
        of_face = owner[topology.faces[:, 0].long()].long()
        of_edge = owner[topology.edges[:, 0].long()].long()
        order = torch.argsort(of_edge, stable=True)
        self.vertices, self.faces = _ranges(owner.long(), instances), _ranges(of_face, instances)
        self.edges = [order[run] for run in _ranges(of_edge[order], instances)]

    def take(self, seen: Tensor) -> Part:
        """Return the instances of a mask (I,)."""
        chosen = seen.nonzero().flatten().tolist()
        faces = torch.cat([self.faces[i] for i in chosen])
        edges = torch.cat([self.edges[i] for i in chosen])
        vertices = torch.cat([self.vertices[i] for i in chosen])
        corner = self.topology.edges[edges]
        first_vertex, first_face = self._moved(chosen, self.vertices), self._moved(chosen, self.faces)
        by_edge = torch.tensor([len(self.edges[i]) for i in chosen])
        moved = first_vertex.repeat_interleave(by_edge)[:, None]
        topology = Topology(
            self.topology.faces[faces]
            - first_vertex.repeat_interleave(torch.tensor([len(self.faces[i]) for i in chosen]))[:, None],
            self.topology.face_info[faces],
            torch.where(corner < 0, corner, corner - moved),
            self.topology.edge_info[edges],
            self.topology.edge_corners[edges] - 3 * first_face.repeat_interleave(by_edge)[:, None],
        )
        return Part(topology, faces, vertices)

    @staticmethod
    def _moved(chosen: list[int], runs: list[Tensor]) -> Tensor:
        """By how much the numbers of each chosen instance fall."""
        starts = torch.tensor([int(runs[i][0]) for i in chosen])
        sizes = torch.tensor([0, *(len(runs[i]) for i in chosen[:-1])])
        return (starts - torch.cumsum(sizes, 0)).to(torch.int32)


def _ranges(of: Tensor, count: int) -> list[Tensor]:
    """The places of 0 to count - 1 in a sorted tensor."""
    ends = torch.cumsum(torch.bincount(of, minlength=count), 0).tolist()
    return [torch.arange(start, end) for start, end in zip([0, *ends], ends, strict=False)]
