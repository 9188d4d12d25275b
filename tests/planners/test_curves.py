import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BPoly, BSpline, CubicSpline, make_interp_spline

from gradpath import geometry, planners
from gradpath.errors import InputError, ShapeError

F64 = torch.float64
SHARE = torch.linspace(0.0, 1.0, 23, dtype=F64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "order, powers",
    [(4, {4: 35, 5: -84, 6: 70, 7: -20}), (3, {3: 10, 4: -15, 5: 6}), (2, {2: 3, 3: -2})],
)
def test_one_piece_from_rest_to_rest_is_the_known_polynomial(order, powers):
    waypoints = random(2, 2, 3)
    curve = planners.minimum_snap(waypoints, torch.tensor([[2.0], [0.5]], dtype=F64), order=order)
    blend = sum(factor * SHARE**power for power, factor in powers.items())
    expected = waypoints[:, 0] + blend[:, None, None] * (waypoints[:, 1] - waypoints[:, 0])
    torch.testing.assert_close(curve.at(SHARE[:, None] * curve.duration), expected)


def test_minimum_snap_is_the_interpolating_spline_of_degree_seven():
    durations = torch.tensor([[1.0, 0.5, 2.0, 0.8]], dtype=F64)
    waypoints, start, end = random(1, 5, 2), random(1, 3, 2, seed=1), random(1, 3, 2, seed=2)
    curve = planners.minimum_snap(waypoints, durations, start=start, end=end)
    knots = np.concatenate([[0.0], durations[0].cumsum(0).numpy()])
    ends = tuple([(k + 1, value[0, k].numpy()) for k in range(3)] for value in (start, end))
    spline = make_interp_spline(knots, waypoints[0].numpy(), k=7, bc_type=ends)
    times = SHARE[:-1] * knots[-1]
    for derivative in range(6):
        expected = torch.from_numpy(spline(times.numpy(), nu=derivative))
        torch.testing.assert_close(curve.at(times[:, None], derivative)[:, 0], expected, rtol=1e-7, atol=1e-7)
    cubic = planners.minimum_snap(waypoints, durations, order=2)
    expected = torch.from_numpy(CubicSpline(knots, waypoints[0].numpy(), bc_type="clamped")(times.numpy()))
    torch.testing.assert_close(cubic.at(times[:, None])[:, 0], expected)


def test_its_energy_is_the_integral_and_is_least():
    durations = torch.tensor([[1.0, 0.5, 2.0]], dtype=F64)
    curve = planners.minimum_snap(random(1, 4, 2), durations)
    fine = torch.linspace(0.0, 1.0, 200_001, dtype=F64)
    snap = curve.at(fine[:, None] * curve.duration, 4).square().sum(-1)
    integral = torch.trapezoid(snap[:, 0], fine * curve.duration)
    torch.testing.assert_close(curve.energy(), integral[None], rtol=1e-6, atol=0)
    # Moving the inner waypoints is the only freedom left, so compare with a curve bent by a bump that keeps them.
    bump = torch.zeros_like(curve.coefficients)
    bump[0, 1, 4:] = torch.tensor([1.0, -4.0, 6.0, -4.0])[:, None] * 0.1
    assert planners.Curve(curve.coefficients + bump, durations).energy() > curve.energy()


def test_gradients_of_curves():
    waypoints, durations = random(2, 4, 2).requires_grad_(), (1.0 + random(2, 3).abs()).requires_grad_()
    times = (0.3 * torch.arange(1, 5, dtype=F64)[:, None] * torch.ones(2, dtype=F64)).requires_grad_()

    def snap(waypoints, durations, times):
        curve = planners.minimum_snap(waypoints, durations)
        return curve.at(times, 1), curve.energy()

    assert torch.autograd.gradcheck(snap, (waypoints, durations, times), rtol=1e-5, atol=1e-4)
    points, duration = (
        random(2, 6, 2).requires_grad_(),
        torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(
        lambda p, d, t: planners.bspline(p, d).at(t, 2), (points, duration, times)
    )
    assert torch.autograd.gradcheck(lambda p, d, t: planners.bezier(p, d).at(t), (points, duration, times))


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_bspline_equals_scipy(degree):
    points, pieces = random(2, 8, 3), 8 - degree
    curve = planners.bspline(points, torch.tensor([2.0, 3.0], dtype=F64), degree=degree)
    knots = np.concatenate([[0.0] * degree, np.linspace(0, 1, pieces + 1), [1.0] * degree])
    for sample, duration in enumerate((2.0, 3.0)):
        spline = BSpline(knots * duration, points[sample].numpy(), degree)
        times = SHARE[:-1] * duration
        for derivative in range(degree + 1):
            expected = torch.from_numpy(spline(times.numpy(), nu=derivative))
            ours = curve.at(times[:, None].expand(-1, 2), derivative)[:, sample]
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(curve.at(curve.duration[None])[0], points[:, -1])


def test_bezier_equals_scipy():
    points = random(1, 2, 5, 3)
    curve = planners.bezier(points, torch.tensor([[1.0, 0.5]], dtype=F64))
    times = SHARE * 1.5
    expected = BPoly(points[0].transpose(0, 1).numpy(), [0.0, 1.0, 1.5])(times.numpy())
    torch.testing.assert_close(curve.at(times[:, None])[:, 0], torch.from_numpy(expected))
    sampled = curve.sample(7)
    assert set(sampled) == {"time", "position", "velocity", "acceleration", "jerk"}
    assert sampled["position"].shape == (7, 1, 3)


def test_times_of_a_trapezoid_and_their_slope():
    waypoints = torch.tensor([[[0.0], [0.5], [10.0]]], dtype=F64, requires_grad=True)
    times = planners.trapezoidal_times(waypoints, 2.0, 4.0)
    torch.testing.assert_close(
        times, torch.tensor([[2 * math.sqrt(0.5 / 4.0), 9.5 / 2.0 + 2.0 / 4.0]], dtype=F64)
    )
    assert torch.autograd.gradcheck(lambda w: planners.trapezoidal_times(w, 2.0, 4.0), (waypoints,))
    with pytest.raises(InputError, match="waypoints 1 and 2 of curve 0"):
        planners.trapezoidal_times(torch.tensor([[[0.0], [1.0], [1.0]]]), 1.0, 1.0)


def test_optimal_time_of_one_piece_is_the_closed_form():
    distance = torch.tensor([1.0, 3.0], dtype=F64, requires_grad=True)
    weight = torch.tensor([5.0, 2.0], dtype=F64, requires_grad=True)
    waypoints = torch.stack([torch.zeros_like(distance), distance], -1)[..., None]
    times = planners.optimal_times(waypoints, weight, torch.full((2, 1), 3.0, dtype=F64))
    expected = (7.0 * 100800.0 * distance**2 / weight) ** (1 / 8)  # energy 100800 d^2 / T^7
    torch.testing.assert_close(times[:, 0], expected)
    for ours, theirs in zip(
        torch.autograd.grad(times.sum(), (distance, weight)),
        torch.autograd.grad(expected.sum(), (distance, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(InputError, match="slower is always better"):
        planners.optimal_times(waypoints, -weight, torch.ones(2, 1, dtype=F64))


def test_flat_state_flies_the_path():
    curve = planners.minimum_snap(
        torch.tensor([[[0.0, 0.0, 1.0], [2.0, 1.0, 2.0], [3.0, -1.0, 1.0]]], dtype=F64),
        torch.tensor([[1.0, 1.2]], dtype=F64),
    )
    step = 1e-5
    times = torch.linspace(0.1, 2.0, 9, dtype=F64)[:, None]

    def at(times):
        path = {
            name: curve.at(times, k)
            for k, name in enumerate(("position", "velocity", "acceleration", "jerk"))
        }
        return path, planners.flat_state(path, 0.3 + 0.5 * times, torch.full_like(times, 0.5), mass=0.8)

    path, state = at(times)
    rotation = state["pose"][..., 3:]
    up = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    force = geometry.quat_rotate(rotation, up) * state["thrust"][..., None]
    torch.testing.assert_close(force / 0.8 - 9.81 * up, path["acceleration"])
    before, after = (at(times + s * step)[1]["pose"][..., 3:] for s in (-1, 1))
    turned = geometry.quat_log(geometry.quat_multiply(geometry.quat_conjugate(before), after)) / (2 * step)
    torch.testing.assert_close(state["rates"], turned, rtol=1e-6, atol=1e-6)
    yaw = 0.3 + 0.5 * times
    level = torch.stack([torch.cos(yaw), torch.sin(yaw), torch.zeros_like(yaw)], -1)
    seen = geometry.quat_rotate(geometry.quat_conjugate(rotation), level)
    assert seen[..., 1].abs().max() < 1e-12 and seen[..., 0].min() > 0
    leaves = [path[k].detach().requires_grad_() for k in ("position", "velocity", "acceleration", "jerk")]
    assert torch.autograd.gradcheck(
        lambda *p: tuple(planners.flat_state(dict(zip(path, p, strict=True)), times).values()), leaves
    )
    falling = {name: torch.zeros(1, 3) for name in path} | {"acceleration": torch.tensor([[0.0, 0.0, -9.81]])}
    with pytest.raises(InputError, match="falls freely"):
        planners.flat_state(falling, torch.zeros(1))


def test_bad_curves_are_refused():
    with pytest.raises(InputError, match=r"durations of curve 1 are \[0.0\]"):
        planners.minimum_snap(random(2, 2, 3), torch.tensor([[1.0], [0.0]], dtype=F64))
    with pytest.raises(ShapeError, match=r"durations \(B, S\)"):
        planners.minimum_snap(random(2, 3, 3), torch.ones(2, 1, dtype=F64))
    with pytest.raises(InputError, match="NaN or infinite"):
        planners.minimum_snap(random(2, 2, 3) * torch.nan, torch.ones(2, 1, dtype=F64))
    points = random(2, 4, 3)
    points[1, 2, 0] = torch.nan
    for curve in (planners.bspline, planners.bezier):
        with pytest.raises(InputError, match="control point of curve 1 is NaN"):
            curve(points, torch.ones(2, dtype=F64))
    with pytest.raises(ShapeError, match="above the degree 3"):
        planners.bspline(random(1, 3, 2), torch.ones(1, dtype=F64))
    with pytest.raises(ShapeError, match="one column per curve"):
        planners.bezier(random(2, 3, 2), torch.ones(2, dtype=F64)).at(torch.ones(3, dtype=F64))
