"""The stages of a pipeline, those of nested pipelines among them, and what of their values carries a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradpath.graph import Source, parse_output
from gradpath.pipeline import Pipeline
from gradpath.stage import Stage


def leaf_stages(pipeline: Pipeline, prefix: str = "") -> dict[str, Stage]:
    """Return the stages that are no pipelines, in the order of execution; nested ones by dotted names."""
    found: dict[str, Stage] = {}
    for name in pipeline.graph().order:
        stage = pipeline.stages[name]
        if isinstance(stage, Pipeline):
            found.update(leaf_stages(stage, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = stage
    return found


class Wires:
    """Where the inputs of all stages come from, through nested pipelines and from one step to the next.

    Args:
        pipeline: The pipeline of one step.
        carry: The source of each carried input, `"stage.output"`, as a rollout has it.
        trained: External inputs that require a gradient themselves.

    Attributes:
        inputs: Source of each input by stage and name: `"stage.output"`, or the name of an external input.
        carried: The stage output that each carried external input comes from.
    """

    def __init__(self, pipeline: Pipeline, carry: Mapping[str, str], trained: Iterable[str]):
        self.stages = leaf_stages(pipeline)
        self.inputs: dict[str, dict[str, str]] = {}
        self._walk(pipeline, "", {})
        nodes = pipeline.graph().nodes
        sources = {name: parse_output(text, nodes) for name, text in carry.items()}
        self.carried = {
            name: self._output(pipeline, source, "") for name, source in sources.items() if source is not None
        }
        self._needing = self._fixpoint(set(trained))

    def needs_gradient(self, source: str) -> bool:
        """Whether anything that is trained lies behind a source."""
        return self._known(source, self._needing)

    def takers(self, source: str) -> list[tuple[str, str]]:
        """Return stage and input of all that take a source."""
        return [
            (stage, name)
            for stage, inputs in self.inputs.items()
            for name, at in inputs.items()
            if at == source or at.startswith(f"{source}.")
        ]

    def before(self, stage: str) -> set[str]:
        """Return the stages whose outputs reach a stage within one step."""
        found: set[str] = set()
        waiting = [stage]
        while waiting:
            for source in self.inputs[waiting.pop()].values():
                owner = self.owner(source)
                if owner is not None and owner not in found:
                    found.add(owner)
                    waiting.append(owner)
        return found

    def owner(self, source: str) -> str | None:
        """Return the stage that a source is an output of, None for an external input."""
        fitting = [stage for stage in self.stages if source.startswith(f"{stage}.")]
        return max(fitting, key=len, default=None)

    def _walk(self, pipeline: Pipeline, prefix: str, outer: Mapping[str, str]) -> None:
        """Find the sources of all stages of a pipeline, whose own inputs come from `outer`."""
        graph = pipeline.graph()
        for name in graph.order:
            stage = pipeline.stages[name]
            resolved = {
                key: self._resolve(pipeline, source, prefix, outer)
                for key, source in graph.inputs(name).items()
            }
            if isinstance(stage, Pipeline):
                self._walk(stage, f"{prefix}{name}.", resolved)
            else:
                self.inputs[f"{prefix}{name}"] = resolved

    def _resolve(self, pipeline: Pipeline, source: Source, prefix: str, outer: Mapping[str, str]) -> str:
        if source.stage is None:
            return ".".join((outer.get(source.name, source.name), *source.fields))
        return self._output(pipeline, source, prefix)

    def _output(self, pipeline: Pipeline, source: Source, prefix: str) -> str:
        """The output of a stage that is no pipeline which a source leads to."""
        assert source.stage is not None
        stage = pipeline.stages[source.stage]
        if isinstance(stage, Pipeline):
            inner = parse_output(".".join((source.name, *source.fields)), stage.graph().nodes)
            assert inner is not None  # the outputs of a pipeline are those of its stages
            return self._output(stage, inner, f"{prefix}{source.stage}.")
        return f"{prefix}{source}"

    def _fixpoint(self, needing: set[str]) -> set[str]:
        """All sources behind which something is trained: outputs as `"stage"` prefixes, and external inputs."""
        found = set(needing)
        while True:
            before = len(found)
            for name, stage in self.stages.items():
                trained = any(parameter.requires_grad for parameter in stage.parameters())
                fed = any(self._known(source, found) for source in self.inputs[name].values())
                if stage.contract.gradient != "none" and (trained or fed):
                    found.update(f"{name}.{output}" for output in stage.contract.outputs)
            found.update(name for name, source in self.carried.items() if self._known(source, found))
            expanded = {
                s for inputs in self.inputs.values() for s in inputs.values() if self._known(s, found)
            }
            found |= expanded
            if len(found) == before:
                return found

    @staticmethod
    def _known(source: str, found: set[str]) -> bool:
        words = source.split(".")
        return any(".".join(words[:count]) in found for count in range(len(words), 0, -1))
