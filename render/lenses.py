"""Lenses: what bends the image of a pinhole camera, as maps of vertices to where a pinhole camera would see them so.

A lens moves vertices; between them edges stay straight in the image, and depth and attributes are interpolated as in a
pinhole image. For an orthographic camera this is exact. For lens distortion and fisheyes it is exact at vertices, and
the smaller the faces, the closer in between: a large face should be subdivided.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gradpath.errors import InputError

Number = float | Tensor


class Lens(Protocol):
    """What `rasterize` asks of a lens."""

    affine: bool  # whether attributes are linear in the image, as without perspective

    def flat(self, points: Tensor) -> Tensor:
        """Place in the image of points (..., 3) [m], in units of the focal length from the centre, (..., 2)."""
        ...

    def bend(self, points: Tensor, near: float, far: float) -> Tensor:
        """Where a pinhole camera sees points (..., 3) at the same place of the image; farther ones have larger z."""
        ...

    def bend_range(self, near: float, far: float) -> tuple[float, float]:
        """The range of that z for a range of depth [m]."""
        ...

    def unbend_depth(self, z: Tensor, far: float) -> Tensor:
        """Depth [m] from that z."""
        ...


class _Central:
    """A lens whose rays meet in one point; its z is the depth itself."""

    affine = False

    def bend_range(self, near: float, far: float) -> tuple[float, float]:
        """The same range."""
        return near, far

    def unbend_depth(self, z: Tensor, far: float) -> Tensor:
        """The same depth."""
        return z


@dataclass(frozen=True, eq=False)
class Orthographic:
    """Parallel rays along the camera's axis: K is in pixels per metre. Depth is exact, and so is everything else.

    Across contours, depth blends in the logarithm of 1 / (1 - z / (2 far)) instead of that of z, because nothing is
    scale-free here; the ends of the blend are exact.
    """

    affine = True

    def flat(self, points: Tensor) -> Tensor:
        """Place in the image: x and y themselves [m]."""
        return points[..., :2]

    def bend(self, points: Tensor, near: float, far: float) -> Tensor:
        """A projective map, which keeps planes and the order of depth."""
        # Beyond twice `far` the map would turn over; what lies there is not drawn.
        scale = 1.0 / (1.0 - points[..., 2:].clamp(max=1.8 * far) / (2.0 * far))
        return torch.cat([points[..., :2] * scale, scale], dim=-1)

    def bend_range(self, near: float, far: float) -> tuple[float, float]:
        """Range of the projected z."""
        return 1.0 / (1.0 - near / (2.0 * far)), 2.0

    def unbend_depth(self, z: Tensor, far: float) -> Tensor:
        """Inverse of the map in depth."""
        return (1.0 - 1.0 / z) * (2.0 * far)


@dataclass(frozen=True, eq=False)
class Pinhole(_Central):
    """No lens: straight lines stay straight, and the place in the image is x / z and y / z."""

    def flat(self, points: Tensor) -> Tensor:
        """Place in the image; points behind the camera have none, and are taken as 1 mm before it."""
        return points[..., :2] / points[..., 2:].clamp(min=1e-3)

    def bend(self, points: Tensor, near: float, far: float) -> Tensor:
        """The points themselves."""
        return points


@dataclass(frozen=True, eq=False)
class Distortion(_Central):
    """Radial and tangential lens distortion (Brown 1966, in OpenCV's order); numbers or scalar tensors, differentiable.

    Beyond the radius where the radial polynomial would fold back, it goes on straight, so that nothing from outside of
    the view appears in it. Vertices behind the camera stay there.
    """

    k1: Number = 0.0
    k2: Number = 0.0
    p1: Number = 0.0
    p2: Number = 0.0
    k3: Number = 0.0

    def fold(self) -> float:
        """Radius [focal lengths] up to which the radial map grows; infinite where it always does."""
        k1, k2, k3 = (float(torch.as_tensor(k).detach()) for k in (self.k1, self.k2, self.k3))
        roots = np.roots([7.0 * k3, 5.0 * k2, 3.0 * k1, 1.0])  # of the derivative, in the squared radius
        real = roots[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)].real
        return math.sqrt(float(real.min())) if len(real) else math.inf

    def flat(self, points: Tensor) -> Tensor:
        """Distorted place in the image of points before the camera."""
        z = points[..., 2:]
        x = points[..., :2] / torch.where(z > 0, z, 1.0)
        fold = 0.95 * self.fold()
        radius = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        beyond = radius > fold
        inner = torch.where(beyond, x * (fold / radius.clamp(min=1e-12)), x) if math.isfinite(fold) else x
        square = (inner * inner).sum(-1, keepdim=True)
        radial = 1.0 + square * (self.k1 + square * (self.k2 + square * self.k3))
        a, b = inner[..., :1], inner[..., 1:]
        tangential = torch.cat(
            [
                2.0 * self.p1 * a * b + self.p2 * (square + 2.0 * a * a),
                self.p1 * (square + 2.0 * b * b) + 2.0 * self.p2 * a * b,
            ],
            dim=-1,
        )
        return inner * radial + tangential + (x - inner)

    def bend(self, points: Tensor, near: float, far: float) -> Tensor:
        """Points at the distorted place and their own depth; those behind the camera unchanged."""
        z = points[..., 2:]
        return torch.where(z > 0, torch.cat([self.flat(points) * z, z], dim=-1), points)


@dataclass(frozen=True, eq=False)
class Fisheye(_Central):
    """A fisheye by angle (Kannala and Brandt 2006): radius = theta (1 + k1 theta^2 + ... + k4 theta^8) focal lengths.

    Without coefficients it is equidistant. Depth is the distance from the camera's centre, `near` and `far` too, so
    that views of more than a half circle have one. Faces that reach beyond `angle` [rad] from the axis are cut off
    there, crudely, so choose it beyond what the image shows.
    """

    k1: Number = 0.0
    k2: Number = 0.0
    k3: Number = 0.0
    k4: Number = 0.0
    angle: float = 0.55 * math.pi

    def __post_init__(self) -> None:
        if not 0.0 < self.angle < math.pi:
            raise InputError(
                f"a fisheye sees up to an angle between 0 and pi from its axis, got {self.angle}"
            )

    def flat(self, points: Tensor) -> Tensor:
        """Place in the image, in whatever direction points lie but straight behind."""
        x, z = points[..., :2], points[..., 2:]
        square = (x * x).sum(-1, keepdim=True)
        central = square <= 1e-18 * z * z  # also at the centre itself, where pieces lie that are not there
        radius = torch.where(central, torch.ones_like(square), square).sqrt()
        theta = torch.atan2(radius, z)
        t = theta * theta
        grown = theta * (1.0 + t * (self.k1 + t * (self.k2 + t * (self.k3 + t * self.k4))))
        return torch.where(central, x / torch.where(z > 0, z, 1.0), x * grown / radius)

    def bend(self, points: Tensor, near: float, far: float) -> Tensor:
        """Points at their place in the image and their distance; those beyond the angle nearer than `near`."""
        distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        sideways = torch.linalg.vector_norm(points[..., :2].detach(), dim=-1, keepdim=True)
        seen = torch.atan2(sideways, points[..., 2:].detach()) <= self.angle
        distance = torch.where(seen, distance, 1e-4 * near)
        return torch.cat([self.flat(points) * distance, distance], dim=-1)
