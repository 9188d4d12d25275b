"""Numbers with a 95 % interval: means of few samples, and cosines from random directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_Z = 1.959963984540054  # of the normal distribution, 97.5 %


class Interval(NamedTuple):
    """A number and the interval that holds the true one in 95 of 100 cases; NaN where there are too few samples."""

    value: float
    low: float
    high: float

    def json(self) -> list[float | None]:
        """Return value, low and high, None for what is not finite."""
        return [number if math.isfinite(number) else None for number in self]

    def measured(self) -> dict[str, float | None]:
        """Return value, low and high by name, as evaluations give them; `is_measured` knows them again."""
        return dict(zip(self._fields, self.json(), strict=True))

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:+.3g}"
        return f"{self.value:+.3g} ({self.low:+.3g} to {self.high:+.3g})"


def is_measured(value: Any) -> bool:
    """Say whether a JSON value was made by `Interval.measured`."""
    return isinstance(value, Mapping) and {"value", "low", "high"} == value.keys()


def mean_interval(samples: Tensor) -> Interval:
    """The mean of independent samples (N,) with Student's interval; without an interval for a single one."""
    values = samples.detach().double().cpu().reshape(-1)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    half = student(len(values) - 1) * float(values.std()) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def median_interval(samples: Tensor) -> Interval:
    """The median of independent samples (N,) with an interval that holds whatever their distribution is.

    Its ends are two of the sorted samples; without an interval for fewer than six, which cannot bound the median with
    this confidence.
    """
    values = samples.detach().double().cpu().reshape(-1).sort().values
    count, below = len(values), 0
    share = tail = 0.5**count if count < 1000 else 0.0
    if count >= 1000:  # 2**-N underflows; the normal distribution is exact enough
        below = int(0.5 * count - _Z * 0.5 * math.sqrt(count))
    while count < 1000 and tail <= 0.025:  # the binomial distribution's share of up to `below` samples
        below += 1
        share *= (count - below + 1) / below
        tail += share
    if not below:
        return Interval(float(values.quantile(0.5)), math.nan, math.nan)
    return Interval(float(values.quantile(0.5)), float(values[below - 1]), float(values[count - below]))


def cosine_interval(one: Tensor, other: Tensor) -> Interval:
    """The cosine of the angle between two vectors g and h, from their products with random directions.

    Args:
        one: g'd for N directions d of independent normal numbers, (N,).
        other: h'd for the same directions, with noise or without.
    Returns:
        The correlation of the two, whose expectation is the cosine whatever the dimension, with Fisher's interval.
        NaN where one of them is zero throughout. Noise in one of them draws it towards zero.
    """
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    size = float(torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other))
    if not size > 0:
        return Interval(math.nan, math.nan, math.nan)
    value = min(1.0, max(-1.0, float(one @ other) / size))
    if len(one) < 4:
        return Interval(value, math.nan, math.nan)
    center, half = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, value))), _Z / math.sqrt(len(one) - 2)
    return Interval(value, math.tanh(center - half), math.tanh(center + half))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution: exact for 1 and 2 degrees of freedom, else to 0.2 %.

    References: Fisher and Cornish 1960 (the expansion in powers of 1 / degrees of freedom).
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2.0 / (1.0 - 0.95**2))
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
