"""The report: one file, without external resources, with every part of the run in it."""

from __future__ import annotations

import base64
import importlib
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from gradpath.contract import Contract
from gradpath.diagram import draw_pipeline
from gradpath.errors import InputError, LoadError
from gradpath.figures import Figure, Series, line_chart, nice_ticks, running_mean
from gradpath.graph import Node, connect
from gradpath.page import report, reproduce_command
from gradpath.runs import create_run, open_run
from gradpath.train import evaluate, train

HERE = Path(__file__).parent
VOID = {"meta", "img", "br", "hr"}


class Balance(HTMLParser):
    """Collects unbalanced tags and everything that would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")
        ]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield importlib.import_module("toy_task")


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "toy <run>"
    train(toy.ToyTask(toy.ToyOptions(seed=2)), path, console=Console(quiet=True))
    return path


def test_the_page_is_whole_and_needs_nothing_else(folder):
    evaluate(folder, allow=["toy_task"])
    text = report(folder, allow=["toy_task"]).read_text()
    page = Balance()
    page.feed(text)
    assert page.open == [] and page.links == []
    assert "url(" not in text and "@import" not in text and "<script" not in text
    for part in ("Success", "Loss", "Gradient norm per stage, outputs", "Gradient norm per stage, parameters",
                 "Gradient norm per time step, first", "One time step", "Final distances", "of 4", "--seed 2",
                 "carried through time", "Mean distance"):  # fmt: skip
        assert part in text, part
    assert "toy <run>" not in text and "toy &lt;run&gt;" in text


def test_before_evaluation_the_page_says_what_to_do(toy, tmp_path):
    train(toy.ToyTask(toy.ToyOptions(iterations=1)), tmp_path, console=Console(quiet=True))
    text = report(tmp_path, allow=["toy_task"]).read_text()
    assert f"gradpath evaluate {tmp_path}" in text and "Final distances" not in text


def test_a_run_without_an_iteration_is_refused(toy, tmp_path):
    create_run(tmp_path, toy.ToyTask(toy.ToyOptions()))
    with pytest.raises(LoadError, match="gradpath train --resume"):
        report(tmp_path, allow=["toy_task"])


def test_the_command_trains_the_same_options(toy, folder):
    command = reproduce_command(open_run(folder, ["toy_task"])).splitlines()[0]
    assert command.startswith("gradpath train toy_task:ToyTask --run ") and command.endswith("--seed 2")


def test_the_commands_are_quoted_for_a_shell(toy, folder):
    commands = [shlex.split(line) for line in reproduce_command(open_run(folder, ["toy_task"])).splitlines()]
    assert [words[-1] for words in commands[1:]] == [str(folder)] * 2
    assert commands[0][commands[0].index("--run") + 1] == str(folder) and "<" in str(folder)


def test_points_land_where_the_axes_say():
    chart = line_chart([Series("a", [0, 10], [1.0, 100.0])], x_label="x", log=True, size=(560, 300))
    path = re.search(r'class="line"[^>]* d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart)
    assert path is not None
    assert [float(value) for value in path.groups()] == [62.0, 260.0, 546.0, 12.0]


def test_gaps_stay_gaps():
    chart = line_chart([Series("a", [0, 1, 2, 3, 4], [1.0, 2.0, None, 1.0, 2.0])], x_label="x")
    drawn = re.search(r'class="line"[^>]* d="([^"]*)"', chart)
    assert drawn is not None and drawn[1].count("M") == 2
    lone = line_chart([Series("a", [0, 1, 2], [1.0, float("nan"), 2.0])], x_label="x")
    assert lone.count("h0.01") == 2


@pytest.mark.parametrize("values", [[], [None], [float("nan")], [0.0]])
def test_nothing_to_draw_is_said(values):
    assert "no finite values" in line_chart([Series("a", range(len(values)), values)], x_label="x", log=True)


@pytest.mark.parametrize("log", [False, True])
def test_a_constant_line_has_an_axis(log):
    assert "<path" in line_chart([Series("a", [0], [3.0])], x_label="x", log=log)


def test_names_are_escaped():
    chart = line_chart([Series("<b>", [0, 1], [0.0, 1.0]), Series("c", [0], [1.0])], x_label="<x>")
    assert "<b>" not in chart and "<x>" not in chart


def test_ticks_are_round_and_cover_the_range():
    assert nice_ticks(0.0, 10.0, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(-0.013, 0.021, 5) == [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]


def test_running_mean_skips_what_is_missing():
    assert running_mean([1.0, None, 3.0], 3) == [1.0, 2.0, 3.0]
    assert running_mean([None, None], 1) == [None, None]


def test_a_figure_has_exactly_one_content():
    with pytest.raises(InputError, match='figure "both"'):
        Figure("both", png=b"1", svg="<svg/>")
    with pytest.raises(InputError, match='figure "none"'):
        Figure("none")
    assert base64.b64encode(b"video").decode() in Figure("v", mp4=b"video").content()


def test_the_diagram_draws_every_stage_port_and_wire():
    body = Contract({"state": {"pose": "B 7"}, "feature": "B 8", "wind": "B 3"}, {"state": {"pose": "B 7"}})
    nodes = {
        "camera": Node(Contract({"pose": "B 7"}, {"depth": "B 1 H W"}, "relaxed")),
        # A stage may have the name of an external input.
        "wind": Node(Contract({"depth": "B 1 H W"}, {"feature": "B 8"}), parameters=12),
        "body": Node(body),
    }
    graph = connect(nodes, {"camera.pose": "state.pose", "body.state": "state"})
    svg = draw_pipeline(graph, {"state": "body.state"})
    root = ElementTree.fromstring(svg)
    boxes = list(root.iter("rect"))
    assert len(boxes) == 5
    titles = [element.text for element in root.iter("title")]
    assert sorted(titles) == sorted([
        "state.pose to camera.pose", "camera.depth to wind.depth", "wind.feature to body.feature",
        "state to body.state", "wind to body.wind", "body.state is state of the next step",
    ])  # fmt: skip
    corners = [
        (float(box.get("x")), float(box.get("y")), float(box.get("width")), float(box.get("height")))
        for box in boxes
    ]
    for i, (x, y, width, height) in enumerate(corners):
        for u, v, wide, high in corners[:i]:
            assert x >= u + wide or u >= x + width or y >= v + high or v >= y + height, "boxes overlap"
