"""Rotations and rigid poses as torch tensors, batched over any leading axes.

A quaternion is (x, y, z, w), shape (..., 4); a pose is a position [m] and a quaternion, shape (..., 7).
Leading axes broadcast. Everything is differentiable, and every gradient is finite, also at zero rotation.

Functions that take a rotation expect a unit quaternion and do not normalize it, because that would hide drift
and hide its gradient. `quat_normalize` is the one place that does, and it refuses a norm of zero.
"""

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError

# Below this angle [rad] a series replaces sin(x) / x and its kin; its error is under 1e-16 there.
_SMALL = 1e-3

# How far from 1 the norm of a pose's quaternion may be: far more than rounding, far less than a mistake.
POSE_TOLERANCE = 1e-3


def _check(tensor: Tensor, size: int, name: str) -> None:
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        raise ShapeError(
            f"{name}: expected shape (..., {size}), got {tuple(tensor.shape)}; check the last axis"
        )


def quat_identity(
    *shape: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return identity quaternions, shape (*shape, 4)."""
    unit = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=dtype, device=device)
    return unit.expand(*shape, 4).clone()


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return the product a b, the rotation b followed by a; shapes (..., 4), exact gradients."""
    _check(a, 4, "quat_multiply: a")
    _check(b, 4, "quat_multiply: b")
    a, b = torch.broadcast_tensors(a, b)
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + torch.linalg.cross(av, bv)
    return torch.cat([vector, aw * bw - (av * bv).sum(-1, keepdim=True)], -1)


def quat_conjugate(q: Tensor) -> Tensor:
    """Return the conjugate, which is the inverse of a unit quaternion; shape (..., 4)."""
    _check(q, 4, "quat_conjugate: q")
    return torch.cat([-q[..., :3], q[..., 3:]], -1)


def quat_rotate(q: Tensor, v: Tensor) -> Tensor:
    """Rotate vectors (..., 3) by unit quaternions (..., 4); exact gradients with respect to both."""
    _check(q, 4, "quat_rotate: q")
    _check(v, 3, "quat_rotate: v")
    batch = torch.broadcast_shapes(q.shape[:-1], v.shape[:-1])
    q, v = q.expand(*batch, 4), v.expand(*batch, 3)
    axis, w = q[..., :3], q[..., 3:]
    twice = 2.0 * torch.linalg.cross(axis, v)
    return v + w * twice + torch.linalg.cross(axis, twice)


def quat_normalize(q: Tensor) -> Tensor:
    """Scale quaternions (..., 4) to norm one.

    Raises:
        InputError: a quaternion has norm zero or is not finite; it is no rotation.
    """
    _check(q, 4, "quat_normalize: q")
    norm = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    if not bool(((norm > 0) & torch.isfinite(norm)).all()):
        bad = int((~((norm > 0) & torch.isfinite(norm))).flatten().nonzero()[0])
        got = q.reshape(-1, 4)[bad].tolist()
        raise InputError(
            f"quat_normalize: quaternion {bad} is {got}, no rotation; the identity is [0, 0, 0, 1]"
        )
    return q / norm


def quat_exp(rotation: Tensor) -> Tensor:
    """Exponential map: rotation vectors [rad] (..., 3) to unit quaternions (..., 4).

    Gradients: exact, finite at zero (by a series below 1e-3 rad).
    """
    _check(rotation, 3, "quat_exp: rotation")
    square = (rotation * rotation).sum(-1, keepdim=True)
    small = square < _SMALL**2
    angle = torch.where(small, torch.ones_like(square), square).sqrt()  # the guarded branch has no sqrt at 0
    scale = torch.where(small, 0.5 - square / 48 + square**2 / 3840, torch.sin(0.5 * angle) / angle)
    w = torch.where(small, 1 - square / 8 + square**2 / 384, torch.cos(0.5 * angle))
    return torch.cat([scale * rotation, w], -1)


def quat_log(q: Tensor) -> Tensor:
    """Logarithm: unit quaternions (..., 4) to the shortest rotation vectors [rad] (..., 3).

    Gradients: exact, finite at the identity; at a half turn the shortest vector jumps, as it must.
    """
    _check(q, 4, "quat_log: q")
    q = torch.where(q[..., 3:] < 0, -q, q)
    vector, w = q[..., :3], q[..., 3:]
    square = (vector * vector).sum(-1, keepdim=True)
    small = square < _SMALL**2
    norm = torch.where(small, torch.ones_like(square), square).sqrt()
    safe_w = torch.where(small, w, torch.ones_like(w))  # w is 0 at a half turn
    ratio = square / (safe_w * safe_w)
    series = (2 - 2 * ratio / 3 + 2 * ratio**2 / 5) / safe_w
    return torch.where(small, series, 2 * torch.atan2(norm, w) / norm) * vector


def quat_from_axis_angle(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation by `angle` [rad] (...) about the unit `axis` (..., 3); returns (..., 4), exact gradients."""
    _check(axis, 3, "quat_from_axis_angle: axis")
    half = 0.5 * angle.unsqueeze(-1)
    vector = torch.sin(half) * axis
    return torch.cat([vector, torch.cos(half).expand(*vector.shape[:-1], 1)], -1)


def quat_to_matrix(q: Tensor) -> Tensor:
    """Unit quaternions (..., 4) to rotation matrices (..., 3, 3), columns being the rotated axes."""
    _check(q, 4, "quat_to_matrix: q")
    x, y, z, w = q.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quat_from_matrix(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to unit quaternions (..., 4) whose largest component is positive.

    That component is the pivot, so values and gradients stay finite for every rotation.
    """
    if matrix.ndim < 2 or matrix.shape[-2:] != (3, 3):
        raise ShapeError(
            f"quat_from_matrix: expected shape (..., 3, 3), got {tuple(matrix.shape)}; pass rotations"
        )
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    xx, yy, zz = m[0][0], m[1][1], m[2][2]
    # Row k is the quaternion times 4 q_k, so its norm is 4 |q_k|.
    rows = [
        [1 + xx - yy - zz, m[0][1] + m[1][0], m[0][2] + m[2][0], m[2][1] - m[1][2]],
        [m[0][1] + m[1][0], 1 - xx + yy - zz, m[1][2] + m[2][1], m[0][2] - m[2][0]],
        [m[0][2] + m[2][0], m[1][2] + m[2][1], 1 - xx - yy + zz, m[1][0] - m[0][1]],
        [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + xx + yy + zz],
    ]
    candidates = torch.stack([torch.stack(row, -1) for row in rows], -2)
    pivot = torch.stack([rows[k][k] for k in range(4)], -1).argmax(-1)
    index = pivot[..., None, None].expand(*pivot.shape, 1, 4)
    best = candidates.gather(-2, index).squeeze(-2)
    return best / torch.linalg.vector_norm(best, dim=-1, keepdim=True)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Rotate from unit quaternion a to b along the shorter arc; `t` (...) in [0, 1]; shapes (..., 4)."""
    return quat_multiply(a, quat_exp(t.unsqueeze(-1) * quat_log(quat_multiply(quat_conjugate(a), b))))


def pose(position: Tensor, rotation: Tensor) -> Tensor:
    """Join positions [m] (..., 3) and quaternions (..., 4), broadcast, to poses (..., 7)."""
    _check(position, 3, "pose: position")
    _check(rotation, 4, "pose: rotation")
    batch = torch.broadcast_shapes(position.shape[:-1], rotation.shape[:-1])
    return torch.cat([position.expand(*batch, 3), rotation.expand(*batch, 4)], -1)


def pose_identity(
    *shape: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return identity poses, shape (*shape, 7)."""
    return pose(
        torch.zeros(*shape, 3, dtype=dtype, device=device), quat_identity(*shape, dtype=dtype, device=device)
    )


def pose_apply(pose: Tensor, points: Tensor) -> Tensor:
    """Map points from the pose's frame to its parent frame: poses (..., 7), points (..., 3) [m]."""
    _check(pose, 7, "pose_apply: pose")
    return quat_rotate(pose[..., 3:], points) + pose[..., :3]


def pose_compose(a: Tensor, b: Tensor) -> Tensor:
    """Return the pose of frame b, given in frame a, in a's parent frame; shapes (..., 7)."""
    _check(b, 7, "pose_compose: b")
    return pose(pose_apply(a, b[..., :3]), quat_multiply(a[..., 3:], b[..., 3:]))


def pose_inverse(pose: Tensor) -> Tensor:
    """Return the inverse of poses (..., 7)."""
    _check(pose, 7, "pose_inverse: pose")
    back = quat_conjugate(pose[..., 3:])
    return torch.cat([-quat_rotate(back, pose[..., :3]), back], -1)


def look_at(eye: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """Return camera poses (..., 7) at `eye` looking at `target` [m] (..., 3): z forward, x right, y down.

    Args:
        eye: Camera position, shape (..., 3), differentiable.
        target: Point looked at, shape (..., 3), differentiable.
        up: World direction that is up in the image, shape (..., 3); world z by default.
    Raises:
        InputError: eye and target coincide, or the view is along `up`, which leaves the roll undefined.
    """
    _check(eye, 3, "look_at: eye")
    _check(target, 3, "look_at: target")
    if up is None:
        up = torch.tensor([0.0, 0.0, 1.0], dtype=eye.dtype, device=eye.device)
    eye, target, up = torch.broadcast_tensors(eye, target, up)
    forward = target - eye
    distance = torch.linalg.vector_norm(forward, dim=-1, keepdim=True)
    right = torch.linalg.cross(forward, up)
    sine = torch.linalg.vector_norm(right, dim=-1, keepdim=True)
    if not bool((sine > 1e-6 * distance).all()):
        raise InputError(
            "look_at: a view direction is zero or along `up`; move the target or pass another `up`"
        )
    z, x = forward / distance, right / sine
    return pose(eye, quat_from_matrix(torch.stack([x, torch.linalg.cross(z, x), z], -1)))


def heading(rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the yaw of a body, from the horizontal part of its x axis; shapes (..., 4) to (...).

    Gradients: exact and finite everywhere; both values are meaningless only where the x axis is vertical.
    """
    _check(rotation, 4, "heading: rotation")
    x, y, z, w = rotation.unbind(-1)
    ahead = 1.0 - 2.0 * (y * y + z * z)
    left = 2.0 * (x * y + w * z)
    length = (ahead * ahead + left * left + 1e-12).sqrt()
    return ahead / length, left / length


def _place(bad: Tensor) -> tuple[tuple[int, ...], str]:
    """Index of the first world, or instance of a world, where `bad` is true; in numbers and in words."""
    index = tuple(int(i) for i in bad.nonzero()[0])
    return index, f"world {index[0]}" if len(index) == 1 else f"instance {index[1]} of world {index[0]}"


def check_poses(poses: Tensor, name: str) -> None:
    """Refuse poses, shape (B, 7) or (B, I, 7), that are none: not finite, or a quaternion whose norm is not 1.

    The norm may be off by 1e-3, which is rounding and not a mistake. On a GPU nothing is checked, because the answer
    would have to be waited for; see `gradpath.check_finite`.

    Raises:
        ShapeError: the last axis has not 7 numbers.
        InputError: names the first world, and the instance.
    """
    _check(poses, 7, f"{name}: pose")
    if poses.is_cuda:
        return
    poses = poses.detach()
    # One test for both: zero times what is not finite is NaN, and NaN is not near 1.
    norm = torch.linalg.vector_norm(poses[..., 3:], dim=-1) + 0.0 * poses[..., :3].sum(-1)
    good = (norm - 1.0).abs() <= POSE_TOLERANCE
    if not bool(good.all()):
        index, where = _place(~good)
        raise InputError(
            f"{name}: the pose of {where} is {poses[index].tolist()}; a pose needs finite numbers and a quaternion of "
            "norm 1: normalize what is meant so, or find the step that spoiled it"
        )


def check_scales(scales: Tensor, name: str) -> None:
    """Refuse scales, shape (B, I) or (B, I, 3), that no solid has: zero, negative or not finite.

    On a GPU nothing is checked, as in `check_poses`.

    Raises:
        InputError: names the first world and instance.
    """
    if scales.is_cuda:
        return
    good = (scales > 0) & (scales < torch.inf)
    if not bool(good.all()):
        index, where = _place(~good if scales.ndim < 3 else (~good).any(-1))
        raise InputError(
            f"{name}: the scale of {where} is {scales.detach()[index].tolist()}; scales are positive and finite, "
            "move what should not be seen out of sight instead"
        )
