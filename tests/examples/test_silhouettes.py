import json

from gradpath.examples import silhouettes


def test_a_sphere_becomes_the_solid(tmp_path, capsys):
    metrics = silhouettes.main(iterations=60, views=8, size=32, level=2, learning_rate=0.03, run=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["hard_iou_of_the_sphere"] < 0.8 and metrics["hard_iou"] > 0.93
    assert (tmp_path / "silhouettes.png").stat().st_size > 10_000
    assert "hard iou" in capsys.readouterr().out
