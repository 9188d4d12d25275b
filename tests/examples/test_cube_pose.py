import json
import math

import pytest
import torch

from gradpath import geometry
from gradpath.examples import cube_pose


def test_starts_nearby_find_the_pose(tmp_path, capsys):
    metrics = cube_pose.main(iterations=50, starts=3, size=32, run=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["share_within_5_degrees_from_15"] == 1.0
    assert metrics["share_within_5_degrees"] >= 0.6
    assert (tmp_path / "cubes.png").stat().st_size > 1000
    assert "share within 5 degrees" in capsys.readouterr().out


def test_the_error_is_the_angle_between_rotations():
    a = geometry.quat_normalize(torch.tensor([[0.3, -0.2, 0.5, 0.7]]))
    turned = geometry.quat_multiply(a, geometry.quat_exp(torch.tensor([[0.0, math.radians(40.0), 0.0]])))
    assert float(cube_pose.degrees_between(a, turned)) == pytest.approx(40.0, abs=1e-3)
    assert float(cube_pose.degrees_between(a, -turned)) == pytest.approx(40.0, abs=1e-3)
