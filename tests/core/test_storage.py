"""Saved runs: what comes back, what an interruption leaves, what is refused."""

import dataclasses
import enum
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath.codec import Decoder, Encoder
from gradpath.config import Configured
from gradpath.migrations import FORMAT, MIGRATIONS

ROBOT = """
import torch
from torch import nn
import gradpath as gp


class Encoder(gp.Stage):
    contract = gp.Contract({"depth": "B 6"}, {"feature": "B 5"})

    def __init__(self, width, scale=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Dropout(0.5), nn.Linear(width, 5))
        self.register_buffer("scale", torch.ones(5) if scale is None else scale)
        self.register_buffer("offset", torch.full((5,), 1 / 3), persistent=False)

    def forward(self, depth):
        return self.net(depth) * self.scale + self.offset


class Policy(gp.Stage):
    contract = gp.Contract({"feature": "B 5"}, {"control": "B 3"})

    def __init__(self, gains, encoder=None):
        super().__init__()
        self.gains = gains
        self.net = nn.Linear(5, 3)

    def forward(self, feature):
        return self.net(feature) * self.gains["roll"]


def build():
    torch.manual_seed(0)
    step = gp.Pipeline(
        plan=Policy({"roll": 0.1, 3: (1, 2)}),
        encode=Encoder(7, scale=torch.rand(5)),
        wires={"encode.depth": "view.depth"},
    ).double()
    step.encode.net[0].requires_grad_(False)
    step.encode.net[1].eval()
    return step


def inputs():
    return {"view": {"depth": torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)}}


def train(step, optimizer, scheduler, count):
    for _ in range(count):
        optimizer.zero_grad()
        step(**inputs())["plan.control"].square().sum().backward()
        optimizer.step()
        scheduler.step()


def optimizers(step):
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=0.01)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
"""


@pytest.fixture
def robot(tmp_path, monkeypatch):
    """Return a module outside gradpath, with the source above."""
    (tmp_path / "planted_robot.py").write_text(ROBOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted_robot", raising=False)
    import planted_robot

    yield planted_robot
    sys.modules.pop("planted_robot", None)


@pytest.fixture
def run(robot, tmp_path):
    """Return the folder of a saved run."""
    gp.save(robot.build(), tmp_path / "run", step=1)
    return tmp_path / "run"


def load(folder):
    return gp.load(folder, allow=("planted_robot",))


# What comes back.


def test_outputs_are_bit_equal_in_a_fresh_process(robot, tmp_path):
    step = robot.build()
    optimizer, scheduler = robot.optimizers(step)
    robot.train(step, optimizer, scheduler, 3)
    gp.save(step, tmp_path / "run")
    script = (
        "import gradpath as gp, planted_robot as robot\n"
        "step = gp.load('run', allow=('planted_robot',))\n"
        "print(step(**robot.inputs())['plan.control'].tolist())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == step(**robot.inputs())["plan.control"].tolist()


def test_modes_dtypes_and_frozen_parameters_come_back(run, robot):
    step, back = robot.build(), load(run)
    assert {name: p.requires_grad for name, p in back.named_parameters()} == {
        name: p.requires_grad for name, p in step.named_parameters()
    }
    assert [m.training for m in back.modules()] == [m.training for m in step.modules()]
    assert back.encode.offset.dtype == torch.float64
    assert torch.equal(back.encode.offset, step.encode.offset)
    assert back.plan.config["gains"] == {"roll": 0.1, 3: (1, 2)}
    assert list(back.stages) == ["plan", "encode"]


def test_training_resumes_to_the_identical_result(robot, tmp_path):
    whole = robot.build()
    optimizer, scheduler = robot.optimizers(whole)
    robot.train(whole, optimizer, scheduler, 3)
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    extra = {"best": math.inf, "seen": [1, (2, None)], "map": torch.arange(3)}
    gp.save(
        whole,
        tmp_path / "run",
        optimizer=optimizer,
        scheduler=scheduler,
        generators={"noise": generator},
        step=3,
        extra=extra,
    )
    robot.train(whole, optimizer, scheduler, 4)

    resumed = load(tmp_path / "run")
    optimizer, scheduler = robot.optimizers(resumed)
    other = torch.Generator()
    state = gp.load_train_state(
        tmp_path / "run", optimizer=optimizer, scheduler=scheduler, generators={"noise": other}
    )
    robot.train(resumed, optimizer, scheduler, 4)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other))
    assert state.step == 3
    assert state.extra["best"] == math.inf
    assert state.extra["seen"] == [1, (2, None)]
    assert torch.equal(state.extra["map"], torch.arange(3))


def test_loading_leaves_the_random_state(run):
    before = torch.random.get_rng_state()
    load(run)
    assert torch.equal(before, torch.random.get_rng_state())


class Tied(gp.Stage):
    contract = gp.Contract({"x": "B 3"}, {"y": "B 3"})

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.b(self.a(x))


def test_shared_tensors_are_written_once_and_tied_again(tmp_path):
    tied = Tied()
    tied.b.weight = tied.a.weight
    gp.save(tied, tmp_path)
    assert json.loads((tmp_path / "pipeline.json").read_text())["state"]["aliases"] == {
        "b.weight": "a.weight"
    }
    back = gp.load(tmp_path, allow=(__name__,))
    assert back.a.weight is back.b.weight
    assert torch.equal(back.a.weight, tied.a.weight)


def test_a_stage_used_twice_is_built_once(robot, tmp_path):
    encode = robot.Encoder(4)
    plan = robot.Policy({"roll": 1.0}, encoder=encode)
    gp.save(gp.Pipeline(encode=encode, plan=plan), tmp_path)
    back = load(tmp_path)
    assert back.plan.config["encoder"] is back.encode


def test_pipeline_json_says_what_there_is(run):
    manifest = json.loads((run / "pipeline.json").read_text())
    assert manifest["format"] == FORMAT
    assert manifest["stages"]["encode"]["class"] == "planted_robot:Encoder"
    assert manifest["stages"]["encode"]["contract"]["inputs"] == {"depth": "B 6"}
    assert {"from": "view.depth", "to": "encode.depth"} in manifest["graphs"][""]["wires"]
    assert sorted(path.name for path in run.iterdir()) == [
        "pipeline.json",
        "train_state.safetensors",
        "weights.safetensors",
    ]


# Arguments.


class Noise(Configured):
    def __init__(self, level, bins=3):
        self.level = level


@dataclasses.dataclass(frozen=True)
class Limits:
    low: float
    high: tuple[float, ...]


class Kind(enum.IntEnum):
    BOX = 2


class Pair(NamedTuple):
    left: int
    right: torch.Tensor


def test_arguments_come_back_as_they_were():
    array, tensor = np.arange(6, dtype=np.float32).reshape(2, 3).T, torch.rand(2, 2)
    value = {
        "plain": [None, True, 3, 0.1, "text", (1, [2])],
        "floats": [math.inf, -math.inf],
        "keys": {1: "a", (2, 3): "b", "$x": 1},
        "counter": Counter({3: 2}),
        "sets": [{2, 1}, frozenset({(0, 1), (0, 3)})],
        "types": [torch.float64, torch.device("cpu"), Path("a/b"), np.float32(0.5), np.int64(3)],
        "objects": [Limits(1.0, (2.0, 3.0)), Noise(0.25)],
        "enums": [Kind.BOX, {Kind.BOX: Kind.BOX}],
        "pair": Pair(1, tensor),
        "array": array,
        "same": [tensor, tensor],
    }
    encoder = Encoder()
    text = json.dumps(encoder.encode(value, "config"), allow_nan=False)
    back = Decoder(encoder.tensors, allow=(__name__,)).decode(json.loads(text))
    for key in ("plain", "floats", "keys", "counter", "sets", "types"):
        assert back[key] == value[key], key
    assert type(back["counter"]) is Counter and type(back["sets"][1]) is frozenset
    assert back["objects"][0] == Limits(1.0, (2.0, 3.0))
    assert back["objects"][1].config == {"level": 0.25, "bins": 3}
    assert back["enums"][0] is Kind.BOX
    assert next(iter(back["enums"][1].items())) == (Kind.BOX, Kind.BOX)
    assert type(back["pair"]) is Pair
    assert torch.equal(back["pair"].right, tensor)
    assert back["same"][0] is back["same"][1] is back["pair"].right
    assert back["array"].dtype == np.float32
    np.testing.assert_array_equal(back["array"], array)
    nan = Encoder().encode(math.nan, "x")
    assert math.isnan(Decoder({}).decode(nan))


class Activated(gp.Stage):
    contract = gp.Contract({"x": "B 3"}, {"y": "B 3"})

    def __init__(self, activation=torch.tanh, nested=None):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return self.activation(x)


def test_a_default_that_cannot_be_written_comes_back_with_the_constructor(tmp_path):
    gp.save(Activated(), tmp_path)
    assert gp.load(tmp_path, allow=(__name__,)).activation is torch.tanh


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": torch.sin}, r"config\.act\.activation: a builtin_function_or_method cannot be saved"),
        ({"nested": [{"net": nn.Linear(2, 2)}]}, r"config\.act\.nested\.0\.net: a Linear cannot be saved"),
        ({"nested": b"12"}, r"config\.act\.nested: a bytes cannot be saved"),
        ({"nested": nn.Parameter(torch.zeros(2))}, r"a Parameter cannot be saved"),
    ],
)
def test_arguments_that_cannot_be_saved_are_named_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(gp.InputError, match=message):
        gp.save(gp.Pipeline(act=Activated(**arguments)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_found_again_is_refused(tmp_path):
    class Local(Activated):
        pass

    with pytest.raises(gp.InputError, match="config: Local is defined inside a function"):
        gp.save(Local(), tmp_path)
    with pytest.raises(gp.InputError, match="got a Linear, put it in a Stage"):
        gp.save(nn.Linear(2, 2), tmp_path)


# Interruptions.


@pytest.mark.parametrize("calls", range(9))
def test_an_interrupted_save_leaves_one_whole_state(robot, tmp_path, monkeypatch, calls):
    folder = tmp_path / "run"
    old, new = robot.build(), robot.build()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    gp.save(old, folder, step=1)
    left = [calls]

    def limited(function):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", limited(os.replace))
        patched.setattr(os, "fsync", limited(os.fsync))
        with pytest.raises(KeyboardInterrupt):
            gp.save(new, folder, step=2)
    state = gp.load_train_state(folder)
    expected = {1: old, 2: new}[state.step]
    assert (state.step == 2) == (calls > 3)  # Three pending files, then the one step that counts.
    for name, value in load(folder).state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])

    # A second save that is interrupted before its own step must not lose what the first one left pending.
    left[0] = 2 if calls > 5 else 3
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", limited(os.fsync))
        with pytest.raises(KeyboardInterrupt):
            gp.save(old, folder, step=3)
    assert gp.load_train_state(folder).step == state.step
    gp.save(new, folder, step=4)
    assert gp.load_train_state(folder).step == 4
    assert not [path for path in folder.iterdir() if path.name.endswith(".new")]


def test_a_reader_tries_again_when_another_process_saved_in_between(robot, run, monkeypatch):
    import gradpath.storage as storage

    parse = storage._parse_manifest
    saved = []

    def parse_then_save(folder, text):
        manifest = parse(folder, text)
        if not saved:
            saved.append(True)
            gp.save(robot.build().float(), folder, step=2)
        return manifest

    monkeypatch.setattr(storage, "_parse_manifest", parse_then_save)
    assert gp.load_train_state(run).step == 2


# Refusals.


def edit(folder, change, resign=True):
    """Change the manifest of a run; with a fresh checksum unless told otherwise."""
    from gradpath.storage import _checksum

    manifest = json.loads((folder / "pipeline.json").read_text())
    change(manifest)
    if resign:
        manifest["checksum"] = _checksum(manifest)
    (folder / "pipeline.json").write_text(json.dumps(manifest))


def test_missing_files(run, tmp_path):
    with pytest.raises(gp.LoadError, match="is not a saved run"):
        load(tmp_path / "nothing")
    (run / "weights.safetensors").unlink()
    with pytest.raises(gp.LoadError, match=r"weights\.safetensors is missing"):
        load(run)


@pytest.mark.parametrize("name", ["weights.safetensors", "train_state.safetensors"])
def test_damaged_tensor_files(run, name):
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[:-10])
    with pytest.raises(gp.LoadError, match=f"is damaged: {len(data) - 10} of {len(data)} bytes"):
        load(run)
    (run / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(gp.LoadError, match="is damaged: another checksum"):
        load(run)
    (run / name).write_bytes(data)
    load(run)


def test_damaged_and_edited_manifests(run):
    path = run / "pipeline.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(gp.LoadError, match=r"pipeline\.json is damaged"):
        load(run)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(gp.LoadError, match="is damaged"):
        load(run)
    path.write_text("[]")
    with pytest.raises(gp.LoadError, match="does not hold a saved run"):
        load(run)
    path.write_text(text)
    edit(run, lambda m: m["model"]["config"]["encode"]["config"].update(width=9), resign=False)
    with pytest.raises(gp.LoadError, match="was changed after it was saved"):
        load(run)


def test_newer_formats(run):
    edit(run, lambda m: m.update(format=FORMAT + 1, versions={"gradpath": "9.0"}))
    with pytest.raises(gp.LoadError, match=r"written by gradpath 9\.0; .*Update gradpath"):
        load(run)
    edit(run, lambda m: m.update(format=FORMAT + 1, versions="rearranged"))
    with pytest.raises(gp.LoadError, match="does not say which"):
        load(run)


@pytest.mark.parametrize("number", [0, -1, True, "1", None])
def test_formats_that_never_were(run, number):
    edit(run, lambda m: m.update(format=number))
    with pytest.raises(gp.LoadError, match="does not hold a saved run"):
        load(run)


OLD_RUNS = sorted((Path(__file__).parents[1] / "data").glob("run_format_*"))


def test_every_older_format_has_a_run_that_it_wrote():
    assert [folder.name for folder in OLD_RUNS] == [f"run_format_{number}" for number in range(1, FORMAT)]
    assert set(MIGRATIONS) == set(range(1, FORMAT))


@pytest.mark.parametrize("folder", OLD_RUNS, ids=lambda folder: folder.name)
def test_runs_of_older_formats_load_train_on_and_are_saved_in_the_new_one(folder, tmp_path):
    """Files as the version of that format wrote them, with the outputs that it computed."""
    expected = json.loads((folder / "expected.json").read_text())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    feature = torch.linspace(-1, 1, 12).reshape(3, 4)

    def check(model, noise, optimizer, state):
        assert model(feature=feature)["plan.command"].tolist() == expected["command"]
        assert (state.step, state.extra) == (2, {"best": 0.5})
        (model(feature=feature)["plan.command"] - 0.5).square().sum().backward()
        optimizer.step()
        after = torch.tensor(expected["after_one_more_step"])
        torch.testing.assert_close(model.plan.head.weight, after, rtol=1e-6, atol=1e-7)
        assert torch.rand(1, generator=noise).item() == expected["draw"]

    def open_run(place):
        model, noise = gp.load(place), torch.Generator()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        state = gp.load_train_state(place, optimizer=optimizer, generators={"noise": noise})
        return model, noise, optimizer, state

    model, noise, optimizer, state = open_run(folder)
    gp.save(
        model, tmp_path, optimizer=optimizer, generators={"noise": noise}, step=state.step, extra=state.extra
    )
    check(model, noise, optimizer, state)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    manifest = json.loads((tmp_path / "pipeline.json").read_text())
    assert manifest["format"] == FORMAT and set(manifest["versions"]) >= {"gradpath", "torch", "warp"}
    check(*open_run(tmp_path))


def test_an_edited_run_of_an_older_format_is_refused(tmp_path):
    shutil.copytree(OLD_RUNS[0], tmp_path / "run")
    edit(tmp_path / "run", lambda m: m["model"]["config"]["plan"]["config"].update(features=5), resign=False)
    with pytest.raises(gp.LoadError, match="was changed after it was saved"):
        gp.load(tmp_path / "run")


def test_classes_outside_gradpath_need_permission(run):
    with pytest.raises(gp.LoadError, match=r'allow=\("planted_robot",\)'):
        gp.load(run)
    with pytest.raises(gp.LoadError, match="allow="):
        gp.load(run, allow=("planted",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("planted_robot:Encodr", r'no class "Encodr" in planted_robot \(did you mean "Encoder"\?\)'),
        ("planted_robot:nn.Linear", 'no class "nn.Linear"'),
        ("planted_robot.gone:Encoder", "cannot be imported"),
        ("os:system", "allow="),
        ("gradpath.storage:os.system", "no class"),
        ("gradpath.storage:Path", "is not a stage or a plain object"),
        ("gradpath.storage:Pipeline", "is not a stage or a plain object"),
        ("gradpath.errors:LoadError", "is not a stage or a plain object"),
    ],
)
def test_classes_that_are_gone_or_not_for_loading(run, text, message):
    edit(run, lambda m: m["model"]["config"]["encode"].update({"$object": text}))
    with pytest.raises(gp.LoadError, match=message):
        load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["model"]["config"]["encode"]["config"].update(with_=3), "cannot be built .*with_"),
        (
            lambda m: m["model"]["config"]["encode"]["config"].update(width=9),
            r"saved as \(7, 6\), and is built as",
        ),
        (lambda m: m["model"]["config"]["wires"].update({"plan.x": "y"}), "cannot be built .*no input"),
        (lambda m: m["state"]["tensors"].remove("plan.net.bias"), r"differ in plan\.net\.bias"),
        (lambda m: m["state"]["aliases"].update({"plan.gone.bias": "plan.net.bias"}), "was tied to"),
        (lambda m: m["model"]["config"].update(outputs={"$lambda": 1}), r"\$lambda"),
    ],
)
def test_code_that_has_changed(run, change, message):
    edit(run, change)
    with pytest.raises(gp.LoadError, match=message):
        load(run)


def test_train_state_that_was_not_saved_or_does_not_fit(robot, run):
    step = load(run)
    optimizer, scheduler = robot.optimizers(step)
    with pytest.raises(gp.LoadError, match="was saved without optimizer"):
        gp.load_train_state(run, optimizer=optimizer)
    with pytest.raises(gp.LoadError, match='has no generator "noise"; generators are none'):
        gp.load_train_state(run, generators={"noise": torch.Generator()})
    gp.save(step, run, optimizer=optimizer, scheduler=scheduler)
    with pytest.raises(gp.LoadError, match=r"the optimizer of .* does not fit"):
        gp.load_train_state(run, optimizer=torch.optim.AdamW([step.plan.net.weight]))
