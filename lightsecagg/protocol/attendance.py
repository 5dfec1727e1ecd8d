"""What every server-side machine has: who is there, upload slots, messages one by one, and offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import Enum, auto

from lightsecagg.errors import LocalProtocolError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import Action, ClientDropped, Ready, Send, What
from lightsecagg.protocol.transitions import Rows, Stage, Verdict, judge
from lightsecagg.protocol.uploads import UploadDesk
from lightsecagg.protocol.wire import from_client


class Presence(Enum):
    """Where a client is."""

    UP = auto()
    AWAY = auto()
    GONE = auto()


class Attendance(ABC):
    """One server. Not thread-safe; the streams it gives own their data and may be pulled in another thread.

    It has no time: the caller says ``deadline()`` when a stage has lasted long enough, and ``away``, ``back``
    and ``lose`` when a client's link breaks, resumes or is given up. Every call tells what to do next.

    Args:
        presence: client number to where it is.
        desk: takes the uploads.
    """

    _rows: Rows

    def __init__(self, presence: Mapping[int, Presence], desk: UploadDesk) -> None:
        self._desk = desk
        self._presence = dict(presence)
        self._those_alive = self._those_up = frozenset[int]()
        self._count()
        self._offered: set[What] = set()
        self.late_messages = 0
        """Messages that came too late and were ignored."""

    @property
    @abstractmethod
    def stage(self) -> Stage:
        """Where it stands, step by step."""

    @property
    def slot_holders(self) -> dict[int, tuple[int, int]]:
        """Who holds an upload slot: client to (grant, parts that came); for the caller's ``slot_timeout``."""
        return self._desk.holders

    @property
    def uploads_wait(self) -> bool:
        """Whether a client that is ready waits for a slot."""
        return self._desk.someone_waits

    def receive(self, number: int, message: bytes | memoryview) -> list[Action]:
        """Take a message of client ``number``; one that no order of delivery explains drops its sender.

        Its buffer must not change until what it holds is used up: what is checked here is used as it lies
        there.

        Raises:
            LocalProtocolError: no such client.
        """
        if self._presence_of(number) is Presence.GONE:
            self.late_messages += 1
            return []
        try:
            decoded = from_client(message)
            if not self._concerns(number, decoded) or self._judge(decoded) is Verdict.LATE:
                self.late_messages += 1
                return []
            return [*self._take(number, decoded, message), *self._settle()]
        except RemoteProtocolError as error:
            return self.lose(number, error.reason)

    def away(self, number: int) -> list[Action]:
        """The client's link broke; no stage waits for it once the others suffice."""
        if self._presence_of(number) is not Presence.UP:
            return []
        self._set_presence(number, Presence.AWAY)
        return [*self._desk.suspend(number), *self._settle()]

    def back(self, number: int) -> list[Action]:
        """The client resumed its session: its link delivers what was sent meanwhile."""
        if self._presence_of(number) is not Presence.AWAY:
            return []
        self._set_presence(number, Presence.UP)
        return [*self._desk.resume(number), *self._settle()]

    def lose(self, number: int, reason: Reason) -> list[Action]:
        """The client is gone; if its update is in, it stays in."""
        return self._drop(ClientDropped(number, reason))

    def revoke(self, number: int) -> list[Action]:
        """Take the upload slot from a client that brought no part for ``slot_timeout`` while others wait."""
        return [] if self._presence_of(number) is Presence.GONE else self._desk.revoke(number)

    @abstractmethod
    def _concerns(self, number: int, message: m.FromClient) -> bool:
        """Whether a message is of what runs now; False for a late one.

        Raises:
            RemoteProtocolError: it is of nothing that has begun.
        """

    @abstractmethod
    def _take(self, number: int, message: m.FromClient, raw: bytes | memoryview) -> list[Action]:
        """Act on a message that the tables let through."""

    @abstractmethod
    def _settle(self) -> list[Action]:
        """What follows from the present state: a step on, an abort, or an offer to the caller."""

    @abstractmethod
    def _drop(self, dropped: ClientDropped) -> list[Action]:
        """The client is out."""

    def _judge(self, message: m.FromClient) -> Verdict:
        return judge(self._rows, self.stage, message)

    def _take_part(self, number: int, message: m.MaskedUpdate | m.PlainUpdate) -> list[Action]:
        actions = self._desk.take(number, message.grant, message.index, message.data)
        self.late_messages += actions is None
        return actions or []

    def _presence_of(self, number: int) -> Presence:
        if number not in self._presence:
            raise LocalProtocolError(f"client numbers are 1..{len(self._presence)}, found {number}")
        return self._presence[number]

    def _set_presence(self, number: int, presence: Presence) -> None:
        self._presence[number] = presence
        self._count()

    def _count(self) -> None:
        # Both are asked for with every message.
        self._those_alive = frozenset(n for n, p in self._presence.items() if p is not Presence.GONE)
        self._those_up = frozenset(n for n, p in self._presence.items() if p is Presence.UP)

    def _alive(self) -> frozenset[int]:
        return self._those_alive

    def _up(self) -> frozenset[int]:
        return self._those_up

    def _offer(self, what: What) -> list[Action]:
        if what in self._offered:
            return []
        self._offered.add(what)
        return [Ready(what)]

    def _send_to(self, numbers: Iterable[int], message: bytes) -> list[Action]:
        return [Send(n, message) for n in sorted(numbers) if self._presence[n] is not Presence.GONE]
