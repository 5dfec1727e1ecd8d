"""A client as the server knows it, and what one round is told of its clients."""

from __future__ import annotations

import asyncio
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
    away_since: float = 0.0
    sequence: int = -1
    free: Free | None = None
    """Set while it may be drawn into a round: it published a key that no round has used."""
    knows_end: bool = False


@dataclass(frozen=True)
class FromClient:
    """A message of a client, for the round."""

    client: Client
    message: bytes


@dataclass(frozen=True)
class StatusChanged:
    """A client's status changed; ``reason`` says why it is gone."""

    client: Client
    status: Status
    reason: Reason = Reason.LINK_LOST


RoundEvent = FromClient | StatusChanged


class Inbox:
    """What one round is told: events of its cohort only, a bounded number at a time.

    A process that takes a rank over is another client: nothing of it reaches a round that it is not in.
    """

    def __init__(self, cohort: Sequence[Client]) -> None:
        self.cohort = cohort
        self._peers = {client.peer for client in cohort}
        self._events: asyncio.Queue[RoundEvent] = asyncio.Queue(_QUEUE)
        self._is_closed = False

    def concerns(self, client: Client) -> bool:
        """Whether the client is in the round."""
        return client.peer in self._peers and not self._is_closed

    async def put(self, event: RoundEvent) -> None:
        """Tell the round, waiting while it has much to do; what does not concern it is passed over."""
        if self.concerns(event.client):
            await self._events.put(event)

    async def get(self) -> RoundEvent:
        """The next event."""
        return await self._events.get()

    def rest(self) -> list[RoundEvent]:
        """All that is here, without waiting."""
        found = []
        while not self._events.empty():
            found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """The round is over: late events are dropped, and whoever waits to put one goes on."""
        self._is_closed = True
        self.rest()
