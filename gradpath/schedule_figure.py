"""A picture of a schedule: which step runs when, and which states are kept meanwhile."""

from __future__ import annotations

from matplotlib.figure import Figure

from gradpath.figures import PALETTE
from gradpath.schedule import Schedule

COLOURS = {"advance": PALETTE[0], "tape": PALETTE[1], "reverse": PALETTE[2]}
_NAMES = {"advance": "run without a tape", "tape": "run with a tape", "reverse": "reversed"}


def draw(schedule: Schedule) -> Figure:
    """Return the figure: time steps over the work done, one unit for each step that runs or is reversed."""
    clock, turn = 0, 0
    begun: dict[tuple[str, int], int] = {}
    kept: dict[str, list[tuple[int, int, int]]] = {"snapshot": [], "store": []}
    runs: dict[str, list[list[tuple[int, int]]]] = {kind: [] for kind in COLOURS}
    for number, action in enumerate(schedule.actions):
        if number == len(schedule.forward):
            turn = clock
        if action.kind in kept:
            begun[action.kind, action.start] = clock
        elif action.kind in ("free", "drop"):
            kind = "snapshot" if action.kind == "free" else "store"
            kept[kind].append((action.start, begun.pop((kind, action.start)), clock))
        elif action.kind in COLOURS:
            span = action.stop - action.start
            ends = [(clock, action.start), (clock + span, action.stop)]
            if action.kind == "reverse":
                ends = [(clock, action.stop), (clock + span, action.start)]
            runs[action.kind].append(ends)
            clock += span
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind, label, style in (("snapshot", "kept state", "-"), ("store", "stored state", ":")):
        for i, (step, start, stop) in enumerate(kept[kind]):
            axes.plot(
                [start, stop], [step, step], style, color="0.6", lw=0.8, label=label if i == 0 else None
            )
    for kind, lines in runs.items():
        for i, line in enumerate(lines):
            axes.plot(
                *zip(*line, strict=True), color=COLOURS[kind], lw=1.4, label=_NAMES[kind] if i == 0 else None
            )
    axes.axvline(turn, color="0.3", lw=0.8, ls="--")
    axes.set(
        xlabel="steps run or reversed", ylabel="time step", title=str(schedule), ylim=(0, schedule.length)
    )
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8, loc="upper right")
    return figure
