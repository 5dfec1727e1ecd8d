"""Measured seconds: processor time, medians of several runs where a run is short.

Processor time, because the work compared is one thread's and waits for nothing: what else the machine does
meanwhile does not count, and a second thread would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from statistics import median

from benchmarks.paper.costs import Work

_LONG_SECONDS = 2.0
_REPEATS = 5


class Watch:
    """Adds up the processor seconds spent under ``running``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        begin = time.process_time()
        yield
        self.seconds += time.process_time() - begin


def median_work(run: Callable[[], Work]) -> Work:
    """The median of each part of the work over five runs; a run that takes seconds counts alone."""
    runs: list[Work] = []
    while len(runs) < _REPEATS:
        begin = time.process_time()
        runs.append(run())
        if time.process_time() - begin > _LONG_SECONDS:
            return runs[-1]
    return Work(*(median(parts) for parts in zip(*map(astuple, runs), strict=True)))
