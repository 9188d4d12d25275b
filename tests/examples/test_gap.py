import json

import gradpath as gp
from gradpath.examples.__main__ import main
from gradpath.examples.flight import FlightOptions, FlightTask
from gradpath.runs import create_run


def test_a_trained_policy_is_flown_soft_and_hard(tmp_path, capsys):
    task = FlightTask(FlightOptions(height=12, width=16))
    gp.save(task.build(), create_run(tmp_path / "flight", task).path)
    arguments = ["--worlds", "3", "--seconds", "0.5", "--samples", "0", "--run", str(tmp_path / "gap")]
    assert main(["gap", "--policy", str(tmp_path / "flight"), *arguments]) == 0
    metrics = json.loads((tmp_path / "gap" / "metrics.json").read_text())
    rows = metrics["mismatch"]["gaps"]
    assert {row["operation"] for row in rows} == {"camera.rasterize", "end to end"}
    widths = [row["distance"] for row in rows if row["operation"] == "camera.rasterize"]
    assert widths == sorted(widths) and widths[0] > 0, "wider edges are farther from hard ones"
    assert metrics["loss_difference"] != 0.0 and 0.0 <= metrics["decisions"] < 0.05
    assert (tmp_path / "gap" / "gap.png").stat().st_size > 10_000
    assert all(row["cosine"] is None for row in rows)
    assert "camera.rasterize" in capsys.readouterr().out
