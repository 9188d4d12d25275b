"""Soft planning and mapping against what is deployed: `gp.mismatch` sees which candidates count, and the map."""

import pytest
import torch

import gradpath as gp
from gradpath import perception, planners

F64 = torch.float64
TARGET = torch.tensor([[[0.5, -0.3]], [[-1.0, 0.8]]], dtype=F64)


class Plan(gp.Stage):
    contract = gp.Contract(
        inputs={"target": "B 1 2", "generator": "generator"},
        outputs={"controls": "B 3 2"},
        gradient="relaxed",
    )

    def __init__(self, method, **options):
        super().__init__()
        self.method, self.options = method, options

    def forward(self, target, generator):
        start = target.new_zeros(len(target), 3, 2)
        return self.method(
            lambda u: (u - target).square().sum((-1, -2)), start, std=0.5, generator=generator, **self.options
        ).controls


def size(value):
    return value.square().flatten(1).sum(-1)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("mppi", Plan(planners.mppi, samples=40, tau=0.3)),
        ("cem", Plan(planners.cem, samples=40, elites=5, rounds=1)),
    ],
)
def test_sampling_planners_are_seen_and_their_gap_shrinks(name, stage):
    values = {"target": TARGET, "generator": torch.Generator().manual_seed(0)}
    found = gp.mismatch(stage, values, size, taus=(1e-3,), samples=0)
    assert found.operations == (name,)
    cold, here = (gap for gap in found.gaps if gap.operation == name)
    assert here.temperature == stage.options.get("tau", 0.1) and cold.temperature == pytest.approx(
        1e-3 * here.temperature
    )
    assert here.distance > 0.05 > cold.distance
    with gp.mode("hard"):
        hard = stage(TARGET, torch.Generator().manual_seed(0))
    soft = stage(TARGET, torch.Generator().manual_seed(0))
    assert here.loss.value == pytest.approx(float((size(hard) - size(soft)).mean()))


def test_a_choice_among_plans_is_seen_with_its_temperature():
    stage = planners.SelectPlan(tau=0.5)
    generator = torch.Generator().manual_seed(0)
    values = {
        "plans": torch.randn(4, 3, 5, 2, dtype=F64, generator=generator),
        "costs": torch.randn(4, 3, dtype=F64, generator=generator),
    }
    found = gp.mismatch(stage, values, lambda out: out["plan"].flatten(1).sum(-1), taus=(0.01,), samples=0)
    cold, here = (gap for gap in found.gaps if gap.operation == "relax.one_hot")
    assert here.temperature == 0.5 and cold.decisions == here.decisions == 0.0
    assert here.distance > 0.1 > cold.distance


class Field(gp.Stage):
    contract = gp.Contract(inputs={"occupied": "B N N"}, outputs={"field": "B N N"}, gradient="relaxed")

    def forward(self, occupied):
        return perception.distance_field(occupied, 0.2, tau=0.05)


def test_a_distance_field_is_seen_as_one_operation():
    occupied = torch.rand(2, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(0)) ** 3
    found = gp.mismatch(Field(), {"occupied": occupied}, size, taus=(0.1,), samples=0)
    assert found.operations == ("distance_field",)
    here = found["distance_field"]
    hard, soft = occupied > 0.5, Field()(occupied) < 0.1
    assert here.decisions == pytest.approx(float((hard != soft).double().mean())) and here.distance > 0.1
