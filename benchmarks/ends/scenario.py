"""What both kinds of ends do with bytes: they send blocks, count what comes, and say when all is there.

The server says "up 5", "down 5" or "echo 5" to a client, and 5 blocks go up, or down (which the client
answers with one word), or down and back.
"""

from __future__ import annotations

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Buffer = bytes | bytearray | memoryview
OnMessage = Callable[[int, Buffer], None]
"""The peer and what it sent."""

LARGEST = 2**20  # a block, and the longest message
BLOCKS = [os.urandom(LARGEST) for _ in range(64)]  # memory of their own, as data that is sent has

_DONE = b"done"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a process is; `carrier` and `settings` as in a configuration."""

    carrier: str
    is_link: bool
    peers: int
    rank: int | None  # None: as MPI has assigned
    settings: dict[str, Any]


class ServerEnd(ABC):
    """Moves messages between this process and its peers, which have numbers; used once."""

    @abstractmethod
    async def listen(self, on_message: OnMessage) -> None:
        """Begin; `on_message` is called by one thread at a time, perhaps not the loop's."""

    @abstractmethod
    async def send(self, peer: int, data: Buffer) -> None:
        """Send a message to a peer that has sent one; waits while the peer takes no more."""


class Worker:
    """A client's part: says what is to be sent for every message that comes."""

    def __init__(self) -> None:
        self.hello = str(os.getpid()).encode()
        self._due = 0  # bytes that are still to come
        self._echoes = False

    def answers(self, data: Buffer) -> Iterable[Buffer]:
        if self._due == 0:
            return self._begin(*bytes(data).decode().split())
        self._due -= len(data)
        assert self._due >= 0, "the server sent more than it said"
        if self._echoes:
            return (data,)
        return () if self._due else (_DONE,)

    def _begin(self, direction: str, blocks: str) -> Iterable[Buffer]:
        if direction == "up":
            return BLOCKS[: int(blocks)]
        self._due = int(blocks) * LARGEST
        self._echoes = direction == "echo"
        return ()


class Measure:
    """The server's part: times transfers, from its first word to the last byte of the last client."""

    def __init__(self, end: ServerEnd, peers: int) -> None:
        self.pids: dict[int, int] = {}  # by peer
        self._end = end
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._complete = asyncio.Event()
        self._due: dict[int, int] = {}  # bytes that are still to come, by peer

    async def listen(self) -> None:
        """Let clients come."""
        await self._end.listen(self._take)

    async def complete(self) -> None:
        """Wait until everything has come: the clients' greetings first."""
        await self._complete.wait()
        self._complete.clear()

    async def transfer(self, direction: str, blocks: int) -> float:
        """Seconds that it takes to move the blocks to, from, or to and from every client, all at once."""
        answer = len(_DONE) if direction == "down" else blocks * LARGEST
        self._due = dict.fromkeys(self.pids, answer)
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for peer in self.pids:
                group.create_task(self._feed(peer, direction, blocks))
            await self.complete()
        return time.perf_counter() - start

    async def _feed(self, peer: int, direction: str, blocks: int) -> None:
        await self._end.send(peer, f"{direction} {blocks}".encode())
        for block in BLOCKS[: 0 if direction == "up" else blocks]:
            await self._end.send(peer, block)

    def _take(self, peer: int, data: Buffer) -> None:
        if peer not in self.pids:
            self.pids[peer] = int(bytes(data))
            is_complete = len(self.pids) == self._peers
        else:
            self._due[peer] -= len(data)
            assert self._due[peer] >= 0, f"peer {peer} sent more than it was asked for"
            is_complete = not any(self._due.values())
        if is_complete:
            self._loop.call_soon_threadsafe(self._complete.set)
