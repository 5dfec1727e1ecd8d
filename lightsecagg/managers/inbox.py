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
    """A message of a client, for the round; the client's credit for it is held."""

    client: Client
    message: bytes | memoryview


@dataclass(frozen=True)
class StatusChanged:
    """A client's status changed."""

    client: Client
    status: Status


RoundEvent = FromClient | StatusChanged


class Inbox:
    """What one round is told: events of its cohort only. How much can wait here is bounded by held credit.

    A process that takes a rank over is another client: nothing of it reaches a round that it is not in.
    """

    def __init__(self, cohort: Sequence[Client]) -> None:
        self._cohort = frozenset(cohort)
        self._events: deque[RoundEvent] = deque()
        self._filled = asyncio.Event()
        self._is_closed = False

    def concerns(self, client: Client) -> bool:
        """Whether the client is in the round."""
        return client in self._cohort and not self._is_closed

    def tell(self, change: StatusChanged) -> None:
        """Tell the round of a change of status, at once."""
        if self.concerns(change.client):
            self._events.append(change)
            self._filled.set()

    def put(self, message: FromClient) -> bool:
        """Hand the round a message; False for a late one, which is dropped."""
        if not self.concerns(message.client):
            return False
        self._events.append(message)
        self._filled.set()
        return True

    async def wait(self) -> None:
        """Wait until there is something."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()

    def take(self) -> list[RoundEvent]:
        """All that is here."""
        found = list(self._events)
        self._events.clear()
        return found

    def close(self) -> list[RoundEvent]:
        """The round is over; what it did not take."""
        self._is_closed = True
        return self.take()
