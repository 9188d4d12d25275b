import pytest
import torch

from gradpath.errors import InputError
from gradpath.planners.second_order import TwiceDifferentiable, has_second_derivative

F64 = torch.float64


class _Once(torch.autograd.Function):
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
    function = TwiceDifferentiable(lambda *t: _Once.apply(*t), [True, True, False])
    assert torch.autograd.gradcheck(function, inputs())
    assert torch.autograd.gradgradcheck(function, inputs())
    assert 0.0 < function.error < 1e-6


def test_their_accuracy_does_not_depend_on_the_size_of_the_direction():
    function = TwiceDifferentiable(lambda *t: _Once.apply(*t), [True, True, False])
    x, y, shared = inputs()
    (slope,) = torch.autograd.grad(function(x, y, shared).sum(), x, create_graph=True)
    size = torch.tensor([[1e-9], [1.0], [1e9], [0.0]], dtype=F64)
    (found,) = torch.autograd.grad(slope, x, size.expand(4, 3))
    exact = size * (2 * shared - torch.sin(x) * y)
    torch.testing.assert_close(
        found / size.clamp_min(1e-30), exact / size.clamp_min(1e-30), rtol=1e-8, atol=1e-8
    )


def test_a_gradient_that_cannot_be_differentiated_is_seen():
    x, y, shared = inputs()
    assert not has_second_derivative(_Once.apply(x, y, shared), [x])
    assert not has_second_derivative(torch.sin(_Once.apply(x, y, shared)) + x.sum(), [x])
    assert has_second_derivative(torch.sin(x) * y, [x])
    assert has_second_derivative(2.0 * x, [x])
    assert has_second_derivative(x.detach(), [x])
    # How something came about that the value depends on does not matter.
    assert has_second_derivative(x * _Once.apply(y, y, shared), [x])


def test_float32_is_refused():
    function = TwiceDifferentiable(torch.sin, [True])
    with pytest.raises(InputError, match="need float64"):
        function(torch.zeros(2, 1))
