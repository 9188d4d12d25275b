"""The pose of an object by render-and-compare: the pose whose picture is the image, differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradpath import implicit
from gradpath.errors import InputError, ShapeError
from gradpath.geometry import check_poses, pose_compose
from gradpath.perception.pose_search import refine, small_motion
from gradpath.second_derivative import TwiceDifferentiable

STEP = 1e-4  # [m] and [rad], of differences of images
POLISH = 10  # Newton steps after the others, where a gradient is wanted
CLOSE = 1e-7  # [m] and [rad]: a step this short ends them

Render = Callable[..., Tensor]
"""`render(pose, *parameters)`: poses (B, 7) to images (B, ...), differentiable once, in float64."""


def render_and_compare(
    render: Render,
    image: Tensor,
    init: Tensor,
    *parameters: Tensor,
    weights: Tensor | None = None,
    iterations: int = 30,
) -> Tensor:
    """Find the pose whose picture is closest to an image, and differentiate it.

    Minimizes half the weighted sum of squared differences of pixels, by damped Gauss-Newton steps over small motions of
    the pose; the gradient is that of the minimum (`gradpath.implicit.argmin`). The renderer's second derivatives are
    found by differences of its gradient. A renderer with soft edges sees about as far as they are wide: go from wide
    to narrow edges by calling this again, from what it found.

    Args:
        render: `render(pose, *parameters)`: poses (B, 7) to images of the shape of `image`, sample by sample; any
            function or stage, such as a soft rasterizer around a known mesh. It is called with several times B poses,
            and with as many rows of each parameter.
        image: What was seen, (B, ...), differentiable; float64, as all that goes in.
        init: Where to start, (B, 7).
        parameters: What the picture depends on besides, with a row per sample, (B, ...), differentiable.
        weights: How much each pixel counts, broadcast over `image`, zero or more, such as a mask; one by default.
        iterations: The most steps.
    Returns:
        The poses, (B, 7). Where a gradient is wanted, Newton steps follow. Samples that do not converge then, because
        the picture has a kink where it fits best, keep what they have, have a gradient of zero, and are named in a
        warning; `gp.implicit.record()` collects reports.
    Raises:
        ShapeError: shapes that do not fit.
        InputError: not float64, an image or a weight that is not finite, negative weights, a start that is no pose.
    Gradients: image and parameters, those of the minimum, residuals and their curvature included; `init`, weights and
        what `render` captures none.
    References: Nocedal, Wright 2006, section 10.3; Blondel et al. 2022, Efficient and Modular Implicit Differentiation.
    """
    weight = torch.ones_like(image) if weights is None else weights.detach().expand(image.shape)
    _check(image, init, parameters, weight)
    root = weight.sqrt()
    fixed = [parameter.detach() for parameter in parameters]

    def draw(pose: Tensor, *given: Tensor) -> Tensor:
        drawn = render(pose, *given)
        if drawn.shape != (len(pose), *image.shape[1:]):
            raise ShapeError(
                f"render_and_compare: render gave {tuple(drawn.shape)} for {len(pose)} poses; the image has the shape "
                f"{tuple(image.shape)}, so draw {(len(pose), *image.shape[1:])}"
            )
        return drawn

    def residuals(pose: Tensor) -> Tensor:
        return (root * (draw(pose, *fixed) - image)).flatten(1)

    def jacobian(pose: Tensor) -> Tensor:
        unit = STEP * torch.eye(6, dtype=pose.dtype, device=pose.device)
        moved = pose_compose(pose[:, None], small_motion(torch.cat([unit, -unit]))).flatten(0, 1)
        rows = [parameter.repeat_interleave(12, 0) for parameter in fixed]
        ahead, behind = draw(moved, *rows).unflatten(0, (-1, 2, 6)).unbind(1)
        return (root[:, None] * (ahead - behind)).flatten(2).mT / (2.0 * STEP)

    with torch.no_grad():
        found = refine(init.detach(), residuals, jacobian, iterations)
    if not torch.is_grad_enabled() or not any(value.requires_grad for value in (image, *parameters)):
        return found
    # Around the pose that was found, so that the renderer is differentiated by the small motion alone.
    smooth = TwiceDifferentiable(
        lambda u, *given: draw(pose_compose(found, small_motion(u)), *given), [True] * (1 + len(parameters))
    )

    def difference(u: Tensor, image: Tensor, *given: Tensor) -> Tensor:
        return 0.5 * (weight * (smooth(u, *given) - image).square()).flatten(1).sum(-1)

    still = torch.zeros_like(found[:, :6])
    motion = implicit.argmin(difference, still, image, *parameters, iterations=POLISH, tolerance=CLOSE)
    return pose_compose(found, small_motion(motion))


def _check(image: Tensor, init: Tensor, parameters: tuple[Tensor, ...], weight: Tensor) -> None:
    check_poses(init, "render_and_compare")
    given = (image, init, *parameters, weight)
    if image.ndim < 2 or any(len(value) != len(image) for value in given):
        raise ShapeError(
            "render_and_compare: image, init, weights and parameters have a row per sample, got "
            f"{[tuple(value.shape) for value in given]}"
        )
    if any(value.dtype != torch.float64 for value in given):
        raise InputError(
            f"render_and_compare: needs float64, got {sorted({str(value.dtype) for value in given})}: the gradient "
            "of the pose is found by differences of gradients, which rounding would spoil; convert with .double()"
        )
    for name, value in (("image", image), ("weights", weight)):
        bad = ~value.isfinite().flatten(1).all(-1)
        if bool(bad.any()):
            raise InputError(
                f"render_and_compare: {name} of sample {int(bad.nonzero()[0])} are not finite; set such pixels to "
                "zero and their weight too"
            )
    if bool((weight < 0).any()):
        raise InputError("render_and_compare: weights are zero or more; a mask is 0 and 1")
