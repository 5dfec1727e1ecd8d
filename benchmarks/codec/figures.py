"""Figures: what is measured beside what, in turns, and how the ratio stands to its goal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

Work = Callable[[], float]
"""Does something once and returns the seconds that it took."""

TURNS = 9


class Kind(Enum):
    """How a figure is read."""

    FASTER = "times faster"
    COST = "of the time"
    SHARE = "of the rate"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: our seconds and the yardstick's, turn by turn."""

    what: str
    yardstick: str
    kind: Kind
    goal: float | None
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """One for each turn."""
        pairs = zip(self.ours, self.theirs, strict=True)
        if self.kind is Kind.COST:
            return [ours / theirs for ours, theirs in pairs]
        return [theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """The figure: a median over turns."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.kind is Kind.COST else self.ratio >= self.goal

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "what": self.what,
            "yardstick": self.yardstick,
            "kind": self.kind.value,
            "ratio": self.ratio,
            "least": min(self.ratios),
            "most": max(self.ratios),
            "goal": self.goal,
            "is_met": self.is_met,
            "seconds": statistics.median(self.ours),
            "yardstick_seconds": statistics.median(self.theirs),
            "turns": len(self.ours),
        }


def timed(
    action: Callable[[], object],
    *,
    times: int = 1,
    part: float = 1.0,
    clock: Callable[[], float] = time.thread_time,
) -> Work:
    """``action`` as work.

    Args:
        times: how often it is done for one measurement, so that a clock can tell.
        part: of the whole work, which the seconds are for.
        clock: the thread's processor time by default, since one thread's work waits for nothing and what else
            the machine does should not count; for several threads a clock on the wall.
    """

    def run() -> float:
        begin = clock()
        for _ in range(times):
            action()
        return (clock() - begin) / times / part

    return run


def take_turns(works: Mapping[str, Work], turns: int = TURNS) -> dict[str, list[float]]:
    """Every work once a turn, in alternating order; one turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name in works if turn % 2 else reversed(list(works)):
            seconds[name].append(works[name]())
    return {name: found[1:] for name, found in seconds.items()}
