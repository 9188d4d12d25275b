import importlib.util
from pathlib import Path

import pytest
import torch

from gradpath import planners
from gradpath.errors import InputError, ShapeError

_spec = importlib.util.spec_from_file_location(
    "_dense_kkt", Path(__file__).parents[2] / "benchmarks" / "_dense_kkt.py"
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
dense_kkt = _module.dense_kkt

F64 = torch.float64


def problem(n=3, m=2, batch=4, lead=(), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=F64, generator=generator)

    def positive(k):
        root = random(*lead, k, k)
        return root @ root.mT + 0.5 * torch.eye(k, dtype=F64)

    A = torch.eye(n, dtype=F64) + 0.3 * random(*lead, n, n)
    return [x.requires_grad_() for x in (A, random(*lead, n, m), positive(n), positive(m), random(batch, n))]


def compare(tensors, ours, theirs, seed=1):
    """Values and gradients of a random mix of states and controls to 1e-8."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, dtype=F64, generator=generator) for x in theirs]
    grads = [
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, found, strict=True)), tensors)
        for found in (ours, theirs)
    ]
    for a, b in zip((*ours, *grads[0]), (*theirs, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("horizon", [1, 5, 20])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_values_and_gradients_equal_a_dense_solve(horizon, lead):
    tensors = problem(lead=lead)
    found = planners.lqr(*tensors, horizon)
    assert found.states.shape == (4, horizon + 1, 3) and found.controls.shape == (4, horizon, 2)
    compare(tensors, (found.states, found.controls), dense_kkt(*tensors, horizon))


def test_time_varying_with_linear_terms_and_another_end():
    tensors = problem(lead=(4, 6))
    final, q, r, offset = (
        torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        for shape in ((4, 3, 3), (4, 6, 3), (2,), (4, 3))
    )
    with torch.no_grad():
        final.copy_(final @ final.mT)
    extra = {"final": final, "q": q, "r": r, "offset": offset}
    found = planners.lqr(*tensors, 6, **extra)
    compare([*tensors, *extra.values()], (found.states, found.controls), dense_kkt(*tensors, 6, **extra))
    shared = planners.lqr(*tensors, 6, q=torch.ones(3, dtype=F64))
    compare(tensors, (shared.states, shared.controls), dense_kkt(*tensors, 6, q=torch.ones(3, dtype=F64)))


def test_gains_and_costates_are_those_of_the_regulator():
    A, B, Q, R, x0 = (x.detach() for x in problem())
    found = planners.lqr(A, B, Q, R, x0, 200)
    from scipy.linalg import solve_discrete_are

    P = torch.from_numpy(solve_discrete_are(A.numpy(), B.numpy(), Q.numpy(), R.numpy()))
    gain = -torch.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    torch.testing.assert_close(found.gains[:, 0], gain.expand(4, -1, -1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.costates[:, 0], x0 @ P, rtol=1e-9, atol=1e-9)
    one = planners.lqr(A, B, Q, R, x0[0], 200)
    torch.testing.assert_close(one.states[0], found.states[0])


def test_gradcheck():
    tensors = problem(n=2, m=1, batch=2)

    def solution(*values):
        found = planners.lqr(*values, 3)
        return found.states, found.controls

    assert torch.autograd.gradcheck(solution, tensors)


def test_float32_and_only_some_gradients():
    A, B, Q, R, x0 = (x.detach().float() for x in problem())
    A.requires_grad_()
    planners.lqr(A, B, Q, R, x0, 5).controls.sum().backward()
    assert A.grad.isfinite().all() and A.grad.abs().sum() > 0


def test_bad_problems_are_named():
    A, B, Q, R, x0 = (x.detach() for x in problem())
    with pytest.raises(InputError, match=r"sample 0 does not rise with every control at step 4"):
        planners.lqr(A, torch.zeros_like(B), Q, torch.zeros_like(R), x0, 5)
    indefinite = R.expand(4, 2, 2).clone()
    indefinite[2] = -100 * R
    with pytest.raises(InputError, match="sample 2 does not rise"):
        planners.lqr(A, B, Q, indefinite, x0, 5)
    with pytest.raises(InputError, match="NaN or infinite"):
        planners.lqr(A, B, Q, R, x0 * torch.nan, 5)
    with pytest.raises(InputError, match="horizon is at least 1"):
        planners.lqr(A, B, Q, R, x0, 0)
    with pytest.raises(ShapeError, match=r"B has shape \(2, 2\)"):
        planners.lqr(A, B[:2], Q, R, x0, 5)
