import pytest
import torch

from gradpath import Contract, ContractError, ShapeError
from gradpath.specs import conflict, merge, parse


def check(spec, value, **others):
    contract = Contract(inputs={"x": spec, **{name: s for name, (s, _) in others.items()}}, outputs={})
    contract.check_inputs({"x": value, **{name: v for name, (_, v) in others.items()}})


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("B 1 H W", torch.zeros(2, 1, 4, 5)),
        ("", torch.zeros(())),
        ("B 3:int64", torch.zeros(2, 3, dtype=torch.int64)),
        ("B 3:bool", torch.zeros(2, 3, dtype=torch.bool)),
        ("...", torch.zeros(())),
        ("... 3", torch.zeros(3)),
        ("... 3", torch.zeros(5, 4, 3)),
        ("N N", torch.zeros(4, 4)),
        ("generator", torch.Generator()),
        ("any", object()),
        ({"pose": "B 7", "index": "B:int64"}, {"pose": torch.zeros(2, 7), "index": torch.zeros(2).long()}),
        ({"pose": "B 7"}, {"pose": torch.zeros(2, 7), "extra": 1}),
    ],
)
def test_values_that_fit(spec, value):
    check(spec, value)


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (
            "B 1 H W",
            torch.zeros(64, 48, 64),
            r'expected "B 1 H W", got \(64, 48, 64\); add a channel axis or',
        ),
        ("B 1 H W", torch.zeros(64, 48, 64), 'declare "B H W"'),
        ("B 3", torch.zeros(3), r"add the axis B, unsqueeze\(0\)"),
        ("B 3", torch.zeros(2, 1, 3), r"squeeze\(1\)"),
        ("B 3", torch.zeros(2, 4), "axis 1 must have size 3, not 4"),
        ("N N", torch.zeros(4, 5), r"N is 4 .* and 5 here"),
        ("... 3", torch.zeros(()), r"got \(\)"),
        ("B 3:int64", torch.zeros(2, 3), r"expected torch\.int64, got torch\.float32"),
        ("B 3", torch.zeros(2, 3).long(), 'declare "B 3:int64"'),
    ],
)
def test_tensors_that_do_not_fit(spec, value, message):
    with pytest.raises(ShapeError, match=message):
        check(spec, value)


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        ("", 1.0, "expected a tensor"),
        ("generator", 3, "torch.Generator"),
        ({"pose": "B 7"}, torch.zeros(2, 7), "a dict with"),
        ({"pose": "B 7"}, {"pos": torch.zeros(2, 7)}, 'has no "pose"; it has "pos"'),
    ],
)
def test_values_of_another_kind(spec, value, message):
    with pytest.raises(ContractError, match=message):
        check(spec, value)


def test_sizes_are_one_across_inputs_and_outputs_of_a_call():
    contract = Contract(inputs={"x": "B 3", "y": "B 4"}, outputs={"z": "B"})
    with pytest.raises(ShapeError, match=r'"y": .*B is 2 in "x" and 5 here'):
        contract.check_inputs({"x": torch.zeros(2, 3), "y": torch.zeros(5, 4)})
    binding = contract.check_inputs({"x": torch.zeros(2, 3), "y": torch.zeros(2, 4)})
    contract.check_outputs({"z": torch.zeros(2)}, binding)
    with pytest.raises(ShapeError, match=r'"z": .*B is 2'):
        contract.check_outputs({"z": torch.zeros(3)}, binding)


def test_floating_tensors_of_a_call_share_a_dtype():
    with pytest.raises(ShapeError, match=r"got torch.float64, but .*torch.float32"):
        check("B", torch.zeros(2), y=("B", torch.zeros(2).double()))
    check("B", torch.zeros(2), y=("B:float64", torch.zeros(2).double()))


def test_tensors_of_a_call_are_on_one_device():
    with pytest.raises(ShapeError, match="is on meta"):
        check("B", torch.zeros(2), y=("B", torch.zeros(2, device="meta")))


def test_outputs_have_no_undeclared_fields():
    contract = Contract(inputs={}, outputs={"state": {"pose": "B 7"}})
    with pytest.raises(ContractError, match='has "extra"'):
        value = {"pose": torch.zeros(2, 7), "extra": torch.zeros(2)}
        contract.check_outputs({"state": value}, contract.check_inputs({}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "exakt"}, "one of exact, implicit, relaxed"),
        ({"effects": ("random",)}, "effects are rng, io, mutates"),
        ({"effects": ("mutates:",)}, "effects are"),
        ({"detached": ("y",)}, 'detached "y" is not an output; outputs are x'),
        ({"inputs": {"a": "B $"}}, '"a": spec "B [$]": "[$]" is not an axis'),
        ({"inputs": {"a": "B ... 3"}}, '"..." is not an axis'),
        ({"inputs": {"a": "B:floaty"}}, "not a torch dtype"),
        ({"inputs": {"a": 3}}, "a spec is text or a dict"),
        ({"inputs": ["a"]}, "inputs is a dict of specs"),
    ],
)
def test_words_that_are_not_known_are_refused(options, message):
    with pytest.raises(ContractError, match=message):
        Contract(**{"inputs": {}, "outputs": {"x": "B"}, **options})


def test_one_effect_may_be_written_as_text():
    contract = Contract(inputs={"x": "B"}, outputs={}, effects="mutates:x")
    assert contract.effects == ("mutates:x",)
    assert contract.mutated == ("x",)


def test_json_reads_back_to_an_equal_contract():
    contract = Contract(
        inputs={"state": {"pose": "B 7", "index": "... 3:int64"}, "generator": "generator"},
        outputs={"x": ""},
        gradient="relaxed",
        effects=("rng",),
    )
    assert Contract(**contract.json()) == contract


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("B 3", "B 3", True),
        ("B N", "B 3", True),
        ("B 4", "B 3", False),
        ("B 1 H W", "B H W", False),
        ("... 3", "B 3", True),
        ("B 3", "... 3", True),
        ("B 4", "... 3", False),
        ("... B 3", "3", False),
        ("B:int64", "B", False),
        ("B:float64", "B", True),
        ("B:float64", "B:float32", False),
        ("any", "B", True),
        ("generator", "B", False),
        ({"pose": "B 7", "velocity": "B 3"}, {"pose": "B 7"}, True),
        ({"pose": "B 7"}, {"pose": "B 7", "velocity": "B 3"}, False),
        ({"pose": "B 7"}, {"pose": "B 4"}, False),
        ({"pose": "B 7"}, "B 7", False),
    ],
)
def test_specs_that_can_be_wired(source, target, fits):
    assert (conflict(parse(source), parse(target)) is None) == fits


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("B N", "B 3", "B 3"),
        ("... 3", "B N", "B 3"),
        ("B", "B:float64", "B:float64"),
        ("any", "B", "B"),
        ({"pose": "B N"}, {"pose": "B 7", "velocity": "B 3"}, {"pose": "B 7", "velocity": "B 3"}),
    ],
)
def test_merged_specs_ask_for_both(first, second, both):
    assert merge(parse(first), parse(second)).text == both
