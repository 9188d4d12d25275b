"""The meshes and height fields of collision shapes, side by side in arrays, as kernels take them."""

import functools
from dataclasses import dataclass

import torch
import trimesh
import warp as wp
from torch import Tensor

from gradpath import kernels
from gradpath.bodies import MeshFile
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.sim.shapes import ShapeKind, Shapes

MESH_KINDS = (ShapeKind.MESH, ShapeKind.CONVEX)


@dataclass(frozen=True)
class MeshPlace:
    """Where the mesh of a shape lies among all: its vertices and faces, the ends excluded."""

    first_vertex: int
    last_vertex: int
    first_face: int
    last_face: int


class Assets:
    """Meshes and height fields of some shapes.

    Attributes:
        vertices: Of all meshes, before their scale, shape (V, 3), float64.
        faces: Vertices of all faces, shape (F, 3), int32.
        heights: Of all height fields, shape (H,), float64; may require a gradient.
        shapes: Kind, body, and first height, rows and columns of each shape, shape (G, 5), int32.
        places: Where the mesh of each shape lies; None where it has none.
        reach: Radius of a ball around the origin of each shape that holds it, shape (G,) [m]; infinite for grounds.
    Raises:
        InputError: a mesh or grid is missing or too small, or the scale of a mesh differs between worlds.
    """

    def __init__(self, shapes: Shapes):
        self._source = shapes
        vertices, faces = [torch.zeros(0, 3, dtype=torch.float64)], [torch.zeros(0, 3, dtype=torch.int32)]
        heights = [torch.zeros(0, dtype=torch.float64)]
        known: dict[tuple[int, ShapeKind], MeshPlace] = {}
        self.places: list[MeshPlace | None] = []
        rows = []
        for index, kind in enumerate(shapes.kind):
            grid, place = (0, 0, 0), None
            if kind in MESH_KINDS:
                key = (id(shapes.mesh[index]), kind)
                if key not in known:
                    mesh = _read_mesh(shapes, index)
                    start, face = sum(map(len, vertices)), sum(map(len, faces))
                    known[key] = MeshPlace(start, start + len(mesh.vertices), face, face + len(mesh.faces))
                    vertices.append(mesh.vertices.double())
                    faces.append(mesh.faces + start)
                place = known[key]
            elif kind == ShapeKind.HEIGHT_FIELD:
                field = _read_heights(shapes, index)
                grid = (sum(map(len, heights)), *field.shape)
                heights.append(field.reshape(-1).double())
            rows.append((int(kind), shapes.body[index], *grid))
            self.places.append(place)
        self.vertices, self.faces, self.heights = torch.cat(vertices), torch.cat(faces), torch.cat(heights)
        self.shapes = torch.tensor(rows, dtype=torch.int32).reshape(-1, 5)

    def scaled_mesh(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the vertices (V, 3) and faces (F, 3) of one shape's mesh, in the frame of the shape, outside out."""
        place = self.places[index]
        assert place is not None
        size = self._source.size.detach()
        scale = size[index] if size.ndim == 2 else size[0, index]
        if size.ndim == 3 and not bool((size[:, index] == scale).all()):
            raise InputError(
                f"{describe(self._source, index)}: the scale of a mesh that is touched is the same in all worlds; "
                "give worlds shapes of their own instead"
            )
        vertices = self.vertices[place.first_vertex : place.last_vertex] * scale.double().cpu()
        faces = self.faces[place.first_face : place.last_face] - place.first_vertex
        return vertices, faces.flip(-1) if float(scale.prod()) < 0 else faces

    def on(self, device: torch.device) -> "DeviceAssets":
        """Return what the mesh queries need on a device."""
        return _on_device(self, device)


class DeviceAssets:
    """Warp's bounding volume trees of the scaled meshes on a device, and integers by shape."""

    def __init__(self, assets: Assets, device: torch.device):
        self.trees: list[tuple[wp.Mesh, Tensor, Tensor]] = []
        ids: list[int] = []
        first: list[int] = []
        far: list[float] = []
        for index, place in enumerate(assets.places):
            if place is None:
                ids.append(0)
                first.append(0)
                far.append(0.0)
                continue
            vertices, faces = assets.scaled_mesh(index)
            points = vertices.to(device, torch.float32).contiguous()
            indices = faces.to(device).reshape(-1).contiguous()
            tree = wp.Mesh(points=kernels.array(points, wp.vec3), indices=kernels.array(indices, wp.int32))
            self.trees.append((tree, points, indices))  # a tree lives in the memory of its arrays
            ids.append(tree.id)
            first.append(place.first_face)
            far.append(float(vertices.norm(dim=-1).max()))
        warp_device = wp.device_from_torch(device)
        self.ids: wp.array = wp.array(ids, dtype=wp.uint64, device=warp_device)
        self.first_face = torch.tensor(first, dtype=torch.int32, device=device)
        self.farthest = torch.tensor(far, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=64)
def _on_device(assets: Assets, device: torch.device) -> DeviceAssets:
    wp.init()
    return DeviceAssets(assets, device)


def describe(shapes: Shapes, index: int) -> str:
    """A shape in a few words, for an error."""
    name = f" {shapes.names[index]!r}" if shapes.names[index] else ""
    return f"contact: shape {index}{name} ({shapes.kind[index].name})"


def _read_mesh(shapes: Shapes, index: int) -> TriangleMesh:
    source = shapes.mesh[index]
    if source is None:
        raise InputError(f"{describe(shapes, index)} has no mesh; give it one")
    mesh = source.read() if isinstance(source, MeshFile) else source
    if shapes.kind[index] != ShapeKind.CONVEX:
        return mesh
    hull = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False).convex_hull
    return TriangleMesh(torch.tensor(hull.vertices), torch.tensor(hull.faces))


def _read_heights(shapes: Shapes, index: int) -> Tensor:
    heights = shapes.heights[index]
    if heights is None or heights.ndim != 2 or min(heights.shape) < 2:
        got = "none" if heights is None else str(tuple(heights.shape))
        raise InputError(f"{describe(shapes, index)} needs a grid of 2 x 2 heights or more, got {got}")
    return heights
