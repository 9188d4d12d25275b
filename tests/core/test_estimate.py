import math

import pytest
import torch

import gradpath as gp
from gradpath import estimate

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(x):
    """E f(x + w) = |x|^2 + sin(x_0) exp(-std^2 / 2) + constant."""
    return x.square().sum(-1) + torch.sin(x[:, 0])


def smooth_gradient(x, std):
    gradient = 2 * x
    gradient[0] += torch.cos(x[0]) * math.exp(-(std**2) / 2)
    return gradient


def jump(x):
    """E f(x + w) = Phi(x_0 / std), whose gradient is the normal density; f' is zero."""
    return (x[:, 0] > 0).to(x.dtype) + 0.0 * x[:, 0]


@pytest.mark.parametrize("name", ["first_order", "zeroth_order", "plain", "alpha_order"])
def test_estimates_are_right_for_a_smooth_loss_and_their_variance_is_true(name):
    x, std = torch.tensor([0.3, -0.5], dtype=F64), 0.2
    options = {"antithetic": False} if name == "plain" else {}
    estimator = getattr(estimate, "zeroth_order" if name == "plain" else name)
    found = [estimator(smooth, x, std=std, samples=50, generator=generator(i), **options) for i in range(400)]
    gradients = torch.stack([e.gradient for e in found])
    variance = torch.stack([e.variance for e in found]).mean(0)
    error = gradients.mean(0) - smooth_gradient(x, std)
    assert (error.abs() < 4 * (gradients.var(0) / 400).sqrt() + (0.02 if name == "alpha_order" else 0)).all()
    if name != "alpha_order":  # whose share is drawn from the same samples
        torch.testing.assert_close(variance, gradients.var(0), rtol=0.25, atol=0)


def test_the_first_order_is_blind_to_a_jump_and_the_others_are_not():
    x, std = torch.zeros(1, dtype=F64), 0.5
    true = 1 / (std * math.sqrt(2 * math.pi))
    options = {"std": std, "samples": 4000}
    assert estimate.first_order(jump, x, generator=generator(), **options).gradient.item() == 0.0
    for estimator in (estimate.zeroth_order, estimate.alpha_order):
        found = estimator(jump, x, generator=generator(), **options)
        low = 0.5 * true if estimator is estimate.alpha_order else true - 4 * found.standard_error
        assert low < found.gradient.item() < true + 4 * found.standard_error
    report = estimate.bias_report(jump, x, std=std, generator=generator())
    assert report.biased and "BIASED" in str(report)
    assert report.json()["biased"] and report.bias == pytest.approx(true, rel=0.15)


def test_the_guard_of_the_mixture():
    x, std = torch.zeros(1, dtype=F64), 0.5
    options = {"std": std, "samples": 1000}
    strict = estimate.alpha_order(jump, x, generator=generator(), threshold=1e-6, **options)
    assert strict.alpha == 0.0
    zeroth = estimate.zeroth_order(jump, x, generator=generator(), antithetic=False, **options)
    assert torch.equal(strict.gradient, zeroth.gradient)
    radius = 2 * zeroth.standard_error
    bounded = estimate.alpha_order(jump, x, generator=generator(), threshold=radius + 0.1, **options)
    assert 0 < bounded.alpha < 1
    assert (bounded.gradient - zeroth.gradient).abs().item() == pytest.approx(0.1)
    free = estimate.alpha_order(
        smooth, torch.ones(2, dtype=F64), generator=generator(), threshold=9.0, **options
    )
    assert free.alpha > 0.5
    infinite = estimate.alpha_order(
        lambda x: (x[:, 0] - x[:, 0].detach()).abs().sqrt(),
        x,
        generator=generator(),
        threshold=9.0,
        **options,
    )
    assert infinite.alpha == 0.0 and infinite.gradient.isfinite().all()


def test_a_smooth_loss_is_not_flagged():
    flags = 0
    for seed in range(100):
        x = torch.randn(3, dtype=F64, generator=generator(seed))
        flags += estimate.bias_report(smooth, x, std=0.1, generator=generator(seed), samples=200).biased
    assert flags <= 2


@pytest.mark.parametrize("baseline", ["leave_one_out", "none", torch.tensor(3.0, dtype=F64)])
def test_the_score_function_is_right_and_a_baseline_lowers_its_variance(baseline):
    logits = torch.tensor([0.2, -0.4, 0.7], dtype=F64, requires_grad=True)
    costs = torch.tensor([5.0, 6.0, 8.0], dtype=F64)
    (true,) = torch.autograd.grad(torch.softmax(logits, 0) @ costs, logits)
    gradients = []
    for seed in range(2000):
        chosen = torch.multinomial(
            torch.softmax(logits.detach(), 0), 8, replacement=True, generator=generator(seed)
        )
        value = estimate.score_function(
            torch.log_softmax(logits, 0)[chosen], costs[chosen], baseline=baseline
        )
        torch.testing.assert_close(value, costs[chosen].mean())
        gradients.append(torch.autograd.grad(value, logits)[0])
    found = torch.stack(gradients)
    assert ((found.mean(0) - true).abs() < 4 * (found.var(0) / 2000).sqrt()).all()
    spread = found.var(0).sum().item()
    assert spread > 2 if isinstance(baseline, str) and baseline == "none" else spread < 2


def test_shapes_and_refusals():
    x = torch.zeros(2, 3)
    found = estimate.zeroth_order(
        lambda s: s.flatten(1).sum(-1), x, std=0.1, samples=4, generator=generator()
    )
    assert found.gradient.shape == found.variance.shape == (2, 3) and found.gradient.dtype == torch.float32
    options = {"std": 0.1, "samples": 4, "generator": generator()}
    for change, message in [
        ({"std": 0.0}, "std is above zero"),
        ({"samples": 1}, "even number from 4"),
        ({"samples": 5}, "even number from 4"),
    ]:
        with pytest.raises(gp.InputError, match=message):
            estimate.zeroth_order(smooth, x[0], **{**options, **change})
    with pytest.raises(gp.InputError, match="two samples"):
        estimate.first_order(smooth, x[0], **{**options, "samples": 1})
    with pytest.raises(gp.ShapeError, match=r"returned \(\) for 4 samples"):
        estimate.first_order(lambda s: s.sum(), x, **options)
    one = torch.zeros(1)
    with pytest.raises(gp.InputError, match="two samples"):
        estimate.score_function(one, one)
    with pytest.raises(gp.InputError, match='"mean" is not'):
        estimate.score_function(x[0], x[0], baseline="mean")
    with pytest.raises(gp.ShapeError, match="one shape"):
        estimate.score_function(x[0], x)
