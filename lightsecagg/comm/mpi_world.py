"""The MPI world as the processes of a run see it: who we are, whether the server serves, and a common end.

MPI has one world, entered and left by all together. A process that leaves it alone, or with a code other than
0 before MPI is finalized, may hang `mpirun` or end everybody: so all say farewell to rank 0 first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn

from lightsecagg.comm.frame import Data
from lightsecagg.comm.mpi_thread import FIRST_LANE_TAG, MpiThread

SERVER_RANK = 0

_FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"  # set by `mpirun --with-ft ulfm`

_TO_SERVER, _TO_CLIENT = 0, 1  # tags
_FAREWELL = b""
_PROCESS = re.compile(rb"([!-~]{1,255}) ([0-9]{1,10})")  # a client's host and process id
_SERVES, _PAUSES, _ENDS, _OVER, _BROKEN = b"s", b"p", b"e", b"o", b"b"  # what the server says to all

_FAREWELL_TIMEOUT = 15.0  # seconds for ranks to say farewell once the server has: one may be frozen
_END_TIMEOUT = 10  # seconds
_DEATH_TIMEOUT = 2.0  # seconds for mpirun to reap a rank that we killed
_DEATH_NOTED = 0.5  # seconds more for it to act on that; nothing tells us when it has


class World:
    """This process's place in its MPI world. Made once a process, by `world`."""

    def __init__(self) -> None:
        self.thread = MpiThread(self._on_control)
        self._state = _PAUSES
        self._farewells: set[int] = set()
        self._processes: dict[int, tuple[str, int]] = {}  # host and process id, by rank
        self._changed = threading.Condition()
        self._watcher: Callable[[int], None] | None = None
        self.thread.start()
        if self.rank != SERVER_RANK:
            self.thread.post(SERVER_RANK, _TO_SERVER, f"{socket.gethostname()} {os.getpid()}".encode())
        self._lanes = itertools.cycle(range(FIRST_LANE_TAG // 2, self.thread.largest_tag // 2))

    @property
    def rank(self) -> int:
        """This process's number in its world."""
        return self.thread.rank

    @property
    def size(self) -> int:
        """How many processes the world had at its start."""
        return self.thread.size

    @property
    def is_fault_tolerant(self) -> bool:
        """Whether the others live on when one dies."""
        return os.environ.get(_FAULT_TOLERANCE, "").lower() in ("1", "t", "true", "y", "yes", "enabled")

    @property
    def server_serves(self) -> bool:
        """Whether the process at rank 0 has a hub that listens."""
        return self._state == _SERVES

    @property
    def server_ends(self) -> bool:
        """Whether the process at rank 0 has ended its run and said why."""
        return self._state in (_ENDS, _OVER, _BROKEN)

    @property
    def server_died(self) -> bool:
        """Whether the process at rank 0 is dead."""
        return SERVER_RANK in self.thread.failed

    def next_lane(self) -> int:
        """A lane's number: long unused where they have begun anew."""
        return next(lane for lane in self._lanes if down(lane) not in self.thread.lanes)

    def watch(self, watcher: Callable[[int], None]) -> None:
        """At rank 0: have the MPI thread tell how many others neither died nor left, at every change."""
        with self._changed:
            self._watcher = watcher
            watcher(len(self._present()))

    def _present(self) -> set[int]:
        return set(range(1, self.size)) - self._farewells - self.thread.failed

    def announce(self, *, serves: bool) -> None:
        """Let all know whether the hub of this process, which is rank 0, listens."""
        self._say(_SERVES if serves else _PAUSES)

    def wait_until(self, is_so: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait for what the server says or a death to make something true; whether it is."""
        with self._changed:
            return self._changed.wait_for(is_so, timeout)

    def leave(self, code: int) -> NoReturn:
        """End this process with this exit code, once everybody is ready to end.

        A client that leaves early waits here, idle, for the end of the world.
        """
        if self.rank == SERVER_RANK:
            self._say(_ENDS)
            frozen = self._wait_for_farewells()
            for rank in sorted(frozen):
                self._kill(rank)
            self._say(_BROKEN if frozen else _OVER)
        else:
            self.thread.post(SERVER_RANK, _TO_SERVER, _FAREWELL)
            self.wait_until(lambda: self._state in (_OVER, _BROKEN) or self.server_died)
            frozen = {self.rank} if self._state == _BROKEN else set()
        # To finalize after a death hangs now and then (Open MPI 5.0), and beside a frozen rank always.
        is_whole = not self.thread.failed and not frozen
        # Kills us if the end hangs: without MPI's own, mpirun understands a death, and no code but 0.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_END_TIMEOUT)
        self.thread.end(finalizes=is_whole)
        if not is_whole and code:
            self.thread.abort(code)
        os._exit(code)

    def _kill(self, rank: int) -> None:
        """End a rank that is frozen: with fault tolerance MPI's own abort ends nobody but its caller."""
        host, pid = self._processes.get(rank, ("an unknown host", 0))
        if host == socket.gethostname() and _is_sibling(pid):
            print(f"lightsecagg: rank {rank} is frozen and says no farewell: it is killed", flush=True)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            # An mpirun that hears of our abort before this death may end with 0 instead of the abort's code.
            ends = time.monotonic() + _DEATH_TIMEOUT
            while _is_sibling(pid) and time.monotonic() < ends:
                time.sleep(0.01)
            time.sleep(_DEATH_NOTED)
        else:
            print(
                f"lightsecagg: rank {rank} is frozen: mpirun ends once process {pid} at {host} does",
                flush=True,
            )

    def _wait_for_farewells(self) -> set[int]:
        """The ranks that live and do not say farewell in time."""
        self.wait_until(lambda: not self._present(), _FAREWELL_TIMEOUT)
        return self._present()

    def _say(self, what: bytes) -> None:
        for rank in range(self.size):
            self.thread.post(rank, _TO_CLIENT, what)

    def _on_control(self, source: int, tag: int, data: Data | None) -> None:
        with self._changed:
            if data is not None and tag == _TO_SERVER:
                self._hear(source, data)
            elif data is not None and source == SERVER_RANK:
                self._state = bytes(data)
            self._changed.notify_all()
            if self._watcher is not None:
                self._watcher(len(self._present()))

    def _hear(self, rank: int, data: Data) -> None:
        if data == _FAREWELL:
            self._farewells.add(rank)
        elif (found := _PROCESS.fullmatch(data)) is not None:
            self._processes[rank] = found[1].decode(), int(found[2])


def _is_sibling(pid: int) -> bool:
    """Whether the process was started by the one that started us: no rank can name any other to be killed."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return False
    return parent == os.getppid() and pid != os.getpid()


def world() -> World:
    """The world of this process; entered at the first call, which may take a second.

    Raises:
        CommError: MPI cannot be initialized.
    """
    with _entering:
        return _enter()


_entering = threading.Lock()
_enter = cache(World)


def up(lane: int) -> int:
    """The tag of a lane's messages to the hub."""
    return 2 * lane


def down(lane: int) -> int:
    """The tag of a lane's messages to the client."""
    return 2 * lane + 1
