"""``python -m lightsecagg.simulation.soak``: many schedules on all cores; every failing seed is printed."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from lightsecagg.simulation.schedule import ScheduleError, play

_BATCH = 50

Tally = Counter[str]
"""How often each outcome came: "exact", the reasons of aborts, and "guaranteed" rounds."""


def play_batch(seeds: Sequence[int]) -> tuple[int, Tally, list[str]]:
    """Play the schedules of these seeds: how many, the outcomes, and one line for every failing seed."""
    tally: Tally = Counter()
    failures = []
    for seed in seeds:
        try:
            for played in play(seed):
                tally[played.abort.value if played.abort is not None else "exact"] += 1
                tally["guaranteed"] += played.plan.is_within_budget
        except ScheduleError as error:
            failures.append(str(error))
    return len(seeds), tally, failures


def replay(seed: int) -> int:
    """Play one schedule and print everything that happens in it; the exit code."""
    try:
        play(seed, trace=print)
    except ScheduleError as error:
        print(f"FAILED {error}")
        return 1
    print(f"seed {seed}: all promises held")
    return 0


def soak(schedules: int, first_seed: int, workers: int) -> int:
    """Play ``schedules`` seeds from ``first_seed`` on; the exit code."""
    started = time.monotonic()
    done, tally, failing = 0, Counter[str](), 0
    seeds = range(first_seed, first_seed + schedules)
    batches = [seeds[start : start + _BATCH] for start in range(0, schedules, _BATCH)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for count, outcomes, failures in pool.imap_unordered(play_batch, batches):
            done += count
            tally += outcomes
            failing += len(failures)
            for failure in failures:
                print(f"FAILED {failure}", flush=True)
            if done % (20 * _BATCH) == 0 or done == schedules:
                rate = done / (time.monotonic() - started)
                print(f"{done}/{schedules} schedules, {failing} failed, {rate:.0f} a second", flush=True)
    print(", ".join(f"{name} {count}" for name, count in sorted(tally.items())))
    return 1 if failing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lightsecagg.simulation.soak", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to play (default: 10000)")
    parser.add_argument("--seed", type=int, help="play this one alone, and print everything in it")
    parser.add_argument("--first-seed", type=int, default=0, help="where to begin (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed)
    return soak(options.schedules, options.first_seed, options.workers)


if __name__ == "__main__":
    sys.exit(main())
