import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.autograd import gradcheck

import gradpath as gp
from gradpath import perception, sim
from gradpath.errors import InputError

F64 = torch.float64


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_stereo_error_grows_with_the_square_of_the_depth():
    sensor = perception.StereoDepth(focal=100.0, baseline=0.1, noise=0.05, subpixel=0.0, dropout=0.0)
    spreads = []
    for depth in (1.0, 2.0, 4.0):
        image = torch.full((1, 1, 200, 200), depth, dtype=F64)
        spreads.append(float((sensor(image, seeded())["depth"] - depth).std()))
    # d(depth) = depth^2 / (focal baseline) * d(disparity)
    assert spreads == pytest.approx([0.005, 0.02, 0.08], rel=0.03)


def test_stereo_rounds_disparity_and_drops_pixels():
    sensor = perception.StereoDepth(focal=100.0, baseline=0.1, noise=0.0, subpixel=0.5, dropout=0.2)
    depth = 1.0 + 5.0 * torch.rand(4, 1, 40, 50, dtype=F64, generator=seeded())
    with gp.mode("hard"):
        found = sensor.run({"depth": depth})
    levels = 10.0 / found["depth"] / 0.5
    torch.testing.assert_close(levels, levels.round())
    assert (10.0 / found["depth"] - 10.0 / depth).abs().max() <= 0.25 + 1e-9
    flat = torch.full((4, 1, 40, 50), 3.0, dtype=F64)
    measured = sensor(flat, seeded(1))
    assert float(1.0 - measured["valid"].mean()) == pytest.approx(0.2, abs=0.02)
    assert (measured["depth"][measured["valid"] == 0] == 0).all()
    again = sensor(flat, seeded(1))
    assert torch.equal(measured["depth"], again["depth"])


def test_stereo_loses_more_pixels_at_edges():
    depth = torch.full((50, 1, 20, 20), 2.0)
    depth[..., 10:] = 4.0
    valid = perception.StereoDepth(dropout=0.0, edge_dropout=0.5)(depth, seeded())["valid"]
    lost = 1.0 - valid.mean((0, 1, 2))
    assert ((lost[9:11] - 0.5).abs() < 0.06).all() and lost[:9].sum() + lost[11:].sum() == 0


def test_stereo_holes_have_no_gradient_and_the_rest_a_finite_one():
    depth = (
        torch.tensor([2.0, math.nan, math.inf, 0.1, 50.0, 3.0], dtype=F64)
        .reshape(1, 1, 2, 3)
        .requires_grad_()
    )
    sensor = perception.StereoDepth(dropout=0.0, edge_dropout=0.0)
    found = sensor.run({"depth": depth, "generator": seeded()})
    assert found["valid"].flatten().tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert found["depth"].isfinite().all()
    (slope,) = torch.autograd.grad(found["depth"].sum(), depth)
    assert slope.isfinite().all() and ((slope != 0) == (found["valid"] == 1)).all()
    clear = (1.0 + 3.0 * torch.rand(2, 1, 3, 4, dtype=F64, generator=seeded())).requires_grad_()
    assert gradcheck(lambda d: sensor(d, seeded(3))["depth"], (clear,))
    with pytest.raises(InputError, match=r"dropout=1\.5"):
        perception.StereoDepth(dropout=1.5)


def plain(**options):
    return perception.RgbSensor(**{"shot_noise": 0.0, "read_noise": 0.0, **options})


LIGHT = torch.rand(2, 3, 9, 11, dtype=F64, generator=seeded(5))


def test_rgb_gamma_exposure_and_saturation():
    with gp.mode("hard"):
        image = plain(gamma=2.2)(LIGHT)
        torch.testing.assert_close(image, LIGHT ** (1 / 2.2), rtol=0, atol=0.02)
        bright = plain(gamma=1.0)(LIGHT, exposure=torch.tensor([1.0, 10.0], dtype=F64))
        torch.testing.assert_close(
            bright, (LIGHT * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)).clamp(0, 1), rtol=0, atol=1e-4
        )
    soft = plain(gamma=1.0)(10.0 * LIGHT)
    assert soft.max() <= 1.0 and soft.min() >= 0.0


def test_rgb_blur_is_gaussian_and_motion_blur_moves():
    blurred = plain(gamma=1.0, blur=1.0)
    image = 0.2 + 0.6 * LIGHT
    expected = np.stack(
        [[gaussian_filter(c, 1.0, mode="nearest", truncate=3.0) for c in i] for i in image.numpy()]
    )
    with gp.mode("hard"):
        torch.testing.assert_close(blurred(image), torch.from_numpy(expected), rtol=0, atol=1e-5)
        dot = torch.zeros(1, 3, 9, 15, dtype=F64)
        dot[..., 4, 7] = 0.9
        streak = plain(gamma=1.0, motion_steps=9)(dot, motion=torch.tensor([[4.0, 0.0]], dtype=F64))[0, 0]
    assert (streak[4, 5:10] > 0.05).all() and streak[:4].sum() + streak[5:].sum() < 2e-3
    assert float(streak.sum()) == pytest.approx(0.9, abs=2e-3)


def test_rgb_noise_has_its_scale_and_gradients_are_exact():
    grey = torch.full((1, 3, 200, 200), 0.5, dtype=F64)
    sensor = perception.RgbSensor(gamma=1.0, shot_noise=0.04, read_noise=0.01)
    spread = float(sensor(grey, generator=seeded()).std())
    assert spread == pytest.approx(math.hypot(0.04 * math.sqrt(0.5), 0.01), rel=0.02)
    noisy = perception.RgbSensor(blur=0.7, motion_steps=3, tau=0.05)
    image = LIGHT[:, :, :5, :6].clone().requires_grad_()
    inputs = (
        image,
        torch.tensor([0.9, 1.2], dtype=F64, requires_grad=True),
        torch.tensor([2.0, 1.5], dtype=F64, requires_grad=True),
        torch.tensor([[1.3, 0.4], [-0.7, 0.2]], dtype=F64, requires_grad=True),
    )
    assert gradcheck(lambda *v: noisy(*v, seeded(2)), inputs)
    dark = torch.zeros(1, 3, 4, 4, requires_grad=True)
    perception.RgbSensor()(dark, generator=seeded()).sum().backward()
    assert dark.grad.isfinite().all()
    with pytest.raises(InputError, match="gamma=0"):
        perception.RgbSensor(gamma=0)


def test_randomized_worlds_differ_within_their_ranges():
    body = sim.Quadrotor(dt=0.1)
    stage = perception.DomainRandomization(
        {"mass": (0.5, 2.0), "drag": (0.9, 1.1), "thrust_lag": (1.0, 1.0), "rate_lag": (0.8, 1.2),
         "max_thrust": (0.9, 1.0), "max_rates": (1.0, 1.1)},
        sizes={"drag": 3, "max_rates": 3},
    )  # fmt: skip
    nominal = body.parameters_per_world(1000)
    drawn = stage.run({"parameters": nominal, "generator": seeded()})["parameters"]
    ratio = drawn["mass"] / nominal["mass"]
    assert 0.5 <= ratio.min() < 0.52 and 1.95 < ratio.max() <= 2.0
    assert abs(float(ratio.log().mean())) < 0.05
    assert torch.equal(drawn["thrust_lag"], nominal["thrust_lag"])
    assert not torch.equal(
        drawn["drag"][:, 0] / drawn["drag"][:, 2], nominal["drag"][:, 0] / nominal["drag"][:, 2]
    )
    state = body.hover_state(1000)
    body.run({"state": state, "control": torch.zeros(1000, 4), "parameters": drawn})
    assert stage.run({"parameters": nominal})["parameters"]["mass"] is nominal["mass"]
    mass = nominal["mass"].clone().requires_grad_()
    found = stage.run({"parameters": {**nominal, "mass": mass}, "generator": seeded()})["parameters"]["mass"]
    torch.testing.assert_close(torch.autograd.grad(found.sum(), mass)[0], ratio)
    with pytest.raises(InputError, match='factors of "mass"'):
        perception.DomainRandomization({"mass": (2.0, 0.5)})
