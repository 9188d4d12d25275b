"""What the doctor examines: a model with one batch and its losses, run as often as a check needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradpath import tree
from gradpath.doctor_graph import Wires, leaf_stages
from gradpath.doctor_state import State, copied, doubled
from gradpath.errors import InputError
from gradpath.graph import parse_output
from gradpath.losses import Losses
from gradpath.memory import MemoryLike
from gradpath.pipeline import Pipeline
from gradpath.rollout import Rollout
from gradpath.stage import Stage
from gradpath.trajectory import Trajectory

Batch = Mapping[str, Any] | tuple[Any, Mapping[str, Any]]
"""Inputs by name, or the positional and the named ones, as `Task.sample` returns them."""


class NotMade(Exception):
    """Why a check cannot be made."""


class Case:
    """A model, a batch and its losses.

    Args:
        model: A rollout, or a pipeline, which counts as a rollout of one step.
        batch: The inputs; tensors and generators of it are copied for each run.
        losses: What the model is trained for.
        memory: What the time loop keeps; that of the model by default.

    Attributes:
        model: The model as given.
        rollout: What is run: the model with measured gradients and all values that the losses take.
        pipeline: The pipeline of one step.
        stages: Its stages by name, those of nested pipelines by dotted names, in the order of execution.
        wires: Where their inputs come from, and what carries a gradient.
        worlds: Worlds B.

    Raises:
        InputError: another model, or inputs without worlds.
    """

    def __init__(self, model: Stage, batch: Batch, losses: Losses, memory: MemoryLike | None = None):
        if not isinstance(model, (Pipeline, Rollout)):
            raise InputError(
                f"the doctor examines a Pipeline or a Rollout, got a {type(model).__name__}; "
                "a single stage is a pipeline too: gp.Pipeline(stage=...)"
            )
        if not isinstance(losses, Losses):
            raise InputError(f"the doctor needs the losses as gp.Losses, got a {type(losses).__name__}")
        self.model, self.losses, self.batch = model, losses, batch
        self.pipeline = model.step if isinstance(model, Rollout) else model
        self.rollout = _measured(model, losses, memory)
        first, named = _split(batch)
        self.inputs = self.rollout.complete(*first, **named)
        self.stages = leaf_stages(self.pipeline)
        trained = {name for name, value in self.inputs.items() if _requires_grad(value)}
        self.wires = Wires(self.pipeline, self.rollout.carry, trained)
        self.worlds = self._worlds()
        self._start = State(self.pipeline)

    @property
    def length(self) -> int:
        """Time steps T."""
        return self.rollout.length

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating parameter, or of the first floating input."""
        leaves = [*self.pipeline.parameters(), *tree.tensors(tree.flatten(self.inputs)[0])]
        return next((leaf.dtype for leaf in leaves if leaf.is_floating_point()), torch.get_default_dtype())

    def trained(self) -> list[tuple[str, str, nn.Parameter]]:
        """Stage, name and value of each parameter that is trained, each once."""
        found: dict[int, tuple[str, str, nn.Parameter]] = {}
        for stage, module in self.stages.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    found.setdefault(id(parameter), (stage, name, parameter))
        return list(found.values())

    def leaves(self) -> list[Tensor]:
        """All parameters that are trained."""
        return [parameter for _, _, parameter in self.trained()]

    def fresh(self) -> dict[str, Any]:
        """Return copies of the inputs, with generators in the state in which they were given."""
        return tree.map_leaves(copied, self.inputs)

    def restart(self, hidden: bool = True) -> None:
        """Put back what runs change: generators, buffers, attributes of stages.

        Args:
            hidden: Put back too what a run should not depend on: numpy's and Python's generators, and numbers
                that stages count.
        """
        self._start.restore(hidden)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Leave everything as it was: generators, buffers, attributes, gradients of parameters."""
        leaves = list(self.pipeline.parameters())
        grads = [leaf.grad for leaf in leaves]
        try:
            yield
        finally:
            self.restart()
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad

    def run(
        self, inputs: Mapping[str, Any] | None = None, rollout: Rollout | None = None, hidden: bool = True
    ) -> Mapping[str, Any]:
        """Run from the start and return what the losses take.

        Args:
            inputs: Inputs in place of copies of the batch, taken as they are.
            rollout: A rollout in place of the model.
            hidden: See `restart`.
        """
        self.restart(hidden)
        return self.outcome((rollout or self.rollout)(**(self.fresh() if inputs is None else inputs)))

    def outcome(self, trajectory: Trajectory) -> Mapping[str, Any]:
        """Return what the losses take: the trajectory, or of a pipeline the values of its one step."""
        if isinstance(self.model, Rollout):
            return trajectory
        first = {name: tree.map_leaves(lambda leaf: leaf[0], v) for name, v in trajectory.recorded.items()}
        return {**trajectory.constants, **first}

    def by_world(self, values: Mapping[str, Any]) -> Tensor:
        """Return the weighted sum of the losses of each world, (B,), detached.

        Raises:
            NotMade: no loss tells its worlds apart.
        """
        losses = self.losses.by_world(values).detach()
        if losses.ndim == 0 and self.worlds > 1:
            raise NotMade("no loss tells its worlds apart; return one number per world, (B,)")
        return losses.reshape(-1)

    def double(self) -> Case:
        """Return a copy in double precision; of random numbers, it gets those of single precision.

        Raises:
            NotMade: the stages cannot be copied, or compute in another precision than single.
        """
        if self.dtype != torch.float32:
            raise NotMade(f"the model computes in {str(self.dtype).removeprefix('torch.')}")
        self.restart()
        try:
            step = copy.deepcopy(self.pipeline).double()
        except Exception as error:  # whatever an attribute of a stage has against being copied
            raise NotMade(f"the stages cannot be copied: {error}") from error
        config = {**self.rollout.config, "step": step}
        model = Rollout(**config) if isinstance(self.model, Rollout) else step
        inputs = tree.map_leaves(doubled, self.fresh())
        return Case(model, inputs, self.losses, self.rollout.memory)

    def _worlds(self) -> int:
        values = {name: self.inputs[name] for name in self.rollout.carry if name in self.inputs}
        leaves = tree.tensors(tree.flatten(values or self.inputs)[0])
        sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
        if not sizes:
            raise InputError(
                "the batch holds no tensor with worlds as its first axis; give the inputs by name"
            )
        return max(set(sizes), key=sizes.count)


def _measured(model: Pipeline | Rollout, losses: Losses, memory: MemoryLike | None) -> Rollout:
    """The model as a rollout that measures gradients and records what the losses take."""
    step = model.step if isinstance(model, Rollout) else model
    graph = step.graph()
    wanted = [path.split("[")[0] for term in losses.terms.values() for path in term.values]
    sources = [parse_output(path, graph.nodes) for path in wanted]
    record = dict.fromkeys(source.key for source in sources if source is not None)
    if not isinstance(model, Rollout):
        return Rollout(step, 1, {}, record=tuple(record))
    record = dict.fromkeys([*(model.config["record"] or ()), *record])
    config = {**model.config, "record": tuple(record), "record_gradients": True, "check_finite": False}
    # A Memory remembers its latest loop: the doctor's are not those of the user.
    return Rollout(**{**config, "memory": copy.copy(model.memory if memory is None else memory)})


def _split(batch: Batch) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The positional and the named inputs of a batch."""
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], Mapping):
        return tuple(batch[0]), batch[1]
    raise InputError(
        f"the doctor needs a batch as inputs by name, or as the pair that Task.sample returns, got a "
        f"{type(batch).__name__}"
    )


def _requires_grad(value: Any) -> bool:
    return any(leaf.requires_grad for leaf in tree.tensors(tree.flatten(value)[0]))
