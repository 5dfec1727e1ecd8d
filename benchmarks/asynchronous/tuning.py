"""The choice of hyperparameters, made alike for both modes, in virtual time and on seeds of its own.

Both have the same grid of learning rates; the asynchronous mode has a buffer size beside it. Best is what
comes soonest to the target: a share of the accuracy that the worse of the two modes gets to at its best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.asynchronous.curve import Curve, median_time
from benchmarks.asynchronous.parallel import in_parallel
from benchmarks.asynchronous.tasks import PACES, Choice, Task, settings_of
from benchmarks.asynchronous.virtual import asynchronous, synchronous

SEEDS = (101, 102, 103)
LEARNING_RATES = (0.2, 0.4, 0.8)
BUFFER_SIZES = (4, 6, 8)
SHARE = 0.95
"""The target, of the accuracy that both modes reach."""
MODES = ("sync", "async")


@dataclass(frozen=True)
class Tuned:
    """What was chosen for one task.

    Attributes:
        choices: by mode.
        models: by mode, how many were made by the horizon.
        reachable: by mode, the best accuracy of its grid by the horizon.
        target: the accuracy that both are to reach.
        grid: what was tried: the choice, the accuracy, and the seconds to the target, None for never.
    """

    choices: dict[str, Choice]
    models: dict[str, int]
    reachable: dict[str, float]
    target: float
    grid: list[dict[str, Any]]


def grid() -> list[Choice]:
    """All that is tried."""
    return [
        choice
        for rate in LEARNING_RATES
        for choice in (Choice("sync", rate), *(Choice("async", rate, size) for size in BUFFER_SIZES))
    ]


def tune(task: Task, seeds: Sequence[int] = SEEDS) -> Tuned:
    """Try the grid, and choose."""
    jobs = [(task, choice, seed) for choice in grid() for seed in seeds]
    curves: dict[Choice, list[Curve]] = {choice: [] for choice in grid()}
    for (_, choice, _), curve in zip(jobs, in_parallel(_try, jobs), strict=True):
        curves[choice].append(curve)
    return choose(curves)


def choose(curves: Mapping[Choice, Sequence[Curve]]) -> Tuned:
    """The best of each mode, given a curve a seed for all that was tried."""
    accuracies = {choice: statistics.fmean(c.settled for c in found) for choice, found in curves.items()}
    by_mode = {mode: [choice for choice in curves if choice.mode == mode] for mode in MODES}
    reachable = {mode: max(accuracies[choice] for choice in choices) for mode, choices in by_mode.items()}
    target = SHARE * min(reachable.values())
    times = {choice: median_time([c.time_to(target) for c in found]) for choice, found in curves.items()}

    def key(choice: Choice) -> tuple[float, float]:
        time = times[choice]
        return math.inf if time is None else time, -accuracies[choice]

    chosen = {mode: min(choices, key=key) for mode, choices in by_mode.items()}
    return Tuned(
        chosen,
        {mode: len(curves[choice][0].seconds) for mode, choice in chosen.items()},
        reachable,
        target,
        [{**asdict(choice), "accuracy": accuracies[choice], "seconds": times[choice]} for choice in curves],
    )


def _try(task: Task, choice: Choice, seed: int) -> Curve:
    settings = settings_of(task, choice, seed)
    if choice.mode == "sync":
        return synchronous(settings, PACES, task.horizon).curve
    return asynchronous(settings, PACES, task.horizon, secure=False).curve
