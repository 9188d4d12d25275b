import json

import pytest

from gradpath.examples import contact


@pytest.mark.parametrize("steps", [480, 960])
def test_smooth_contact_has_the_gradients_of_bounces(steps):
    found = contact.errors("smooth", steps, worlds=5)
    assert max(found["a"], found["b"], found["c"]) < 0.03
    assert found["d"] < 0.1


@pytest.mark.parametrize("steps", [60, 240])
def test_hard_bounces_have_exact_gradients(steps):
    assert max(contact.errors("impact", steps, worlds=5).values()) < 1e-3


def test_friction_at_an_instant_spoils_the_gradient_and_implicit_friction_does_not():
    smooth, _ = contact.spinning_errors("smooth", 480, worlds=5)
    pointwise, _ = contact.spinning_errors("pointwise", 480, worlds=5)
    hard, _ = contact.spinning_errors("impact", 60, worlds=5)
    assert max(hard.values()) < 1e-6
    assert smooth["spin"] < 0.3 * pointwise["spin"] and smooth["height"] < 0.1 * pointwise["height"]


def test_the_example_writes_its_figures(tmp_path, capsys):
    metrics = contact.main(steps=60, finer=1, worlds=3, run=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "contact.png").stat().st_size > 10_000
    assert "pointwise" in capsys.readouterr().out
