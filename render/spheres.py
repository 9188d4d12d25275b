"""Points and spheres from arrays, such as the particles of a simulation, as meshes for the renderer."""

from functools import lru_cache

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.render.topology import Topology


def spheres(centres: Tensor, radius: float | Tensor, level: int = 1) -> tuple[Tensor, Topology]:
    """Spheres around points, beside other meshes or alone: `rasterize(*spheres(...), K=K, ...)`.

    Args:
        centres: Points in the frame of the vertices wanted [m], shape (B, N, 3); differentiable.
        radius: Radius [m], a number, or shape (N,) or (B, N); differentiable.
        level: Fineness: 20 * 4**level faces each. An icosphere of level 1 lies up to 6 % inside of its sphere; points
            of few pixels need no more.
    Returns:
        Vertices, shape (B, N V, 3), and their topology; sphere n has faces n F to (n + 1) F - 1.
    Raises:
        ShapeError: points or radii of another shape.
        InputError: no points, or a radius that is not positive; the latter is not looked for on a GPU.
    """
    if centres.ndim != 3 or centres.shape[2] != 3:
        raise ShapeError(f'spheres: expected centres "B N 3", got {tuple(centres.shape)}; add the batch axis')
    worlds, count = centres.shape[:2]
    if count == 0:
        raise InputError(
            "spheres: got no points, so there is nothing to draw; draw the rest of the scene alone"
        )
    radii = radius.to(centres) if isinstance(radius, Tensor) else centres.new_tensor(radius)
    if radii.shape not in ((), (count,), (worlds, count)):
        raise ShapeError(
            f"spheres: expected a radius, ({count},) or ({worlds}, {count}) of them, got {tuple(radii.shape)}"
        )
    if not radii.is_cuda and not bool((radii > 0).all()):
        raise InputError(f"spheres: a radius must be positive, got {float(radii.min())}")
    template = TriangleMesh.icosphere(level)
    offsets = template.vertices.to(centres)
    points = centres[:, :, None] + radii.expand(worlds, count)[..., None, None] * offsets
    return points.flatten(1, 2), _topology(level, count).to(centres.device)


@lru_cache(maxsize=16)
def _topology(level: int, count: int) -> Topology:
    template = TriangleMesh.icosphere(level)
    starts = torch.arange(count, dtype=torch.int32) * len(template.vertices)
    return Topology.of((template.faces + starts[:, None, None]).reshape(-1, 3))
