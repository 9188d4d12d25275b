"""Trajectories: what a rollout returns, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradpath.losses import lookup
from gradpath.stage import close_match


class Trajectory(Mapping[str, Any]):
    """The values of a rollout by name: recorded outputs over time, and the inputs that were constant.

    `trajectory["body.state"]` is a recorded output, each tensor (T, B, ...); `trajectory["body.state.pose"]`
    reaches into its fields; `trajectory["goal"]` is a constant input as it was given.

    Attributes:
        recorded: The recorded outputs, time first.
        constants: The inputs that all steps read.
        final: The carry after the last step, by external input: `trajectory.final["state"]["pose"]`.
    """

    def __init__(self, recorded: dict[str, Any], constants: dict[str, Any], final: dict[str, Any]):
        self.recorded = recorded
        self.constants = constants
        self.final = final
        self._values = {**constants, **recorded}

    def __getitem__(self, name: str) -> Any:
        try:
            return lookup(self._values, name)
        except KeyError:
            known = ", ".join(self._values) or "nothing"
            raise KeyError(
                f'the trajectory has no "{name}"{close_match(name, self._values)}; it has {known}. Record more '
                f'outputs with gp.Rollout(..., record=["stage.output"])'
            ) from None

    def __contains__(self, name: object) -> bool:
        try:
            lookup(self._values, str(name))
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Trajectory({', '.join(self._values)})"
