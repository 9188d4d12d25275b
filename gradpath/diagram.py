"""Drawing of a pipeline: stages as boxes with ports, wires as curves from left to right, carries dashed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from gradpath.graph import Graph

_HEADER, _ROW, _PAD = 44, 20, 8
_GAP_X, _GAP_Y, _LANE = 56, 24, 14
_CHARACTER = 6.6  # Width [px] of a character of the 12 px port labels, on the wide side.


@dataclass
class Node:
    """A box: a stage, or an external input of the pipeline."""

    name: str
    subtitle: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    external: bool = False
    bend: bool = False
    """No box, but the room that a wire takes where it passes a column."""
    x: float = 0.0
    y: float = 0.0
    column: tuple[float, float] = (0.0, 0.0)
    """Left and right end of the column [px]."""

    @property
    def width(self) -> float:
        """Width [px] that fits the texts."""
        if self.bend:
            return 0.0
        left = max((len(port) for port in self.inputs), default=0)
        right = max((len(port) for port in self.outputs), default=0)
        title = max(len(self.name) * 1.45, len(self.subtitle))
        return 24 + _CHARACTER * max(left + right + 2, title)

    @property
    def height(self) -> float:
        """Height [px] of the header and the rows of ports."""
        if self.bend:
            return 4.0
        if self.plain:
            return _HEADER if self.subtitle else 0.7 * _HEADER
        return _HEADER + _ROW * max(len(self.inputs), len(self.outputs)) + _PAD

    @property
    def plain(self) -> bool:
        """Whether the box is an external input taken as a whole, which needs no rows of ports."""
        return self.external and self.outputs == [""]

    def port(self, name: str, side: str) -> tuple[float, float]:
        """Return the position of an input (side "in", left edge) or output (side "out", right edge)."""
        if self.plain:
            return self.x + self.width, self.y + self.height / 2
        row = (self.inputs if side == "in" else self.outputs).index(name)
        x = self.x if side == "in" else self.x + self.width
        return x, self.y + _HEADER + _ROW * row + _ROW / 2


@dataclass(frozen=True)
class Edge:
    """A wire from an output port to an input port; `carried` wires lead into the next time step."""

    source: str
    output: str
    target: str
    input: str
    carried: bool = False


def draw_pipeline(graph: Graph, carry: Mapping[str, str] | None = None) -> str:
    """Draw the graph of a pipeline as an SVG element.

    Args:
        graph: What `Pipeline.graph()` returns.
        carry: The outputs that come back as external inputs of the next step, as a Rollout declares them.
    """
    nodes = {name: Node(name, external=True) for name in graph.externals}
    for name in graph.order:
        stage = graph.nodes[name]
        owned = f" · {_short(stage.parameters)} parameters" if stage.parameters else ""
        outputs = list(stage.contract.outputs)
        nodes[f"{name} "] = Node(
            name, f"{stage.contract.gradient}{owned}", list(stage.contract.inputs), outputs
        )
    edges = []
    for target, source in graph.wires.items():
        # Stages carry a trailing space in their keys: an external input may have the name of a stage.
        stage_name, _, input_name = target.partition(".")
        key = source.name if source.stage is None else f"{source.stage} "
        port = ".".join(source.fields if source.stage is None else (source.name, *source.fields))
        edges.append(_wire(nodes, Edge(key, port, f"{stage_name} ", input_name)))
    for name, text in (carry or {}).items():
        stage_name, _, port = text.partition(".")
        nodes[name].subtitle = "carried through time"
        edges.append(_wire(nodes, Edge(f"{stage_name} ", port, name, "", carried=True)))
    return draw_graph(nodes, edges)


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else str(count)


def _wire(nodes: Mapping[str, Node], edge: Edge) -> Edge:
    """Add the port that the wire leaves from, where it is a field or a whole external input."""
    outputs = nodes[edge.source].outputs
    if edge.output not in outputs:
        outputs.append(edge.output)
    return edge


def draw_graph(nodes: Mapping[str, Node], edges: Sequence[Edge]) -> str:
    """Draw a graph as an SVG element.

    Args:
        nodes: Boxes by key; positions are set by this function.
        edges: Wires between ports that exist. Wires that are not `carried` must not form a cycle.
    Returns:
        The SVG element; colours come from the page's style sheet.
    """
    wires = [edge for edge in edges if not edge.carried]
    carried = [edge for edge in edges if edge.carried]
    columns = _columns(nodes, wires)
    boxes = dict(nodes)
    paths = [_bends(boxes, columns, wire) for wire in wires]
    links = [pair for path in paths for pair in itertools.pairwise(path)]
    _order(columns, links)
    margin = _LANE * (len(carried) + 1)
    width, height = _place([[boxes[key] for key in column] for column in columns], margin)
    drawn = [_draw_wire(boxes, wire, path) for wire, path in zip(wires, paths, strict=True)]
    drawn += [_draw_carry(boxes, edge, lane, height) for lane, edge in enumerate(carried)]
    drawn += [_draw_node(node) for node in nodes.values()]
    full_width, full_height = width + margin, height + _LANE * len(carried) + 4
    # Small graphs are not blown up: the page stretches an SVG to its max-width only.
    return (
        f'<svg class="graph" style="max-width:{full_width:.0f}px" '
        f'viewBox="0 0 {full_width:.0f} {full_height:.0f}" role="img" aria-label="pipeline graph">'
        f"{''.join(drawn)}</svg>"
    )


def _columns(nodes: Mapping[str, Node], wires: Sequence[Edge]) -> list[list[str]]:
    """Assign each node to a column: one to the right of its rightmost source, externals next to first use."""
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for wire in wires:
            depth[wire.target] = max(depth[wire.target], depth[wire.source] + 1)
    for key, node in nodes.items():
        uses = [depth[wire.target] for wire in wires if wire.source == key]
        if node.external and uses:
            depth[key] = min(uses) - 1
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for key in nodes:
        columns[depth[key]].append(key)
    return columns


def _bends(boxes: dict[str, Node], columns: list[list[str]], wire: Edge) -> list[str]:
    """Make room for a wire in every column that it passes. Returns the keys from source to target.

    Wires from the same port share their bends.
    """
    start = next(i for i, column in enumerate(columns) if wire.source in column)
    end = next(i for i, column in enumerate(columns) if wire.target in column)
    path = [wire.source]
    for i in range(start + 1, end):
        key = f"{wire.source}/{wire.output}/{i}"
        if key not in boxes:
            boxes[key] = Node(key, bend=True)
            columns[i].append(key)
        path.append(key)
    return [*path, wire.target]


def _order(columns: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    """Order the nodes of each column near the mean height of what they are linked to, to avoid crossings."""
    height = {key: (i + 0.5) / len(column) for column in columns for i, key in enumerate(column)}
    neighbours: dict[str, list[str]] = {key: [] for key in height}
    for a, b in links:
        neighbours[a].append(b)
        neighbours[b].append(a)
    for _ in range(8):
        for column in columns:
            mean = {key: _mean([height[other] for other in neighbours[key]], height[key]) for key in column}
            column.sort(key=mean.__getitem__)
            for i, key in enumerate(column):
                height[key] = (i + 0.5) / len(column)


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _place(columns: Sequence[Sequence[Node]], left: float) -> tuple[float, float]:
    """Set the positions of all nodes, columns centred vertically. Returns the extent [px]."""
    heights = [sum(node.height + _GAP_Y for node in column) - _GAP_Y for column in columns]
    total = max(heights, default=0.0) + 2 * _LANE
    x = left
    for column, height in zip(columns, heights, strict=True):
        widest = max(node.width for node in column)
        y = (total - height) / 2
        for node in column:
            # Externals hug the wires that leave them, stages share a left edge.
            node.x, node.y = (x + widest - node.width if node.external else x), y
            node.column = (x, x + widest)
            y += node.height + _GAP_Y
        x += widest + _GAP_X
    return x - _GAP_X, total


def _draw_wire(boxes: Mapping[str, Node], wire: Edge, path: Sequence[str]) -> str:
    source, target = boxes[wire.source], boxes[wire.target]
    x, y = source.port(wire.output, "out")
    commands = f"M{x:.1f} {y:.1f}"
    x = source.column[1]
    commands += f"H{x:.1f}"
    for key in path[1:]:
        box = boxes[key]
        to_x, to_y = (box.column[0], box.y + box.height / 2) if box.bend else target.port(wire.input, "in")
        middle = (x + to_x) / 2
        commands += f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
        if box.bend:
            x = box.column[1]
            commands += f"H{x:.1f}"
    title = _title(f"{'.'.join(filter(None, (source.name, wire.output)))} to {target.name}.{wire.input}")
    return f'<path class="wire" d="{commands}">{title}</path>'


def _draw_carry(nodes: Mapping[str, Node], edge: Edge, lane: int, height: float) -> str:
    """Draw a dashed line from the output down, below everything, and up into the external input it feeds."""
    source, target = nodes[edge.source], nodes[edge.target]
    x0, y0 = source.port(edge.output, "out")
    x1, y1 = target.x, target.y + _HEADER / 2
    right, left = source.column[1] + 10 + 8 * lane, target.column[0] - 10 - 8 * lane
    bottom, r = height + _LANE * lane, 7
    path = (
        f"M{x0:.1f} {y0:.1f}H{right - r:.1f}q{r} 0 {r} {r}V{bottom - r:.1f}q0 {r} {-r} {r}"
        f"H{left + r:.1f}q{-r} 0 {-r} {-r}V{y1 + r:.1f}q0 {-r} {r} {-r}H{x1:.1f}"
    )
    title = _title(f"{source.name}.{edge.output} is {target.name} of the next step")
    return f'<path class="wire carry" d="{path}">{title}</path>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _draw_node(node: Node) -> str:
    x, y, width, height = node.x, node.y, node.width, node.height
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8"/>',
        f'<text class="name" x="{x + 12:.1f}" y="{y + 19:.1f}">{escape(node.name)}</text>',
        f'<text class="sub" x="{x + 12:.1f}" y="{y + 35:.1f}">{escape(node.subtitle)}</text>',
    ]
    for side, ports in (("in", node.inputs), ("out", node.outputs)):
        for port in ports:
            x, y = node.port(port, side)
            shift, anchor = (10, "") if side == "in" else (-10, " end")
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
            parts.append(
                f'<text class="port{anchor}" x="{x + shift:.1f}" y="{y + 4:.1f}">{escape(port)}</text>'
            )
    return f'<g class="node{" external" if node.external else ""}">{"".join(parts)}</g>'
