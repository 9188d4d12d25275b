import math
import warnings

import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath.linear_solve import conjugate_gradient, largest_eigenvalue, matrix

F64 = torch.float64


def objective(u, a):
    return 0.5 * ((u.sin() - a) ** 2 + u**2).sum(-1)


def residuals(u, a):
    return torch.cat([u.sin() - a, u], -1)


def solved_slope(a: float, dtype=F64, **options) -> float:
    a = torch.tensor([[a]], dtype=dtype, requires_grad=True)
    u = gp.implicit.argmin(objective, torch.zeros(1, 1, dtype=dtype), a, **options)
    return torch.autograd.grad(u.sum(), a)[0].item()


@pytest.mark.parametrize("linear", ["direct", "cg"])
def test_the_default_has_the_exact_gradient_and_gauss_newton_has_not(linear):
    assert abs(solved_slope(2.0, linear=linear) - 0.280619) < 1e-6
    with gp.implicit.record() as reports:
        got = solved_slope(2.0, linear=linear, gradient="gauss_newton", residuals=residuals)
    assert abs(got - 0.461924) < 1e-6
    (report,) = reports
    assert report.difference == pytest.approx(0.461924 / 0.280619 - 1, rel=1e-4)
    assert "gauss_newton, differs from the exact one by 64.61%" in str(report)
    assert report.json()["difference"] == report.difference


def test_float32():
    assert abs(solved_slope(2.0, torch.float32) - 0.280619) < 1e-5


def test_unrolling_tends_to_the_exact_gradient_and_is_backward_through_descent():
    exact = solved_slope(2.0)
    errors = [abs(solved_slope(2.0, gradient="unroll", unroll=k) - exact) for k in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6

    # Against torch's own backward through descent steps from the minimum, several unknowns with several curvatures.
    scale = torch.tensor([1.0, 3.0, 0.5], dtype=F64)
    a = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def coupled(u, a):
        return (0.5 * scale * (u - a) ** 2 + 0.1 * u**4).sum(-1) + 0.3 * u[:, 0] * u[:, 1]

    u = gp.implicit.argmin(coupled, torch.zeros(2, 3, dtype=F64), a, gradient="unroll", unroll=4)
    got = torch.autograd.grad(u.pow(2).sum(), a)[0]
    leaf = u.detach().requires_grad_()
    gradient = torch.autograd.grad(coupled(leaf, a.detach()).sum(), leaf, create_graph=True)[0]
    rate = 1 / (1.05 * largest_eigenvalue(
        lambda v: torch.autograd.grad(gradient, leaf, v, retain_graph=True)[0], leaf.detach()))  # fmt: skip
    current = leaf
    for _ in range(4):
        slope = torch.autograd.grad(coupled(current, a).sum(), current, create_graph=True)[0]
        current = current - rate[:, None] * slope
    torch.testing.assert_close(got, torch.autograd.grad(current.pow(2).sum(), a)[0])


@pytest.mark.parametrize("linear", ["direct", "cg"])
def test_gradcheck_of_a_coupled_problem_with_a_shared_parameter(linear):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, 4, dtype=F64, generator=generator, requires_grad=True)
    shared = torch.randn(4, 4, dtype=F64, generator=generator, requires_grad=True)

    def coupled(u, a, shared):
        return ((u @ shared - a).pow(2) / 2 + u.pow(4) / 10 + u.pow(2) / 2).flatten(1).sum(-1)

    def solution(a, shared):
        return gp.implicit.argmin(coupled, torch.zeros(3, 4, dtype=F64), a, shared, linear=linear)

    assert torch.autograd.gradcheck(solution, (a, shared), atol=1e-6)


def test_captured_weights_get_gradients():
    net = nn.Linear(2, 2).double()
    a = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    u = gp.implicit.argmin(lambda u, a: (u - net(a)).square().sum(-1), torch.zeros_like(a), a)
    u.sum().backward()
    torch.testing.assert_close(net.bias.grad, torch.full((2,), 3.0, dtype=F64))


def test_shapes_batches_and_no_grad():
    a = torch.arange(12.0, dtype=F64).reshape(2, 3, 2).requires_grad_()
    u = gp.implicit.argmin(lambda u, a: (u - a).square().flatten(1).sum(-1), torch.zeros_like(a), a)
    torch.testing.assert_close(u, a)
    assert gp.implicit.argmin(objective, torch.zeros(0, 2), torch.zeros(0, 2)).shape == (0, 2)
    with torch.no_grad():
        assert not gp.implicit.argmin(objective, torch.zeros(1, 1), torch.ones(1, 1)).requires_grad


@pytest.mark.parametrize("linear", ["direct", "cg"])
def test_samples_without_a_minimum_are_masked_and_reported(linear):
    a = torch.tensor([1.0, -1.0, 2.0], dtype=F64, requires_grad=True)
    with gp.implicit.record() as reports, pytest.warns(RuntimeWarning, match=r"1 of 3 .*\(samples 1\)"):
        u = gp.implicit.argmin(
            lambda u, a: 0.5 * a * (u[:, 0] - a) ** 2,
            torch.ones(3, 1, dtype=F64),
            a,
            linear=linear,
            iterations=20,
        )
    assert reports[0].converged.tolist() == [True, False, True]
    assert reports[0].unconverged_share == pytest.approx(1 / 3)
    torch.testing.assert_close(
        torch.autograd.grad(u.sum(), a)[0], torch.tensor([1.0, 0.0, 1.0], dtype=F64), atol=1e-8, rtol=0
    )


def test_it_leaves_a_maximum_for_a_minimum():
    u = gp.implicit.argmin(lambda u: (u[:, 0] ** 2 - 1) ** 2, torch.full((1, 1), 0.01, dtype=F64))
    assert u.item() == pytest.approx(1.0)


def test_damping_shrinks_the_gradient():
    def flat(u, a):
        return 0.5 * 1e-3 * (u[:, 0] - a) ** 2

    a = torch.ones(1, dtype=F64, requires_grad=True)
    with gp.implicit.record() as reports:
        u = gp.implicit.argmin(flat, torch.zeros(1, 1, dtype=F64), a, damping=1e-3)
    assert torch.autograd.grad(u.sum(), a)[0].item() == pytest.approx(0.5)
    assert reports[0].difference == pytest.approx(0.5)


@pytest.mark.parametrize("linear", ["direct", "cg"])
def test_fixed_point(linear):
    generator = torch.Generator().manual_seed(2)
    weight = (0.4 * torch.randn(4, 4, dtype=F64, generator=generator)).requires_grad_()
    x = torch.randn(3, 4, dtype=F64, generator=generator, requires_grad=True)

    def solution(x, weight):
        return gp.implicit.fixed_point(
            lambda z, x, w: (z @ w + x).tanh(), torch.zeros_like(x), x, weight, linear=linear, tolerance=1e-13
        )

    z = solution(x, weight)
    torch.testing.assert_close(z, (z @ weight + x).tanh())
    assert torch.autograd.gradcheck(solution, (x, weight), atol=1e-6)


def test_fixed_point_unrolled_and_not_contracting():
    a = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    init = torch.ones(2, 1, dtype=F64)

    def line(u, a):
        return a[:, None] * u + 1

    with pytest.warns(RuntimeWarning, match=r"line: 1 of 2 .*\(samples 1\)"):
        u = gp.implicit.fixed_point(line, init, a, iterations=60)
    torch.testing.assert_close(torch.autograd.grad(u.sum(), a)[0], torch.tensor([4.0, 0.0], dtype=F64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u = gp.implicit.fixed_point(line, init, a, gradient="unroll", unroll=2, iterations=60)
    torch.testing.assert_close(torch.autograd.grad(u.sum(), a)[0], torch.tensor([3.0, 0.0], dtype=F64))


def test_refusals():
    one = torch.ones(1, 1)
    for options, message in [
        ({"gradient": "newton"}, "one of implicit, gauss_newton, unroll"),
        ({"gradient": "gauss_newton"}, "needs residuals="),
        ({"residuals": residuals}, "no other choice takes it"),
        ({"linear": "lu"}, "one of auto, direct, cg"),
        ({"damping": -1.0}, "damping is at least 0"),
    ]:
        with pytest.raises(gp.InputError, match=message):
            gp.implicit.argmin(objective, one, one, **options)
    with pytest.raises(gp.InputError, match=r"share in \(0, 1\]"):
        gp.implicit.fixed_point(objective, one, one, relaxation=0.0)
    with pytest.raises(gp.ShapeError, match="one number per sample"):
        gp.implicit.argmin(lambda u: u.square().sum(), one)
    with pytest.raises(gp.ShapeError, match="floating tensor"):
        gp.implicit.argmin(objective, torch.ones(1, 1, dtype=torch.int64), one)
    with pytest.raises(gp.ShapeError, match="for u of shape"):
        gp.implicit.fixed_point(lambda u: u[:, 0], one)


def test_conjugate_gradients_solve_and_stop_at_negative_curvature():
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(2, 5, 5, dtype=F64, generator=generator)
    dense = root @ root.mT + torch.eye(5, dtype=F64)
    dense[1] = -dense[1]

    def product(v):
        return (dense @ v[..., None])[..., 0]

    right = torch.randn(2, 5, dtype=F64, generator=generator)
    x, done, positive = conjugate_gradient(product, right, tolerance=1e-12, iterations=20)
    torch.testing.assert_close(product(x)[0], right[0])
    assert done.tolist() == [True, False] and positive.tolist() == [True, False]
    torch.testing.assert_close(x[1], right[1])
    torch.testing.assert_close(matrix(product, right), dense)
    largest = torch.linalg.eigvalsh(dense).abs().amax(-1)
    assert (largest_eigenvalue(product, right, 200) / largest - 1).abs().max() < 1e-3
    assert math.isfinite(float(x.sum()))
