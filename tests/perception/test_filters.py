import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import gradpath as gp
from gradpath import perception
from gradpath.errors import InputError, NonFiniteError

F64 = torch.float64
A = torch.tensor([[1.0, 0.1], [-0.2, 0.95]], dtype=F64)
Q = torch.tensor([[0.02, 0.005], [0.005, 0.03]], dtype=F64)
H = torch.tensor([[1.0, 0.3]], dtype=F64)
R = torch.tensor([[0.05]], dtype=F64)
START, SPREAD = torch.tensor([1.0, -0.5], dtype=F64), 0.3 * torch.eye(2, dtype=F64)


def measurements(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(covariance):
        return torch.linalg.cholesky(covariance) @ torch.randn(
            len(covariance), dtype=F64, generator=generator
        )

    x, every = START + noise(SPREAD), []
    for _ in range(steps):
        x = A @ x + noise(Q)
        every.append(H @ x + noise(R))
    return torch.stack(every)


def filtered(measured, batch=1):
    mean, covariance, likelihood = START.expand(batch, 2), SPREAD.expand(batch, 2, 2), 0.0
    history = []
    for y in measured:
        mean, covariance = perception.kalman_predict(mean, covariance, A, Q)
        mean, covariance, more = perception.kalman_update(mean, covariance, y.expand(batch, 1), H, R)
        likelihood = likelihood + more
        history.append((mean, covariance))
    return history, likelihood


def test_kalman_filter_is_conditioning_of_the_joint_gaussian():
    steps = 6
    measured = measurements(steps)
    # Every state and measurement is linear in the start and the noises: one big Gaussian, conditioned at once.
    size = 2 * (steps + 1)
    noise = torch.block_diag(SPREAD, *[Q] * steps)
    powers = [torch.linalg.matrix_power(A, k) for k in range(steps + 1)]
    flow = torch.zeros(size, size, dtype=F64)
    for row in range(steps + 1):
        for column in range(row + 1):
            flow[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = powers[row - column]
    joint = flow @ noise @ flow.T
    middle = torch.cat([p @ START for p in powers])
    see = torch.zeros(steps, size, dtype=F64)
    for k in range(steps):
        see[k, 2 * k + 2 : 2 * k + 4] = H[0]
    spread = see @ joint @ see.T + R * torch.eye(steps, dtype=F64)
    gain = joint @ see.T @ torch.linalg.inv(spread)
    mean = middle + gain @ (measured[:, 0] - see @ middle)
    covariance = joint - gain @ see @ joint
    history, likelihood = filtered(measured)
    torch.testing.assert_close(history[-1][0][0], mean[-2:])
    torch.testing.assert_close(history[-1][1][0], covariance[-2:, -2:])
    expected = MultivariateNormal(see @ middle, spread).log_prob(measured[:, 0])
    torch.testing.assert_close(likelihood[0], expected)


def test_kalman_gradients_and_missing_measurements():
    def run(mean, A, Q, H, R, y):
        mean, covariance = perception.kalman_predict(
            mean, SPREAD.expand(2, 2, 2), A, Q @ Q.mT, offset=mean[0]
        )
        return perception.kalman_update(mean, covariance, y, H, R @ R.mT)

    inputs = [torch.stack([START, -START]), A, Q + 0.3, H, R + 0.3, torch.tensor([[0.3], [-1.0]], dtype=F64)]
    assert gradcheck(run, [t.clone().requires_grad_() for t in inputs])
    inputs[-1] = torch.tensor([[0.3], [math.nan]], dtype=F64)
    leaves = [t.clone().requires_grad_() for t in inputs]
    mean, covariance, likelihood = run(*leaves)
    assert mean.isfinite().all() and likelihood[1] == 0
    before, _ = perception.kalman_predict(leaves[0], SPREAD.expand(2, 2, 2), A, Q, offset=leaves[0][0])
    torch.testing.assert_close(mean[1], before[1])
    slopes = torch.autograd.grad(mean.sum() + covariance.sum() + likelihood.sum(), leaves[:5])
    assert all(s.isfinite().all() for s in slopes)
    with pytest.raises(InputError, match="not positive definite"):
        perception.kalman_update(START[None], 0.0 * SPREAD[None], torch.zeros(1, 1, dtype=F64), H, 0.0 * R)


def particle_filter(measured, batch, count, seed, **options):
    generator = torch.Generator().manual_seed(seed)

    def noise(covariance):
        draw = torch.randn(batch, count, 2, dtype=F64, generator=generator)
        return draw @ torch.linalg.cholesky(covariance).mT

    particles = START + noise(SPREAD)
    weights = torch.full((batch, count), -math.log(count), dtype=F64)
    history = []
    for y in measured:
        particles, weights = perception.particle_step(
            particles,
            weights,
            lambda x: x @ A.mT + noise(Q),
            lambda x, y=y: Normal(x @ H[0], R[0, 0].sqrt()).log_prob(y),
            generator=generator,
            **options,
        )
        history.append(perception.particle_mean(particles, weights))
    return history


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_particle_filter_is_within_three_standard_errors_of_the_kalman_filter(mode):
    measured = measurements(8)
    exact, _ = filtered(measured)
    with gp.mode(mode):
        history = particle_filter(measured, batch=24, count=10_000, seed=0)
    for (mean, covariance), (true_mean, true_covariance) in zip(history, exact, strict=True):
        error = mean.std(0) / math.sqrt(len(mean))
        assert ((mean.mean(0) - true_mean[0]).abs() < 3 * error).all()
        assert (mean.std(0) < 0.02).all()
        torch.testing.assert_close(covariance.mean(0), true_covariance[0], rtol=0.02, atol=0)


def test_gradient_passes_soft_resampling():
    """The likelihood of two measurements by a parameter of the first, whose effect comes through the resampling."""
    first = torch.tensor(0.4, dtype=F64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(1, 50, 1, dtype=F64, generator=generator)
    weights = torch.log_softmax(-((particles[..., 0] - first) ** 2), -1)
    moved, after = perception.particle_step(
        particles, weights, lambda x: x, lambda x: -((x[..., 0] - 1.0) ** 2), generator=generator
    )
    (slope,) = torch.autograd.grad(perception.particle_mean(moved, after)[0].sum(), first)
    # Without resampling the mean is smooth in the parameter; soft resampling estimates its slope.
    value = torch.tensor(0.4, dtype=F64, requires_grad=True)
    grid = torch.linspace(-6, 6, 2001, dtype=F64)
    density = torch.softmax(-(grid**2) / 2 - (grid - value) ** 2 - (grid - 1.0) ** 2, 0)
    (expected,) = torch.autograd.grad((density * grid).sum(), value)
    assert slope.item() == pytest.approx(expected.item(), abs=0.15) and slope > 0.1


def test_a_measurement_that_no_particle_explains_is_an_error():
    particles, weights = torch.zeros(2, 5, 1), torch.full((2, 5), -math.log(5))
    with pytest.raises(NonFiniteError, match="sample 1 explains"):
        perception.particle_step(
            particles, weights, lambda x: x, lambda x: torch.tensor([[0.0], [-math.inf]]).expand(2, 5),
            generator=torch.Generator(),
        )  # fmt: skip
    with pytest.raises(InputError, match="share in"):
        perception.particle_step(
            particles, weights, lambda x: x, lambda x: x[..., 0], generator=torch.Generator(), mixing=0.0
        )


def test_likelihoods_equal_those_of_torch_and_coverage_counts():
    torch.manual_seed(0)
    head = perception.GaussianMixture(features=4, size=2, mixtures=3).double()
    feature, target = torch.randn(5, 4, dtype=F64), torch.randn(5, 2, dtype=F64)
    found = head.run({"feature": feature})
    each = Independent(Normal(found["mean"], found["log_std"].exp()), 1)
    expected = -MixtureSameFamily(Categorical(logits=found["logits"]), each).log_prob(target)
    torch.testing.assert_close(perception.mixture_nll(**found, target=target), expected)
    single = -Independent(Normal(found["mean"][:, 0], found["log_std"][:, 0].exp()), 1).log_prob(target)
    torch.testing.assert_close(
        perception.gaussian_nll(found["mean"][:, 0], found["log_std"][:, 0], target), single
    )
    draws = torch.randn(200_000, dtype=F64)
    share = perception.coverage(torch.zeros_like(draws), torch.zeros_like(draws), draws, 0.8)
    assert float(share) == pytest.approx(0.8, abs=0.005)


def test_a_trained_gaussian_head_knows_how_sure_it_is():
    torch.manual_seed(0)
    head = perception.GaussianMixture(features=1)
    x = torch.rand(4000, 1)
    y = 2.0 * x + torch.nn.functional.softplus(3.0 * x - 3.0) * torch.randn(4000, 1)  # noise that grows
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(400):
        found = head.run({"feature": x})
        loss = perception.mixture_nll(**found, target=y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {name: value.detach() for name, value in head.run({"feature": x}).items()}
    for half in (x[:, 0] < 0.5, x[:, 0] >= 0.5):
        share = perception.coverage(found["mean"][half, 0], found["log_std"][half, 0], y[half], 0.9)
        assert float(share) == pytest.approx(0.9, abs=0.03)


def test_heads_give_distances_and_directions():
    torch.manual_seed(0)
    feature = torch.randn(6, 8, requires_grad=True)
    distance = perception.CollisionDistance(8).run({"feature": feature})["distance"]
    assert distance.shape == (6,) and (distance > 0).all()
    head = perception.GoalDirection(8)
    torch.testing.assert_close(head.run({"feature": feature})["direction"].norm(dim=-1), torch.ones(6))
    torch.nn.init.zeros_(head.layer.weight)
    torch.nn.init.zeros_(head.layer.bias)
    still = head.run({"feature": feature})["direction"]
    assert torch.equal(still, torch.zeros(6, 3))
    assert torch.autograd.grad(still.sum(), feature)[0].isfinite().all()
