import math

import pytest
import torch
from torch.autograd import gradcheck

from gradpath.errors import InputError
from gradpath.perception import Blindfold, DepthEncoder, DepthSensor, MotionEstimate

F64 = torch.float64


def yawed(angle):
    return torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)]], dtype=F64)


def test_sensor_inverts_depth_within_its_range():
    depth = torch.tensor([0.1, 0.3, 3.0, 12.0, 50.0], dtype=F64).reshape(1, 1, 1, 5)
    image = DepthSensor(min_range=0.3, max_range=12.0, reference=3.0)(depth)
    assert torch.allclose(image.flatten(), torch.tensor([10.0, 10.0, 1.0, 0.25, 0.25], dtype=F64))


def test_sensor_noise_comes_from_the_generator_and_has_its_scale():
    depth = torch.full((4, 1, 50, 50), 5.0, dtype=F64)
    sensor = DepthSensor(noise=0.05)
    first = sensor(depth, torch.Generator().manual_seed(1))
    assert torch.equal(first, sensor(depth, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, sensor(depth, torch.Generator().manual_seed(2)))
    assert float((first - 0.6).std()) == pytest.approx(0.05, rel=0.05)
    assert torch.allclose(sensor(depth), torch.full_like(depth, 0.6))


def test_sensor_gradient():
    depth = (0.5 + 9 * torch.rand(2, 1, 3, 4, dtype=F64)).requires_grad_()
    assert gradcheck(DepthSensor(), (depth,))


@pytest.mark.parametrize("wrong", [{"min_range": 0.0}, {"min_range": 5.0, "max_range": 4.0}, {"noise": -1.0}])
def test_sensor_refuses_impossible_ranges(wrong):
    with pytest.raises(InputError, match="min_range < max_range"):
        DepthSensor(**wrong)


def test_blindfold_shows_the_same_whatever_is_there():
    stage = Blindfold(max_range=7.0)
    out = stage.run({"depth": torch.rand(2, 1, 4, 5, requires_grad=True)})["depth"]
    assert torch.equal(out, torch.full((2, 1, 4, 5), 7.0))
    assert not out.requires_grad


def test_motion_is_seen_from_the_heading():
    state = {"pose": yawed(math.pi / 2), "velocity": torch.tensor([[0.0, 6.0, 1.0]], dtype=F64)}
    motion = MotionEstimate(speed=3.0)(state, torch.tensor([[3.0, 3.0, 0.0]], dtype=F64))
    # Heading along y: ahead is y, left is -x.
    expected = torch.tensor([[1.0, 1.0, 1 / 3, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)
    assert torch.allclose(motion, expected, atol=1e-9)


def test_motion_gradient():
    stage = MotionEstimate()
    pose = torch.cat(
        [torch.randn(2, 3, dtype=F64), torch.nn.functional.normalize(torch.randn(2, 4, dtype=F64))], -1
    )
    inputs = [x.requires_grad_() for x in (pose, torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64))]
    assert gradcheck(lambda p, v, t: stage({"pose": p, "velocity": v}, t), inputs)


def test_encoder_carries_its_memory():
    torch.manual_seed(0)
    encoder = DepthEncoder(16, 20, features=8, channels=(4, 8))
    values = {"image": torch.rand(3, 1, 16, 20), "motion": torch.rand(3, 9), "memory": torch.zeros(3, 8)}
    first = encoder.run(values)
    assert torch.equal(first["feature"], first["memory"])
    second = encoder.run({**values, "memory": first["memory"]})
    assert not torch.allclose(first["feature"], second["feature"])
    with pytest.raises(InputError, match="to nothing"):
        DepthEncoder(4, 4, channels=(4, 4, 4))
