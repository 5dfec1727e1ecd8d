"""What masks, field and rounding do to the accuracy: the same run with them and without, in virtual time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from typing import Any

from benchmarks.asynchronous.parallel import in_parallel
from benchmarks.asynchronous.tasks import PACES, Choice, Task, settings_of
from benchmarks.asynchronous.virtual import Course, asynchronous

STALENESS = ("constant", "polynomial(0.5)")
MOST = 0.005
"""Half a point: the largest difference of accuracies that is allowed."""
HORIZON = 16.0
"""Seconds of virtual time that a run goes on here: its models do not get much better after that."""
BITS = (1, 2, 4, 6, 8, 12, 16)
ROUNDINGS = ("nearest", "stochastic")
BITS_SEEDS = 3
"""Of the seeds, so many are tried for each number of bits."""


class SchedulesDifferError(Exception):
    """Two runs that should differ in their arithmetic alone made different lists."""


def _go(task: Task, choice: Choice, seed: int, secure: bool) -> Course:
    return asynchronous(settings_of(task, choice, seed), PACES, HORIZON, secure=secure)


def check_same_schedule(secure: Course, plain: Course) -> None:
    """Whether two runs differ in nothing but their accuracies.

    Raises:
        SchedulesDifferError: they made other lists of updates, or at other times.
    """
    one, other = ([*zip(course.curve.seconds, course.lists, strict=True)] for course in (secure, plain))
    if one != other:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        raise SchedulesDifferError(
            f"wanted the same lists with masks and without, found {len(one)} and {len(other)}, which differ "
            f"from list {len(list(alike)) + 1} on; the two servers were given different rules or paces"
        )


def beside_plain(task: Task, choice: Choice, seed: int) -> dict[str, Any]:
    """A run with masks beside the same run without masks and quantization.

    Raises:
        SchedulesDifferError: see ``check_same_schedule``.
    """
    secure, plain = (_go(task, choice, seed, secure) for secure in (True, False))
    check_same_schedule(secure, plain)
    stale = [entry.staleness for entries in plain.lists for entry in entries]
    return {
        "seed": seed,
        "secure": secure.curve.settled,
        "plain": plain.curve.settled,
        "versions": len(plain.lists),
        "mean_staleness": statistics.fmean(stale),
        "most_stale": max(stale),
        "weights": sorted({entry.weight for entries in plain.lists for entry in entries}),
    }


def differences(
    tasks: Sequence[Task], choices: Mapping[str, Choice], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Secure beside plain, for each task and staleness; ``choices`` by the task's name."""
    cases = [(task, replace(choices[task.name], staleness=s)) for task in tasks for s in STALENESS]
    found = iter(in_parallel(beside_plain, [(*case, seed) for case in cases for seed in seeds]))
    results = []
    for task, choice in cases:
        runs = [next(found) for _ in seeds]
        apart = [run["secure"] - run["plain"] for run in runs]
        results.append(
            {
                "task": task.name,
                "choice": asdict(choice),
                "horizon": HORIZON,
                "mean_difference": statistics.fmean(apart),
                "largest_difference": max(apart, key=abs),
                "runs": runs,
            }
        )
    return results


def by_bits(
    tasks: Sequence[Task],
    choices: Mapping[str, Choice],
    seeds: Sequence[int],
    bits: Sequence[int] = BITS,
) -> list[dict[str, Any]]:
    """For each task the accuracy with each number of fraction bits and each rounding, and without any."""
    jobs: list[tuple[Task, Choice, int, bool]] = []
    for task in tasks:
        choice = choices[task.name]
        kinds = [replace(choice, bits=count, rounding=r) for r in ROUNDINGS for count in bits]
        jobs += [(task, kind, seed, True) for kind in kinds for seed in seeds]
        jobs += [(task, choice, seed, False) for seed in seeds]
    settled = iter(in_parallel(_settled, jobs))
    return [
        {
            "task": task.name,
            "choice": asdict(choices[task.name]),
            "horizon": HORIZON,
            "seeds": list(seeds),
            "bits": list(bits),
            "accuracies": {r: [[next(settled) for _ in seeds] for _ in bits] for r in ROUNDINGS},
            "plain": [next(settled) for _ in seeds],
        }
        for task in tasks
    ]


def _settled(task: Task, choice: Choice, seed: int, secure: bool) -> float:
    return _go(task, choice, seed, secure).curve.settled
