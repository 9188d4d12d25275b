import json

from gradpath.examples import camera_position


def test_both_rules_find_the_camera(tmp_path, capsys):
    metrics = camera_position.main(iterations=150, size=64, run=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["error_at_the_start"] > 5.0
    assert metrics["error_edge"] < 0.1 and metrics["error_softras"] < 0.2
    assert (tmp_path / "silhouettes.png").stat().st_size > 500
    assert "error edge" in capsys.readouterr().out
