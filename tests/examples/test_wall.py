import json

import pytest
import torch

from gradpath.examples import wall
from gradpath.examples.__main__ import main


def test_the_mixture_gets_over_the_wall_and_the_report_flags_the_bias(tmp_path, capsys):
    metrics = wall.main(run=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "wall.png").stat().st_size > 10_000
    first, alpha = (metrics["estimators"][name] for name in ("first order", "alpha order"))
    assert first["angle"] == pytest.approx(0.495, abs=0.01)
    assert alpha["loss"] <= -0.009475  # -0.00948, rounded
    assert metrics["report"]["biased"]
    assert "BIASED" in capsys.readouterr().out


def test_it_runs_by_its_documented_command(tmp_path, capsys):
    assert main(["wall", "--iterations", "5", "--run", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.json", "wall.png"}
    assert str(tmp_path / "run" / "metrics.json") in capsys.readouterr().out


@pytest.mark.parametrize("seed", [1, 2])
def test_it_does_for_other_noise(seed):
    assert wall.throw("first order", 300, 50, 0.33, seed)[-1] == pytest.approx(0.495, abs=0.01)
    assert wall.expected_loss(wall.throw("alpha order", 300, 50, 0.33, seed)[-1]) <= -0.009475


def test_the_loss_jumps_where_the_ball_clears_the_wall():
    angles = torch.tensor([0.1, 0.5, 0.69, 0.70], dtype=torch.float64)
    distance = (-wall.loss(angles)).sqrt()
    torch.testing.assert_close(distance[1:3], torch.full((2,), 0.06, dtype=torch.float64))
    assert distance[0] < 0.06 and distance[3] > 0.1
