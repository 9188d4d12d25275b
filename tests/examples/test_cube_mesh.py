import json

import pytest
import torch

from gradpath.examples import cube_mesh


def test_corners_are_found_from_small_images(tmp_path, capsys):
    metrics = cube_mesh.main(iterations=250, repeats=2, run=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["error_at_the_start"] > 0.4
    assert metrics["error_from_soft_images"] < 0.1 and metrics["error_from_hard_images"] < 0.1
    assert (tmp_path / "cubes.png").stat().st_size > 1000
    assert "error from hard images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("hard", "limit"), [(False, 1e-4), (True, 0.01)])
def test_corners_are_found_to_a_hundredth(hard, limit):
    corners, *_ = cube_mesh.fit(hard, 16, 0.35, 1500, 4, 0)
    error = torch.linalg.vector_norm(corners - cube_mesh.CORNERS, dim=-1)
    assert float(error.mean()) < limit
