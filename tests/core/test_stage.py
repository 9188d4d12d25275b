import copy
import threading

import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath.stage import Stage


class Double(gp.Stage):
    contract = gp.Contract(inputs={"x": "B 3"}, outputs={"y": "B 3"})

    def forward(self, x):
        return 2 * x


def stage(forward, inputs=None, outputs=None, **options):
    """Build a stage from a function and a contract."""
    contract = gp.Contract(inputs or {"x": "B"}, outputs or {"y": "B"}, **options)
    return type("Planted", (Stage,), {"contract": contract, "forward": forward})()


def test_run_returns_outputs_by_name():
    y = Double().run({"x": torch.ones(2, 3)})
    assert list(y) == ["y"]
    torch.testing.assert_close(y["y"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    "result",
    [lambda x: (x, x + 1), lambda x: {"z": x + 1, "y": x}, lambda x: {"y": x, "z": x + 1}],
)
def test_a_tuple_in_order_or_a_dict_by_name(result):
    outputs = stage(lambda self, x: result(x), outputs={"y": "B", "z": "B"}).run({"x": torch.zeros(2)})
    assert list(outputs) == ["y", "z"]
    assert outputs["z"].tolist() == [1, 1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_output_that_is_a_dict(wrapped):
    def forward(self, x):
        state = {"pose": x, "velocity": x}
        return {"state": state} if wrapped else state

    outputs = stage(forward, outputs={"state": {"pose": "B", "velocity": "B"}}).run({"x": torch.zeros(2)})
    assert list(outputs["state"]) == ["pose", "velocity"]


@pytest.mark.parametrize("result", [(1, 2, 3), {"y": 1}, 5])
def test_other_results_are_refused(result):
    with pytest.raises(gp.ContractError, match=r'stage "act" returned .* outputs y, z'):
        stage(lambda self, x: result, outputs={"y": "B", "z": "B"}).run({"x": torch.zeros(2)}, name="act")


def test_errors_name_the_wire():
    with pytest.raises(gp.ShapeError) as error:
        Double().run({"x": torch.zeros(3)}, name="encode", sources={"x": "camera.depth"})
    assert str(error.value).startswith('wire "encode.x" (from "camera.depth"): expected "B 3", got (3,); add')


def test_missing_and_unknown_inputs():
    with pytest.raises(gp.ContractError, match='was not given its input "x"'):
        Double().run({})
    with pytest.raises(gp.ContractError, match=r'no input "xs" \(did you mean "x"\?\)'):
        Double().run({"x": torch.zeros(2, 3), "xs": 1})


def test_inputs_with_a_default_are_optional():
    def forward(self, x, wind=None):
        return x if wind is None else x + wind

    flying = stage(forward, inputs={"x": "B", "wind": "B"})
    assert flying.optional_inputs == {"wind"}
    assert flying.run({"x": torch.zeros(2)})["y"].tolist() == [0, 0]
    assert flying.run({"x": torch.zeros(2), "wind": None})["y"].tolist() == [0, 0]
    assert flying.run({"x": torch.zeros(2), "wind": torch.ones(2)})["y"].tolist() == [1, 1]
    with pytest.raises(gp.ShapeError, match="B is 2"):
        flying.run({"x": torch.zeros(2), "wind": torch.ones(3)})


def test_wrong_outputs_name_the_stage():
    with pytest.raises(gp.ShapeError, match='stage "act", output "y": expected "B", got'):
        stage(lambda self, x: x[None]).run({"x": torch.zeros(2)}, name="act")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"forward": lambda self: 0}, "has no contract"),
        ({"contract": "B 3", "forward": lambda self: 0}, "has no contract"),
        ({"contract": gp.Contract({"x": "B"}, {}), "forward": lambda self: 0}, '"x", but forward does not'),
        ({"contract": gp.Contract({}, {}), "forward": lambda self, x: 0}, 'takes "x", which its contract'),
        ({"contract": gp.Contract({"x": "B"}, {})}, "forward does not take it"),
        (
            {"contract": gp.Contract({}, {}, effects="mutates:memory"), "forward": lambda self: 0},
            "no such input or buffer",
        ),
    ],
)
def test_stages_that_cannot_be_checked_are_refused(body, message):
    with pytest.raises(gp.ContractError, match=message):
        type("Planted", (Stage,), body)()


# Gradients.


def test_a_cut_path_is_refused_and_the_stage_named():
    cut = stage(lambda self, x: x.detach() * 2)
    with pytest.raises(gp.ContractError, match=r'stage "encode" promises a gradient .* output "y"'):
        cut.run({"x": torch.zeros(2, requires_grad=True)}, name="encode")
    cut.run({"x": torch.zeros(2)})  # Nothing needs a gradient.
    with torch.no_grad():
        cut.run({"x": torch.zeros(2, requires_grad=True)})


def test_a_cut_path_of_a_parameter_is_refused():
    class Frozen(gp.Stage):
        contract = gp.Contract(inputs={"x": "B 3"}, outputs={"y": "B 3"})

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                return self.net(x)

    with pytest.raises(gp.ContractError, match="carries none"):
        Frozen().run({"x": torch.zeros(2, 3)})
    Frozen().requires_grad_(False).run({"x": torch.zeros(2, 3)})


def test_one_cut_field_is_found_when_every_input_needs_a_gradient():
    def forward(self, x, u):
        return {"position": x + u, "contact": (x * u).detach()}

    inputs, outputs = {"x": "B", "u": "B"}, {"state": {"position": "B", "contact": "B"}}
    values = {"x": torch.zeros(2, requires_grad=True), "u": torch.zeros(2, requires_grad=True)}
    with pytest.raises(gp.ContractError, match=r"state\.contact"):
        stage(forward, inputs, outputs).run(values)
    stage(forward, inputs, outputs, detached=("state.contact",)).run(values)


def test_an_output_need_not_depend_on_the_input_that_needs_a_gradient():
    def forward(self, position, velocity, force):
        return {"position": position + velocity, "velocity": velocity + force}

    inputs = {"position": "B", "velocity": "B", "force": "B"}
    stage(forward, inputs, {"state": {"position": "B", "velocity": "B"}}).run(
        {"position": torch.zeros(2), "velocity": torch.zeros(2), "force": torch.zeros(2, requires_grad=True)}
    )


def test_gradient_none_detaches_and_builds_no_graph():
    seen = []

    def forward(self, x):
        seen.append(torch.is_grad_enabled())
        return {"y": {"a": x * 2}}

    x = torch.zeros(2, requires_grad=True)
    none = stage(forward, outputs={"y": {"a": "B"}}, gradient="none")
    assert not none.run({"x": x})["y"]["a"].requires_grad
    assert seen == [False]
    same = stage(lambda self, x: x, gradient="none").run({"x": x})["y"]
    assert not same.requires_grad
    assert x.requires_grad


def test_hard_operations_need_no_gradient():
    def forward(self, x):
        return x.round() if gp.current_mode() == "soft" else x.detach().round()

    x = torch.zeros(2, requires_grad=True)
    with gp.mode("hard"):
        stage(forward, gradient="relaxed").run({"x": x})
        with pytest.raises(gp.ContractError):
            stage(forward).run({"x": x})


# Effects.


def test_undeclared_draws_are_refused():
    def noisy(self, x):
        return x + torch.randn(2)

    with pytest.raises(gp.ContractError, match='stage "sense" draws from a global random generator'):
        stage(noisy).run({"x": torch.zeros(2)}, name="sense")
    stage(noisy, effects="rng").run({"x": torch.zeros(2)})

    def explicit(self, x, generator):
        return x + torch.randn(2, generator=generator)

    inputs = {"x": "B", "generator": "generator"}
    stage(explicit, inputs).run({"x": torch.zeros(2), "generator": torch.Generator()})


def test_undeclared_writes_into_inputs_are_refused():
    def writes(self, state):
        state["pose"].add_(1)
        return state["pose"] * 2

    def value():
        return {"state": {"pose": torch.zeros(2)}}

    inputs = {"state": {"pose": "B"}}
    with pytest.raises(gp.ContractError, match=r'writes into "state\.pose"'):
        stage(writes, inputs).run(value())
    stage(writes, inputs, effects="mutates:state").run(value())
    stage(writes, inputs, effects="mutates:state.pose").run(value())


@pytest.mark.parametrize("effects", [(), ("mutates:norm",)])
def test_undeclared_writes_into_buffers_are_refused(effects):
    class Normed(gp.Stage):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.contract = gp.Contract({"x": "B 3"}, {"y": "B 3"}, effects=effects)

        def forward(self, x):
            return self.norm(x)

    normed = Normed()
    if effects:
        normed.run({"x": torch.randn(4, 3)})
    else:
        with pytest.raises(gp.ContractError, match=r"norm\.num_batches_tracked"):
            normed.run({"x": torch.randn(4, 3)})
    normed.eval().run({"x": torch.randn(4, 3)})


def test_stages_run_in_inference_mode():
    with torch.inference_mode():
        assert Double().run({"x": torch.ones(2, 3)})["y"].sum() == 12


# Watching.


def test_observers_belong_to_their_thread():
    together = threading.Barrier(2, timeout=10)
    seen = {0: [], 1: []}

    def work(number):
        together.wait()
        with gp.observe(lambda *what: seen[number].append(what[2].mean().item())):
            together.wait()
            Double().run({"x": torch.full((1, 3), float(number))})
            together.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: [0.0], 1: [2.0]}


def test_observers_see_every_floating_output():
    seen = []
    outputs = {"state": {"pose": "B", "index": "B:int64"}}
    pair = stage(lambda self, x: {"pose": x, "index": x.long()}, outputs=outputs)
    with gp.observe(lambda *what: seen.append(what[:2])):
        pair.run({"x": torch.zeros(2)}, name="body")
    pair.run({"x": torch.zeros(2)}, name="body")
    assert seen == [("body", "state.pose")]


def test_check_finite_names_stage_output_and_world():
    def breaks(self, x):
        return {"pose": x / x}

    x = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    broken = stage(breaks, {"x": "B 2"}, {"state": {"pose": "B 2"}})
    broken.run({"x": x})
    with gp.check_finite(), pytest.raises(gp.NonFiniteError) as error:
        broken.run({"x": x}, name="body")
    assert 'stage "body", output "state.pose" is not finite in world 1: 2 NaN and 0 infinite of 6' in str(
        error.value
    )
    with gp.check_finite(), gp.check_finite(False):
        broken.run({"x": x})


# Configuration.


def test_constructor_arguments_are_recorded_with_defaults():
    class Net(gp.Stage):
        contract = gp.Contract({"x": "B"}, {"y": "B"})

        def __init__(self, width, *, depth=2, **more):
            self.early = True
            super().__init__()

        def forward(self, x):
            return x

    class Deep(Net):
        def __init__(self):
            super().__init__(5, depth=7)

    assert Net(3, name="a").config == {"width": 3, "depth": 2, "name": "a"}
    assert Deep().config == {}
    assert Double().config == {}
    assert copy.deepcopy(Net(3)).config == {"width": 3, "depth": 2}
