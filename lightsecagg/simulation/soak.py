"""``python -m lightsecagg.simulation.soak``: many schedules on all cores; every failing seed is printed."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from lightsecagg.protocol.terms import MODE_ASYNC, MODE_SYNC
from lightsecagg.simulation.buffered_schedule import play_run
from lightsecagg.simulation.schedule import ScheduleError, Trace, play

_BATCH = 50

Tally = Counter[str]
"""How often each outcome came: "exact" sums, "guaranteed" rounds, the reasons of aborts, and whatever else a
kind of schedule counts."""


def _play_rounds(seed: int, trace: Trace | None = None) -> Tally:
    tally: Tally = Counter()
    for played in play(seed, trace):
        tally[played.abort.value if played.abort is not None else "exact"] += 1
        tally["guaranteed"] += played.plan.is_within_budget
    return tally


def _play_run(seed: int, trace: Trace | None = None) -> Tally:
    played = play_run(seed, trace)
    return played.seen + Counter(exact=played.decoded, short=int(played.is_short))


_PLAY: dict[str, Callable[[int, Trace | None], Tally]] = {MODE_SYNC: _play_rounds, MODE_ASYNC: _play_run}


def play_batch(seeds: Sequence[int], mode: str = MODE_SYNC) -> tuple[int, Tally, list[str]]:
    """Play the schedules of these seeds: how many, the outcomes, and one line for every failing seed.

    Args:
        seeds: what to play.
        mode: ``sync`` or ``async``.
    """
    tally: Tally = Counter()
    failures = []
    for seed in seeds:
        try:
            tally += _PLAY[mode](seed, None)
        except ScheduleError as error:
            failures.append(str(error))
    return len(seeds), tally, failures


def replay(seed: int, mode: str) -> int:
    """Play one schedule and print everything that happens in it; the exit code."""
    try:
        _PLAY[mode](seed, print)
    except ScheduleError as error:
        print(f"FAILED {error}")
        return 1
    print(f"seed {seed}: all promises held")
    return 0


def soak(schedules: int, first_seed: int, workers: int, mode: str) -> int:
    """Play ``schedules`` seeds from ``first_seed`` on; the exit code."""
    started = time.monotonic()
    done, tally, failing = 0, Counter[str](), 0
    seeds = range(first_seed, first_seed + schedules)
    batches = [seeds[start : start + _BATCH] for start in range(0, schedules, _BATCH)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for count, outcomes, failures in pool.imap_unordered(partial(play_batch, mode=mode), batches):
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
    parser.add_argument(
        "--mode",
        choices=sorted(_PLAY),
        default=MODE_SYNC,
        help="rounds (sync, the default) or whole async runs",
    )
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to play (default: 10000)")
    parser.add_argument("--seed", type=int, help="play this one alone, and print everything in it")
    parser.add_argument("--first-seed", type=int, default=0, help="where to begin (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.mode)
    return soak(options.schedules, options.first_seed, options.workers, options.mode)


if __name__ == "__main__":
    sys.exit(main())
