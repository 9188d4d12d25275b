"""Pipelines: stages wired by name into a graph, run in order, checked at every wire."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from gradpath.contract import GRADIENTS, Contract
from gradpath.errors import ContractError, WireError
from gradpath.graph import Graph, Node, Source, connect, parse_output
from gradpath.specs import DictSpec, Spec
from gradpath.stage import Stage, check_finite, close_match


class Pipeline(Stage):
    """Stages wired by name into a graph; itself a stage.

    ```python
    step = gp.Pipeline(
        camera=camera, encode=encoder, plan=policy, body=quadrotor,
        wires={"camera.pose": "state.pose", "body.control": "plan.control"},
    )
    values = step(state=state, goal=goal)      # {"body.state": ...}
    ```

    Args:
        wires: Sources of inputs, `{"stage.input": "stage.output[.field...]"}` or `{"stage.input":
            "external[.field...]"}`. An input without a wire takes the output of its name from the one other
            stage that has it; where no stage has it, it is an external input of the pipeline.
        outputs: What a call returns, `"stage.output[.field...]"`; by default the outputs that no stage takes.
        check_finite: Raise at the first stage output that is NaN or infinite, see `check_finite`.
        stages: The stages by name. They are submodules by these names.

    Raises:
        WireError: unknown names, ambiguous inputs, cycles, ends of a wire that do not fit.
        ContractError: what is not a stage, or a parameter owned by two stages.
    """

    def __init__(
        self,
        *,
        wires: Mapping[str, str] | None = None,
        outputs: Sequence[str] | None = None,
        check_finite: bool = False,
        **stages: Stage,
    ):
        super().__init__()
        for name, stage in stages.items():
            self._add(name, stage)
        _check_ownership(stages)
        self._graph = connect({name: _node(stage) for name, stage in stages.items()}, wires or {})
        self._check_finite = check_finite
        self._requests: dict[tuple[str, ...], tuple[dict[str, Source], list[tuple[str, ...]]]] = {}
        self._outputs = tuple(self._graph.unused() if outputs is None else outputs)
        self.contract = _derived(self._graph, self._request(self._outputs)[0])

    def _add(self, name: str, stage: Any) -> None:
        if not isinstance(stage, Stage):
            kind = type(stage).__name__
            raise ContractError(
                f'"{name}" is a {kind}, not a Stage; give it a contract: class {kind}Stage(gp.Stage)'
            )
        if hasattr(self, name) or hasattr(type(self), name) or name == "contract" or name.startswith("_"):
            raise WireError(f'a stage cannot be named "{name}", which is an attribute of Pipeline; rename it')
        self.add_module(name, stage)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order of their declaration."""
        return {name: stage for name, stage in self.named_children() if isinstance(stage, Stage)}

    @property
    def optional_inputs(self) -> frozenset[str]:
        """The external inputs that may be left out."""
        return self._graph.optional

    def graph(self) -> Graph:
        """Return the graph: stages, wires, externals, order; `.json()` and `.dot()` give it away."""
        return self._graph

    def replace(self, **stages: Stage) -> Pipeline:
        """Return a pipeline with some stages replaced, the others shared with this one, wired the same."""
        for name in stages:
            if name not in self._modules:
                known = ", ".join(self._modules)
                raise WireError(f'no stage "{name}"{close_match(name, self.stages)}; stages are {known}')
        return Pipeline(**{**self.config, **stages})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", {}):
            raise WireError(
                f'stage "{name}" cannot be assigned, because its wires were checked against its contract; '
                f"use pipeline.replace({name}=...)"
            )
        super().__setattr__(name, value)

    def forward(self, **externals: Any) -> dict[str, Any]:
        """Run on external inputs by name; the same as `run(externals)`."""
        return self.run(externals)

    def run(
        self,
        values: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        name: str = "",
        sources: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run all stages in order; a value is let go after the last stage that takes it.

        Args:
            values: The external inputs by name.
            outputs: What to return instead of the outputs of the pipeline, `"stage.output[.field...]"`. All
                stages run whatever is asked for, so that their draws from a generator do not depend on it.
            name: What the pipeline is called in errors and by observers, in front of the names of its stages.
            sources: Where the external inputs come from, for errors.

        Raises:
            ShapeError, ContractError, NonFiniteError: as `Stage.run`; they name the wire.
        """
        requested, releases = self._request(self._outputs if outputs is None else tuple(outputs))
        self._check_externals(values, name)
        pool = dict(values)
        origin = sources or {}
        with check_finite() if self._check_finite else contextlib.nullcontext():
            for stage, done in zip(self._graph.order, releases, strict=True):
                wired = {
                    key: source for key, source in self._graph.inputs(stage).items() if source.key in pool
                }
                produced = self._modules[stage].run(  # type: ignore[union-attr, operator]
                    {key: _read(source, pool, f"{stage}.{key}") for key, source in wired.items()},
                    name=f"{name}.{stage}" if name else stage,
                    sources={key: origin.get(str(source), str(source)) for key, source in wired.items()},
                )
                pool.update({f"{stage}.{key}": value for key, value in produced.items()})
                del produced
                for key in done:
                    del pool[key]
        return {text: _read(source, pool, text) for text, source in requested.items()}

    def _check_externals(self, values: Mapping[str, Any], name: str) -> None:
        known = self._graph.externals
        called = f'pipeline "{name}"' if name else "the pipeline"
        for key in values:
            if key not in known:
                raise ContractError(
                    f'{called} has no external input "{key}"{close_match(key, known)}; it takes '
                    f"{', '.join(known) or 'none'}"
                )
        for key in known:
            if key not in values and key not in self._graph.optional:
                takers = [target for target, source in self._graph.wires.items() if source.key == key]
                raise ContractError(
                    f'{called} was not given "{key}", which "{takers[0]}" takes; pass {key}=..., or wire '
                    f"the input to the output of a stage"
                )

    def _request(self, outputs: tuple[str, ...]) -> tuple[dict[str, Source], list[tuple[str, ...]]]:
        """Return the sources of the requested outputs, and the values to let go after each stage in order."""
        if outputs in self._requests:
            return self._requests[outputs]
        requested = {}
        for text in outputs:
            source = parse_output(text, self._graph.nodes)
            if source is None or self._graph.spec(source) is None:
                known = [f"{s}.{o}" for s, node in self._graph.nodes.items() for o in node.contract.outputs]
                raise WireError(
                    f'no output "{text}"{close_match(text, known)}; outputs are {", ".join(known)}'
                )
            requested[text] = source
        kept = {source.key for source in requested.values()}
        last = {}
        for stage in self._graph.order:
            for key in self._graph.nodes[stage].contract.outputs:
                last[f"{stage}.{key}"] = stage
            for source in self._graph.inputs(stage).values():
                if source.stage is not None:
                    last[source.key] = stage
        releases = [
            tuple(key for key, at in last.items() if at == stage and key not in kept)
            for stage in self._graph.order
        ]
        self._requests[outputs] = requested, releases
        return requested, releases

    def check(self, **examples: Any) -> dict[str, Any]:
        """Run once on examples, without gradients, and check every wire before training starts.

        Buffers, global generators and the examples are left as they were.

        Args:
            examples: The external inputs: tensors, or shapes such as `(4, 3)` that become zeros, or dicts of
                them; a generator may be given as True.

        Returns:
            The shape of every output of every stage, by `"stage.output"`.

        Raises:
            ShapeError, ContractError: as `run`.
        """
        everything = [f"{s}.{o}" for s in self._graph.order for o in self._graph.nodes[s].contract.outputs]
        values = {name: _example(value, self._graph.externals.get(name)) for name, value in examples.items()}
        with _buffers_kept(self), torch.random.fork_rng(), torch.no_grad():
            return {key: _shape(value) for key, value in self.run(values, outputs=everything).items()}

    def describe(self) -> str:
        """Return a table: stages in order of execution, their wires, parameters, gradients and effects."""
        graph = self._graph
        rows = [("stage", "takes", "gives", "parameters", "gradient", "effects")]
        for name in graph.order:
            node = graph.nodes[name]
            takes = [
                key if str(source) == key and source.stage is None else f"{key} <- {source}"
                for key, source in graph.inputs(name).items()
            ]
            effects = ", ".join(node.contract.effects) or "-"
            width = max(len(takes), len(node.contract.outputs), 1)
            gives = list(node.contract.outputs)
            for line in range(width):
                left = (f"{name} ({node.kind})", f"{node.parameters:,}", node.contract.gradient, effects)
                first, count, gradient, effect = left if line == 0 else ("", "", "", "")
                take = takes[line] if line < len(takes) else ""
                give = gives[line] if line < len(gives) else ""
                rows.append((first, take, give, count, gradient, effect))
        externals = [f"{key}{'?' if key in graph.optional else ''}" for key in graph.externals]
        total = sum(parameter.numel() for parameter in self.parameters())
        return (
            _table(rows)
            + f"\nexternal inputs: {', '.join(externals) or 'none'}"
            + f"\noutputs: {', '.join(self._outputs) or 'none'}"
            + f"\nparameters: {total:,}\n"
        )


def _node(stage: Stage) -> Node:
    count = sum(parameter.numel() for parameter in stage.parameters())
    return Node(stage.contract, stage.optional_inputs, type(stage).__name__, count)


def _check_ownership(stages: Mapping[str, Stage]) -> None:
    """Refuse a parameter that two stages own, unless one of them says that it is shared."""
    owners: dict[nn.Parameter, tuple[str, str]] = {}
    for name, stage in stages.items():
        for path, parameter in stage.named_parameters():
            other, other_path = owners.setdefault(parameter, (name, path))
            if other == name:
                continue
            claims = ((stages[other], other_path), (stage, path))
            if not any(fnmatch(at, pattern) for owner, at in claims for pattern in owner.contract.shared):
                raise ContractError(
                    f'parameter "{path}" of stage "{name}" is also "{other_path}" of stage "{other}": '
                    f"its gradient would belong to neither. Build two, or declare it in the contract of one: "
                    f'shared=("{path}",)'
                )


def _derived(graph: Graph, outputs: Mapping[str, Source]) -> Contract:
    """Return what a pipeline asks from outside and returns, and the weakest gradient of its stages."""
    contracts = [node.contract for node in graph.nodes.values()]
    used = [contract.gradient for contract in contracts if contract.gradient != "none"]
    specs = {text: graph.outer_spec(source) for text, source in outputs.items()}
    return Contract(
        inputs={name: spec.text for name, spec in graph.externals.items()},
        outputs={text: spec.text for text, spec in specs.items() if spec is not None},
        gradient=max(used, key=GRADIENTS.index, default="none"),
        effects=_outer_effects(graph),
        shared=tuple(
            f"{stage}.{name}" for stage, node in graph.nodes.items() for name in node.contract.shared
        ),
    )


def _outer_effects(graph: Graph) -> tuple[str, ...]:
    """Return the effects of all stages, with buffers and external inputs by their names outside."""
    effects: dict[str, None] = {}
    for stage, node in graph.nodes.items():
        effects.update((effect, None) for effect in node.contract.effects if effect in ("rng", "io"))
        for path in node.contract.mutated:
            name, *fields = path.split(".")
            source = graph.wires.get(f"{stage}.{name}")
            if source is None:
                effects[f"mutates:{stage}.{path}"] = None
            elif source.stage is None:  # What one stage writes into another's output stays inside.
                effects["mutates:" + ".".join((str(source), *fields))] = None
    return tuple(effects)


def _read(source: Source, pool: Mapping[str, Any], target: str) -> Any:
    try:
        return source.read(pool)
    except (KeyError, TypeError, IndexError):
        value = pool[source.key]
        has = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise ContractError(
            f'wire "{target}" (from "{source}"): "{source.key}" has no '
            f'"{".".join(source.fields)}"; it is {has}'
        ) from None


def _example(value: Any, spec: Spec | None) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        fields = spec.fields if isinstance(spec, DictSpec) else {}
        return {name: _example(item, fields.get(name)) for name, item in value.items()}
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device)
    if value is True:
        return torch.Generator()
    if isinstance(value, tuple | list) and all(isinstance(size, int) for size in value):
        return torch.zeros(tuple(value), dtype=getattr(spec, "dtype", None))
    return value


def _shape(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shape(item) for name, item in value.items()}
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


@contextlib.contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
