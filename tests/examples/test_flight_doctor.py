"""The doctor on the flight pipeline: healthy as it is, and each failure mode planted into it, one at a time."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath import perception, planners, relax
from gradpath.doctor import FAILURES
from gradpath.examples import flight
from gradpath.examples.flight_objective import (
    clearance_loss,
    course_loss,
    effort_loss,
    flight_losses,
    speed_loss,
)

OPTIONS = flight.FlightOptions(worlds=3, seconds=8 / 12, features=8, height=12, width=16, memory="all")
ENCODER = {"height": 12, "width": 16, "features": 8, "channels": (16, 32, 32)}


def batch(options=OPTIONS):
    """Worlds with obstacles close ahead, and drones that do not fly as they should."""
    task = flight.FlightTask(options)
    (state,), inputs = task.sample(0)
    inputs["obstacles"]["pose"][:, :, 0] *= 0.4
    state["velocity"] = state["velocity"] * torch.linspace(0.6, 1.2, options.worlds)[:, None]
    return {"state": state, **inputs}


def rollout(options=OPTIONS, **stages):
    """The flight with some stages in place of its own."""
    return flight.build_rollout(options, step(options, stages=stages))


def step(options=OPTIONS, **choice):
    """One time step, of a policy that reacts to what it sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = flight.build_step(options, **choice)
    with torch.no_grad():
        built.plan.head.weight.mul_(20.0)
    return built


RELAXED = ["invalid relaxation", "boundary mismatch"]
QUICK = [name for name in FAILURES if name not in RELAXED]


def examine(model, given=None, losses=None, only=QUICK, **options):
    """Look for everything but what takes long: gaps of relaxations are looked for where they are planted."""
    return gp.doctor(model, given or batch(), losses or flight_losses(), only=only, **options)


def only(found, failure):
    """The single finding, of a failure mode, and none of another."""
    assert [finding.failure for finding in found.findings] == [failure], found.table()
    return found.findings[0]


def test_the_healthy_flight_is_called_healthy():
    found = examine(rollout(), relevant=["camera.depth"], only=None)
    assert found.healthy, found.table()
    assert [check.failure for check in found.checks] == list(FAILURES)
    assert not any(check.skipped for check in found.checks), found.table()


class Saturated(planners.Policy):
    def forward(self, feature):
        return self.low + (self.high - self.low) * (0.5 + 0.5 * torch.tanh(self.head(feature) + 20.0))


def test_starvation_is_named_where_the_policy_is_saturated():
    plan = Saturated(8, low=[-6.0] * 3, high=[6.0] * 3)
    finding = only(examine(rollout(plan=plan)), "gradient starvation")
    assert finding.stage == "plan" and finding.value == "command" and finding.numbers["gain"] < 1e-5
    assert "encode" in finding.evidence


class Peeking(perception.DepthEncoder):
    """An encoder that is shown a lamp, too."""

    def __init__(self, **options):
        super().__init__(**options)
        inputs = {**self.contract.inputs, "lamp": "B 1"}
        self.contract = gp.Contract(inputs=inputs, outputs=self.contract.outputs)

    def forward(self, image, motion, memory, lamp):
        feature, memory = super().forward(image, motion, memory)
        return feature + lamp, memory


def test_a_shortcut_is_named_where_it_comes_in():
    given = {**batch(), "lamp": torch.tensor([[0.0], [1.0], [-1.0]])}
    model = rollout(encode=Peeking(**ENCODER))
    finding = only(examine(model, given, irrelevant=["lamp"], relevant=["camera.depth"]), "shortcut learning")
    assert finding.stage == "encode" and finding.value == "lamp" and finding.world is not None
    assert finding.numbers["effect"] > 0.05 and finding.numbers["sensitivity"] > 0.0


def test_a_policy_that_does_not_see_is_named_where_its_sight_ends():
    model = flight.build_rollout(OPTIONS, step(blind=True))
    finding = only(examine(model, relevant=["camera.depth"]), "shortcut learning")
    assert finding.stage == "blindfold" and finding.value == "camera.depth"
    assert finding.numbers["effect"] == 0.0


class Chaotic(perception.DepthEncoder):
    """A memory that goes through the map of Ulam, x to 1 - 2 x^2, whose Lyapunov exponent is log 2."""

    def forward(self, image, motion, memory):
        feature, _ = super().forward(image, motion, memory)
        chaos = 1.0 - 2.0 * memory.square()
        return feature + 0.3 * chaos, 0.999 * chaos + 1e-3 * feature


def test_growth_through_time_is_named_with_its_exponent():
    options = dataclasses.replace(OPTIONS, seconds=24 / 12)
    given = {**batch(options), "memory": torch.rand(3, 8, generator=torch.Generator().manual_seed(0))}
    found = examine(rollout(options, encode=Chaotic(**ENCODER)), given)
    finding = found.of("unstable training")[0]
    assert finding.stage == "encode" and finding.value == "encode.memory"
    assert finding.world in range(3) and finding.step in range(12) and finding.severity == "error"
    assert finding.numbers["Lyapunov exponent per step"] == pytest.approx(math.log(2.0), rel=0.3)


def test_memory_is_predicted_before_anything_runs():
    found = examine(rollout(), memory="600kB")
    finding = only(found, "memory blow-up")
    assert finding.stage == "encode", finding
    assert finding.numbers["predicted bytes"] > 6e5 and "gp.Rollout(memory=" in finding.remedy
    model = rollout()
    flight_losses()(model(**batch())).total.backward()


class Gated(planners.HoldVelocity):
    """Takes the policy's correction where the velocity is off; at a temperature at which it is off by a half always."""

    contract = dataclasses.replace(planners.HoldVelocity.contract, gradient="relaxed")

    def forward(self, motion, correction):
        gate = relax.step(motion[:, :1].abs() - 0.15, tau=20.0)
        return super().forward(motion, gate * correction)


def test_a_relaxation_that_is_too_soft_is_named():
    finding = only(examine(rollout(hold=Gated(speed=3.0)), only=RELAXED), "invalid relaxation")
    assert (finding.stage, finding.value) == ("hold", "relax.step")


class Coarse(planners.AttitudeController):
    """A controller whose motors know whole multiples of 12 N, relaxed to nearly all of what lies between."""

    contract = dataclasses.replace(planners.AttitudeController.contract, gradient="relaxed")

    def forward(self, acceleration, pose, target_velocity):
        control = super().forward(acceleration, pose, target_velocity)
        thrust = relax.quantize(control[:, :1], 12.0, tau=1.0)
        return torch.cat([thrust, control[:, 1:]], dim=-1)


def test_a_task_result_that_the_hard_motors_do_not_give_is_named():
    options = dataclasses.replace(OPTIONS, worlds=4)
    losses = gp.Losses(
        course=(0.2, course_loss, "body.state.pose"), effort=(0.01, effort_loss, "plan.command")
    )
    found = examine(rollout(options, control=Coarse()), batch(options), losses, only=RELAXED)
    finding = only(found, "boundary mismatch")
    assert (finding.stage, finding.value) == ("control", "relax.quantize")


class Noisy(perception.DepthSensor):
    """A sensor with noise of its own, drawn where it should not be."""

    def __init__(self, source):
        super().__init__()
        self.source, self.count = source, 0

    def forward(self, depth, generator=None):
        image = super().forward(depth, generator)
        self.count += 1
        draw = {
            "numpy": lambda: float(np.random.standard_normal()),
            "torch": lambda: float(torch.randn(())),
            "counter": lambda: self.count % 7,
        }[self.source]
        return image + 0.01 * draw()


@pytest.mark.parametrize("source", ["numpy", "torch", "counter"])
def test_hidden_randomness_is_named_where_it_is_drawn(source):
    finding = only(examine(rollout(sensor=Noisy(source))), "hidden nondeterminism")
    assert finding.stage == "sensor" and finding.step == 0


def test_losses_that_drown_or_cancel_are_named():
    losses = gp.Losses(
        clearance=(10.0, clearance_loss, "clearance.distance"),
        speed=(0.7, speed_loss, "body.state.velocity", "target.target_velocity"),
        effort=(1e-9, effort_loss, "plan.command"),
        course=(0.2, course_loss, "body.state.pose"),
    )
    finding = only(examine(rollout(), losses=losses), "poor credit assignment")
    assert finding.value == 'loss "effort"' and finding.stage in ("encode", "plan")
    losses = gp.Losses(
        up=(1.0, lambda pose: -pose[..., 2].mean(0), "body.state.pose"),
        down=(1.01, lambda pose: pose[..., 2].mean(0), "body.state.pose"),
    )
    finding = only(examine(rollout(), losses=losses), "poor credit assignment")
    assert finding.value == "losses down and up" and finding.stage in ("encode", "plan")


class Sum(gp.Stage):
    contract = gp.Contract(inputs={"command": "B 3", "advice": "B 3"}, outputs={"command": "B 3"})

    def forward(self, command, advice):
        return command + 0.5 * advice


class Advice(planners.Policy):
    def __init__(self):
        super().__init__(8, low=[-6.0] * 3, high=[6.0] * 3)
        self.contract = gp.Contract(inputs={"feature": "B 8"}, outputs={"advice": "B 3"})


def test_stages_that_no_gradient_tells_apart_are_named():
    config = step().config
    wires = {**config["wires"], "sum.command": "plan.command", "hold.correction": "sum.command"}
    both = gp.Pipeline(**{**config, "wires": wires, "sum": Sum(), "advice": Advice()})
    losses = gp.Losses(course=(0.2, course_loss, "body.state.pose"))  # none on one of them alone
    finding = only(examine(flight.build_rollout(OPTIONS, both), losses=losses), "poor credit assignment")
    assert finding.value == "advice.advice and plan.command" and finding.stage == "advice"


class CutMotion(perception.MotionEstimate):
    def forward(self, state, target_velocity):
        return super().forward({**state, "velocity": state["velocity"].detach()}, target_velocity)


class Remembering(perception.DepthEncoder):
    """An encoder that keeps its memory to itself."""

    def __init__(self, **options):
        super().__init__(**options)
        self.last = None

    def forward(self, image, motion, memory):
        before = torch.zeros_like(memory) if self.last is None else self.last
        feature, memory = super().forward(image, motion, before)
        self.last = feature.detach()
        return feature, memory


def test_a_value_that_is_cut_off_is_named():
    finding = only(examine(rollout(motion=CutMotion(3.0))), "detached value")
    assert (finding.stage, finding.value) == ("motion", "state.velocity")
    finding = examine(rollout(encode=Remembering(**ENCODER))).of("detached value")
    assert ("encode", "last") in [(f.stage, f.value) for f in finding]
    losses = gp.Losses(
        speed=(0.7, speed_loss, "body.state.velocity", "target.target_velocity"),
        course=(0.2, lambda pose: course_loss(pose.detach()), "body.state.pose"),
    )
    assert only(examine(rollout(), losses=losses), "detached value").value == 'loss "course"'


class Spare(perception.DepthEncoder):
    def __init__(self, **options):
        super().__init__(**options)
        self.spare = nn.Linear(8, 8)


def test_parameters_that_nothing_reaches_are_named():
    finding = only(examine(rollout(encode=Spare(**ENCODER))), "unreached parameter")
    assert finding.stage == "encode" and finding.value == "spare.weight, spare.bias"


class Overwriting(perception.DepthSensor):
    """Writes past torch's version counter, into one world."""

    def forward(self, depth, generator=None):
        depth.data[1].clamp_(max=5.0)
        return super().forward(depth, generator)


def test_a_stage_that_writes_into_its_input_is_named_with_the_world():
    finding = only(examine(rollout(sensor=Overwriting())), "mutated input")
    assert (finding.stage, finding.value, finding.step, finding.world) == ("sensor", "depth", 0, 1)


class EarthCentred(perception.MotionEstimate):
    """Takes the velocity as a difference of positions that are measured from the middle of the earth."""

    def forward(self, state, target_velocity):
        there = state["pose"][:, :3] + 6.4e6
        velocity = (there + state["velocity"] / 12.0 - there) * 12.0
        return super().forward({**state, "velocity": velocity}, target_velocity)


def test_a_stage_without_enough_digits_is_named():
    finding = only(examine(rollout(motion=EarthCentred(3.0))), "float32 disagrees with float64")
    assert finding.stage == "motion" and finding.numbers["relative error"] > 0.02


class Trapped(flight.View):
    """Takes a root that is NaN, or has an infinite slope, where a trap says so."""

    def __init__(self):
        super().__init__()
        self.contract = gp.Contract(inputs={"pose": "B 7", "trap": "B"}, outputs={"pose": "B 7"})

    def forward(self, pose, trap):
        return pose + 0.0 * (pose[:, :1] ** 2 * trap[:, None]).sqrt()


def trapped(value):
    model = rollout(view=Trapped())
    trap = torch.ones(model.length, 3)
    trap[5, 1] = trap[6, 0] = value
    return gp.Rollout(**{**model.config, "sequences": ["trap"]}), {**batch(), "trap": trap}


def test_the_first_value_and_the_first_gradient_that_are_not_finite_are_named():
    finding = only(examine(*trapped(-1.0)), "non-finite value")
    assert (finding.stage, finding.value, finding.step, finding.world) == ("view", "view.pose", 5, 1)
    finding = only(examine(*trapped(0.0)), "non-finite value")
    assert (finding.stage, finding.step, finding.world) == ("view", 6, 0)
