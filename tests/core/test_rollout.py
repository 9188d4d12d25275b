import pytest
import torch
from torch import nn

from gradpath.contract import Contract
from gradpath.errors import BudgetError, ContractError, InputError, ShapeError, WireError
from gradpath.losses import Losses
from gradpath.pipeline import Pipeline
from gradpath.rollout import Rollout
from gradpath.schedule import fewest_extra_steps
from gradpath.stage import Stage
from gradpath.trajectory import Trajectory

LENGTH, WORLDS = 12, 3
STATE = {"position": "B 2", "velocity": "B 2"}


class Sense(Stage):
    contract = Contract(
        inputs={"state": STATE, "generator": "generator"}, outputs={"reading": "B 4", "noise": "B 4"}
    )

    def forward(self, state, generator):
        clean = torch.cat([state["position"], state["velocity"]], -1)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return {"reading": clean + 0.1 * noise * clean, "noise": noise * clean}


class Remember(Stage):
    contract = Contract(inputs={"reading": "B 4", "goal": "B 2", "memory": "B 5"}, outputs={"memory": "B 5"})

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(6, 5)

    def forward(self, reading, goal, memory):
        return self.cell(torch.cat([reading, goal], -1), memory)


class Act(Stage):
    contract = Contract(inputs={"memory": "B 5"}, outputs={"force": "B 2"})

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, memory):
        return self.head(memory)


class Body(Stage):
    contract = Contract(inputs={"state": STATE, "force": "B 2", "wind": "B 2"}, outputs={"state": STATE})

    def forward(self, state, force, wind=None):
        velocity = state["velocity"] + 0.2 * force + (0.0 if wind is None else wind)
        return {"state": {"position": state["position"] + 0.2 * velocity, "velocity": velocity}}


def pipeline(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        step = Pipeline(
            sense=Sense(), remember=Remember(), act=Act(), body=Body(),
            wires={"sense.state": "state", "body.state": "state", "remember.memory": "memory",
                   "act.memory": "remember.memory"},
        )  # fmt: skip
    return step.to(dtype)


CARRY = {"state": "body.state", "memory": "remember.memory"}


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    state = {"position": draw(WORLDS, 2), "velocity": draw(WORLDS, 2)}
    return state, draw(WORLDS, 2), draw(LENGTH, WORLDS, 2)


def noise():
    return torch.Generator().manual_seed(5)


def run(memory, dtype=torch.float64, **options):
    step = pipeline(dtype)
    state, goal, wind = inputs(dtype)
    rollout = Rollout(step, LENGTH, CARRY, memory=memory, sequences=["wind"], **options)
    trajectory = rollout(state, goal=goal.tanh(), wind=wind, generator=noise())
    loss = trajectory["body.state.position"].square().sum() + trajectory.final["memory"].sum()
    wanted = [state["position"], state["velocity"], goal, wind, *step.parameters()]
    return trajectory, torch.autograd.grad(loss, wanted)


def by_hand():
    step = pipeline()
    state, goal, wind = inputs()
    generator, memory, total = noise(), torch.zeros(WORLDS, 5, dtype=torch.float64), 0.0
    carried, target = state, goal.tanh()
    for t in range(LENGTH):
        values = step.run(
            {"state": carried, "memory": memory, "goal": target, "wind": wind[t], "generator": generator},
            outputs=["body.state", "remember.memory"],
        )
        carried, memory = values["body.state"], values["remember.memory"]
        total = total + carried["position"].square().sum()
    wanted = [state["position"], state["velocity"], goal, wind, *step.parameters()]
    return carried, torch.autograd.grad(total + memory.sum(), wanted)


@pytest.mark.parametrize("memory", ["all", 3])
def test_matches_a_loop_written_by_hand(memory):
    trajectory, grads = run(memory)
    state, expected = by_hand()
    assert torch.equal(trajectory.final["state"]["position"], state["position"])
    for want, got in zip(expected, grads, strict=True):
        assert want.abs().sum() > 0
        assert (want - got).abs().max() <= 1e-12 * want.abs().max()


@pytest.mark.parametrize("options", [{}, {"record_gradients": False}, {"decay": 0.7}])
def test_gradients_are_equal_to_the_bit_for_every_memory(options):
    _, stored = run("all", torch.float32, **options)
    for memory in (1, 4, LENGTH):
        _, recomputed = run(memory, torch.float32, **options)
        assert all(map(torch.equal, stored, recomputed))


def test_trajectory_holds_what_was_asked_for():
    trajectory, _ = run("all", record=["sense.reading", "act.force"])
    assert isinstance(trajectory, Trajectory)
    assert set(trajectory) == {
        "body.state", "remember.memory", "sense.noise", "sense.reading", "act.force", "goal", "generator"
    }  # fmt: skip
    assert trajectory["body.state.position"].shape == (LENGTH, WORLDS, 2)
    assert trajectory["body.state"]["velocity"].shape == (LENGTH, WORLDS, 2)
    assert torch.equal(trajectory["body.state.position"][-1], trajectory.final["state"]["position"])
    assert trajectory["goal"].shape == (WORLDS, 2)
    assert "body.state.position" in trajectory and "body.state.mass" not in trajectory
    with pytest.raises(KeyError, match=r'no "body.sate".*did you mean "body.state".*record='):
        trajectory["body.sate"]


def test_works_with_losses_and_as_a_stage():
    rollout = Rollout(pipeline(), LENGTH, CARRY, memory=3)
    state, goal, _ = inputs()
    losses = Losses(
        near=(1.0, lambda position, goal: (position - goal).square().sum(-1), "body.state.position", "goal")
    )
    values = losses(rollout(state, goal=goal, generator=noise()))
    values.total.backward()
    assert goal.grad.abs().sum() > 0
    outer = Pipeline(flight=rollout)
    produced = outer(state=state, goal=goal, generator=noise())
    assert produced["flight.body.state"]["position"].shape == (LENGTH, WORLDS, 2)
    assert rollout.config["length"] == LENGTH and rollout.config["step"] is rollout.step
    assert all(name.startswith("step.") for name, _ in rollout.named_parameters())


def test_plan_and_description():
    rollout = Rollout(pipeline(), 100, CARRY, memory=10, sequences=["wind"], decay=0.9)
    plan = rollout.plan(batch=64)
    assert plan.extra_steps == fewest_extra_steps(100, 10) + 1 == 223
    assert plan.carry_bytes == 64 * 9 * 4
    assert "223 of them extra" in str(plan) and "2,304 bytes" in str(plan)
    text = rollout.describe()
    for part in (
        "rollout of 100 steps",
        "state <- body.state",
        "memory=10",
        "sequences: wind",
        "0.9",
        "remember",
    ):
        assert part in text
    assert rollout.contract.json()["inputs"]["wind"] == "100 B 2"
    assert rollout.contract.json()["outputs"]["body.state"]["position"] == "100 B 2"


def test_a_budget_is_planned_before_a_run_and_measured_after_it():
    state, goal, wind = inputs(torch.float32)
    _, every = run("all", torch.float32)
    rollout = Rollout(pipeline(torch.float32), LENGTH, CARRY, memory="20kB", sequences=["wind"])
    assert "see plan(batch=...)" in rollout.describe()
    with pytest.raises(InputError, match="pass batch="):
        rollout.plan()
    noise_before = torch.get_rng_state()
    plan = rollout.plan(batch=WORLDS)
    assert torch.equal(noise_before, torch.get_rng_state())
    assert plan.budget.peak <= 20_000 and plan.slots == plan.budget.slots and plan.chunk == plan.budget.chunk
    for part in (
        f"slots: {plan.slots}",
        f"chunk: {plan.chunk}",
        f"extra steps: {plan.extra_steps}",
        "predicted: peak",
    ):
        assert part in str(plan)
    assert "measured" not in str(plan)
    with pytest.raises(BudgetError, match="smallest budget that works"):
        rollout.plan(batch=10_000)
    trajectory = rollout(state, goal=goal, wind=wind, generator=noise())
    trajectory["body.state.position"].square().sum().backward()
    plan = rollout.plan(batch=WORLDS)
    assert plan.tally.extra_steps == plan.extra_steps and "measured:  peak" in str(plan)
    assert plan.tally.peak == pytest.approx(plan.budget.peak, rel=0.15)
    assert "measured" in rollout.describe() and "measured" not in str(rollout.plan(batch=WORLDS + 1))
    _, again = run("20kB", torch.float32)
    assert all(map(torch.equal, every, again))


def test_a_cut_is_told():
    rollout = Rollout(pipeline(), 10, CARRY, cut=4, decay=0.5, dt=0.1)
    assert "cut every 4 steps" in rollout.describe() and "per second: 0.5" in rollout.describe()


def test_a_state_in_another_order_and_an_explicit_memory():
    state, goal, _ = inputs()
    rollout = Rollout(pipeline(), LENGTH, CARRY)
    swapped = dict(reversed(list(state.items())))
    memory = torch.zeros(WORLDS, 5, dtype=torch.float64)
    first = rollout(state, goal=goal, generator=noise())
    second = rollout(swapped, memory, goal=goal, generator=noise())
    assert torch.equal(first["body.state.position"], second["body.state.position"])


class Count(Stage):
    contract = Contract(inputs={"x": "B 2"}, outputs={"x": "B 2"}, effects=("mutates:seen",))

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.9))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1.0
        return torch.sin(x * self.weight) + self.seen


def test_declared_buffers_are_replayed():
    def grad(memory):
        rollout = Rollout(Pipeline(count=Count(), wires={"count.x": "x"}), 9, {"x": "count.x"}, memory=memory)
        assert rollout.contract.effects == ("mutates:step.count.seen",)
        trajectory = rollout(torch.ones(2, 2))
        (g,) = torch.autograd.grad(trajectory["count.x"].square().sum(), rollout.step.count.weight)
        assert rollout.step.count.seen == 9
        return g

    assert torch.equal(grad("all"), grad(2))


@pytest.mark.parametrize(
    ("carry", "options", "error", "message"),
    [
        ({"stat": "body.state"}, {}, WireError, 'carry "stat" is no external input.*did you mean "state"'),
        ({"state": "body.stat"}, {}, WireError, 'no output "body.stat"'),
        ({"state": "act.force"}, {}, WireError, 'carry "state"'),
        (CARRY, {"sequences": ["state"]}, WireError, "is carried"),
        (CARRY, {"sequences": ["gaol"]}, WireError, 'did you mean "goal"'),
        (CARRY, {"record": ["act.forse"]}, WireError, 'did you mean "act.force"'),
        (CARRY, {"memory": "200"}, BudgetError, "number of snapshots"),
        (CARRY, {"memory": 0}, BudgetError, "at least 1 snapshot"),
    ],
)
def test_bad_constructions_are_refused(carry, options, error, message):
    with pytest.raises(error, match=message):
        Rollout(pipeline(), LENGTH, carry, **options)
    with pytest.raises(ContractError, match="runs a Pipeline"):
        Rollout(Act(), LENGTH, carry)


def test_bad_calls_are_refused():
    state, goal, wind = inputs()
    rollout = Rollout(pipeline(), LENGTH, CARRY, sequences=["wind"])
    with pytest.raises(ContractError, match='was not given "goal"'):
        rollout(state, generator=noise())
    with pytest.raises(ContractError, match=r'no input "gaol".*did you mean "goal"'):
        rollout(state, gaol=goal, generator=noise())
    with pytest.raises(ContractError, match="by position and by name"):
        rollout(state, state=state, goal=goal, generator=noise())
    with pytest.raises(ContractError, match="by position, here state, memory"):
        rollout(state, goal, goal, generator=noise())
    with pytest.raises(ShapeError, match='sequence "wind": expected 12 time steps'):
        rollout(state, goal=goal, wind=wind[:5], generator=noise())
    with pytest.raises(ShapeError, match=r'B is 2 in "goal" and 3 here'):
        rollout(state, goal=goal[:2], generator=noise())


def test_a_carry_of_unknown_size_must_be_given():
    class Grow(Stage):
        contract = Contract(inputs={"x": "B N", "goal": "B 2"}, outputs={"x": "B N"})

        def forward(self, x, goal):
            return x + goal.sum(-1, keepdim=True)

    rollout = Rollout(Pipeline(grow=Grow(), wires={"grow.x": "x"}), 3, {"x": "grow.x"})
    with pytest.raises(InputError, match=r'carry "x" .*size N is not known.*x='):
        rollout(goal=torch.ones(2, 2))
    assert rollout(torch.zeros(2, 4), goal=torch.ones(2, 2)).final["x"].eq(6).all()
    assert rollout.plan(batch=2).carry_bytes is None
