"""A client as the server knows it, and what a runner is told of its clients."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
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
    """Set while it may be drawn into a round: it published a key that no round, and no runner, has taken."""
    knows_end: bool = False
    gone_because: Reason = Reason.LINK_LOST
    """Why, once it is gone."""
    loss_is_told: bool = False
    """Whether people have heard that it is gone."""
    absence_is_told: bool = False
    """Whether people have heard that it is away."""


@dataclass(frozen=True)
class FromClient:
    """A message of a client, for the runner; the client's credit for it is held."""

    client: Client
    message: bytes | memoryview


@dataclass(frozen=True)
class StatusChanged:
    """A client's status changed."""

    client: Client
    status: Status


@dataclass(frozen=True)
class KeyPublished:
    """A client is free, and in a secure run has a fresh key; its credit for the message is held."""

    client: Client
    free: Free
    message: bytes | memoryview


ClientEvent = FromClient | StatusChanged | KeyPublished


class Inbox:
    """What a runner is told of its clients. How much can wait here is bounded by held credit.

    A process that takes a rank over is another client: nothing of it reaches a round that it is not in.

    Args:
        cohort: whose events it takes, but no keys: those are for the next round. None: everybody's, and keys.
    """

    def __init__(self, cohort: Iterable[Client] | None) -> None:
        self._cohort = None if cohort is None else frozenset(cohort)
        self._events: deque[ClientEvent] = deque()
        self._filled = asyncio.Event()
        self._is_closed = False

    def concerns(self, client: Client) -> bool:
        """Whether the runner hears of the client."""
        return not self._is_closed and (self._cohort is None or client in self._cohort)

    def tell(self, change: StatusChanged) -> None:
        """Tell of a change of status, at once."""
        if self.concerns(change.client):
            self._add(change)

    def put(self, message: FromClient | KeyPublished) -> bool:
        """Hand over a message; False for one that nobody waits for, which is left to the caller."""
        is_wanted = self._cohort is None or not isinstance(message, KeyPublished)
        if not is_wanted or not self.concerns(message.client):
            return False
        self._add(message)
        return True

    async def wait(self) -> None:
        """Wait until there is something."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()

    def take(self) -> list[ClientEvent]:
        """All that is here."""
        found = list(self._events)
        self._events.clear()
        return found

    def close(self) -> list[ClientEvent]:
        """Take no more; what was not taken."""
        self._is_closed = True
        return self.take()

    def _add(self, event: ClientEvent) -> None:
        self._events.append(event)
        self._filled.set()
