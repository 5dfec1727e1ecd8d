"""MPI's own ends: buffers that were allocated before, and one thread that polls as our carrier does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from benchmarks.ends.scenario import LARGEST, Buffer, OnMessage, ServerEnd, Spec, Worker
from lightsecagg.comm.mpi_thread import _LONGEST_PAUSE, _SENDS_IN_FLIGHT, _SHORTEST_PAUSE

from mpi4py import MPI  # isort: skip # once our carrier has said that MPI is not to begin by itself

_BUFFERS = 8  # for what comes from one rank

Answers = Callable[[int, memoryview], Iterable[Buffer]]
"""What to send to this rank for its message."""


class _Rank:
    """What is under way to and from one rank."""

    def __init__(self, rank: int, answers: Answers) -> None:
        self.waiting: deque[tuple[Buffer, memoryview | None]] = deque()  # with the buffer it fills, if any
        self._rank = rank
        self._answers = answers
        self._sending: deque[tuple[MPI.Request, memoryview | None]] = deque()
        self._receiving: deque[tuple[MPI.Request, memoryview]] = deque()
        self._status = MPI.Status()
        for _ in range(_BUFFERS):
            self._receive(memoryview(bytearray(LARGEST)))

    def step(self) -> bool:
        """Look after everything once; whether anything has moved."""
        has_moved = False
        while self._sending and self._sending[0][0].Test():
            _, buffer = self._sending.popleft()
            if buffer is not None:
                self._receive(buffer)
            has_moved = True
        while self._receiving and self._receiving[0][0].Test(self._status):
            self._take(self._receiving.popleft()[1])
            has_moved = True
        while self.waiting and len(self._sending) < _SENDS_IN_FLIGHT:
            data, buffer = self.waiting.popleft()
            self._sending.append((MPI.COMM_WORLD.Isend([data, MPI.BYTE], self._rank), buffer))
            has_moved = True
        return has_moved

    def _take(self, buffer: memoryview) -> None:
        message = buffer[: self._status.Get_count(MPI.BYTE)]
        is_sent_back = False
        for answer in self._answers(self._rank, message):
            is_sent_back |= answer is message
            self.waiting.append((answer, buffer if answer is message else None))
        if not is_sent_back:
            self._receive(buffer)

    def _receive(self, buffer: memoryview) -> None:
        self._receiving.append((MPI.COMM_WORLD.Irecv([buffer, MPI.BYTE], self._rank), buffer))


def _poll(ranks: Iterable[_Rank], wake: threading.Event) -> None:
    """Look after the ranks until the process is ended, with the pauses of our carrier's thread."""
    pause = _SHORTEST_PAUSE
    while True:
        if sum(rank.step() for rank in ranks):
            pause = _SHORTEST_PAUSE
            continue
        wake.wait(pause)
        if wake.is_set():
            wake.clear()
            pause = _SHORTEST_PAUSE
        else:
            pause = min(2 * pause, _LONGEST_PAUSE)


class Server(ServerEnd):
    """Rank 0."""

    def __init__(self, spec: Spec) -> None:
        self._peers = range(1, spec.peers + 1)
        self._ranks: dict[int, _Rank] = {}
        self._wake = threading.Event()

    async def listen(self, on_message: OnMessage) -> None:
        def take(rank: int, data: Buffer) -> Iterable[Buffer]:
            on_message(rank, data)
            return ()

        def run() -> None:
            MPI.Init_thread(MPI.THREAD_FUNNELED)
            self._ranks.update((rank, _Rank(rank, take)) for rank in self._peers)
            _poll(self._ranks.values(), self._wake)

        threading.Thread(target=run, daemon=True).start()

    async def send(self, peer: int, data: Buffer) -> None:
        self._ranks[peer].waiting.append((data, None))
        self._wake.set()


def work(_spec: Spec) -> None:
    """Be a client until the process is ended."""
    MPI.Init_thread(MPI.THREAD_FUNNELED)
    worker = Worker()
    server = _Rank(0, lambda _rank, data: worker.answers(data))
    server.waiting.append((worker.hello, None))
    _poll([server], threading.Event())
