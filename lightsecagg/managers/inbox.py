"""A client as the server knows it, and what one round is told of its clients."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from lightsecagg.errors import Reason
from lightsecagg.managers.outbox import Outbox
from lightsecagg.managers.scheme import Free

_QUEUE = 64  # messages between the hub and a round: beyond that the hub gives no more credit

GRACE = 2.0
"""Seconds that nothing is closed over a client whose link has just broken."""


class Status(Enum):
    """Where a client that joined is."""

    UP = auto()
    AWAY = auto()
    GONE = auto()


@dataclass(eq=False)
class Client:
    """One rank of the run, and the process that holds it."""

    rank: int
    identity: bytes
    peer: int
    outbox: Outbox
    sender: asyncio.Task[None] | None = None
    status: Status = Status.UP
    changed_at: float = 0.0
    """When its link last broke or resumed, on the monotonic clock."""
    sequence: int = -1
    free: Free | None = None
    """Set while it may be drawn into a round: it published a key that no round has used."""
    knows_end: bool = False
    gone_because: Reason = Reason.LINK_LOST
    """Why, once it is gone."""
    loss_is_told: bool = False
    """Whether people have heard that it is gone."""
    absence_is_told: bool = False
    """Whether people have heard that it is away."""


@dataclass(frozen=True)
class FromClient:
    """A message of a client, for the round."""

    client: Client
    message: bytes | memoryview


@dataclass(frozen=True)
class StatusChanged:
    """A client's status changed."""

    client: Client
    status: Status


RoundEvent = FromClient | StatusChanged


class Inbox:
    """What one round is told: events of its cohort only, and a bounded number of messages at a time.

    A process that takes a rank over is another client: nothing of it reaches a round that it is not in.
    """

    def __init__(self, cohort: Sequence[Client]) -> None:
        self._cohort = frozenset(cohort)
        self._events: deque[RoundEvent] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._is_closed = False

    def concerns(self, client: Client) -> bool:
        """Whether the client is in the round."""
        return client in self._cohort and not self._is_closed

    def tell(self, change: StatusChanged) -> None:
        """Tell the round of a change of status, at once."""
        if self.concerns(change.client):
            self._events.append(change)
            self._filled.set()

    async def put(self, message: FromClient) -> None:
        """Hand the round a message, waiting while it has much to do; a late one is dropped."""
        while len(self._events) >= _QUEUE and not self._is_closed:
            self._room.clear()
            await self._room.wait()
        if self.concerns(message.client):
            self._events.append(message)
            self._filled.set()

    async def wait(self) -> None:
        """Wait until there is something."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()

    def take(self) -> list[RoundEvent]:
        """All that is here."""
        found = list(self._events)
        self._events.clear()
        self._room.set()
        return found

    def close(self) -> None:
        """The round is over: whoever waits to put a message goes on, and it is dropped."""
        self._is_closed = True
        self.take()
