"""How many cores the codec uses in this process, and the threads that it spreads long work over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

_pool: tuple[int, ThreadPoolExecutor | None] = (1, None)
_blas_limit: Any = None  # keeps the limit in force
_worker = threading.local()


def set_threads(count: int) -> None:
    """Let the codec use ``count`` cores from now on; one in a process that never says.

    NumPy's BLAS is kept to one thread a product, since it is whole products that are spread.
    """
    global _pool, _blas_limit  # noqa: PLW0603 - a budget of the process, like torch's
    _pool = (count, ThreadPoolExecutor(count, "codec", _begin_worker) if count > 1 else None)
    with suppress(ModuleNotFoundError):  # of the extra "fast"
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        _blas_limit = threadpool_limits(1, user_api="blas")


def _forget_pool() -> None:
    global _pool  # noqa: PLW0603
    _pool = (1, None)


os.register_at_fork(after_in_child=_forget_pool)  # a forked process has none of the threads


def spread(work: Callable[[int, int], None], length: int, grain: int) -> None:
    """Call ``work`` with ranges [start, stop) that cover ``length``, on the codec's threads.

    Work that is spread already is not spread again.

    Args:
        grain: ranges begin at multiples of it; there are as many as threads, or fewer where it is long.
    """
    threads, pool = _pool
    if pool is None or length <= grain or getattr(_worker, "is_one", False):
        work(0, length)
        return
    list(pool.map(lambda bounds: work(*bounds), _shares(length, grain, threads)))


def _begin_worker() -> None:
    _worker.is_one = True


def _shares(length: int, grain: int, threads: int) -> Iterator[tuple[int, int]]:
    grains = -(-length // grain)
    each = -(-grains // threads) * grain
    for start in range(0, length, each):
        yield start, min(start + each, length)
