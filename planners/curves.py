"""Curves in time: minimum-snap polynomials, B-splines and Bezier curves, all as piecewise polynomials."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError

NAMES = ("position", "velocity", "acceleration", "jerk", "snap")


@dataclass(frozen=True)
class Curve:
    """A piecewise polynomial in time.

    Attributes:
        coefficients: Of the powers of the share of a piece that has passed, 0 to 1, lowest first,
            (B, pieces, degree + 1, D), differentiable.
        durations: Of the pieces [s], (B, pieces), differentiable.
    """

    coefficients: Tensor
    durations: Tensor

    @property
    def duration(self) -> Tensor:
        """Of the whole curve [s], (B,)."""
        return self.durations.sum(-1)

    def at(self, times: Tensor, derivative: int = 0) -> Tensor:
        """Evaluate the curve or one of its derivatives by time.

        Args:
            times: [s] since the start, (P, B): before and behind the curve, its ends are taken.
            derivative: How often to differentiate.
        Returns:
            (P, B, D): time first, as a rollout has it. Differentiable in the curve and in the times.
        """
        if times.ndim != 2 or times.shape[1] != len(self.durations):
            raise ShapeError(
                f"Curve.at: expected times (P, {len(self.durations)}), one column per curve, got {tuple(times.shape)}"
            )
        ends = self.durations.cumsum(-1)
        when = torch.minimum(times.clamp_min(0.0), ends[:, -1])
        piece = torch.searchsorted(ends.detach(), when.detach().T.contiguous(), right=True)
        piece = piece.clamp_max(self.durations.shape[1] - 1)  # (B, P)
        length = self.durations.gather(1, piece)
        share = (when.T - (ends - self.durations).gather(1, piece)) / length
        degree, size = self.coefficients.shape[2] - 1, self.coefficients.shape[3]
        picked = self.coefficients.gather(1, piece[..., None, None].expand(-1, -1, degree + 1, size))
        result = torch.zeros_like(picked[:, :, 0])
        for power in range(degree, derivative - 1, -1):  # Horner
            factor = math.perm(power, derivative)
            result = result * share[..., None] + factor * picked[:, :, power]
        return (result / length[..., None] ** derivative).transpose(0, 1)

    def sample(self, count: int, derivatives: int = 3) -> dict[str, Tensor]:
        """Return the curve at `count` times from start to end, evenly spaced.

        Returns:
            `time` (P, B), and position, velocity, acceleration, jerk, snap up to the derivative that is asked for,
            (P, B, D): what costs take.
        """
        if count < 2 or not 0 <= derivatives < len(NAMES):
            raise InputError(
                f"Curve.sample: two times or more and 0 to {len(NAMES) - 1} derivatives, got {count} and {derivatives}"
            )
        share = torch.linspace(0.0, 1.0, count, dtype=self.durations.dtype, device=self.durations.device)
        times = share[:, None] * self.duration
        return {"time": times, **{name: self.at(times, k) for k, name in enumerate(NAMES[: derivatives + 1])}}

    def energy(self, derivative: int = 4) -> Tensor:
        """Integral over time of the squared norm of a derivative, exact, (B,)."""
        degree = self.coefficients.shape[2] - 1
        gram = self.coefficients.new_zeros(degree + 1, degree + 1)
        for i in range(derivative, degree + 1):
            for j in range(derivative, degree + 1):
                factor = math.perm(i, derivative) * math.perm(j, derivative)
                gram[i, j] = factor / (i + j - 2 * derivative + 1)
        each = torch.einsum("bsid,ij,bsjd->bs", self.coefficients, gram, self.coefficients)
        return (each / self.durations ** (2 * derivative - 1)).sum(-1)


def minimum_snap(
    waypoints: Tensor,
    durations: Tensor,
    *,
    order: int = 4,
    start: Tensor | None = None,
    end: Tensor | None = None,
) -> Curve:
    """Find the curve through waypoints with the least squared snap.

    The optimum is the spline of degree 2 order - 1 whose derivatives are continuous up to 2 order - 2; it is found
    from these conditions, piece by piece in normalized time.

    Args:
        waypoints: Positions, (B, S + 1, D), differentiable.
        durations: Of the pieces between them [s], (B, S), differentiable.
        order: The derivative whose square is least: 4 snap, 3 jerk, 2 acceleration.
        start: First derivatives at the start, velocity first, (B, order - 1, D), differentiable; at rest by default.
        end: The same at the end.
    Returns:
        A `Curve` with S pieces.
    Raises:
        ShapeError: shapes that do not fit.
        InputError: a duration that is not positive, a value that is not finite, or an order outside 1 to 5.
    Gradients: exact.
    References: Mellinger, Kumar 2011, Minimum Snap Trajectory Generation; Burke, Chapman, Shames 2020, Generating
        Minimum-Snap Quadrotor Trajectories Really Fast.
    """
    if (
        waypoints.ndim != 3
        or durations.shape != (len(waypoints), waypoints.shape[1] - 1)
        or not durations.shape[1]
    ):
        raise ShapeError(
            f"minimum_snap: expected waypoints (B, S + 1, D) and durations (B, S), S at least 1, got "
            f"{tuple(waypoints.shape)} and {tuple(durations.shape)}"
        )
    if not 1 <= order <= 5:
        raise InputError(f"minimum_snap: order is from 1 to 5, got {order}")
    _check_durations("minimum_snap", durations)
    batch, pieces = durations.shape
    rest = waypoints.new_zeros(batch, order - 1, waypoints.shape[2])
    start, end = (rest if given is None else given for given in (start, end))
    if start.shape != rest.shape or end.shape != rest.shape:
        raise ShapeError(
            f"minimum_snap: start and end hold {order - 1} derivatives, {tuple(rest.shape)}, got "
            f"{tuple(start.shape)} and {tuple(end.shape)}"
        )
    if not all(bool(value.isfinite().all()) for value in (waypoints, start, end)):
        raise InputError(
            "minimum_snap: a waypoint or an end derivative is NaN or infinite; drop or repair it"
        )
    size = 2 * order
    early, late = (_powers(size, share, waypoints) for share in (0.0, 1.0))  # (derivative, power)
    rows, right = [], []

    def demand(by_piece: list[tuple[int, Tensor]], value: Tensor) -> None:
        row = waypoints.new_zeros(batch, pieces * size)
        for piece, block in by_piece:
            row = torch.cat(
                [row[:, : piece * size], block.expand(batch, size), row[:, (piece + 1) * size :]], -1
            )
        rows.append(row)
        right.append(value)

    for piece in range(pieces):
        demand([(piece, early[0])], waypoints[:, piece])
        demand([(piece, late[0])], waypoints[:, piece + 1])
    for k in range(1, order):
        demand([(0, early[k])], start[:, k - 1] * durations[:, :1] ** k)
        demand([(pieces - 1, late[k])], end[:, k - 1] * durations[:, -1:] ** k)
    for piece in range(pieces - 1):
        for k in range(1, size - 1):
            # Derivatives by time: those by the share of a piece over its duration to the power k.
            ratio = (durations[:, piece] / durations[:, piece + 1])[:, None] ** k
            demand([(piece, late[k]), (piece + 1, -ratio * early[k])], torch.zeros_like(waypoints[:, 0]))
    solved = torch.linalg.solve(torch.stack(rows, 1), torch.stack(right, 1))
    return Curve(solved.reshape(batch, pieces, size, -1), durations)


def bezier(control_points: Tensor, durations: Tensor) -> Curve:
    """Make a curve of Bezier pieces.

    Args:
        control_points: (B, pieces, N, D), or (B, N, D) for one piece; degree N - 1. Pieces that join smoothly are the
            caller's care. Differentiable.
        durations: [s], (B, pieces), or (B,) for one; differentiable.
    Raises:
        ShapeError: shapes that do not fit, or fewer than two points.
        InputError: a duration that is not positive, or a point that is NaN or infinite.
    """
    points = control_points[:, None] if control_points.ndim == 3 else control_points
    times = durations[:, None] if durations.ndim == 1 else durations
    if points.ndim != 4 or points.shape[2] < 2 or times.shape != points.shape[:2]:
        raise ShapeError(
            f"bezier: expected control_points (B, pieces, N, D), N at least 2, and durations (B, pieces), got "
            f"{tuple(control_points.shape)} and {tuple(durations.shape)}"
        )
    _check_durations("bezier", times)
    _check_points("bezier", points)
    return Curve(_bernstein(points.shape[2]).to(points) @ points, times)


def bspline(control_points: Tensor, duration: Tensor, *, degree: int = 3) -> Curve:
    """Make a uniform B-spline that starts and ends in its first and last control point.

    Args:
        control_points: (B, N, D), N above the degree; differentiable. The curve is in their convex hull.
        duration: Of the whole curve [s], (B,), differentiable.
        degree: Of the polynomials; derivatives are continuous up to degree - 1.
    Raises:
        ShapeError: shapes that do not fit, or too few points.
        InputError: a duration that is not positive, a point that is NaN or infinite, or a degree outside 1 to 7.
    References: de Boor 1978, A Practical Guide to Splines.
    """
    if not 1 <= degree <= 7:
        raise InputError(f"bspline: degree is from 1 to 7, got {degree}")
    if (
        control_points.ndim != 3
        or control_points.shape[1] <= degree
        or duration.shape != control_points.shape[:1]
    ):
        raise ShapeError(
            f"bspline: expected control_points (B, N, D), N above the degree {degree}, and duration (B,), got "
            f"{tuple(control_points.shape)} and {tuple(duration.shape)}"
        )
    _check_durations("bspline", duration[:, None])
    _check_points("bspline", control_points)
    basis = _spline_basis(control_points.shape[1], degree).to(control_points)  # (pieces, degree + 1, N)
    pieces = len(basis)
    return Curve(basis @ control_points[:, None], (duration / pieces)[:, None].expand(-1, pieces))


def _check_points(name: str, points: Tensor) -> None:
    bad = ~points.isfinite().flatten(1).all(-1)
    if bad.any():
        raise InputError(
            f"{name}: a control point of curve {int(bad.nonzero()[0])} is NaN or infinite, so there is no curve; find "
            "the image or the network that it comes from"
        )


def _check_durations(name: str, durations: Tensor) -> None:
    if not bool(((durations > 0) & durations.isfinite()).all()):
        bad = int((~((durations > 0) & durations.isfinite())).any(-1).nonzero()[0])
        raise InputError(
            f"{name}: the durations of curve {bad} are {durations[bad].tolist()}; each piece takes a "
            "positive, finite time"
        )


def _powers(size: int, share: float, like: Tensor) -> Tensor:
    """Row k: the k-th derivative of the powers 0 ... size - 1 at a share of the piece."""
    rows = [
        [math.perm(power, k) * share ** (power - k) if power >= k else 0.0 for power in range(size)]
        for k in range(size)
    ]
    return like.new_tensor(rows)


@functools.cache
def _bernstein(count: int) -> Tensor:
    """Matrix (power, control point) of the Bernstein polynomials of degree count - 1."""
    n = count - 1
    matrix = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for power in range(i, count):
            matrix[power, i] = math.comb(n, power) * math.comb(power, i) * (-1) ** (power - i)
    return matrix


@functools.cache
def _spline_basis(count: int, degree: int) -> Tensor:
    """Coefficients (piece, power, control point) of the basis functions, by the recursion on polynomials.

    Knots are whole numbers, repeated at both ends; within piece s, time is s plus the share.
    """
    pieces = count - degree
    knots = [0] * degree + list(range(pieces + 1)) + [pieces] * degree
    basis = torch.zeros(pieces, degree + 1, count, dtype=torch.float64)
    for piece in range(pieces):
        now = {piece + degree: torch.tensor([1.0], dtype=torch.float64)}
        for k in range(1, degree + 1):
            following: dict[int, Tensor] = {}
            for i, polynomial in now.items():
                # B_i of degree k - 1 enters B_i (rising) and B_{i - 1} (falling) of degree k.
                rise, fall = knots[i + k] - knots[i], knots[i + k] - knots[i]
                _add_product(following, i, polynomial, (piece - knots[i]) / rise, 1.0 / rise)
                _add_product(following, i - 1, polynomial, (knots[i + k] - piece) / fall, -1.0 / fall)
            now = following
        for i, polynomial in now.items():
            basis[piece, :, i] = polynomial
    return basis


def _add_product(
    into: dict[int, Tensor], key: int, polynomial: Tensor, constant: float, slope: float
) -> None:
    """Add polynomial (constant + slope x) to an entry."""
    product = torch.zeros(len(polynomial) + 1, dtype=torch.float64)
    product[:-1] += constant * polynomial
    product[1:] += slope * polynomial
    into[key] = into[key] + product if key in into else product
