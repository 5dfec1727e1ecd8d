"""What processes of this machine have used: CPU time and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

_LIBC = ctypes.CDLL(None)
_CLOCK_IDS: dict[int, int] = {}


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, of all threads of a process so far; OSError where there is none."""
    if pid not in _CLOCK_IDS:
        clock = ctypes.c_int()
        error = _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock))
        if error:
            raise OSError(error, os.strerror(error))
        _CLOCK_IDS[pid] = clock.value
    return time.clock_gettime(_CLOCK_IDS[pid])


def peak_bytes(pid: int) -> int:
    """The largest resident memory of a process so far; OSError where there is none."""
    return _status(pid, "VmHWM")


def own_peak_bytes(pid: int) -> int:
    """The largest memory of a process so far without the pages of files, libraries above all.

    Those are shared, and the system can drop them. Their count only grows, so that of now serves for that of
    the peak.
    """
    return _status(pid, "VmHWM") - _status(pid, "RssFile")


def forget_peak(pid: int) -> None:
    """Let the peaks begin anew with what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {pid} has ended")
    return int(found[1]) * 1024


def available_bytes() -> int:
    """Memory of this machine that processes can still have."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def put_first_in_line() -> None:
    """Where memory runs out, this process or one that it starts is ended, and nobody else's."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def ranks(mpirun: int) -> dict[int, int]:
    """The processes of an MPI world that live, by rank."""
    found = {}
    for pid in _descendants(mpirun):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if rank := re.search(rb"(?:^|\0)PMIX_RANK=(\d+)\0", environment):
                found[int(rank[1])] = pid
    return dict(sorted(found.items()))


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_descendants(child)]
    return found


class Watch:
    """Looks at processes every half second, until they are gone; used as a context manager."""

    def __init__(
        self, find: Callable[[], Mapping[int, int]], peak: Callable[[int], int] = peak_bytes
    ) -> None:
        """`find`: the processes by rank; `peak`: which memory counts."""
        self.peak_bytes: dict[int, int] = {}  # by rank
        self._peak = peak
        self._find = find
        self._cpu: dict[int, float] = {}  # by rank
        self._times: list[float] = []
        self._totals: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            for rank, pid in self._find().items():
                with contextlib.suppress(OSError):
                    self._cpu[rank] = cpu_seconds(pid)
                    self.peak_bytes[rank] = self._peak(pid)
            self._times.append(time.monotonic())
            self._totals.append(sum(self._cpu.values()))

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds of all processes between two times of time.monotonic."""
        before, after = np.interp((start, end), self._times, self._totals)
        return float(after - before)
