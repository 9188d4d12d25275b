"""Schedules: valid, with the fewest steps, with states in one and in two places, and for unknown lengths."""

import math
from functools import cache

import pytest

from gradpath import schedule
from gradpath.errors import BudgetError, InputError
from gradpath.online import Online
from gradpath.schedule_figure import COLOURS


@cache
def fewest_by_search(length: int, snapshots: int) -> int:
    """Dynamic programming over every place where the next snapshot can go."""
    if length == 1:
        return 0
    if snapshots == 1:
        return length * (length - 1) // 2
    return min(
        m + fewest_by_search(length - m, snapshots - 1) + fewest_by_search(m, snapshots)
        for m in range(1, length)
    )


def replay(plan: schedule.Schedule) -> list[int]:
    """Run a schedule on step numbers alone; returns the order in which steps are reversed."""
    held: set[int] = set()
    stored: set[int] = set()
    taped: list[int] = []
    reversed_steps: list[int] = []
    position: int | None = 0
    kept: int | None = None
    for number, action in enumerate(plan.actions):
        if number == len(plan.forward):
            assert position == plan.length, "the forward pass must reach the end"
            position = kept
        if action.kind == "snapshot":
            assert position == action.start and action.start not in held
            held.add(action.start)
        elif action.kind == "hold":
            assert position == action.start
            kept = position
        elif action.kind == "free":
            held.remove(action.start)
        elif action.kind == "restore":
            assert action.start in held
            position = action.start
        elif action.kind == "store":
            assert position == action.start and action.start not in stored
            stored.add(action.start)
        elif action.kind == "load":
            assert action.start in stored
            position = action.start
        elif action.kind == "drop":
            stored.remove(action.start)
        elif action.kind in ("advance", "tape"):
            assert position == action.start < action.stop
            position = action.stop
            if action.kind == "tape":
                taped.extend(range(action.start, action.stop))
        else:
            steps = list(range(action.start, action.stop))
            assert taped[-len(steps) :] == steps
            del taped[-len(steps) :]
            reversed_steps.extend(reversed(steps))
    assert not held and not taped and not stored
    return reversed_steps


@pytest.mark.parametrize("snapshots", range(1, 13))
def test_binomial_is_valid_and_needs_the_fewest_steps(snapshots):
    for length in range(1, 201):
        plan = schedule.binomial(length, snapshots)
        if length <= 60 or length % 20 == 0:
            assert replay(plan) == list(reversed(range(length)))
        assert plan.peak_snapshots <= snapshots
        best = fewest_by_search(length, snapshots)
        assert schedule.fewest_extra_steps(length, snapshots) == best
        assert plan.extra_steps == best + 1


@pytest.mark.parametrize(
    ("length", "snapshots", "extra"),
    [(100, 5, 316), (100, 10, 222), (100, 20, 178), (1000, 5, 6284), (1000, 10, 3636), (1000, 20, 2747)],
)
def test_known_counts(length, snapshots, extra):
    plan = schedule.binomial(length, snapshots)
    assert plan.step_calls == length + extra + 1
    assert plan.extra_steps == extra + 1
    assert replay(plan) == list(reversed(range(length)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 30])
def test_chunks_of_steps_are_taped_together(chunk):
    for length in range(1, 50):
        for snapshots in (1, 2, 3, 5):
            plan = schedule.chunked(length, snapshots, chunk)
            assert replay(plan) == list(reversed(range(length)))
            assert plan.peak_snapshots <= snapshots
            assert max(a.stop - a.start for a in plan.actions if a.kind == "tape") <= chunk
            assert plan.extra_steps == schedule.extra_steps(length, snapshots, chunk)
    assert schedule.chunked(length, 3, 1) == schedule.binomial(length, 3)
    assert schedule.chunked(length, 3, length) == schedule.keep_all(length)


def test_a_chunk_may_not_be_empty():
    with pytest.raises(InputError, match="chunk=0"):
        schedule.chunked(5, 2, 0)


@pytest.mark.parametrize("snapshots", [0, 1, 2, 5])
@pytest.mark.parametrize("period", [1, 2, 3, 10, 40])
def test_states_are_stored_every_period(snapshots, period):
    for length in range(1, 50):
        plan = schedule.in_periods(length, period, snapshots)
        assert replay(plan) == list(reversed(range(length)))
        assert (plan.extra_steps, plan.stored) == schedule.cost_of_periods(length, period, snapshots)
        assert plan.peak_snapshots <= snapshots and plan.stored == -(-length // period) - 1
        tapes = max(a.stop - a.start for a in plan.actions if a.kind == "tape")
        assert tapes == (1 if snapshots else min(period, length))


def test_a_period_may_not_be_empty():
    with pytest.raises(InputError, match="period=0"):
        schedule.in_periods(5, 0, 2)


@pytest.mark.parametrize("snapshots", range(1, 10))
def test_states_that_are_placed_on_the_way_are_nearly_as_good(snapshots):
    online = Online(snapshots)
    for length in range(1, 201):
        assert online.before(length - 1)[-1] == schedule.Action("advance", length - 1, length)
        plan = online.finish(length)
        if length <= 60 or length % 20 == 0:
            assert replay(plan) == list(reversed(range(length)))
        assert plan.peak_snapshots <= snapshots
        runs = [0] * length
        for action in plan.actions:
            if action.kind in ("advance", "tape"):
                for step in range(action.start, action.stop):
                    runs[step] += 1
        sweeps = next(r for r in range(length) if math.comb(snapshots + r, snapshots) >= length)
        assert max(runs) <= sweeps + 2, "the last step of the forward pass may add one to the best"
        assert plan.extra_steps <= 1.4 * schedule.binomial(length, snapshots).extra_steps


def test_online_keeps_every_tape_where_asked_for():
    online = Online(None)
    assert [online.before(step)[0].kind for step in range(3)] == ["tape"] * 3
    assert online.finish(3) == schedule.keep_all(3) and online.finish(0).actions == ()
    with pytest.raises(BudgetError, match="memory=0"):
        Online(0)


def test_a_schedule_is_drawn():
    plan = schedule.in_periods(60, 20, 3)
    axes = plan.figure().axes[0]
    lines = {
        kind: [line for line in axes.lines if line.get_color() == colour] for kind, colour in COLOURS.items()
    }
    for kind, drawn in lines.items():
        actions = [a for a in plan.actions if a.kind == kind]
        assert len(drawn) == len(actions)
        assert sum(abs(line.get_xdata()[1] - line.get_xdata()[0]) for line in drawn) == sum(
            a.stop - a.start for a in actions
        )
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {
        "kept state",
        "stored state",
        "reversed",
    }


def test_keep_all_runs_each_step_once():
    plan = schedule.keep_all(7)
    assert replay(plan) == list(reversed(range(7)))
    assert plan.step_calls == 7 and plan.extra_steps == 0 and plan.peak_snapshots == 0


def test_prints_its_numbers():
    text = str(schedule.binomial(100, 10))
    assert "10 of 10 snapshots" in text and "323 step calls" in text and "223 of them extra" in text
    assert "4 of 5 snapshots and up to 20 tapes" in str(schedule.chunked(100, 5, 20))
    assert str(schedule.Action("advance", 3, 9)) == "advance 3..8"
    assert str(schedule.Action("snapshot", 3, 4)) == "snapshot 3"
    assert schedule.binomial(4, 4).counts() == {
        "snapshot": 4, "advance": 4, "restore": 4, "tape": 4, "reverse": 4, "free": 4
    }  # fmt: skip


def test_refuses_what_cannot_work():
    with pytest.raises(BudgetError, match=r"memory=0.*at least 1 snapshot"):
        schedule.binomial(5, 0)
    with pytest.raises(InputError, match="length=0"):
        schedule.keep_all(0)
    with pytest.raises(InputError, match="length=0"):
        schedule.in_periods(0, 3, 2)
