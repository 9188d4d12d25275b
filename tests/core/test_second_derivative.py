import pytest
import torch

import gradpath as gp
from gradpath.errors import InputError
from gradpath.second_derivative import TwiceDifferentiable, has_second_derivative

F64 = torch.float64


class Once(torch.autograd.Function):
    """sin(x) y, whose gradient autograd cannot differentiate."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.sin(x) * y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, seed):
        x, y = ctx.saved_tensors
        return seed * torch.cos(x) * y, seed * torch.sin(x)


def leaves():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, dtype=F64, generator=generator).requires_grad_() for _ in range(2)]


def test_a_gradient_that_cannot_be_differentiated_is_seen():
    x, y = leaves()
    assert not has_second_derivative(Once.apply(x, y), [x])
    assert not has_second_derivative(torch.sin(Once.apply(x, y)) + x.sum(), [x])
    assert has_second_derivative(torch.sin(x) * y, [x])
    assert has_second_derivative(2.0 * x, [x])
    assert has_second_derivative(x.detach(), [x])


def test_what_lies_before_the_inputs_may_be_differentiable_once():
    x, y = leaves()
    before = Once.apply(x, y)
    assert has_second_derivative(before.square() * y, (before,))
    assert not has_second_derivative(before.square() * y, (y,))


def test_a_minimizer_is_refused_where_its_hessian_would_lack_curvature():
    """The kernel's curvature is a third of the whole; counted as zero, Newton's method would still end somewhere."""
    a = torch.tensor([[0.3], [-0.4]], dtype=F64, requires_grad=True)
    start = torch.zeros(2, 1, dtype=F64)
    with pytest.raises(
        InputError, match=r"implicit\.argmin: objective passes u through a function that can be"
    ):

        def objective(u, a):
            return (u.square() + 0.5 * Once.apply(u, a)).sum(-1)

        gp.implicit.argmin(objective, start, a)


def test_a_minimizer_may_depend_on_what_is_differentiable_once():
    """The result of a kernel as a parameter, or captured, is no reason to refuse; its gradient is exact."""
    x, y = leaves()
    x, y = x.detach()[:, :1].requires_grad_(), y.detach()[:, :1].requires_grad_()

    def solve(given):
        return gp.implicit.argmin(
            lambda u, p: (u.cosh() - p * u).sum(-1), torch.zeros(4, 1, dtype=F64), given
        )

    found = torch.autograd.grad(solve(Once.apply(x, y)).sum(), (x, y))
    exact = torch.autograd.grad(torch.asinh(torch.sin(x) * y).sum(), (x, y))
    captured = Once.apply(x, y)
    inside = gp.implicit.argmin(lambda u: (u.cosh() - captured * u).sum(-1), torch.zeros(4, 1, dtype=F64))
    for ours, theirs, third in zip(found, exact, torch.autograd.grad(inside.sum(), (x, y)), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(third, theirs)


class Shared(torch.autograd.Function):
    """sin(x) y + shared x^2, whose gradient autograd cannot differentiate."""

    @staticmethod
    def forward(ctx, x, y, shared):
        ctx.save_for_backward(x, y, shared)
        return torch.sin(x) * y + shared * x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, seed):
        x, y, shared = ctx.saved_tensors
        return (
            seed * (torch.cos(x) * y + 2 * shared * x),
            seed * torch.sin(x),
            (seed * x**2).sum(0),
        )


def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (4, 3), (3,))
    return [torch.randn(s, dtype=F64, generator=generator).requires_grad_() for s in shapes]


def test_differences_equal_the_second_derivative_in_every_input_and_cotangent():
    function = TwiceDifferentiable(lambda *t: Shared.apply(*t), [True, True, False])
    assert torch.autograd.gradcheck(function, inputs())
    assert torch.autograd.gradgradcheck(function, inputs())
    assert 0.0 < function.error < 1e-6


def test_their_accuracy_does_not_depend_on_the_size_of_the_direction():
    function = TwiceDifferentiable(lambda *t: Shared.apply(*t), [True, True, False])
    x, y, shared = inputs()
    (slope,) = torch.autograd.grad(function(x, y, shared).sum(), x, create_graph=True)
    size = torch.tensor([[1e-9], [1.0], [1e9], [0.0]], dtype=F64)
    (found,) = torch.autograd.grad(slope, x, size.expand(4, 3))
    exact = size * (2 * shared - torch.sin(x) * y)
    torch.testing.assert_close(
        found / size.clamp_min(1e-30), exact / size.clamp_min(1e-30), rtol=1e-8, atol=1e-8
    )


def test_float32_is_refused():
    function = TwiceDifferentiable(torch.sin, [True])
    with pytest.raises(InputError, match="need float64"):
        function(torch.zeros(2, 1))
