"""One run of a model, watched stage by stage and step by step, without changing anything it does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradpath import tree
from gradpath.contract import covers
from gradpath.doctor_case import Case
from gradpath.doctor_state import copied, doubled, plain_attributes
from gradpath.specs import tensors
from gradpath.stage import Stage

Kind = Literal["writes", "draws", "keeps"]


@dataclass(frozen=True)
class Event:
    """Something that a stage did besides returning its outputs.

    Attributes:
        kind: It `"writes"` into an input, `"draws"` from a global generator, or `"keeps"` a tensor in an attribute.
        value: The input, the generator, or the attribute.
        step, world: Where it did so first; no world where none is known.
        count: In how many steps.
    """

    kind: Kind
    stage: str
    value: str
    step: int
    world: int | None = None
    count: int = 1


@dataclass
class Seen:
    """What was seen of one output of a stage, a row per step.

    Attributes:
        prints: A fingerprint of the bits of each world, (W,); W is 1 where the first axis is not the worlds.
        finite: Whether all numbers of each world are finite, (W,).
    """

    prints: list[Tensor] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)


@dataclass
class Call:
    """The inputs of one call of a stage, copied, and the tensors in its attributes before it."""

    stage: str
    step: int
    inputs: dict[str, Any]
    attributes: dict[str, Tensor]

    def copies(self) -> dict[str, Any]:
        """Return the inputs once more, with generators as they were."""
        return tree.map_leaves(copied, self.inputs)

    def doubled(self) -> Call:
        """Return the same call in double precision."""
        attributes = {key: doubled(value) for key, value in self.attributes.items()}
        return Call(self.stage, self.step, tree.map_leaves(doubled, self.copies()), attributes)


@dataclass
class Trace:
    """What one run did.

    Attributes:
        seen: What was seen of each output, by `"stage.output"`, in the order of execution.
        calls: Calls that were kept, by stage and step.
        events: What stages did besides, the first of each kind and value.
        stopped: The error that stopped it.
        at: The stage and step that ran last.
    """

    seen: dict[str, Seen] = field(default_factory=dict)
    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    events: dict[tuple[str, str, str], Event] = field(default_factory=dict)
    stopped: Exception | None = None
    at: tuple[str, int] | None = None

    def first_bad(self) -> tuple[str, int, int | None] | None:
        """Return output, step and world of the first number that is not finite, in the order of execution."""
        found = []
        for rank, (name, seen) in enumerate(self.seen.items()):
            if seen.finite:
                bad = ~torch.stack(seen.finite)
                for step in bad.any(1).nonzero().flatten().tolist()[:1]:
                    world = int(bad[step].nonzero()[0]) if bad.shape[1] > 1 else None
                    found.append((step, rank, name, world))
        if not found:
            return None
        step, _, name, world = min(found, key=lambda row: row[:2])
        return name, step, world

    def first_difference(self, other: Trace) -> tuple[str, int, int | None, float] | None:
        """Return output, step and world where another run first gives other bits, and the share that differs."""
        found, total = [], 0
        for rank, (name, seen) in enumerate(self.seen.items()):
            again = other.seen.get(name, Seen())
            for step, (a, b) in enumerate(zip(seen.prints, again.prints, strict=False)):
                total += 1
                if not torch.equal(a, b):
                    world = int((a != b).nonzero()[0]) if len(a) > 1 and len(a) == len(b) else None
                    found.append((step, rank, name, world))
        if not found:
            return None
        step, _, name, world = min(found, key=lambda row: row[:2])
        return name, step, world, len(found) / total


def trace(case: Case, *, hidden: bool = True) -> Trace:
    """Run a case without gradients and watch every stage.

    Args:
        case: What to run.
        hidden: Whether what a run should not depend on (numpy's generator, counters) is as in the last run.
    """
    watch = _Watch(case)
    with watch.watching(), torch.no_grad():
        try:
            case.run(hidden=hidden)
        except Exception as error:  # whatever a stage may raise; it is told as a finding
            watch.trace.stopped = error
    return watch.trace


class _Watch:
    """Hooks before and after each stage."""

    def __init__(self, case: Case):
        self.case = case
        self.trace = Trace()
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Any] = {}
        self.kept = {0, 1, case.length // 2, case.length - 1}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, stage in self.case.stages.items():
                before = stage.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True)
                after = stage.register_forward_hook(partial(self.leave, name), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def enter(self, name: str, stage: Stage, args: Any, kwargs: dict[str, Any]) -> None:
        step = self.calls[name]
        self.trace.at = (name, step)
        attributes = _attributes(stage)
        if step in self.kept:
            copies = {key: value.detach().clone() for key, value in attributes.items()}
            self.trace.calls[name, step] = Call(name, step, tree.map_leaves(copied, kwargs), copies)
        self.before = {
            "inputs": self._prints(kwargs),
            "attributes": {key: fingerprint(value, 1) for key, value in attributes.items()},
            "generators": _generators(),
        }

    def leave(self, name: str, stage: Stage, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        step = self.calls[name]
        self.calls[name] += 1
        for path, after in self._prints(kwargs).items():
            changed = self.before["inputs"][path] != after
            if bool(changed.any()) and not covers(stage.contract.mutated, path):
                self._note(
                    "writes", name, path, step, int(changed.nonzero()[0]) if len(changed) > 1 else None
                )
        for key, state in _generators().items():
            declared = "rng" in stage.contract.effects and key.startswith("torch")
            if not declared and state != self.before["generators"][key]:
                self._note("draws", name, key, step)
        for key, value in _attributes(stage).items():
            old = self.before["attributes"].get(key)
            if old is None or not torch.equal(old, fingerprint(value, 1)):
                self._note("keeps", name, key, step)
        for output, value in stage.named_outputs(result, name).items():
            for path, leaf in tensors(value, f"{name}.{output}"):
                self._see(path, leaf)

    def _note(self, kind: Kind, stage: str, value: str, step: int, world: int | None = None) -> None:
        known = self.trace.events.get((kind, stage, value))
        first = Event(kind, stage, value, step, world)
        if known is not None:
            first = Event(kind, stage, value, known.step, known.world, known.count + 1)
        self.trace.events[kind, stage, value] = first

    def _see(self, path: str, value: Tensor) -> None:
        seen = self.trace.seen.setdefault(path, Seen())
        worlds = self._worlds(value)
        seen.prints.append(fingerprint(value, worlds))
        if value.is_floating_point():
            seen.finite.append(value.detach().reshape(worlds, -1).isfinite().all(1))

    def _prints(self, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        pairs = [pair for key, value in kwargs.items() for pair in tensors(value, key)]
        return {path: fingerprint(value, self._worlds(value)) for path, value in pairs}

    def _worlds(self, value: Tensor) -> int:
        return self.case.worlds if value.ndim and value.shape[0] == self.case.worlds else 1


def fingerprint(value: Tensor, worlds: int) -> Tensor:
    """Return a number per world, (W,), that is another one as soon as a bit of that world is, but for rare chance.

    A sum of all words with fixed odd factors, modulo 2**64: one changed word always changes it.
    """
    if not value.numel() or value.layout != torch.strided:
        return torch.zeros(worlds, dtype=torch.int64)
    rows = value.detach().resolve_conj().resolve_neg().reshape(worlds, -1).contiguous()
    words = rows.view(_WORDS.get(value.element_size(), torch.uint8)).to(torch.int64)
    index = torch.arange(words.shape[1], device=words.device, dtype=torch.int64)
    return (words * (index * 6364136223846793005 + 1442695040888963407 | 1)).sum(1)


_WORDS = {4: torch.int32, 8: torch.int64, 2: torch.int16}


def _attributes(stage: Stage) -> dict[str, Tensor]:
    """The tensors in plain attributes of a stage and its parts."""
    return {
        f"{prefix}.{key}" if prefix else key: value
        for prefix, module in stage.named_modules()
        for key, value in plain_attributes(module)
        if isinstance(value, Tensor)
    }


def _generators() -> dict[str, Any]:
    """The states of the global generators, in a form that can be compared."""
    kind, keys, position, *rest = np.random.get_state()
    states = {
        "torch's global generator": torch.default_generator.get_state().numpy().tobytes(),
        "numpy's global generator": (kind, np.asarray(keys).tobytes(), position, *rest),
        "Python's random module": random.getstate(),
    }
    if torch.cuda.is_initialized():
        states["torch's CUDA generator"] = torch.cuda.get_rng_state().numpy().tobytes()
    return states
