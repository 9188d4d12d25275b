import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import gradpath as gp
from gradpath import relax
from gradpath.kernel_registry import registry

F64 = torch.float64
N = 6
MASK = torch.tensor([[1.0, 1, 0, 1, 0, 0]], dtype=F64)
OUTCOMES = torch.arange(12.0, dtype=F64).reshape(6, 2)
KEYS = torch.tensor([[0.0, 0.0], [1.0, 0.3], [-1.0, 0.2], [0.4, -1.1], [2.0, 2.0]], dtype=F64)
MAP = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 4.0], [1.0, 1.0, 0.0]], dtype=F64)[..., None]
TRANSITIONS = torch.tensor([[0.3, -0.2], [0.11, 0.0]], dtype=F64)


def margin(scores, k=1):
    top = scores.sort(-1, descending=True).values
    return top[..., k - 1] - top[..., k]


def gaps(x):
    return x.sort().values.diff()


def half(x):
    """Distance to the nearest half."""
    return (x - torch.floor(x) - 0.5).abs()


def seeded(operation):
    return lambda x, tau: operation(x, tau=tau, generator=torch.Generator().manual_seed(3))


def noisy_scores(x):
    waiting = torch.empty(N, dtype=F64).exponential_(generator=torch.Generator().manual_seed(3))
    return x - waiting.log()


def noisy_logits(x):
    waiting = torch.empty(2, N, dtype=F64).exponential_(generator=torch.Generator().manual_seed(3))
    return x - waiting[0].log() + waiting[1].log()


def squared(x):
    return (x[:2] - KEYS).square().sum(-1)


def path_margin(x):
    scores = x.reshape(3, 2)
    totals = []
    for path in itertools.product((0, 1), repeat=3):
        score = sum(scores[t, s] for t, s in enumerate(path))
        totals.append(score + sum(TRANSITIONS[a, b] for a, b in itertools.pairwise(path)))
    return margin(torch.stack(totals))


def permutation_bound(x, tau):
    m, spread = gaps(x).min(), x.max() - x.min()
    small = 8 * N * tau * spread <= math.pi * m**2
    return 2 * N * tau / (math.pi * m) if small else torch.tensor(1.0)


def iou_bound(x, tau):
    union = ((x > 0).double() + MASK[0] - (x > 0) * MASK[0]).sum()
    return (2 * (-x.abs() / tau).exp().sum() / union).clamp_max(1.0)


@dataclass(frozen=True)
class Case:
    """A relaxed operation of six numbers, its documented bound, and whether that bounds the sum of the errors."""

    call: Callable
    bound: Callable
    total: bool = False


CASES = {
    "step": Case(relax.step, lambda x, tau: (-x.abs() / tau).exp()),
    "sign": Case(relax.sign, lambda x, tau: 2 * (-2 * x.abs() / tau).exp()),
    "round": Case(relax.round, lambda x, tau: (-half(x) / tau).exp()),
    "quantize": Case(
        lambda x, tau: relax.quantize(x, 0.7, tau=tau), lambda x, tau: 0.7 * (-half(x / 0.7) / tau).exp()
    ),
    "clip": Case(lambda x, tau: relax.clip(x, -1.0, 0.5, tau=tau), lambda x, tau: tau * math.log(2)),
    "maximum": Case(relax.maximum, lambda x, tau: tau * math.log(N)),
    "minimum": Case(relax.minimum, lambda x, tau: tau * math.log(N)),
    "absolute": Case(relax.absolute, lambda x, tau: tau),
    "norm": Case(relax.norm, lambda x, tau: tau),
    "visibility": Case(
        lambda x, tau: relax.visibility(x[:3], x[3:], tau=tau), lambda x, tau: (-(x[3:] - x[:3]).abs() / tau).exp()
    ),
    "success": Case(
        lambda x, tau: relax.success(x, 0.4, tau=tau), lambda x, tau: (-(0.4 - x).abs() / tau).exp()
    ),
    "collisions": Case(relax.collisions, lambda x, tau: (-x.abs() / tau).exp().sum()),
    "iou": Case(lambda x, tau: relax.iou(x[None], MASK, tau=tau), iou_bound),
    "one_hot": Case(relax.one_hot, lambda x, tau: 2 * (N - 1) * (-margin(x) / tau).exp(), total=True),
    "argmax": Case(relax.argmax, lambda x, tau: (N - 1) ** 2 * (-margin(x) / tau).exp()),
    "top_k": Case(
        lambda x, tau: relax.top_k(x, 2, tau=tau),
        lambda x, tau: 8 * (-margin(x, 2) / (2 * tau)).exp(),
        total=True,
    ),
    "categorical": Case(
        seeded(relax.categorical),
        lambda x, tau: 2 * (N - 1) * (-margin(noisy_scores(x)) / tau).exp(),
        total=True,
    ),
    "bernoulli": Case(seeded(relax.bernoulli), lambda x, tau: (-noisy_logits(x).abs() / tau).exp()),
    "where": Case(
        lambda x, tau: relax.where(x, 2 * x, x - 1, tau=tau),
        lambda x, tau: (x + 1).abs() * (-x.abs() / tau).exp(),
    ),
    "marginalize": Case(
        lambda x, tau: relax.marginalize(x, OUTCOMES, tau=tau),
        lambda x, tau: (N - 1) * (-margin(x) / tau).exp() * 11,
    ),
    "nearest": Case(
        lambda x, tau: relax.nearest(x[:2], KEYS, OUTCOMES[:5], k=4, tau=tau),
        lambda x, tau: 3 * (-margin(-squared(x)) / tau).exp() * 9,
    ),
    "grid": Case(
        lambda x, tau: relax.grid(MAP, x.reshape(3, 2), tau=tau),
        lambda x, tau: 5 * (-half(x.clamp(0, 2)).reshape(3, 2) / tau).exp().sum(-1, keepdim=True),
    ),
    "sort": Case(
        relax.sort, lambda x, tau: 0.0 if tau * gaps(x).max() <= 1 else x.max() - x.min()
    ),
    "rank": Case(relax.rank, lambda x, tau: 0.0 if gaps(x).min() >= tau else N - 1.0),
    "quantile": Case(
        lambda x, tau: relax.quantile(x, 0.3, tau=tau),
        lambda x, tau: 0.0 if tau * gaps(x).max() <= 1 else x.max() - x.min(),
    ),
    "permutation": Case(relax.permutation, permutation_bound),
    "chain": Case(
        lambda x, tau: relax.chain(x.reshape(1, 3, 2), TRANSITIONS, tau=tau),
        lambda x, tau: 2 * 8 * (-path_margin(x) / tau).exp(),
    ),
    "ctc": Case(
        lambda x, tau: relax.ctc(x.reshape(1, 3, 2).log_softmax(-1), torch.ones(1, 1, dtype=torch.long), tau=tau),
        lambda x, tau: tau * 3 * math.log(3),
    ),
    "dtw": Case(
        lambda x, tau: relax.dtw((x[:3, None] - x[3:]).square()[None], tau=tau),
        lambda x, tau: tau * 4 * math.log(3),
    ),
}  # fmt: skip


def soft_and_hard(case, x, tau):
    soft = case.call(x, tau=tau)
    with gp.mode("hard"):
        return soft, case.call(x, tau=tau)


def error_of(case, soft, hard):
    error = (soft - hard).abs()
    return error.sum() if case.total else error


def test_every_operation_has_a_case_and_is_registered():
    apart = {"Anneal", "perturbed", "relaxation", "scaled"}
    assert set(CASES) == set(relax.__all__) - apart
    assert {f"relax.{name}" for name in CASES} <= set(registry)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(
    x=st.lists(st.floats(-3, 3, width=32), min_size=N, max_size=N, unique=True),
    tau=st.floats(-4, 0.3).map(lambda e: 10.0**e),
)
def test_the_error_is_within_its_bound(name, x, tau):
    case = CASES[name]
    x = torch.tensor(x, dtype=F64)
    soft, hard = soft_and_hard(case, x, tau)
    assert soft.isfinite().all()
    # A tie that rounding makes or breaks is no error of the operation.
    assert (error_of(case, soft, hard) <= torch.as_tensor(case.bound(x, tau)) * (1 + 1e-6) + 1e-7).all()


@pytest.mark.parametrize("name", CASES)
def test_separated_decisions_are_hard_at_a_small_temperature(name):
    case, tau = CASES[name], 1e-4
    x = torch.tensor([0.15, -0.25, 0.7, 1.35, -1.2, 0.95], dtype=F64)
    bound = torch.as_tensor(case.bound(x, tau))
    assert (bound < 2e-2).all()  # else the next line shows nothing
    soft, hard = soft_and_hard(case, x, tau)
    assert (error_of(case, soft, hard) <= bound + 1e-9).all()


@pytest.mark.parametrize("name", CASES)
def test_straight_through_is_hard_forward_and_soft_backward(name):
    case, tau = CASES[name], 0.7
    x = torch.tensor([0.15, -0.25, 0.7, 1.35, -1.2, 0.95], dtype=F64, requires_grad=True)
    soft, hard = soft_and_hard(case, x, tau)
    with gp.mode("straight_through"):
        both = case.call(x, tau=tau)
    if name not in (
        "quantize",
        "quantile",
        "argmax",
        "marginalize",
        "nearest",
        "collisions",
    ):  # composed of others
        assert torch.equal(both, hard)
    torch.testing.assert_close(both, hard)
    seed = torch.randn(soft.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(soft, x, seed)
    assert expected.abs().sum() > 1e-6
    torch.testing.assert_close(torch.autograd.grad(both, x, seed)[0], expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_above_zero(name, tau):
    with pytest.raises(gp.InputError, match=f"relax.{name}: tau is above zero"):
        CASES[name].call(torch.arange(6.0), tau=tau)


def test_a_temperature_is_annealed():
    tau = relax.Anneal(1.0, 0.01, steps=4)
    seen = []
    for _ in range(6):
        seen.append(float(tau))
        tau.step()
    assert seen == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01])
    tau.position = 2
    torch.testing.assert_close(relax.step(torch.ones(1), tau=tau), torch.sigmoid(torch.tensor([10.0])))
    with pytest.raises(gp.InputError, match="steps is at least 1"):
        relax.Anneal(1.0, 0.1, 0)


class Grip(gp.Stage):
    contract = gp.Contract(inputs={"x": "B"}, outputs={"y": "B"}, gradient="relaxed")

    def __init__(self, tau, other):
        super().__init__()
        self.tau, self.other = tau, other

    def forward(self, x):
        return relax.step(x, tau=self.tau) * relax.sign(x, tau=self.other)


def test_an_annealed_stage_is_saved_where_it_stands(tmp_path):
    tau = relax.Anneal(1.0, 0.01, steps=4)
    stage = Grip(tau, tau)
    tau.step()
    gp.save(stage, tmp_path)
    found = gp.load(tmp_path, allow=(__name__,))
    assert float(found.tau) == float(tau) and found.tau is found.other
    x = torch.tensor([0.1, -0.3])
    assert torch.equal(found(x), stage(x))
    found.tau.step()
    tau.step()
    assert float(found.other) == float(tau) == pytest.approx(0.1)


def test_hard_samples_are_exactly_distributed():
    draws, generator = 100_000, torch.Generator().manual_seed(0)
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0, -2.5])
    with gp.mode("hard"):
        counts = relax.categorical(logits.expand(draws, 5), generator=generator).sum(0)
        ones = relax.bernoulli(torch.tensor([0.8]).expand(draws), generator=generator).sum().item()
    expected = draws * torch.softmax(logits.double(), 0)
    assert stats.chisquare(counts.double(), expected).pvalue > 1e-3
    p = 1 / (1 + math.exp(-0.8))
    assert stats.chisquare([ones, draws - ones], [draws * p, draws * (1 - p)]).pvalue > 1e-3


def pool_adjacent_violators(values):
    """The closest descending sequence, by merging."""
    blocks = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] < blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    return torch.tensor([total / count for total, count in blocks for _ in range(count)], dtype=F64)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_sort_and_rank_are_the_published_projections(tau):
    x = torch.randn(20, 7, dtype=F64, generator=torch.Generator().manual_seed(1))
    places = torch.arange(7, 0, -1, dtype=F64)
    for row, soft, ranks in zip(
        x, relax.sort(x, tau=tau, descending=True), relax.rank(x, tau=tau), strict=True
    ):
        order, index = row.sort(descending=True)
        torch.testing.assert_close(
            soft, places / tau - pool_adjacent_violators((places / tau - order).tolist())
        )
        projected = order / tau - pool_adjacent_violators((order / tau - places).tolist())
        torch.testing.assert_close(ranks[index], projected)
    torch.testing.assert_close(relax.rank(x, tau=tau, descending=True), 8 - relax.rank(x, tau=tau))


def test_permutation_is_doubly_stochastic_and_monotone():
    x = torch.randn(5, 6, dtype=F64, generator=torch.Generator().manual_seed(2))
    p = relax.permutation(x, tau=0.2)
    ones = torch.ones(5, 6, dtype=F64)
    torch.testing.assert_close(p.sum(-1), ones)
    torch.testing.assert_close(p.sum(-2), ones)
    with gp.mode("hard"):
        torch.testing.assert_close((relax.permutation(x) @ x[..., None])[..., 0], x.sort().values)


def test_ctc_at_one_is_the_ctc_loss_and_hard_is_the_best_alignment():
    generator = torch.Generator().manual_seed(4)
    logp = torch.randn(3, 6, 4, dtype=F64, generator=generator).log_softmax(-1)
    labels = torch.tensor([[1, 1, 2], [3, 2, 3], [2, 2, 2]])
    lengths = torch.full((3,), 6), torch.full((3,), 3)
    expected = torch.nn.functional.ctc_loss(logp.transpose(0, 1), labels, *lengths, reduction="none")
    torch.testing.assert_close(relax.ctc(logp, labels), expected)
    with gp.mode("hard"):
        got = relax.ctc(logp, labels)
        empty = relax.ctc(logp, labels[:, :0])
    for row, target, cost in zip(logp, labels, got, strict=True):
        best = -math.inf
        for path in itertools.product(range(4), repeat=6):
            kept = [s for s, _ in itertools.groupby(path) if s]
            if kept == target.tolist():
                best = max(best, sum(float(row[t, s]) for t, s in enumerate(path)))
        assert cost.item() == pytest.approx(-best)
    torch.testing.assert_close(empty, -logp[..., 0].sum(-1))


def test_chain_has_the_marginals_of_paths():
    x = torch.randn(1, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(5))
    transitions = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(6))
    paths = list(itertools.product(range(3), repeat=4))
    scores = torch.stack([
        sum(x[0, t, s] for t, s in enumerate(p)) + sum(transitions[a, b] for a, b in itertools.pairwise(p))
        for p in paths
    ])  # fmt: skip
    one_hots = torch.nn.functional.one_hot(torch.tensor(paths), 3).double()
    expected = (torch.softmax(scores / 0.5, 0)[:, None, None] * one_hots).sum(0)
    torch.testing.assert_close(relax.chain(x, transitions, tau=0.5)[0], expected)
    with gp.mode("hard"):
        assert torch.equal(relax.chain(x, transitions)[0], one_hots[scores.argmax()])


def alignments(rows, columns):
    """All paths from the first cell to the last."""
    if (rows, columns) == (1, 1):
        return [[(0, 0)]]
    before = [(rows - 1, columns), (rows, columns - 1), (rows - 1, columns - 1)]
    return [[*path, (rows - 1, columns - 1)] for r, c in before if r and c for path in alignments(r, c)]


@pytest.mark.parametrize("shape", [(4, 3), (2, 5), (1, 4), (3, 1), (1, 1)])
def test_dtw_is_the_best_of_all_alignments_and_its_gradient_the_alignment(shape):
    costs = torch.rand(2, *shape, dtype=F64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    paths = alignments(*shape)
    totals = torch.stack([sum(costs.detach()[:, i, j] for i, j in path) for path in paths])
    visits = torch.zeros(len(paths), *shape, dtype=F64)
    for visit, path in zip(visits, paths, strict=True):
        for cell in path:
            visit[cell] = 1.0
    soft = relax.dtw(costs, tau=0.3)
    torch.testing.assert_close(soft, -0.3 * torch.logsumexp(-totals / 0.3, 0))
    expected = torch.einsum("pb,pij->bij", torch.softmax(-totals / 0.3, 0), visits)
    torch.testing.assert_close(torch.autograd.grad(soft.sum(), costs)[0], expected)
    with gp.mode("hard"):
        hard = relax.dtw(costs)
    torch.testing.assert_close(hard, totals.amin(0))
    torch.testing.assert_close(torch.autograd.grad(hard.sum(), costs)[0], visits[totals.argmin(0)])


def test_hard_samples_learn_by_their_score():
    """The policy-gradient version of a decision: hard samples, their log-probability, and what they cost."""
    logits = torch.tensor([0.2, -0.4, 0.1], dtype=F64, requires_grad=True)
    prices = torch.tensor([1.0, 3.0, -2.0], dtype=F64)
    with gp.mode("hard"):
        picked = relax.categorical(logits.expand(200_000, 3), generator=torch.Generator().manual_seed(0))
    assert set(picked.unique().tolist()) == {0.0, 1.0}
    score = (picked * torch.log_softmax(logits, -1)).sum(-1)
    found = torch.autograd.grad(gp.estimate.score_function(score, picked @ prices), logits)[0]
    expected = torch.autograd.grad(torch.softmax(logits, -1) @ prices, logits)[0]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_perturbed_maximizers():
    """Two scores: the first wins with probability Phi(difference / (sqrt 2 tau))."""
    x = torch.tensor([[0.3, 0.1]], dtype=F64, requires_grad=True)

    def decide(scores):
        return torch.nn.functional.one_hot(scores.argmax(-1), 2).to(scores.dtype)

    def run():
        return relax.perturbed(decide, x, generator=torch.Generator().manual_seed(0), samples=40_000, tau=0.2)

    difference, width = 0.2, math.sqrt(2) * 0.2
    expected = stats.norm.cdf(difference / width)
    slope = stats.norm.pdf(difference / width) / width
    y = run()
    assert y[0, 0].item() == pytest.approx(expected, abs=0.01)
    (gradient,) = torch.autograd.grad(y[0, 0], x)
    torch.testing.assert_close(gradient, torch.tensor([[slope, -slope]], dtype=F64), atol=0.06, rtol=0)
    with gp.mode("hard"):
        assert run().tolist() == [[1.0, 0.0]]
    with gp.mode("straight_through"):
        both = run()
    assert both.tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(torch.autograd.grad(both[0, 0], x)[0], gradient)


@settings(max_examples=60, deadline=None)
@given(
    x=st.lists(st.floats(-3, 3, width=32), min_size=N, max_size=N, unique=True),
    tau=st.floats(-4, 1).map(lambda e: 10.0**e),
)
def test_the_error_of_perturbed_decisions_is_within_its_bound(x, tau):
    scores = torch.tensor([x], dtype=F64)

    def decide(scores):
        return 5.0 * torch.nn.functional.one_hot(scores.argmax(-1), N).to(F64)

    def run(name):
        with gp.mode(name):
            generator = torch.Generator().manual_seed(2)
            return relax.perturbed(decide, scores, generator=generator, samples=50, tau=tau)

    noise = torch.randn(50, 1, N, dtype=F64, generator=torch.Generator().manual_seed(2))
    changed = (decide(scores + tau * noise) != decide(scores)).any(-1).double().mean()
    assert (run("soft") - run("hard")).abs().max() <= 5.0 * changed + 1e-12


def test_gradients_at_the_corners_are_finite():
    x = torch.zeros(2, 3, requires_grad=True)
    for operation in (relax.absolute, relax.norm, relax.maximum, relax.step, relax.sort, relax.top_k):
        for name in ("soft", "hard", "straight_through"):
            with gp.mode(name):
                y = operation(x, 1) if operation is relax.top_k else operation(x)
            if y.requires_grad:
                assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_float32_stays_float32_at_small_temperatures():
    x = torch.tensor([0.15, -0.25, 0.7, 1.35, -1.2, 0.95])
    for name, case in CASES.items():
        if name in ("iou", "marginalize", "nearest", "grid", "chain", "categorical", "bernoulli"):
            continue  # their other inputs are float64
        soft, hard = soft_and_hard(case, x, 1e-4)
        assert soft.dtype == torch.float32
        assert (error_of(case, soft, hard) <= torch.as_tensor(case.bound(x, 1e-4)) + 1e-5).all(), name


def test_refusals():
    x = torch.zeros(2, 3)
    generator = torch.Generator()
    for call, message in [
        (lambda: relax.top_k(x, 3), "k is from 1 to 2"),
        (lambda: relax.quantile(x, 1.5), r"q is in \[0, 1\]"),
        (lambda: relax.clip(x, 1.0, 0.0), "low is below high"),
        (lambda: relax.quantize(x, 0.0), "size is above zero"),
        (lambda: relax.nearest(x, x, x, k=3), "k is from 1 to 2"),
        (lambda: relax.perturbed(torch.sign, x, generator=generator, samples=0), "at least 1"),
    ]:
        with pytest.raises(gp.InputError, match=message):
            call()
    for call in (
        lambda: relax.iou(x, x[:1]),
        lambda: relax.marginalize(x, x),
        lambda: relax.nearest(x, x[:, :2], x),
        lambda: relax.grid(x[..., None], x),
        lambda: relax.chain(x, x),
        lambda: relax.ctc(x, x.long()),
        lambda: relax.dtw(x),
    ):
        with pytest.raises(gp.ShapeError, match="expected"):
            call()
