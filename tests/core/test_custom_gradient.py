import math

import pytest
import torch

import gradpath as gp
from gradpath import cli, distances, perception, planners, render, sim
from gradpath.kernel_registry import registry
from gradpath.proof import prove

F64 = torch.float64


AREAS = (
    distances,
    perception,
    planners,
    render,
    sim,
)  # importing them registers their operations, before any test


@pytest.fixture(autouse=True)
def own_registry():
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


def product(name="product", kind="exact", samples=None):
    def make(batch):
        generator = torch.Generator().manual_seed(batch)
        return {
            "a": torch.randn(batch, 2, generator=generator),
            "b": torch.randn(batch, 2, generator=generator),
        }

    @gp.custom_gradient(name, kind=kind, samples=samples or make)
    def product(a, b, power=2):
        return a**power * b

    return product


def right(ctx, a, b, power, y, dy):
    return power * a ** (power - 1) * b * dy, a**power * dy, None


def test_an_exact_rule_is_proven_registered_and_used():
    op = product()
    op.backward(right)
    assert op.proof.passed and op.proof.error < 1e-8
    assert registry["product"].call is op and registry["product"].module == __name__
    a, b = torch.randn(3, 2, dtype=F64, requires_grad=True), torch.randn(3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(op, (a, b))
    assert torch.autograd.gradgradcheck(op, (a, b))
    torch.testing.assert_close(op(a, b=b, power=3), a**3 * b)


def test_a_wrong_rule_is_refused_with_input_index_expected_and_got():
    op = product(samples=lambda batch: (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])))

    def wrong(ctx, a, b, power, y, dy):
        grad_b = a**power * dy
        grad_b[0, 1] += 1.0
        return power * a ** (power - 1) * b * dy, grad_b, None

    with pytest.raises(gp.GradientError) as error:
        op.backward(wrong)
    text = str(error.value)
    assert text.startswith('operation "product": the gradient of input "b"[0, 1] is wrong: expected ')
    assert "(1 of 2 elements differ)" in text
    expected, got = (float(text.split(word)[1].split()[0].strip(",")) for word in ("expected ", "got "))
    assert got - expected == pytest.approx(1.0)
    assert "product" not in registry
    with pytest.raises(gp.ContractError, match="no backward rule yet"):
        op(torch.ones(1, 2), torch.ones(1, 2))


@pytest.mark.parametrize("factor", [0.9999, 1.001, -1.0, math.nan])
def test_small_and_large_errors_are_seen(factor):
    op = product(samples=lambda: {"a": torch.tensor([[5.0, 7.0]]), "b": torch.tensor([[30.0, 20.0]])})
    with pytest.raises(gp.GradientError):
        op.backward(lambda ctx, a, b, power, y, dy: (2 * a * b * dy, factor * a**2 * dy, None))


def test_a_surrogate_says_by_how_much_it_differs():
    op = product(kind="surrogate")
    op.backward(lambda ctx, a, b, power, y, dy: (2 * a * b * dy * 2, a**2 * dy * 2, None))
    assert op.proof.cosine == pytest.approx(1.0) and op.proof.relative_error == pytest.approx(1.0)
    assert "surrogate" in str(op.proof) and "relative error 1" in str(op.proof)
    assert registry["product"].kind == "surrogate"


def test_a_rule_that_is_not_finite_is_refused_even_as_a_surrogate():
    with pytest.raises(gp.GradientError, match="got nan"):
        product(kind="surrogate").backward(lambda ctx, a, b, power, y, dy: (dy * math.nan, dy, None))


def test_several_outputs_and_an_output_that_is_an_input():
    @gp.custom_gradient("split", samples=(torch.randn(2, 3),))
    def split(x):
        return x, x.sum(-1), x.argmax(-1)

    @split.backward
    def _(ctx, x, outputs, gradients):
        assert len(outputs) == 3
        return gradients[0] + gradients[1][..., None]

    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    same, total, index = split(x)
    assert not index.requires_grad
    (same.sum() + total.sum()).backward()
    torch.testing.assert_close(x.grad, torch.full((2, 3), 2.0, dtype=F64))


def test_refusals():
    with pytest.raises(gp.InputError, match="one of exact, surrogate"):
        product(kind="approximate")
    op = product()
    with pytest.raises(gp.ContractError, match=r"gave 1 gradients for 3 inputs \(a, b, power\)"):
        op.backward(lambda ctx, *values: values[-1])
    with pytest.raises(gp.ShapeError, match=r'input "a" is \(\), expected \(1, 2\)'):
        op.backward(lambda ctx, a, b, power, y, dy: (dy.sum(), dy, None))
    op.backward(right)
    with pytest.raises(gp.InputError, match="already"):
        op.backward(right)
    with pytest.raises(gp.InputError, match="registered already"):
        product()
    with pytest.raises(gp.InputError, match="gives other values when called again"):
        prove("noise", "exact", lambda x: x + torch.rand(3), {"x": torch.ones(3)})
    with pytest.raises(gp.GradientError, match="no output has a gradient"):
        prove("cut", "exact", lambda x: x.detach(), {"x": torch.ones(3)})
    with pytest.raises(gp.InputError, match="nothing to differentiate"):
        prove("none", "exact", lambda x: x, {"x": 3})


def test_gradcheck_lists_and_fails(capsys):
    op = product()
    op.backward(right)
    assert cli.main(["gradcheck", "product"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split()[:2] == ["product", "exact"] and "1 of 1 gradients" in shown
    op._rule = lambda ctx, a, b, power, y, dy: (a * dy, b * dy, None)
    assert cli.main(["gradcheck", "product"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown and 'input "a"' in shown
    assert cli.main(["gradcheck", "prodcut"]) == 1
    assert '(did you mean "product"?)' in capsys.readouterr().err
    assert cli.main(["gradcheck", "--module", "no.such.module"]) == 1
    assert "cannot import no.such.module" in capsys.readouterr().err


def test_every_gradient_of_the_library_is_what_it_says(capsys):
    for name in [name for name, op in registry.items() if not op.module.startswith("gradpath.")]:
        del registry[name]
    code, shown = cli.main(["gradcheck"]), capsys.readouterr().out
    assert code == 0, shown
    header, *lines, blank, summary = shown.splitlines()
    assert header.split() == ["operation", "kind", "error", "cosine", "result"] and not blank
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert set(rows) == set(registry) and {"quadrotor_motion", "rasterize", "relax.sort"} <= set(rows)
    assert all(0 <= float(error) < 1e-5 for kind, error, _, _ in rows.values() if kind == "exact")
    assert summary == f"{len(registry)} of {len(registry)} gradients are what they say"
