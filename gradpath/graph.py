"""Graphs: wires by name between stages, resolved, checked and ordered without running anything."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradpath.contract import Contract
from gradpath.errors import WireError
from gradpath.specs import DictSpec, Spec, conflict, merge, rename_sizes, select, sizes
from gradpath.stage import close_match


@dataclass(frozen=True)
class Source:
    """A stage's output, or an external input where `stage` is None; or a field of one of them."""

    stage: str | None
    name: str
    fields: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The value without its fields: `"stage.output"`, or the name of the external input."""
        return self.name if self.stage is None else f"{self.stage}.{self.name}"

    def __str__(self) -> str:
        return ".".join((self.key, *self.fields))

    def read(self, values: Mapping[str, Any]) -> Any:
        """Return the value from all values by key."""
        value = values[self.key]
        for name in self.fields:
            value = value[name]
        return value


@dataclass(frozen=True)
class Node:
    """A stage as the graph sees it."""

    contract: Contract
    optional: frozenset[str] = frozenset()
    kind: str = ""
    parameters: int = 0


@dataclass(frozen=True)
class Graph:
    """Stages, the wires between them, and the order in which they run.

    Attributes:
        nodes: Stages by name, in the order of their declaration.
        wires: The source of each wired input, by `"stage.input"`.
        externals: Specs of what comes from outside.
        optional: The externals that may be left out.
        order: Names of the stages in the order of execution.
    """

    nodes: dict[str, Node]
    wires: dict[str, Source]
    externals: dict[str, Spec]
    optional: frozenset[str]
    order: tuple[str, ...]

    def inputs(self, stage: str) -> dict[str, Source]:
        """Return the sources of a stage's inputs, by input."""
        names = self.nodes[stage].contract.inputs
        return {name: self.wires[f"{stage}.{name}"] for name in names}

    def unused(self) -> tuple[str, ...]:
        """Return the outputs that no stage takes, as `"stage.output"`."""
        used = {source.key for source in self.wires.values()}
        outputs = (f"{stage}.{name}" for stage in self.order for name in self.nodes[stage].contract.outputs)
        return tuple(key for key in outputs if key not in used)

    def spec(self, source: Source) -> Spec | None:
        """Return the spec of a source, None when it has no such field."""
        if source.stage is None:
            return select(self.externals[source.name], source.fields)
        return select(self.nodes[source.stage].contract.output_specs[source.name], source.fields)

    def outer_spec(self, source: Source) -> Spec | None:
        """Return the spec of a source as seen from outside, where two stages may use one name for two sizes."""
        spec = self.spec(source)
        if source.stage is None or spec is None:
            return spec
        return rename_sizes(spec, _outer_names(source.stage, self.nodes))

    def json(self) -> dict[str, Any]:
        """Return the graph as plain JSON values."""
        return {
            "stages": [
                {
                    "name": name,
                    "class": self.nodes[name].kind,
                    "parameters": self.nodes[name].parameters,
                    "contract": self.nodes[name].contract.json(),
                }
                for name in self.order
            ],
            "wires": [{"from": str(source), "to": target} for target, source in self.wires.items()],
            "externals": {
                name: {"spec": spec.text, "optional": name in self.optional}
                for name, spec in self.externals.items()
            },
            "unused": list(self.unused()),
        }

    def dot(self) -> str:
        """Return the graph as DOT text, for Graphviz. A stage without a gradient has a dashed outline."""
        lines = ["digraph pipeline {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
        for name in self.externals:
            lines.append(f'  "external {name}" [label="{name}", shape=plaintext];')
        for name in self.order:
            node = self.nodes[name]
            style = ', style="rounded,dashed"' if node.contract.gradient == "none" else ""
            lines.append(f'  "{name}" [label="{name}\\n{node.kind}, {node.contract.gradient}"{style}];')
        for target, source in self.wires.items():
            stage, _, name = target.partition(".")
            start = f"external {source.name}" if source.stage is None else source.stage
            text = (
                ".".join(source.fields) if source.stage is None else ".".join((source.name, *source.fields))
            )
            label = name if text in ("", name) else f"{text} as {name}"
            lines.append(f'  "{start}" -> "{stage}" [label="{label}"];')
        return "\n".join([*lines, "}"]) + "\n"


def connect(nodes: dict[str, Node], wires: Mapping[str, str]) -> Graph:
    """Resolve wires, check that what they join fits, and order the stages.

    Args:
        nodes: Stages by name.
        wires: `{"stage.input": "stage.output[.field...]"}` or `{"stage.input": "external[.field...]"}`. An
            input without a wire takes the output of its name from the one other stage that has it; where no
            stage has it, it is an external input of its name.

    Raises:
        WireError: an unknown name, two stages that could feed an input, a cycle, or two ends that do not fit.
    """
    for target in wires:
        _check_target(target, nodes)
    resolved: dict[str, Source] = {}
    for stage, node in nodes.items():
        for name in node.contract.inputs:
            target = f"{stage}.{name}"
            text = wires.get(target)
            resolved[target] = _producer(stage, name, nodes) if text is None else _parse(text, target, nodes)
    externals, optional = _externals(nodes, resolved)
    graph = Graph(nodes, resolved, externals, optional, _order(nodes, resolved))
    for target, source in resolved.items():
        stage, _, name = target.partition(".")
        spec = graph.spec(source)
        reason = None if spec is None else conflict(spec, nodes[stage].contract.input_specs[name])
        if spec is None or reason:
            reason = reason or f'"{source.key}" has no field "{".".join(source.fields)}"'
            raise WireError(f'wire "{target}" (from "{source}"): {reason}; change one of the two or the wire')
    return graph


def parse_output(text: str, nodes: Mapping[str, Node]) -> Source | None:
    """Read `"stage.output[.field...]"`; None when no stage has such an output."""
    stage, _, rest = text.partition(".")
    if stage not in nodes or not rest:
        return None
    words = rest.split(".")
    # A nested pipeline has outputs with dots in their names, so the longest name that fits is taken.
    for count in range(len(words), 0, -1):
        name = ".".join(words[:count])
        if name in nodes[stage].contract.outputs:
            return Source(stage, name, tuple(words[count:]))
    return None


def _check_target(target: str, nodes: Mapping[str, Node]) -> None:
    stage, _, name = target.partition(".")
    if stage not in nodes:
        known = ", ".join(nodes)
        raise WireError(f'wire "{target}": no stage "{stage}"{close_match(stage, nodes)}; stages are {known}')
    inputs = nodes[stage].contract.inputs
    if name not in inputs:
        known = ", ".join(inputs) or "none"
        raise WireError(
            f'wire "{target}": stage "{stage}" has no input "{name}"{close_match(name, inputs)}; '
            f"its inputs are {known}"
        )


def _producer(stage: str, name: str, nodes: Mapping[str, Node]) -> Source:
    """Return the source of an input that has no wire."""
    found = [other for other, node in nodes.items() if other != stage and name in node.contract.outputs]
    if len(found) > 1:
        choices = " or ".join(f'"{other}.{name}"' for other in found)
        raise WireError(
            f'input "{stage}.{name}" could come from {choices}; '
            f'say which with wires={{"{stage}.{name}": ...}}'
        )
    return Source(found[0] if found else None, name)


def _parse(text: str, target: str, nodes: Mapping[str, Node]) -> Source:
    """Read the source of a wire."""
    source = parse_output(text, nodes)
    if source is not None:
        return source
    head, *fields = text.split(".")
    if head in nodes:
        outputs = nodes[head].contract.outputs
        known = ", ".join(outputs) or "none"
        what = f'stage "{head}" has no output "{".".join(fields)}"' if fields else f'"{head}" is a stage'
        raise WireError(
            f'wire "{target}" (from "{text}"): {what}{close_match(".".join(fields), outputs)}; '
            f"its outputs are {known}"
        )
    for close in difflib.get_close_matches(head, list(nodes), n=1, cutoff=0.75) if fields else ():
        # Else a misspelt stage would silently become an external input.
        if fields[0] in nodes[close].contract.outputs:
            meant = ".".join((close, *fields))
            raise WireError(f'wire "{target}" (from "{text}"): no stage "{head}"; did you mean "{meant}"?')
    if not all(word.isidentifier() for word in (head, *fields)):
        raise WireError(
            f'wire "{target}": "{text}" is not "stage.output", "external" or a field of one of them'
        )
    return Source(None, head, tuple(fields))


def _outer_names(stage: str, nodes: Mapping[str, Node]) -> dict[str, str]:
    """Return new names for those sizes of a stage that other stages use too: sizes are bound per stage.

    B stays: it is the number of worlds everywhere.
    """

    def used(node: Node) -> set[str]:
        specs = (*node.contract.input_specs.values(), *node.contract.output_specs.values())
        return set().union(*map(sizes, specs))

    others = set().union(*(used(node) for name, node in nodes.items() if name != stage))
    return {name: f"{stage}_{name}" for name in used(nodes[stage]) & others - {"B"}}


def _externals(
    nodes: Mapping[str, Node], wires: Mapping[str, Source]
) -> tuple[dict[str, Spec], frozenset[str]]:
    """Join what all stages ask of each external input; a whole declaration lists all of its fields."""
    specs: dict[str, Spec] = {}
    required: set[str] = set()
    uses = [(target, source) for target, source in wires.items() if source.stage is None]
    for target, source in sorted(
        uses, key=lambda use: len(use[1].fields)
    ):  # Whole values first; sort is stable.
        stage, _, name = target.partition(".")
        spec = rename_sizes(nodes[stage].contract.input_specs[name], _outer_names(stage, nodes))
        if name not in nodes[stage].optional:
            required.add(source.name)
        known = specs.get(source.name)
        if known is None:
            specs[source.name] = _nested(source.fields, spec)
            continue
        declared_whole = any(other.name == source.name and not other.fields for _, other in uses)
        if declared_whole and source.fields and select(known, source.fields) is None:
            fields = list(known.fields) if isinstance(known, DictSpec) else []
            raise WireError(
                f'wire "{target}" (from "{source}"): the external input "{source.name}" has no field '
                f'"{".".join(source.fields)}"{close_match(source.fields[0], fields)}; '
                f"the stages that take it whole declare {', '.join(fields) or 'a tensor'}"
            )
        nested = _nested(source.fields, spec)
        if reason := _clash(known, nested):
            raise WireError(
                f'wire "{target}" (from "{source}"): {reason}, as another stage reads "{source.name}"; '
                f"wire one of the two to another external input"
            )
        specs[source.name] = merge(known, nested)
    # Externals in the order in which the stages ask for them.
    ordered = {source.name: specs[source.name] for _, source in uses}
    return ordered, frozenset(ordered) - required


def _clash(known: Spec, asked: Spec) -> str | None:
    """Return why no value can satisfy both specs; each may have fields that the other lacks."""
    if isinstance(known, DictSpec) and isinstance(asked, DictSpec):
        shared = [name for name in asked.fields if name in known.fields]
        reasons = (_clash(known.fields[name], asked.fields[name]) for name in shared)
        return next((reason for reason in reasons if reason), None)
    return conflict(known, asked)


def _nested(fields: tuple[str, ...], spec: Spec) -> Spec:
    for name in reversed(fields):
        spec = DictSpec({name: spec})
    return spec


def _order(nodes: Mapping[str, Node], wires: Mapping[str, Source]) -> tuple[str, ...]:
    """Order stages so that each comes after what it takes; of the ready ones, the first declared."""
    needs: dict[str, list[str]] = {stage: [] for stage in nodes}
    for target, source in wires.items():
        if source.stage is not None:
            needs[target.partition(".")[0]].append(source.stage)
    order: list[str] = []
    waiting = list(nodes)
    while waiting:
        ready = next((stage for stage in waiting if all(need in order for need in needs[stage])), None)
        if ready is None:
            raise WireError(_cycle(waiting, needs))
        order.append(ready)
        waiting.remove(ready)
    return tuple(order)


def _cycle(waiting: list[str], needs: Mapping[str, list[str]]) -> str:
    """Say which stages wait for each other, walking back from one of them until a stage comes again."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(need for need in needs[path[-1]] if need in waiting))
    cycle = path[path.index(path[-1]) :][::-1]
    return (
        f"stages wait for each other: {' -> '.join(cycle)}; wire one of these inputs to an external input, "
        f"and carry the output over to the next time step with gp.Rollout(..., carry={{external: output}})"
    )
