"""Losses between images, and regularizers of meshes, as they are common with differentiable rendering."""

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.render.attributes import face_normals
from gradpath.render.topology import Topology


def silhouette_iou(alpha: Tensor, target: Tensor) -> Tensor:
    """One minus the intersection over union of two silhouettes, a mean over images.

    Args:
        alpha: Coverage in [0, 1], shape (..., H, W); differentiable.
        target: Coverage of the same shape.
    Returns:
        A scalar in [0, 1]; 0 where both are equal masks, also where both are empty.
    References: Liu et al. 2019, eq. 8.
    """
    _same(alpha, target, "silhouette_iou")
    both = (alpha * target).sum((-2, -1))
    either = (alpha + target - alpha * target).sum((-2, -1))
    return (1.0 - torch.where(either > 0, both, 1.0) / torch.where(either > 0, either, 1.0)).mean()


def scale_invariant_depth(
    depth: Tensor, target: Tensor, mask: Tensor | None = None, share: float = 0.5
) -> Tensor:
    """Squared difference of logarithms of depth, less a share of what one common scale explains.

    Args:
        depth: Positive depth, shape (..., H, W); differentiable.
        target: Positive depth of the same shape.
        mask: Where to compare, of that shape; everywhere by default.
        share: 1 ignores the scale of each image altogether, 0 counts it fully.
    Returns:
        mean(d^2) - share mean(d)^2 with d = log depth - log target, a mean over the images that have pixels to compare.
    Raises:
        InputError: depth or target is not positive where it is compared, or there is nothing to compare.
    References: Eigen et al. 2014, eq. 4.
    """
    _same(depth, target, "scale_invariant_depth")
    mask = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask.bool()
    _same(depth, mask, "scale_invariant_depth: mask")
    if not bool(mask.any()) or not bool(((depth > 0) & (target > 0) | ~mask).all()):
        raise InputError("scale_invariant_depth needs pixels to compare, and positive depth in all of them")
    d = torch.where(mask, depth, 1.0).log() - torch.where(mask, target, 1.0).log()
    count = mask.sum((-2, -1))
    used = count.clamp(min=1)
    loss = d.square().sum((-2, -1)) / used - share * (d.sum((-2, -1)) / used).square()
    return loss[count > 0].mean()


def multiscale_l1(image: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """Mean absolute difference of two images and of their halves, quarters, ..., each scale counting the same.

    Coarse scales have a gradient where fine ones do not overlap yet.

    Args:
        image: Shape (..., H, W), channels before rows and columns; differentiable.
        target: The same shape.
        levels: Number of scales, the full one included; scales of less than a pixel are left out.
    Raises:
        InputError: no level.
    """
    _same(image, target, "multiscale_l1")
    if levels < 1:
        raise InputError(f"multiscale_l1 needs at least one level, got {levels}")
    difference = (image - target).reshape(-1, 1, *image.shape[-2:])
    losses = [difference.abs().mean()]
    while len(losses) < levels and min(difference.shape[-2:]) >= 2:
        difference = torch.nn.functional.avg_pool2d(difference, 2)
        losses.append(difference.abs().mean())
    return torch.stack(losses).mean()


def ssim(image: Tensor, target: Tensor, window: int = 11, width: float = 1.5, peak: float = 1.0) -> Tensor:
    """Structural similarity of images, 1 for equal ones; `1 - ssim(...)` is the loss.

    Args:
        image: Shape (..., H, W), channels before rows and columns; differentiable.
        target: The same shape.
        window: Side of the Gaussian window [pixels], odd.
        width: Standard deviation of the window [pixels].
        peak: Range of the values: 1 for images in [0, 1].
    Returns:
        A scalar, the mean over all windows that lie within the image.
    Raises:
        InputError: a window that is even, or larger than the image.
    References: Wang et al. 2004.
    """
    _same(image, target, "ssim")
    if window % 2 == 0 or window > min(image.shape[-2:]):
        raise InputError(
            f"ssim needs an odd window that fits into {tuple(image.shape[-2:])} pixels, got {window}"
        )
    offsets = torch.arange(window, dtype=image.dtype, device=image.device) - window // 2
    line = torch.softmax(-0.5 * (offsets / width) ** 2, dim=0)

    def mean(x: Tensor) -> Tensor:
        x = torch.nn.functional.conv2d(x.reshape(-1, 1, *x.shape[-2:]), line.reshape(1, 1, 1, -1))
        return torch.nn.functional.conv2d(x, line.reshape(1, 1, -1, 1))

    a, b = mean(image), mean(target)
    vary_a, vary_b = mean(image * image) - a * a, mean(target * target) - b * b
    covary = mean(image * target) - a * b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = (2 * a * b + c1) * (2 * covary + c2) / ((a * a + b * b + c1) * (vary_a + vary_b + c2))
    return similarity.mean()


def laplacian(points: Tensor, faces: Tensor | Topology) -> Tensor:
    """Mean squared distance of vertices from the mean of their neighbours [m^2]: smoothness of a mesh.

    Args:
        points: Vertices, shape (..., V, 3); differentiable.
        faces: Vertex indices, shape (F, 3), or their `Topology`.
    References: Sorkine et al. 2004, with uniform weights; as in SoftRas.
    """
    topology = _topology(points, faces)
    a, b = topology.edges[:, :2].long().unbind(1)
    sums = torch.zeros_like(points).index_add(-2, a, points[..., b, :]).index_add(-2, b, points[..., a, :])
    count = torch.zeros(points.shape[-2], dtype=points.dtype, device=points.device)
    count = count.index_add(0, a, torch.ones_like(a, dtype=points.dtype))
    count = count.index_add(0, b, torch.ones_like(b, dtype=points.dtype)).unsqueeze(-1)
    away = torch.where(count > 0, points - sums / count.clamp(min=1.0), 0.0)
    return away.square().sum(-1).mean()


def flattening(points: Tensor, faces: Tensor | Topology) -> Tensor:
    """Mean of (1 - cos)^2 of the angles between the normals of neighbouring faces: flat is 0, a fold by 180 degrees 4.

    Args:
        points: Vertices, shape (..., V, 3); differentiable.
        faces: Vertex indices, shape (F, 3), or their `Topology`.
    Raises:
        InputError: no two faces share an edge.
    References: Liu et al. 2019, supplement.
    """
    topology = _topology(points, faces)
    inner = topology.edges[topology.edges[:, 3] >= 0].long()
    if len(inner) == 0:
        raise InputError("flattening compares faces that share an edge, and here no two do; check the mesh")
    first = face_normals(points, inner[:, [0, 1, 2]])
    second = face_normals(points, inner[:, [1, 0, 3]])
    return (1.0 - (first * second).sum(-1)).square().mean()


def edge_length(points: Tensor, faces: Tensor | Topology, target: float = 0.0) -> Tensor:
    """Mean squared difference of the lengths of edges from a target [m^2]; exact and finite also at length zero.

    Args:
        points: Vertices, shape (..., V, 3); differentiable.
        faces: Vertex indices, shape (F, 3), or their `Topology`.
        target: The length wanted [m].
    """
    a, b = _topology(points, faces).edges[:, :2].long().unbind(1)
    square = (points[..., a, :] - points[..., b, :]).square().sum(-1)
    if target == 0.0:
        return square.mean()
    length = torch.where(square > 0, square, 1.0).sqrt()
    return (torch.where(square > 0, length, 0.0) - target).square().mean()


def _same(first: Tensor, second: Tensor, name: str) -> None:
    if first.shape != second.shape:
        raise ShapeError(
            f"{name}: expected two of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "a broadcast would compare each pixel with many"
        )


def _topology(points: Tensor, faces: Tensor | Topology) -> Topology:
    topology = faces if isinstance(faces, Topology) else Topology.of(faces)
    if points.shape[-2] < topology.vertex_count:
        raise InputError(
            f"faces ask for vertex {topology.vertex_count - 1}, but there are {points.shape[-2]} vertices; "
            "the faces belong to another mesh"
        )
    return topology.to(points.device)
