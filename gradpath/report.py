"""The gradient report: what the gradients of a rollout did on their way back through stages and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradpath.errors import GradpathError, InputError
from gradpath.gradient_summary import GradientSummary, Groups, parameter_groups, summarize
from gradpath.losses import Losses, LossValues
from gradpath.recorder import Fault, Recording
from gradpath.rollout import Rollout


class Board(Protocol):
    """What scalars are written to; a `SummaryWriter` of TensorBoard is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Take one number."""


def gradient_report(
    rollout: Rollout, losses: Losses | LossValues | None = None, *, groups: Groups | None = None
) -> GradientReport:
    """Report on the gradients of the latest backward pass through a rollout.

    ```python
    values = losses(rollout(state0, goal=goal))
    values.total.backward()
    print(gp.gradient_report(rollout).table())
    ```

    Args:
        rollout: A rollout through which a backward pass has run.
        losses: The losses of that pass. `Losses` adds their weights to the report. `LossValues`, what calling
            them gave, adds the norm of the gradient of each weighted loss with respect to all parameters of the
            rollout, to compare them with one another. This runs one backward pass per loss, so the pass before
            must have kept the graph: `values.total.backward(retain_graph=True)`.
        groups: Groups of parameters to sum up, as their `.grad` holds them now: a mapping of names to parameters, or
            an optimizer. None: the parameters of each stage.

    Nothing waits for the device before this call; measuring costs a few percent of a training iteration, see
    `benchmarks/bench_gradient_report.py`.

    Raises:
        InputError: nothing was recorded (no backward pass yet, or `record_gradients=False`), or the graph of the
            losses is gone.
    """
    if rollout.recorder is None:
        raise InputError("the rollout records no gradients; build it with record_gradients=True")
    recording = rollout.recorder.last
    if recording is None:
        raise InputError(
            "no backward pass has run through the rollout yet; call .backward() on a loss of it first"
        )
    wiring = rollout.recorder.wiring
    chosen = parameter_groups(rollout, wiring.stages, groups)
    summed = summarize({name: [(p.grad, p.numel()) for p in group] for name, group in chosen.items()})
    by_loss = {}
    if isinstance(losses, LossValues):
        with recording.paused():
            by_loss = _by_loss(rollout, losses)
    weights = losses.weights() if isinstance(losses, Losses) else {}
    return GradientReport.of(
        recording, list(wiring.takes), dt=rollout.dt, groups=summed, by_loss=by_loss, weights=weights
    )


@dataclass(frozen=True)
class GradientReport:
    """Norms of gradients by stage, time step and world, on the CPU in float64.

    Attributes:
        length: Time steps T.
        decay: The factor on the gradient of the carry per step, None for 1.
        cut: No gradient goes back from a step whose number is a multiple of this to the one before; None for no cut.
        carry: Norm of the gradient with respect to the carry that enters each step, (T, B), after decay.
        first_step: The first step whose carry needs a gradient: 1 where the initial carry requires none.
        outputs: Norm of the gradient that reaches each stage output, by `"stage.output"`, (T, B) or (T, 1).
        stages: Norm of the gradient that reaches all outputs of each stage, over worlds, (T,).
        parameters: Norm of what each step adds to the gradient of the parameters of each stage, (T,).
        growth: Slope of the logarithm of the carry's gradient per step back in time: 0.1 means that it grows by
            about 10 % with each step, negative that it fades. NaN where fewer than two steps have one.
        dt: Time of a step [s], None where the rollout was not told.
        zero_share: Share of steps and worlds where the gradient of the carry is exactly zero.
        non_finite_share: Share of steps and worlds where it is NaN or infinite.
        fault: Where a gradient first stopped being finite, None where all are finite.
        groups: The gradient of each group of parameters, over its numbers.
        by_loss: The gradient of each weighted loss with respect to all parameters, where asked for.
        weights: Weights of the losses, where they were given.
    """

    length: int
    decay: float | None
    cut: int | None
    carry: Tensor
    first_step: int
    outputs: dict[str, Tensor]
    stages: dict[str, Tensor]
    parameters: dict[str, Tensor]
    growth: float
    dt: float | None
    zero_share: float
    non_finite_share: float
    fault: Fault | None
    groups: dict[str, GradientSummary]
    by_loss: dict[str, GradientSummary]
    weights: dict[str, float]

    @classmethod
    def of(
        cls,
        recording: Recording,
        order: Sequence[str],
        *,
        dt: float | None = None,
        groups: Mapping[str, GradientSummary] | None = None,
        by_loss: Mapping[str, GradientSummary] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> GradientReport:
        """Read a recording; waits for the device."""
        carry = recording.carry.cpu().clone()
        rank = {stage: i for i, stage in enumerate(order)}
        measured = recording.outputs
        names = sorted(measured, key=lambda name: rank.get(name.partition(".")[0], len(rank)))
        outputs = {name: measured[name].cpu() for name in names}
        parts: dict[str, list[Tensor]] = {}
        for name, norms in outputs.items():
            parts.setdefault(name.partition(".")[0], []).append(norms)
        flowing = carry[recording.first_step :]
        return cls(
            length=recording.length,
            decay=recording.decay,
            cut=recording.cut,
            carry=carry,
            first_step=recording.first_step,
            outputs=outputs,
            stages={stage: _over_worlds(torch.cat(norms, dim=1)) for stage, norms in parts.items()},
            parameters={stage: norms.cpu().clone() for stage, norms in recording.parameters.items()},
            growth=_growth(_over_worlds(flowing)),
            dt=dt,
            zero_share=_share(flowing == 0),
            non_finite_share=_share(~flowing.isfinite()),
            fault=recording.fault(),
            groups=dict(groups or {}),
            by_loss=dict(by_loss or {}),
            weights=dict(weights or {}),
        )

    @property
    def growth_rate(self) -> float | None:
        """Slope of the logarithm of the carry's gradient per second back in time [1/s]; None without `dt`."""
        return None if self.dt is None else self.growth / self.dt

    @property
    def losses(self) -> dict[str, float]:
        """Norm of the gradient of each weighted loss with respect to all parameters, where asked for."""
        return {name: summary.norm for name, summary in self.by_loss.items()}

    @property
    def by_stage(self) -> dict[str, GradientSummary]:
        """What reaches the outputs of each stage: its norm, and over steps, outputs and worlds the shares of zeros and
        of what is not finite."""
        parts: dict[str, list[Tensor]] = {}
        for name, norms in self.outputs.items():
            parts.setdefault(name.partition(".")[0], []).append(norms.flatten())
        return {stage: _summary(torch.cat(norms)) for stage, norms in parts.items()}

    def worst_worlds(self, count: int = 5) -> list[tuple[int, float]]:
        """The worlds with the largest gradient of the carry over all steps, non-finite ones first."""
        totals = torch.linalg.vector_norm(self.carry, dim=0)
        order = torch.where(totals.isfinite(), totals, torch.inf).argsort(descending=True)
        return [(int(world), float(totals[world])) for world in order[:count]]

    def json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; NaN and infinite numbers become text."""
        return {
            "length": self.length,
            "worlds": self.carry.shape[1],
            "decay": self.decay,
            "cut": self.cut,
            "growth": _plain(self.growth),
            "growth_rate": None if self.growth_rate is None else _plain(self.growth_rate),
            "dt": self.dt,
            "first_step": self.first_step,
            "zero_share": self.zero_share,
            "non_finite_share": self.non_finite_share,
            "fault": None if self.fault is None else vars(self.fault) | {"text": str(self.fault)},
            "worst_worlds": [[world, _plain(norm)] for world, norm in self.worst_worlds()],
            "carry": _plain(_over_worlds(self.carry).tolist()),
            "stages": {name: _plain(norms.tolist()) for name, norms in self.stages.items()},
            "outputs": {name: _plain(_over_worlds(norms).tolist()) for name, norms in self.outputs.items()},
            "parameters": {name: _plain(norms.tolist()) for name, norms in self.parameters.items()},
            "losses": {name: _plain(norm) for name, norm in self.losses.items()},
            "by_stage": {name: summary.json() for name, summary in self.by_stage.items()},
            "by_loss": {name: summary.json() for name, summary in self.by_loss.items()},
            "groups": {name: summary.json() for name, summary in self.groups.items()},
            "weights": self.weights,
        }

    def scalars(self) -> dict[str, float]:
        """Return the single numbers by slash-separated names, as TensorBoard groups them."""
        found = {
            "growth": self.growth,
            "zero_share": self.zero_share,
            "non_finite_share": self.non_finite_share,
        }
        if self.growth_rate is not None:
            found["growth_rate"] = self.growth_rate
        every = {"stages": self.by_stage, "groups": self.groups, "losses": self.by_loss}
        for kind, summaries in every.items():
            for name, summary in summaries.items():
                found.update({f"{kind}/{name}/{key}": number for key, number in vars(summary).items()})
        return found

    def tensorboard(self, board: Board, step: int, prefix: str = "gradients") -> None:
        """Write the scalars to a `SummaryWriter`, below a prefix, at an iteration."""
        for name, number in self.scalars().items():
            board.add_scalar(f"{prefix}/{name}", number, step)

    def table(self) -> str:
        """Return a text table: norms at the first, middle and last step, per stage, and what stands out."""
        marks = sorted({0, self.length // 2, self.length - 1})
        rows = [["gradient norm", *(f"step {mark}" for mark in marks), "all steps", "zero"]]
        rows.append(_row("carry", _over_worlds(self.carry), marks, self.first_step))
        rows += [_row(name, _over_worlds(norms), marks) for name, norms in self.outputs.items()]
        rows += [_row(f"{name} parameters", norms, marks) for name, norms in self.parameters.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._notes()])

    def _notes(self) -> list[str]:
        decay = "none" if self.decay is None else f"{self.decay:g} per step"
        worst = ", ".join(f"{world} ({norm:.3g})" for world, norm in self.worst_worlds(3))
        rate = "" if self.growth_rate is None else f", {self.growth_rate:+.3f} per second"
        notes = [
            f"growth per step back in time: {self.growth:+.3f}{rate}; gradient decay: {decay}",
            f"zero: {self.zero_share:.1%} of steps and worlds; not finite: {self.non_finite_share:.1%}",
            f"worlds with the largest gradient: {worst}",
        ]
        if self.cut is not None:
            notes.append(f"gradients are cut every {self.cut} steps")
        if self.fault is not None:
            notes.append(f"first gradient that is not finite: {self.fault}")
        notes += [f"parameters of {name}: {_text(summary)}" for name, summary in self.groups.items()]
        notes += [f'loss "{name}": {_text(summary)}' for name, summary in self.by_loss.items()]
        notes += [f'loss "{name}": weight {weight:g}' for name, weight in self.weights.items()]
        return notes

    def __str__(self) -> str:
        return self.table()


def _by_loss(rollout: Rollout, losses: LossValues) -> dict[str, GradientSummary]:
    parameters = [parameter for parameter in rollout.parameters() if parameter.requires_grad]
    found: dict[str, list[tuple[Tensor | None, int]]] = {}
    for name, value in losses.weighted.items():
        grads: Sequence[Tensor | None] = [None] * len(parameters)
        if value.requires_grad and parameters:
            try:
                grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            except (RuntimeError, GradpathError) as error:
                if "second time" not in str(error):
                    raise
                raise InputError(
                    "the graph of the losses is gone, so their gradients cannot be told apart; call "
                    ".total.backward(retain_graph=True) before gradient_report(rollout, values)"
                ) from None
        found[name] = [(grad, p.numel()) for grad, p in zip(grads, parameters, strict=True)]
    return summarize(found)


def _summary(norms: Tensor) -> GradientSummary:
    return GradientSummary(float(norms.norm()), _share(norms == 0), _share(~norms.isfinite()))


def _text(summary: GradientSummary) -> str:
    shares = f"zero {summary.zero_share:.0%}"
    if summary.non_finite_share:
        shares += f", not finite {summary.non_finite_share:.2%}"
    return f"gradient norm {summary.norm:.3g}, {shares}"


def _over_worlds(norms: Tensor) -> Tensor:
    return torch.linalg.vector_norm(norms, dim=1)


def _growth(norms: Tensor) -> float:
    """Least-squares slope of log(norm) per step, counted back in time."""
    use = norms.isfinite() & (norms > 0)
    if int(use.sum()) < 2:
        return float("nan")
    back = -torch.arange(len(norms), dtype=norms.dtype)[use]
    back = back - back.mean()
    logs = norms[use].log()
    return float((back * (logs - logs.mean())).sum() / back.square().sum())


def _share(flags: Tensor) -> float:
    return float(flags.double().mean()) if flags.numel() else 0.0


def _row(name: str, norms: Tensor, marks: list[int], first: int = 0) -> list[str]:
    shown = [f"{float(norms[mark]):.3g}" if mark >= first else "-" for mark in marks]
    return [name, *shown, f"{float(norms.norm()):.3g}", f"{_share(norms[first:] == 0):.0%}"]


def _plain(value: Any) -> Any:
    """A number that JSON can hold, or text where it cannot."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if torch.isfinite(torch.tensor(value)) else str(value)
