import math

import pytest
import torch
from scipy import stats

from gradpath.intervals import cosine_interval, mean_interval, median_interval, student


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 1000])
def test_quantiles_of_student(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_the_interval_of_a_mean_holds_the_mean_in_95_of_100_cases():
    generator = torch.Generator().manual_seed(0)
    samples = 2.0 + 3.0 * torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    found = [mean_interval(row) for row in samples]
    held = sum(interval.low <= 2.0 <= interval.high for interval in found)
    low, high = stats.binom.interval(0.999, 4000, 0.95)
    assert low <= held <= high
    assert math.isnan(mean_interval(torch.ones(1)).low)


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.5, 0.99])
def test_the_interval_of_a_cosine_holds_it_whatever_the_dimension(cosine):
    generator = torch.Generator().manual_seed(1)
    g, rest = torch.linalg.qr(torch.randn(300, 2, generator=generator, dtype=torch.float64)).Q.T
    h = 7.0 * (cosine * g + math.sqrt(1 - cosine**2) * rest)
    directions = torch.randn(1000, 24, 300, generator=generator, dtype=torch.float64)
    held = 0
    for batch in directions:
        interval = cosine_interval(batch @ g, batch @ h)
        assert -1 <= interval.low <= interval.value <= interval.high <= 1
        held += interval.low <= cosine <= interval.high
    assert held / 1000 == pytest.approx(0.95, abs=0.025)
    assert math.isnan(cosine_interval(directions[0] @ g, torch.zeros(24)).value)


@pytest.mark.parametrize("count", [6, 7, 30, 200, 999, 1000, 5000])
def test_the_interval_of_a_median_is_between_the_quantiles_of_the_binomial_distribution(count):
    found = median_interval(torch.arange(count, dtype=torch.float64).flip(0))
    below = int(found.low)  # as many samples are smaller
    assert found.value == (count - 1) / 2 and found.high == count - 1 - below
    # Sorted sample `below` is above the median where no more than that many samples are under it.
    assert stats.binom.cdf(below, count, 0.5) <= (0.025 if count < 1000 else 0.027)
    assert stats.binom.cdf(below + 1, count, 0.5) > (0.025 if count < 1000 else 0.023)
    assert math.isnan(median_interval(torch.ones(5)).low)
