"""Accuracy over time, measured or in virtual time, and what is read off it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

HOLDS = 3
"""A target is reached with the first of so many models in a row that have it, so that no lucky one counts."""
_SETTLED = 0.8  # of a run's time: the models after it say how good it gets


@dataclass(frozen=True)
class Curve:
    """The models of one run.

    Attributes:
        seconds: when each was made, ascending, from the moment when the first one went out.
        accuracies: in 0..1, of each.
    """

    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert len(self.seconds) == len(self.accuracies), "an accuracy for each time"
        assert all(before <= after for before, after in pairwise(self.seconds)), "times ascend"

    def time_to(self, target: float) -> float | None:
        """When an accuracy was reached that held for ``HOLDS`` models, or None."""
        for place in range(len(self.seconds) - HOLDS + 1):
            if min(self.accuracies[place : place + HOLDS]) >= target:
                return self.seconds[place]
        return None

    @property
    def settled(self) -> float:
        """The mean accuracy of the models of the last fifth of the time; of the last one at least."""
        since = _SETTLED * self.seconds[-1]
        return statistics.fmean(
            accuracy
            for second, accuracy in zip(self.seconds, self.accuracies, strict=True)
            if second >= since
        )


def median_time(times: Sequence[float | None]) -> float | None:
    """The median of times of which some may never come; None where the median does not."""
    found = statistics.median([float("inf") if time is None else time for time in times])
    return None if found == float("inf") else found
