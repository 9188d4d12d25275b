"""The operations of the renderer, registered so that every test of gradients and kernels walks over them."""

from typing import Any

import torch
from torch import Tensor

from gradpath import kernels
from gradpath.render import softras
from gradpath.render.attributes import Attribute
from gradpath.render.edge_image import edge_kernels
from gradpath.render.pieces import interpolation_kernels
from gradpath.render.rasterize import rasterize
from gradpath.render.softras_image import SoftRas


def _samples(batch: int) -> dict[str, Any]:
    """Two tetrahedra, one before the other, at another place in each world."""
    generator = torch.Generator().manual_seed(11)
    corners = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    shapes = torch.cat(
        [0.5 * corners + torch.tensor([-0.3, 0.1, 3.0]), corners + torch.tensor([0.5, -0.2, 6.0])]
    )
    shift = 0.1 * torch.randn(batch, 8, 3, generator=generator, dtype=torch.float64)
    face = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], dtype=torch.int32)
    K = torch.tensor([[9.0, 0.0, 5.1], [0.0, 9.0, 4.2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return {
        "points_camera": shapes.to(torch.float64) + shift,
        "faces": torch.cat([face, face + 4]),
        "K": K.expand(batch, 3, 3),
    }


def _small(points_camera: Tensor, faces: Tensor, K: Tensor, **options: Any) -> dict[str, Tensor]:
    """The operation on a small image; K without its constant entries, whose change is refused."""
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).to(K)
    K = K * mask + (K * (1.0 - mask)).detach()
    return rasterize(points_camera, faces, K=K, height=8, width=10, far=20.0, validate=False, **options)


def _small_softras(points_camera: Tensor, faces: Tensor, K: Tensor) -> dict[str, Tensor]:
    return _small(points_camera, faces, K, silhouette=SoftRas(gamma=0.05), sigma=0.6)


def _attribute_samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(12)
    colours = torch.rand(batch, 8, 3, generator=generator, dtype=torch.float64)
    return {**_samples(batch), "colours": colours}


def _small_attributes(points_camera: Tensor, faces: Tensor, K: Tensor, colours: Tensor) -> dict[str, Tensor]:
    """Colours of vertices before a grey background, positions and normals."""
    attributes = {"colour": Attribute(colours, background=0.5)}
    options = {"attributes": attributes, "channels": ("colour", "position", "normal")}
    return _small(points_camera, faces, K, **options)


kernels.register(
    "rasterize",
    kernels=edge_kernels(),
    fn=_small,
    samples=_samples,
)
kernels.register(
    "rasterize_softras",
    kernels=[lambda scalar: softras.make(scalar).gather, lambda scalar: softras.make(scalar).scatter],
    fn=_small_softras,
    samples=_samples,
)
kernels.register(
    "rasterize_attributes",
    kernels=[*edge_kernels(), *interpolation_kernels()],
    fn=_small_attributes,
    samples=_attribute_samples,
)
