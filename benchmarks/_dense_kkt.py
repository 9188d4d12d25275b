"""The linear-quadratic problem as one dense linear system: the independent answer that `lqr` is held against."""

import torch
from torch import Tensor


def dense_kkt(
    A: Tensor,
    B: Tensor,
    Q: Tensor,
    R: Tensor,
    x0: Tensor,
    horizon: int,
    final=None,
    q=None,
    r=None,
    offset=None,
) -> tuple[Tensor, Tensor]:
    """States (N, T + 1, n) and controls (N, T, m) from the optimality conditions; matrices (n, n) or (N, T, n, n)."""
    count, n, m = len(x0), x0.shape[-1], R.shape[-1]
    states, size = (horizon + 1) * n, (horizon + 1) * n + horizon * m

    def at(given, t, fill=None):
        if given is None:
            return fill
        return given[:, t] if given.ndim > (2 if fill is None else 1) + 1 else given

    hessian, linear = x0.new_zeros(count, size, size), x0.new_zeros(count, size)
    rows, right = x0.new_zeros(count, states, size), x0.new_zeros(count, states)
    eye = torch.eye(n, dtype=x0.dtype)
    rows[:, :n, :n], right[:, :n] = eye, x0
    for t in range(horizon + 1):
        x, u = slice(t * n, (t + 1) * n), slice(states + t * m, states + (t + 1) * m)
        cost = at(Q, min(t, horizon - 1)) if t < horizon or final is None else final
        hessian[:, x, x] = cost + cost.mT
        zero = x0.new_zeros(n)
        if q is not None and (t < horizon or q.ndim < 3):
            linear[:, x] = at(q, t, zero)
        if t < horizon:
            cost = at(R, t)
            hessian[:, u, u] = cost + cost.mT
            if r is not None:
                linear[:, u] = at(r, t, x0.new_zeros(m))
            following = slice((t + 1) * n, (t + 2) * n)
            rows[:, following, following], rows[:, following, x] = eye, -at(A, t)
            rows[:, following, u], right[:, following] = -at(B, t), at(offset, t, zero)
    corner = x0.new_zeros(count, states, states)
    kkt = torch.cat([torch.cat([hessian, rows.mT], -1), torch.cat([rows, corner], -1)], -2)
    z = torch.linalg.solve(kkt, torch.cat([-linear, right], -1))
    return z[:, :states].reshape(count, -1, n), z[:, states:size].reshape(count, -1, m)
