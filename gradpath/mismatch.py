"""Mismatch: what the relaxed operations of a pipeline cost against the hard ones that a robot runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradpath import tree
from gradpath.directions import Directions
from gradpath.errors import InputError
from gradpath.intervals import Interval, cosine_interval, mean_interval
from gradpath.mismatch_report import END_TO_END, Gap, Mismatch, check_limits
from gradpath.mismatch_runs import Key, LossLike, Runs
from gradpath.mode import MODES
from gradpath.relaxation import Call, Watcher, positive
from gradpath.specs import tensors
from gradpath.trajectory import Trajectory


def mismatch(
    model: Callable[..., Any],
    batch: Mapping[str, Any],
    losses: LossLike | None = None,
    taus: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
    *,
    wrt: Sequence[str] | None = None,
    samples: int = 32,
    std: float = 0.01,
    gradient: str = "soft",
    limits: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
) -> Mismatch:
    """Measure the gap between soft and hard, for each relaxed operation and end to end.

    ```python
    found = gp.mismatch(rollout, {"state": state0, "goal": goal, "generator": generator}, losses)
    print(found.table())
    ```

    The operations of `gradpath.relax`, the rasterizer, and what is declared with `relax.relaxation` are seen wherever
    they are called, in the losses too. An operation's loss and cosine come from runs in which it alone is hard.

    Args:
        model: A pipeline, a rollout, another stage, or a function.
        batch: Its inputs by name; the carry of a rollout too. Every run gets its own copy, with generators in the
            state that they have here, so that all runs see the same noise.
        losses: The task: `Losses`, or a function of what the model returns that gives one number per world, (B,).
            They are called in the same mode as the model. Without them only values and decisions are compared.
        taus: Factors on all temperatures, above zero. 1, the temperatures as they are, is always among them.
        wrt: Inputs, floating, that gradients are taken with respect to, dotted: `"state.pose"`. None: the parameters
            that require a gradient, or all floating inputs where there are none.
        samples: Random directions of a cosine, at least 4; 0 leaves cosines out. Each takes two runs per operation and
            factor, and two end to end; the interval of a cosine is about 2 / sqrt(samples) wide on either side.
        std: Radius of the smoothing that the zeroth-order gradient sees: standard deviation of the noise on what is
            differentiated, in root mean squares of all of it.
        gradient: `"soft"` or `"straight_through"`: whose gradient is held against the hard loss.
        limits: Largest `distance`, `decisions` and `loss` difference, smallest `cosine`, at the temperatures as they
            are; see `Mismatch.check`.
        generator: Draws the directions.
    Returns:
        The gaps, with `.table()`, `.json()`, `.plot(path)` and `found["stage.operation"]`.
    Raises:
        MismatchError: a limit is passed; names the operation.
        InputError: an option is out of range, or an input to differentiate is missing.
        NonFiniteError: a loss is NaN or infinite; says in which run.
    Parameters, buffers, gradients, generators and the last gradient report are left as they were.
    References: Suh et al. 2022 (zeroth-order gradients as the reference); Fisher 1915 (interval of a correlation).
    """
    if samples < 0 or 0 < samples < 4:
        raise InputError(f"mismatch: samples is 0, or at least 4 for an interval, got {samples}")
    if gradient not in MODES or gradient == "hard":
        raise InputError(f'mismatch: gradient is "soft" or "straight_through", got "{gradient}"')
    check_limits(limits or {})
    factors = sorted({1.0, *(positive(tau, "mismatch", "taus") for tau in taus)})
    runs = Runs(model, batch, losses)
    notes: list[str] = []
    directions = None
    if losses is not None and samples:
        directions = Directions.draw(runs, wrt, samples, positive(std, "mismatch", "std"), generator)
        if directions is None:
            notes.append("no parameter and no floating input to differentiate, so no cosines")
    measured = _Measurement(runs, directions, gradient, notes)
    gaps = [gap for factor in factors for gap in measured.gaps(factor)]
    found = Mismatch(tuple(gaps), gradient, samples if directions else 0, tuple(notes))
    found.check(limits or {})
    return found


class _Seen:
    """What one operation did in a run without gradient, added up over its calls."""

    def __init__(self) -> None:
        self.temperatures: list[float] = []
        self.squares: dict[str, list[float]] = {}
        self.decided: list[Tensor] = []
        self.differ, self.count = 0, 0

    def add(self, call: Call, soft: Any, hard: Any) -> None:
        """Compare the two values of one call."""
        self.temperatures.append(call.temperature)
        _add_squares(self.squares, soft, hard)
        ours, theirs = _decided(call, soft), _decided(call, hard)
        if ours is not None and theirs is not None:
            self.decided.append(ours)
            self.differ += int((ours != theirs).sum())
            self.count += ours.numel()


class _Run(NamedTuple):
    """What a run gave."""

    outputs: dict[str, Tensor]
    loss: Tensor | None


class _Measurement:
    """Runs a model soft, hard and in between, always from the same start."""

    def __init__(self, runs: Runs, directions: Directions | None, gradient: str, notes: list[str]):
        self.runs, self.directions, self.gradient, self.notes = runs, directions, gradient, notes
        self.hard_decisions: dict[Key, list[Tensor]] = {}
        self.hard = self._run(self._noting_decisions, "hard")
        self._hard_changes: Tensor | None = None

    def gaps(self, factor: float) -> Iterator[Gap]:
        """Measure every operation and the whole at one factor on the temperatures."""
        seen: dict[Key, _Seen] = {}

        def compare(call: Call) -> Any:
            hard, soft = call.run("hard"), call.run("soft")
            seen.setdefault(self.runs.key(call), _Seen()).add(call, soft, hard)
            return soft

        soft = self._run(compare, "soft", factor)
        slopes = None if self.directions is None else self.directions.slopes(self.gradient, factor)
        for key, name in _names(seen).items():
            loss, cosine = self._alone(key, factor, soft, slopes)
            one = seen[key]
            distance, values = _distances(one.squares)
            temperature = math.fsum(one.temperatures) / len(one.temperatures)
            share = one.differ / one.count if one.count else None
            yield Gap(name, factor, temperature, distance, values, share, loss, cosine)
        squares: dict[str, list[float]] = {}
        _add_squares(squares, soft.outputs, self.hard.outputs)
        distance, values = _distances(squares)
        decisions = self._decisions(seen)
        loss = _difference(self.hard, soft)
        yield Gap(
            END_TO_END, factor, None, distance, values, decisions, loss, self._cosine(None, factor, slopes)
        )

    def _alone(
        self, key: Key, factor: float, soft: _Run, slopes: Tensor | None
    ) -> tuple[Interval | None, Interval | None]:
        """Loss difference and cosine with one operation hard; where that is all there is, those of the whole."""
        if self.runs.losses is None:
            return None, None
        run = self._run(self.runs.only(key), "soft", factor)
        whole = _same(run.outputs, self.hard.outputs)
        return _difference(run, soft), self._cosine(None if whole else key, factor, slopes)

    def _cosine(self, key: Key | None, factor: float, slopes: Tensor | None) -> Interval | None:
        if slopes is None or self.directions is None:
            return None
        if key is not None:
            changes = self.directions.changes(self.runs.only(key), "soft", factor)
        elif self._hard_changes is None:  # no temperature matters where all is hard
            changes = self._hard_changes = self.directions.changes(None, "hard", 1.0)
        else:
            changes = self._hard_changes
        what = key.operation if key else "everything"
        if not slopes.any():
            self._note(f"factor {factor:g}: the {self.gradient} gradient is zero, so no cosine")
        elif not changes.any():
            self._note(
                f"the loss with {what} hard stays the same within std, so no cosine; a larger std reaches farther"
            )
        return cosine_interval(slopes, changes)

    def _note(self, text: str) -> None:
        self.notes += [] if text in self.notes else [text]

    def _noting_decisions(self, call: Call) -> Any:
        value = call.run("hard")
        decided = _decided(call, value)
        if decided is not None:
            self.hard_decisions.setdefault(self.runs.key(call), []).append(decided)
        return value

    def _decisions(self, seen: Mapping[Key, _Seen]) -> float | None:
        """Share of decisions on the way that differ between the soft run and the hard one."""
        differ = count = 0
        for key in {**seen, **self.hard_decisions}:
            ours = seen[key].decided if key in seen else []
            theirs = self.hard_decisions.get(key, [])
            if [one.shape for one in ours] != [one.shape for one in theirs]:
                self._note(f"{key.operation} does not decide as often in the hard run; not compared")
                continue
            differ += sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
            count += sum(a.numel() for a in ours)
        return differ / count if count else None

    def _run(self, watcher: Watcher | None, name: str, factor: float = 1.0) -> _Run:
        """Run without a gradient."""
        with torch.no_grad(), self.runs.run(watcher, name, factor) as (result, loss):
            outputs = result.recorded if isinstance(result, Trajectory) else result
            named = outputs if isinstance(outputs, Mapping) else {"output": outputs}
            leaves = [pair for key, value in named.items() for pair in tensors(value, str(key))]
            return _Run({path: value.clone() for path, value in leaves if value.is_floating_point()}, loss)


def _difference(one: _Run, other: _Run) -> Interval | None:
    """The loss of one run minus that of another, paired world by world."""
    return None if one.loss is None or other.loss is None else mean_interval(one.loss - other.loss)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _decided(call: Call, value: Any) -> Tensor | None:
    if call.decision is None:
        return None
    decided = call.decision(value, **call.arguments)
    return None if decided is None else decided.detach().cpu()


def _add_squares(sums: dict[str, list[float]], soft: Any, hard: Any) -> None:
    """Add squares of the difference, of soft and of hard values, and their number, by output."""
    theirs = dict(_named(hard))
    for path, value in _named(soft):
        other = theirs[path].detach().double()
        value = value.detach().double()
        added = [float(t.square().sum()) for t in (value - other, value, other)]
        held = sums.setdefault(path, [0.0, 0.0, 0.0, 0])
        sums[path] = [a + b for a, b in zip(held, [*added, value.numel()], strict=True)]


def _named(value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from ((path, t) for path, t in tensors(item, str(name)) if t.is_floating_point())
        return
    leaves = [leaf for leaf in tree.flatten(value)[0] if tree.is_differentiable(leaf)]
    yield from (("value" if len(leaves) == 1 else f"value[{i}]", leaf) for i, leaf in enumerate(leaves))


def _distances(sums: Mapping[str, list[float]]) -> tuple[float, dict[str, float]]:
    """The largest relative distance, and the distances in the units of the outputs."""
    relative, absolute = [0.0], {}
    for path, (difference, soft, hard, count) in sums.items():
        absolute[path] = math.sqrt(difference / count) if count else 0.0
        size = max(soft, hard)
        relative.append(math.sqrt(difference / size) if size > 0 else 0.0)
    return max(relative), absolute


def _names(keys: Mapping[Key, Any]) -> dict[Key, str]:
    """A readable name for each key: with the line of the call only where it is needed."""
    short = {key: f"{key.stage}.{key.operation}" if key.stage else key.operation for key in keys}
    shared = list(short.values())
    return {key: name if shared.count(name) == 1 else f"{name} ({key.site})" for key, name in short.items()}
