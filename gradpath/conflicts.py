"""Conflicts between losses: how the gradients of several are made into one. Used by `gradpath.losses`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHOICES = ("none", "pcgrad", "cagrad")


def combine(gradients: Tensor, choice: str, *, caution: float = 0.5, order: Tensor | None = None) -> Tensor:
    """Make the gradients (K, P) of K losses into one (P,): a sum, once conflicts are resolved.

    Args:
        gradients: One row per loss.
        choice: `"none"`: their sum. `"pcgrad"`: from each, what points against another is projected out, then the
            sum. `"cagrad"`: the direction near their mean that is best for the loss that gains least.
        caution: For CAGrad: how far from the mean, relative to its length; 0 is the mean itself.
        order: For PCGrad: the order (K,) in which each gradient meets the others; their own by default.
    References: Yu et al. 2020, Gradient Surgery for Multi-Task Learning; Liu et al. 2021, Conflict-Averse Gradient
        Descent.
    """
    if choice == "none" or len(gradients) < 2:
        return gradients.sum(0)
    products = (gradients.double() @ gradients.double().T).tolist()
    if choice == "pcgrad":
        weights = _pcgrad(products, list(range(len(gradients))) if order is None else order.tolist())
    else:
        weights = _cagrad(products, caution)
    return torch.tensor(weights, dtype=gradients.dtype, device=gradients.device) @ gradients


def _pcgrad(products: list[list[float]], order: list[int]) -> list[float]:
    """Weights of the gradients in the sum of the projected ones; `products` are their inner products."""
    count = len(products)
    total = [0.0] * count
    for i in range(count):
        share = [float(k == i) for k in range(count)]
        for j in order:
            along = sum(share[k] * products[k][j] for k in range(count))
            if j != i and along < 0 and products[j][j] > 0:
                share[j] -= along / products[j][j]
        total = [a + b for a, b in zip(total, share, strict=True)]
    return total


def _cagrad(products: list[list[float]], caution: float) -> list[float]:
    """Weights of the gradients: K (g0 + lambda g_w) / (1 + caution), with w from the dual problem."""
    count = len(products)
    mean = [sum(row) / count for row in products]  # of each gradient with g0
    reach = caution * math.sqrt(max(sum(mean) / count, 0.0))

    def length(w: list[float]) -> float:
        rows = (a * b * products[i][j] for i, a in enumerate(w) for j, b in enumerate(w))
        return math.sqrt(max(sum(rows), 0.0))

    def dual(w: list[float]) -> float:
        return sum(a * b for a, b in zip(w, mean, strict=True)) + reach * length(w)

    w = [1.0 / count] * count
    for _ in range(1 if count == 2 else 20):
        for i in range(count):
            for j in range(i):
                w = _along_pair(dual, w, i, j)
    size = length(w)
    pull = reach / size if size > 0 else 0.0
    return [(1.0 + count * pull * a) / (1.0 + caution) for a in w]


def _along_pair(dual: Callable[[list[float]], float], w: list[float], i: int, j: int) -> list[float]:
    """The best way to share the weight of two gradients between them, by golden sections of a convex function."""
    both = w[i] + w[j]

    def shared(x: float) -> list[float]:
        return [x * both if k == i else (1.0 - x) * both if k == j else a for k, a in enumerate(w)]

    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    low, high = 0.0, 1.0
    one, two = 1.0 - ratio, ratio
    at_one, at_two = dual(shared(one)), dual(shared(two))
    for _ in range(32):
        if at_one < at_two:
            high, two, at_two = two, one, at_one
            one = high - ratio * (high - low)
            at_one = dual(shared(one))
        else:
            low, one, at_one = one, two, at_two
            two = low + ratio * (high - low)
            at_two = dual(shared(two))
    return shared(min((0.0, (low + high) / 2.0, 1.0), key=lambda x: dual(shared(x))))
