import pytest
import torch

import gradpath as gp
from gradpath.examples.flight import FlightOptions, FlightTask
from gradpath.examples.flight_objective import flight_losses


@pytest.fixture(scope="module")
def flight():
    """A short flight towards obstacles that it does not see coming, with a policy that reacts to what it sees."""
    task = FlightTask(FlightOptions(worlds=4, seconds=0.5, height=12, width=16, memory="all"))
    rollout = task.build()
    with torch.no_grad():
        for parameter in rollout.step.plan.parameters():
            parameter.mul_(20.0)
    (state,), inputs = task.sample(0)
    return rollout, {"state": state, **inputs}


def test_the_rasterizer_is_seen_and_its_width_is_its_temperature(flight):
    rollout, batch = flight
    found = gp.mismatch(rollout, batch, flight_losses(), (0.1,), samples=0)
    assert found.operations == ("camera.rasterize",)
    sharp, wide = found["camera.rasterize", 0.1], found["camera.rasterize"]
    assert (sharp.temperature, wide.temperature) == (pytest.approx(0.1), 1.0)
    assert set(wide.values) == {"alpha", "depth"}
    assert 0 < sharp.distance < wide.distance and sharp.values["depth"] < wide.values["depth"]
    assert wide.decisions < 0.01  # the half level of a soft outline is the outline
    whole = found["end to end"]
    assert whole.loss == wide.loss and whole.loss.low < whole.loss.high
    assert 0 < found["end to end", 0.1].values["body.state.pose"] < whole.values["body.state.pose"]


def test_a_limit_names_the_rasterizer(flight):
    rollout, batch = flight
    with pytest.raises(gp.MismatchError, match=r"camera\.rasterize: distance 0\.\d+, allowed at most 0.01"):
        gp.mismatch(rollout, batch, flight_losses(), (), samples=0, limits={"distance": 0.01})


def test_the_gradient_agrees_with_that_of_the_hard_flight(flight):
    rollout, batch = flight
    found = gp.mismatch(rollout, batch, flight_losses(), (), samples=8)
    assert found["end to end"].cosine.low > 0.5
    assert found["end to end"].cosine == found["camera.rasterize"].cosine
