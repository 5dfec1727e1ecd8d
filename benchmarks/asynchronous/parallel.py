"""Many independent runs in virtual time, one a core."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

_T = TypeVar("_T")


def in_parallel(work: Callable[..., _T], jobs: Sequence[tuple[Any, ...]]) -> list[_T]:
    """What ``work(*job)`` returns, in the order of the jobs.

    Args:
        work: a function of a module.
        jobs: its arguments.
    """
    # One thread each: products of small matrices on many threads are slower, and in another order every time.
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        return list(pool.map(work, *zip(*jobs, strict=True)))
