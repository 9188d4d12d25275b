"""Rollouts: a pipeline run over time, as a stage of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradpath.contract import Contract, covers
from gradpath.errors import ContractError, InputError, ShapeError, WireError
from gradpath.graph import Source, parse_output
from gradpath.loop import Loop
from gradpath.memory import Memory, MemoryLike
from gradpath.pipeline import Pipeline
from gradpath.plan import Plan, carry_bytes, example_inputs
from gradpath.recorder import CARRY, GradientRecorder, Wiring
from gradpath.scan import scan
from gradpath.schedule import keep_all
from gradpath.specs import Binding, DictSpec, ObjectSpec, Spec, SpecLike, TensorSpec, conflict, tensors
from gradpath.stage import Stage, close_match
from gradpath.trajectory import Trajectory


class Rollout(Stage):
    """A pipeline run over time: some of its outputs are some of its inputs at the next step.

    ```python
    rollout = gp.Rollout(step, length=150, carry={"state": "body.state", "memory": "encode.memory"}, memory=20)
    trajectory = rollout(state0, goal=goal, generator=torch.Generator().manual_seed(0))
    trajectory["body.state.pose"]       # (T, B, 7)
    trajectory.final["state"]           # after the last step
    ```

    Args:
        step: The pipeline of one time step.
        length: The number of steps T.
        carry: The source of each carried input, `{"external input": "stage.output[.field...]"}`.
        memory: `"all"`, a number of snapshots, a size such as `"200MB"`, or a `Memory`; see `scan`.
        cut: Truncate the gradient every so many steps; see `scan`.
        record: Outputs for the trajectory, `"stage.output[.field...]"`, beside those it has anyway: the sources
            of the carry and the outputs of the pipeline.
        sequences: External inputs that differ from step to step: they are given with time as their first axis.
        decay: A factor in [0, 1] per step on the gradient of the carry; see `scan`.
        dt: The time of a step [s]. Where given, `decay` is per second.
        record_gradients: Measure gradients per stage, time step and world during the backward pass, for
            `gradient_report`.
        check_finite: Refuse gradients that are NaN or infinite, naming stage, time step and world. Each stage
            then gets its own alias of its inputs, which may change the last bit of gradients.
        progress: Show a bar on standard error for each pass; see `scan`.

    Raises:
        WireError: a carry that does not fit the pipeline.
        BudgetError: a memory that cannot work.

    Gradients: exact to the first carry, sequences, constants and all that the stages own; those of `scan`.
    """

    def __init__(
        self,
        step: Pipeline,
        length: int,
        carry: Mapping[str, str],
        *,
        memory: MemoryLike = "all",
        cut: int | None = None,
        record: Sequence[str] = (),
        sequences: Sequence[str] = (),
        decay: float | None = None,
        dt: float | None = None,
        record_gradients: bool = True,
        check_finite: bool = False,
        progress: bool | str = False,
    ):
        super().__init__()
        if not isinstance(step, Pipeline):
            raise ContractError(
                f"a rollout runs a Pipeline over time, got a {type(step).__name__}; wrap the stage: "
                "gp.Pipeline(body=stage), or use gp.scan for a plain function"
            )
        self.step = step
        self.length = length
        self.carry = dict(carry)
        self.memory = memory
        self.progress = progress
        self.sequences = tuple(sequences)
        self.decay, self.dt, self.cut = decay, dt, cut
        self._check_carry()
        self._check_sequences()
        self._memory = Memory.of(memory)
        if self._memory.plans and not self._memory.measure:
            self._memory.measure = "first"
        self._memory.fixed(length)
        names = dict.fromkeys([*self.carry.values(), *step.contract.outputs, *(record or ())])
        specs = {name: self._spec(name) for name in names}
        self._batch: int | None = None
        self._outputs = tuple(names)
        self._recorded = tuple(name for name, spec in specs.items() if not isinstance(spec, ObjectSpec))
        self.contract = self._derived({name: specs[name] for name in self._recorded})
        watching = record_gradients or check_finite
        self.recorder = GradientRecorder(self._wiring(), check_finite) if watching else None

    def _check_carry(self) -> None:
        externals = self.step.graph().externals
        for name, text in self.carry.items():
            if name not in externals:
                raise WireError(
                    f'carry "{name}" is no external input of the pipeline{close_match(name, externals)}; its '
                    f"external inputs are {', '.join(externals) or 'none'}"
                )
            reason = conflict(self._spec(text), externals[name])
            if reason is not None:
                raise WireError(f'carry "{name}" (from "{text}"): {reason}')

    def _check_sequences(self) -> None:
        externals = self.step.graph().externals
        for name in self.sequences:
            if name not in externals or name in self.carry:
                what = (
                    "is carried"
                    if name in self.carry
                    else f"is no external input{close_match(name, externals)}"
                )
                raise WireError(
                    f'sequence "{name}" {what}; sequences are external inputs that are not carried'
                )

    def _spec(self, text: str) -> Spec:
        nodes = self.step.graph().nodes
        source = parse_output(text, nodes)
        spec = None if source is None else self.step.graph().spec(source)
        if spec is None:
            known = [f"{stage}.{name}" for stage, node in nodes.items() for name in node.contract.outputs]
            raise WireError(f'no output "{text}"{close_match(text, known)}; outputs are {", ".join(known)}')
        return spec

    def _derived(self, recorded: Mapping[str, Spec]) -> Contract:
        """The contract: inputs of the step, sequences with time in front, and the recorded outputs."""
        inner = self.step.contract
        buffers = [name for name, _ in self.step.named_buffers()]
        effects = []
        for effect in inner.effects:
            name = effect.removeprefix("mutates:")
            own = name != effect and any(covers((name,), buffer) for buffer in buffers)
            effects.append(f"mutates:step.{name}" if own else effect)
        return Contract(
            inputs={
                name: _over_time(spec, self.length) if name in self.sequences else spec.text
                for name, spec in inner.input_specs.items()
            },
            outputs={name: _over_time(spec, self.length) for name, spec in recorded.items()},
            gradient=inner.gradient,
            effects=tuple(effects),
            shared=tuple(f"step.{name}" for name in inner.shared),
        )

    def _wiring(self) -> Wiring:
        graph = self.step.graph()

        def taken(source: Source) -> str:
            carried = source.stage is None and source.name in self.carry
            return CARRY if carried else str(source)

        return Wiring(
            {name: self.step.stages[name] for name in graph.order},
            {name: frozenset(map(taken, graph.inputs(name).values())) for name in graph.order},
        )

    @property
    def optional_inputs(self) -> frozenset[str]:
        """Inputs that may be left out: those of the pipeline, and carried ones, which then start at zero."""
        return self.step.optional_inputs | frozenset(self.carry)

    def forward(self, *first: Any, **values: Any) -> Trajectory:
        """Run all steps.

        Args:
            first: The first carry, in the order of `carry`, where it is not given by name.
            values: External inputs by name. A carried input that is left out starts at zero, where its shape is
                known from the contracts and the other inputs.

        Returns:
            The trajectory: recorded outputs (T, B, ...), constant inputs, and the final carry.

        Raises:
            ContractError: a missing or unknown input.
            ShapeError: an input that does not fit; names it.
            InputError: a carried input was left out and its shape is not known.
            NonFiniteError: with `check_finite`, in the backward pass.
        """
        values = self.complete(*first, **values)
        step, carry, xs, constants = self._parts(values)
        self._batch = _batch(carry)
        final, ys = scan(
            step, carry, xs, self.length,
            memory=self._memory, cut=self.cut, constants=constants, decay=self.decay, dt=self.dt,
            recorder=self.recorder, progress=self.progress,
        )  # fmt: skip
        return Trajectory(ys, constants, final)

    def _parts(self, values: dict[str, Any]) -> tuple[Callable[..., Any], Any, Any, dict[str, Any]]:
        """What a time loop takes: the step, the first carry, sequences and constants."""
        carry = {name: values[name] for name in self.carry}
        xs = {name: values[name] for name in self.sequences if name in values}
        constants = {name: value for name, value in values.items() if name not in carry and name not in xs}
        pipeline, sources, outputs, recorded = self.step, self.carry, self._outputs, self._recorded

        def step(carry: Any, x: Any, constants: Any) -> tuple[Any, Any]:
            produced = pipeline.run({**constants, **x, **carry}, outputs=outputs)
            after = {name: _like(carry[name], produced[source]) for name, source in sources.items()}
            return after, {name: produced[name] for name in recorded}

        return step, carry, xs, constants

    def _named(self, first: tuple[Any, ...], values: dict[str, Any]) -> dict[str, Any]:
        if len(first) > len(self.carry):
            raise ContractError(
                f"a rollout takes its carry by position, here {', '.join(self.carry)}, got {len(first)} values; "
                "give the others by name"
            )
        for name, value in zip(self.carry, first, strict=False):
            if name in values:
                raise ContractError(f'"{name}" was given by position and by name; give it once')
            values[name] = value
        values = {name: value for name, value in values.items() if value is not None}
        for name in values:
            if name not in self.contract.inputs:
                known = self.contract.inputs
                raise ContractError(
                    f'the rollout has no input "{name}"{close_match(name, known)}; it takes {", ".join(known)}'
                )
        for name in self.contract.inputs:
            if name not in values and name not in self.optional_inputs:
                raise ContractError(f'the rollout was not given "{name}"; pass {name}=...')
        return values

    def complete(self, *first: Any, **values: Any) -> dict[str, Any]:
        """Return all inputs of a run by name, with zeros for the carry that is left out; arguments as for a run.

        Raises:
            ContractError, ShapeError, InputError: as for a run.
        """
        values = self._named(first, values)
        return {**values, **self._start(values)}

    def _start(self, values: dict[str, Any]) -> dict[str, Any]:
        """Hold one step of the inputs against the pipeline; return zeros for the carry that was left out."""
        at_first = {**values}
        for name in self.sequences:
            if name in values:
                for path, value in tensors(values[name], name):
                    if value.ndim == 0 or value.shape[0] != self.length:
                        raise ShapeError(
                            f'sequence "{path}": expected {self.length} time steps along the first axis, got shape '
                            f"{tuple(value.shape)}"
                        )
                at_first[name] = _slice(values[name])
        binding = self.step.contract.check_inputs(at_first)
        specs = self.step.contract.input_specs
        return {name: _zeros(name, specs[name], binding) for name in self.carry if name not in values}

    def named_outputs(self, result: Any, called: str) -> dict[str, Any]:
        """Return what was recorded of a trajectory, by name."""
        return super().named_outputs(result.recorded, called)

    def plan(self, batch: int | None = None, **values: Any) -> Plan:
        """Return what the rollout keeps and recomputes, as predicted, and as the latest run with it came out.

        Where the memory is a budget in bytes, one step is measured; the stages run for it, and all that they
        declare to change is put back.

        Args:
            batch: Worlds B. May be left out where the rollout has run, or where `memory` is no budget.
            values: Inputs to measure with, by name, as for a run. Those that are left out are made up from the
                contracts: zeros, with a one at the end of the last axis, so that a pose has a valid quaternion.

        Raises:
            InputError: a budget, and neither a batch size nor an earlier run; or an input whose shape is not known.
            BudgetError: a budget that cannot work; tells the smallest that would.
        """
        again = self._memory.tally is not None and batch in (None, self._batch) and not values
        tally = self._memory.tally if again and self._memory.tally and self._memory.tally.complete else None
        if not self._memory.plans:
            fixed = self._memory.fixed(self.length) or keep_all(self.length)
            size = None if batch is None else carry_bytes(self.step, self.carry, batch)
            return Plan(fixed, self.memory, batch, size, tally=tally)
        chosen = self._memory.plan if again else None
        if chosen is None:
            chosen = self._memory.choose(self._example_loop(batch, values))
        cost = chosen.cost.carry_bytes
        return Plan(chosen.schedule, self.memory, batch or self._batch, cost, chosen, tally)

    def _example_loop(self, batch: int | None, values: dict[str, Any]) -> Loop:
        """A loop over values of which some are made up, to measure."""
        if batch is None and not values:
            raise InputError(
                f"memory={self.memory!r}: the plan depends on how much one step takes, and nothing has run yet; "
                "pass batch=, the number of worlds, or inputs to measure with"
            )
        values = {
            **example_inputs(self.contract, self.optional_inputs - set(self.carry), batch, values),
            **values,
        }
        values.update(self._start(values))
        step, carry, xs, constants = self._parts(values)
        return Loop(
            step, carry, xs, constants,
            length=self.length, decay=self.decay, cut=self.cut, recorder=self.recorder,
        )  # fmt: skip

    def describe(self) -> str:
        """Return the carry, the plan, and the table of the pipeline's stages."""
        carried = ", ".join(f"{name} <- {source}" for name, source in self.carry.items()) or "nothing"
        known = not self._memory.plans or self._memory.plan is not None
        plan = str(self.plan()) if known else f"memory={self.memory!r}, see plan(batch=...)"
        lines = [f"rollout of {self.length} steps, carrying {carried}", plan]
        if self.sequences:
            lines.append(f"sequences: {', '.join(self.sequences)}")
        if self.decay is not None:
            lines.append(f"gradient decay per {'step' if self.dt is None else 'second'}: {self.decay:g}")
        if self.cut is not None:
            lines.append(f"gradients are cut every {self.cut} steps")
        return "\n".join([*lines, "", self.step.describe()])


def _over_time(spec: Spec, length: int) -> SpecLike:
    """A spec with time in front of every tensor."""
    if isinstance(spec, DictSpec):
        return {name: _over_time(field, length) for name, field in spec.fields.items()}
    if isinstance(spec, TensorSpec) and not spec.leading:
        return TensorSpec((length, *spec.dims), dtype=spec.dtype).text
    return spec.text


def _slice(value: Any) -> Any:
    return {name: _slice(item) for name, item in value.items()} if isinstance(value, Mapping) else value[0]


def _like(given: Any, produced: Any) -> Any:
    """The fields of a carried value that were there at the start, in their order."""
    if isinstance(given, Mapping) and isinstance(produced, Mapping):
        return {name: _like(item, produced[name]) for name, item in given.items() if name in produced}
    return produced


def _zeros(name: str, spec: Spec, binding: Binding) -> Any:
    if isinstance(spec, DictSpec):
        return {field: _zeros(f"{name}.{field}", inner, binding) for field, inner in spec.fields.items()}
    remedy = f"pass it to the rollout as {name.split('.')[0]}=..."
    if not isinstance(spec, TensorSpec):
        raise InputError(f'carry "{name}" was left out and is no tensor that could start at zero; {remedy}')
    unknown = [dim for dim in spec.dims if isinstance(dim, str) and dim not in binding.sizes]
    if unknown or spec.leading:
        size = unknown[0] if unknown else "..."
        raise InputError(
            f'carry "{name}" ("{spec.text}") was left out, and the size {size} is not known from the other '
            f"inputs; {remedy}"
        )
    shape = [dim if isinstance(dim, int) else binding.sizes[dim][0] for dim in spec.dims]
    dtype = spec.dtype or (binding.dtype[0] if binding.dtype else torch.get_default_dtype())
    device = binding.device[0] if binding.device else None
    return torch.zeros(shape, dtype=dtype, device=device)


def _batch(carry: dict[str, Any]) -> int | None:
    """The number of worlds: the first axis of what is carried, where it is one."""
    sizes = {value.shape[0] if value.ndim else 0 for _, value in tensors(carry, "carry")}
    return sizes.pop() if len(sizes) == 1 else None
