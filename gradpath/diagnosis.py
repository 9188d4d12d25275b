"""Diagnoses: what the doctor found, as a table, as JSON and as HTML."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from gradpath.errors import LoadError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        failure: The failure mode, one of `gradpath.doctor.FAILURES`.
        severity: `"error"`: the result or the gradient is wrong, or nothing can run. `"warning"`: training will be
            slow, or learn something else than meant.
        evidence: What was seen, in a sentence.
        remedy: What to do.
        stage: The stage where it arises, None where it is none's.
        value: The output, input, parameters or losses that it is about.
        step: The time step.
        world: The world.
        numbers: What was measured, by name.
    """

    failure: str
    severity: Severity
    evidence: str
    remedy: str
    stage: str | None = None
    value: str | None = None
    step: int | None = None
    world: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Stage, value, step and world as text."""
        parts = [f'stage "{self.stage}"'] if self.stage is not None else []
        parts += [self.value] if self.value is not None else []
        parts += [f"step {self.step}"] if self.step is not None else []
        parts += [f"world {self.world}"] if self.world is not None else []
        return ", ".join(parts) or "the whole"

    def json(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that are not finite become text."""
        numbers = {key: x if math.isfinite(x) else str(x) for key, x in self.numbers.items()}
        return {**vars(self), "numbers": numbers}

    def __str__(self) -> str:
        remedy = self.remedy[:1].upper() + self.remedy[1:]
        return f"{self.severity}: {self.failure} at {self.where}: {self.evidence}. {remedy}."


@dataclass(frozen=True)
class Check:
    """How one check went.

    Attributes:
        failure: The failure mode it looks for.
        skipped: Why it could not be made; empty where it was.
        seconds: What it took.
    """

    failure: str
    skipped: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor looked for and what it found, errors first.

    Attributes:
        findings: What is wrong; empty for a healthy model.
        checks: Every check, those too that could not be made.
    """

    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def of(self, failure: str) -> list[Finding]:
        """Return the findings of one failure mode."""
        return [finding for finding in self.findings if finding.failure == failure]

    def json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` gives back an equal object."""
        return {
            "healthy": self.healthy,
            "findings": [finding.json() for finding in self.findings],
            "checks": [vars(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis that `json` gave.

        Raises:
            LoadError: it is none.
        """
        try:
            findings = [
                Finding(**{**row, "numbers": {k: float(x) for k, x in row["numbers"].items()}})
                for row in data["findings"]
            ]
            return cls(tuple(findings), tuple(Check(**row) for row in data["checks"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LoadError(f"this is no diagnosis ({error}); make it again: gradpath doctor RUN") from error

    def table(self) -> str:
        """Return a text table: the findings with evidence and remedy, and what was looked for."""
        lines = [self._summary()]
        width = max((len(finding.failure) for finding in self.findings), default=0)
        for finding in self.findings:
            lines += ["", f"{finding.severity:7}  {finding.failure:{width}}  {finding.where}"]
            lines += _wrapped(f"{finding.evidence}.")
            if finding.numbers:
                lines += _wrapped(_figures(finding.numbers))
            lines += _wrapped(f"-> {finding.remedy}.")
        seen = {finding.failure for finding in self.findings}
        clean = [c.failure for c in self.checks if not c.skipped and c.failure not in seen]
        if clean:
            lines += ["", *_wrapped(f"nothing found: {', '.join(clean)}", "")]
        skipped = [check for check in self.checks if check.skipped]
        if skipped:
            lines += ["", "not looked for:"]
            for check in skipped:
                lines += _wrapped(f"{check.failure}: {check.skipped}")
        return "\n".join(lines)

    def html(self) -> str:
        """Return the findings and the checks as HTML without external resources."""
        rows = "".join(
            f"<tr><td>{finding.severity}</td><th>{escape(finding.failure)}</th><td>{escape(finding.where)}</td>"
            f"<td>{escape(finding.evidence)}. {escape(_figures(finding.numbers))}</td>"
            f"<td>{escape(finding.remedy)}.</td></tr>"
            for finding in self.findings
        )
        head = "<tr><th>severity</th><th>failure</th><th>where</th><th>evidence</th><th>what to do</th></tr>"
        found = f"<table>{head}{rows}</table>" if rows else ""
        seen = {finding.failure for finding in self.findings}
        checks = "".join(
            f"<tr><th>{escape(check.failure)}</th><td>{escape(check.skipped) or _mark(check, seen)}</td></tr>"
            for check in self.checks
        )
        return f"<p>{escape(self._summary())}</p>{found}<h3>Looked for</h3><table>{checks}</table>"

    def _summary(self) -> str:
        errors = sum(finding.severity == "error" for finding in self.findings)
        made = sum(not check.skipped for check in self.checks)
        seconds = sum(check.seconds for check in self.checks)
        found = f"{errors} errors, {len(self.findings) - errors} warnings" if self.findings else "healthy"
        return f"{found}; {made} of {len(self.checks)} checks made in {seconds:.1f} s"

    def __str__(self) -> str:
        return self.table()


def _mark(check: Check, seen: set[str]) -> str:
    return "found" if check.failure in seen else "nothing found"


def _figures(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())


def _wrapped(text: str, indent: str = "         ") -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=indent)
