import gc
import json
import weakref

import pytest
import torch
from torch import nn

import gradpath as gp

STATE = {"pose": "B 7", "velocity": "B 3"}


def stage(inputs, outputs, forward=None, **options):
    """Build a stage that returns zeros, or what `forward(**inputs)` returns."""

    def zeros(self, **values):
        return {name: torch.zeros(2, 3) for name in outputs}

    def call(self, **values):
        return forward(**values)

    contract = gp.Contract(inputs, outputs, **options)
    return type("Planted", (gp.Stage,), {"contract": contract, "forward": call if forward else zeros})()


class Camera(gp.Stage):
    contract = gp.Contract(inputs={"pose": "B 7"}, outputs={"depth": "B 1 H W"})

    def forward(self, pose):
        return pose[:, None, :6].reshape(-1, 1, 2, 3)


class Encoder(gp.Stage):
    contract = gp.Contract(
        inputs={"depth": "B 1 H W", "goal": "B 3", "memory": "B 5"},
        outputs={"feature": "B 5", "memory": "B 5"},
    )

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 5)

    def forward(self, depth, goal, memory):
        feature = torch.tanh(self.net(depth.flatten(1)) + memory + goal.sum(1, keepdim=True))
        return feature, feature


class Policy(gp.Stage):
    contract = gp.Contract(inputs={"feature": "B 5"}, outputs={"control": "B 3"})

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, feature):
        return self.net(feature)


class Body(gp.Stage):
    contract = gp.Contract(inputs={"state": STATE, "control": "B 3", "wind": "B 3"}, outputs={"state": STATE})

    def forward(self, state, control, wind=None):
        velocity = state["velocity"] + control + (0 if wind is None else wind)
        pose = torch.cat([state["pose"][:, :3] + velocity, state["pose"][:, 3:]], 1)
        return {"pose": pose, "velocity": velocity}


WIRES = {"camera.pose": "state.pose", "body.state": "state"}


def flight(wires=WIRES, **options):
    torch.manual_seed(0)
    # Declared out of order on purpose.
    return gp.Pipeline(body=Body(), camera=Camera(), encode=Encoder(), plan=Policy(), wires=wires, **options)


def inputs(worlds=2):
    state = {"pose": torch.rand(worlds, 7), "velocity": torch.rand(worlds, 3)}
    return {"state": state, "goal": torch.rand(worlds, 3), "memory": torch.rand(worlds, 5)}


def test_stages_run_in_the_order_of_the_wires():
    step = flight()
    assert step.graph().order == ("camera", "encode", "plan", "body")
    values = inputs()
    outputs = step(**values)
    depth = step.camera(values["state"]["pose"])
    feature, memory = step.encode(depth, values["goal"], values["memory"])
    state = step.body(values["state"], step.plan(feature))
    assert list(outputs) == ["encode.memory", "body.state"]
    assert torch.equal(outputs["encode.memory"], memory)
    assert torch.equal(outputs["body.state"]["pose"], state["pose"])


def test_declaration_order_among_the_ready():
    step = gp.Pipeline(b=stage({}, {"y": "..."}), a=stage({}, {"x": "..."}), c=stage({}, {"z": "..."}))
    assert step.graph().order == ("b", "a", "c")


def test_gradient_reaches_every_parameter():
    step = flight()
    step(**inputs())["body.state"]["pose"].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in step.parameters())


def test_outputs_can_be_chosen():
    values = inputs()
    chosen = flight().run(values, outputs=["plan.control", "body.state.velocity"])
    assert list(chosen) == ["plan.control", "body.state.velocity"]
    assert torch.equal(chosen["body.state.velocity"], values["state"]["velocity"] + chosen["plan.control"])
    assert list(flight(outputs=["plan.control"])(**values)) == ["plan.control"]
    with pytest.raises(gp.WireError, match=r'no output "plan\.contrl" \(did you mean "plan\.control"\?\)'):
        flight().run(values, outputs=["plan.contrl"])
    with pytest.raises(gp.WireError, match=r"no output \"body\.state\.psoe\""):
        flight(outputs=["body.state.psoe"])


def test_values_are_let_go_after_their_last_use():
    made, alive = [], []

    def make():
        value = torch.zeros(2, 3)
        made.append(weakref.ref(value))
        return value

    def look(b):
        gc.collect()
        alive.append(made[0]() is not None)
        return b * 1

    def build(**options):
        return gp.Pipeline(
            first=stage({}, {"a": "B 3"}, make),
            second=stage({"a": "B 3"}, {"b": "B 3"}, lambda a: a * 2),
            third=stage({"b": "B 3"}, {"c": "B 3"}, look),
            **options,
        )

    with torch.no_grad():
        build()()
        made.clear()
        build(outputs=["first.a"])()
    assert alive == [False, True]


def test_every_stage_runs_whatever_is_asked_for():
    ran = []
    step = gp.Pipeline(
        one=stage({}, {"a": "B 3"}, lambda: torch.zeros(2, 3)),
        two=stage({}, {"b": "B 3"}, lambda: ran.append(1) or torch.zeros(2, 3)),
    )
    step.run({}, outputs=["one.a"])
    assert ran == [1]


# Wires.


def test_errors_at_run_time_name_the_wire():
    step = flight()
    values = inputs()
    values["goal"] = torch.rand(3)
    with pytest.raises(
        gp.ShapeError, match=r'wire "encode\.goal" \(from "goal"\): expected "B 3", got \(3,\)'
    ):
        step.run(values)
    values = inputs()
    values["state"]["pose"] = torch.rand(2, 6)
    with pytest.raises(gp.ShapeError, match=r'wire "camera\.pose" \(from "state\.pose"\)'):
        step.run(values)
    del values["state"]["pose"]
    with pytest.raises(gp.ContractError, match=r'"state" has no "pose"; it is velocity'):
        step.run(values)


def test_missing_and_unknown_external_inputs():
    step = flight()
    values = inputs()
    with pytest.raises(gp.ContractError, match=r'no external input "gaol" \(did you mean "goal"\?\)'):
        step.run({**values, "gaol": values["goal"]})
    del values["goal"]
    with pytest.raises(gp.ContractError, match=r'was not given "goal", which "encode\.goal" takes'):
        step.run(values)


def test_optional_inputs_become_optional_external_inputs():
    step = flight()
    assert step.optional_inputs == {"wind"}
    values = inputs()
    calm = step.run(values)["body.state"]["velocity"]
    windy = step.run({**values, "wind": torch.ones(2, 3)})["body.state"]["velocity"]
    torch.testing.assert_close(windy, calm + 1)


@pytest.mark.parametrize(
    ("wires", "message"),
    [
        ({"camra.pose": "state.pose"}, r'no stage "camra" \(did you mean "camera"\?\); stages are body'),
        ({"camera.psoe": "state.pose"}, r'stage "camera" has no input "psoe" \(did you mean "pose"\?\)'),
        ({"encode.depth": "camera.dept"}, r'has no output "dept" \(did you mean "depth"\?\)'),
        ({"encode.depth": "camra.depth"}, r'no stage "camra"; did you mean "camera\.depth"\?'),
        ({"encode.depth": "camera"}, '"camera" is a stage; its outputs are depth'),
        ({"encode.depth": "a b"}, "is not"),
        ({**WIRES, "camera.pose": "state.psoe"}, r'"state" has no field "psoe" \(did you mean "pose"\?\)'),
        ({**WIRES, "camera.pose": "state.velocity"}, 'expected "B 7", got "B 3"'),
        ({**WIRES, "encode.depth": "camera.depth.left"}, 'has no field "left"'),
        (
            {**WIRES, "plan.feature": "camera.depth"},
            r'wire "plan\.feature" \(from "camera\.depth"\): expected "B 5"',
        ),
        ({**WIRES, "camera.pose": "body.state.pose"}, "body -> camera -> encode -> plan -> body; .*carry="),
    ],
)
def test_wires_that_cannot_be(wires, message):
    with pytest.raises(gp.WireError, match=message):
        flight(wires)


def test_two_producers_need_a_wire():
    left, right = stage({}, {"depth": "B 3"}), stage({}, {"depth": "B 3"})
    encode = stage({"depth": "B 3"}, {"feature": "B 3"})
    with pytest.raises(gp.WireError, match=r'"left\.depth" or "right\.depth"'):
        gp.Pipeline(left=left, right=right, encode=encode)
    step = gp.Pipeline(left=left, right=right, encode=encode, wires={"encode.depth": "right.depth"})
    assert str(step.graph().wires["encode.depth"]) == "right.depth"


def test_two_readers_of_an_external_input_must_agree():
    with pytest.raises(gp.WireError, match='another stage reads "goal"'):
        gp.Pipeline(a=stage({"goal": "B 3"}, {}), b=stage({"goal": "B 2"}, {}))
    step = gp.Pipeline(
        a=stage({"pose": "B 7"}, {}),
        b=stage({"speed": "B 3"}, {}),
        wires={"a.pose": "state.pose", "b.speed": "state.velocity"},
    )
    assert step.contract.inputs == {"state": STATE}


@pytest.mark.parametrize("name", ["train", "run", "stages", "contract", "config", "training", "_x"])
def test_names_that_a_stage_cannot_have(name):
    with pytest.raises(gp.WireError, match=f'cannot be named "{name}"'):
        gp.Pipeline(**{name: Camera()})


def test_a_plain_module_is_not_a_stage():
    with pytest.raises(gp.ContractError, match='"net" is a Linear, not a Stage'):
        gp.Pipeline(net=nn.Linear(2, 2))


# Ownership.


class Shared(gp.Stage):
    def __init__(self, net, name, shared=()):
        super().__init__()
        self.net = net
        self.contract = gp.Contract({"x": "B 3"}, {name: "B 3"}, shared=shared)

    def forward(self, x):
        return self.net(x)


def test_a_parameter_has_one_owner():
    net = nn.Linear(3, 3)
    with pytest.raises(
        gp.ContractError, match=r'"net\.weight" of stage "b" is also "net\.weight" of stage "a"'
    ):
        gp.Pipeline(a=Shared(net, "y"), b=Shared(net, "z"))
    with pytest.raises(gp.ContractError, match=r"net\.bias"):
        gp.Pipeline(a=Shared(net, "y"), b=Shared(net, "z", shared=("net.weight",)))
    gp.Pipeline(a=Shared(net, "y"), b=Shared(net, "z", shared=("net.*",)))


def test_state_dict_names_parameters_by_stage():
    assert list(flight().state_dict()) == [
        "encode.net.weight",
        "encode.net.bias",
        "plan.net.weight",
        "plan.net.bias",
    ]


def test_replace_builds_a_new_pipeline_and_assignment_is_refused():
    step = flight()
    other = Policy()
    replaced = step.replace(plan=other)
    assert replaced.plan is other
    assert replaced.encode is step.encode
    assert replaced.graph().wires == step.graph().wires
    with pytest.raises(gp.WireError, match=r"pipeline\.replace\(plan=\.\.\.\)"):
        step.plan = other
    with pytest.raises(gp.WireError, match='no stage "paln"'):
        step.replace(paln=other)


# Nested pipelines.


def test_a_pipeline_is_a_stage():
    mind = gp.Pipeline(encode=Encoder(), plan=Policy(), outputs=["plan.control", "encode.memory"])
    step = gp.Pipeline(
        camera=Camera(), mind=mind, body=Body(), wires={**WIRES, "body.control": "mind.plan.control"}
    )
    values = inputs()
    flat = flight()
    flat.load_state_dict({key.removeprefix("mind."): value for key, value in step.state_dict().items()})
    nested = step.run(values, outputs=["mind.plan.control", "body.state"])
    plain = flat.run(values, outputs=["plan.control", "body.state"])
    assert torch.equal(nested["mind.plan.control"], plain["plan.control"])
    assert torch.equal(nested["body.state"]["pose"], plain["body.state"]["pose"])


def test_nested_errors_and_observers_use_full_names():
    step = gp.Pipeline(inner=gp.Pipeline(encode=Encoder()), wires={"inner.goal": "target"})
    values = {"depth": torch.rand(2, 1, 2, 3), "target": torch.rand(2, 3), "memory": torch.rand(2, 5)}
    seen = []
    with gp.observe(lambda *what: seen.append(what[:2])):
        step.run(values)
    assert seen == [("inner.encode", "feature"), ("inner.encode", "memory")]
    with pytest.raises(gp.ShapeError, match=r'wire "inner\.encode\.goal" \(from "target"\)'):
        step.run({**values, "target": torch.rand(2, 4)})


def test_the_contract_of_a_pipeline_sums_up_its_stages():
    class Memory(gp.Stage):
        contract = gp.Contract({"z": "B 3"}, {"m": "B 3"}, effects=("mutates:map", "mutates:z"))

        def __init__(self):
            super().__init__()
            self.register_buffer("map", torch.zeros(3))

        def forward(self, z):
            return z

    step = gp.Pipeline(
        sense=stage({"x": "B 3"}, {"y": "B 3"}, effects=("rng", "mutates:x")),
        choose=stage({"y": "B 3"}, {"z": "B 3"}, gradient="relaxed", effects=("rng",)),
        log=stage({"y": "B 3"}, {"kept": "B 3"}, gradient="none"),
        memory=Memory(),
    )
    assert step.contract.gradient == "relaxed"
    assert step.contract.effects == ("rng", "mutates:x", "mutates:memory.map")
    assert step.contract.outputs == {"log.kept": "B 3", "memory.m": "B 3"}
    assert gp.Pipeline(log=stage({}, {"y": "B 3"}, gradient="none")).contract.gradient == "none"


def test_sizes_of_two_stages_are_two_sizes():
    a = stage({"x": "B N"}, {"y": "B N M"}, lambda x: x[..., None])
    b = stage({"z": "B N"}, {"w": "B N"}, lambda z: z)
    inner = gp.Pipeline(a=a, b=b)
    assert inner.contract.inputs == {"x": "B a_N", "z": "B b_N"}
    assert inner.contract.outputs == {"a.y": "B a_N M", "b.w": "B b_N"}
    inner.contract.check_inputs({"x": torch.zeros(2, 3), "z": torch.zeros(2, 4)})
    with pytest.raises(gp.ShapeError):
        inner.contract.check_inputs({"x": torch.zeros(2, 3), "z": torch.zeros(3, 4)})


# Looking at it.


def test_check_runs_on_shapes_and_leaves_everything_as_it_was():
    class Counter(gp.Stage):
        contract = gp.Contract(
            {"x": "B 3", "index": "B:int64", "generator": "generator"},
            {"y": "B 3"},
            effects=("rng", "mutates:count"),
        )

        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x, index, generator):
            self.count += 1
            return x + torch.randn(3) + torch.randn(3, generator=generator)

    step = gp.Pipeline(counter=Counter())
    before = torch.random.get_rng_state()
    shapes = step.check(x=(4, 3), index=torch.zeros(4).long(), generator=True)
    assert shapes == {"counter.y": (4, 3)}
    assert step.counter.count == 0
    assert torch.equal(before, torch.random.get_rng_state())
    step.check(x=(4, 3), index=(4,), generator=torch.Generator())
    with pytest.raises(gp.ShapeError, match=r'wire "counter\.x"'):
        step.check(x=(4, 2), index=(4,), generator=True)


def test_check_takes_nested_shapes():
    shapes = flight().check(state={"pose": (2, 7), "velocity": (2, 3)}, goal=(2, 3), memory=(2, 5))
    assert shapes["camera.depth"] == (2, 1, 2, 3)
    assert shapes["body.state"] == {"pose": (2, 7), "velocity": (2, 3)}


def test_check_finite_names_the_first_stage():
    step = flight(check_finite=True)
    values = inputs()
    step.run(values)
    values["state"]["pose"][1, 2] = torch.nan
    with pytest.raises(gp.NonFiniteError, match='stage "camera", output "depth" is not finite in world 1'):
        step.run(values)


def test_graph_as_json_and_dot():
    graph = flight().graph()
    data = json.loads(json.dumps(graph.json()))
    assert [entry["name"] for entry in data["stages"]] == ["camera", "encode", "plan", "body"]
    assert data["stages"][1]["parameters"] == 35
    assert data["stages"][1]["contract"]["inputs"]["depth"] == "B 1 H W"
    assert {"from": "state.pose", "to": "camera.pose"} in data["wires"]
    assert data["externals"]["wind"] == {"spec": "B 3", "optional": True}
    assert data["externals"]["state"]["spec"] == STATE
    dot = graph.dot()
    assert dot.startswith("digraph pipeline {")
    assert '"camera" -> "encode" [label="depth"];' in dot
    assert '"external state" -> "camera" [label="pose"];' in dot


def test_describe_says_what_there_is():
    text = flight().describe()
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:] if line[0] != " "][:4] == [
        "camera",
        "encode",
        "plan",
        "body",
    ]
    assert "pose <- state.pose" in text
    assert "control <- plan.control" in text
    assert "external inputs: state, wind?, goal, memory" in text
    assert "parameters: 53" in text
