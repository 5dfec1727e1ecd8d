"""Two runs that take turns on one machine: one works while the processes of the other are stopped.

So what else this machine does hits both alike, also where runs have no rounds at whose ends they could wait
for each other. To a run's own clock the time between its turns does not exist.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.runs import Run


@dataclass(frozen=True)
class Turns:
    """When one of the runs worked.

    Attributes:
        spans: from when to when, by time.monotonic, in seconds; ascending.
    """

    spans: Sequence[tuple[float, float]]

    def clock(self, moment: float) -> float:
        """How long the run had worked at ``moment``, in seconds."""
        return sum(max(0.0, min(end, moment) - start) for start, end in self.spans)

    def between(self, start: float, end: float) -> float | None:
        """How long it worked from ``start`` to ``end``; None where that began before its first turn."""
        return None if start < self.spans[0][0] else self.clock(end) - self.clock(start)


def take_turns(runs: Mapping[str, Run], turns: int, seconds: float) -> dict[str, Turns]:
    """Let each run work so often for so long, one after another; all of them are stopped in the end.

    Args:
        runs: by name; they are under way.
        turns: of each run.
        seconds: of a turn; less than what the runs take for a peer that has died.
    """
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run.freeze()
    for _ in range(turns):
        for name, run in runs.items():
            run.thaw()
            start = time.monotonic()
            time.sleep(seconds)
            run.freeze()
            spans[name].append((start, time.monotonic()))
    return {name: Turns(found) for name, found in spans.items()}
