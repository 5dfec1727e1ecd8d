"""What every server-side round has: attendance, upload slots, the walk through the tables, the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import Enum, auto

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    Aborted,
    Action,
    ClientDropped,
    Finished,
    Ready,
    Send,
    StageReached,
    What,
)
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.transitions import (
    PHASE_OF,
    SERVER_MOVES,
    Phase,
    Rows,
    ServerStage,
    Verdict,
    judge,
    move,
)
from lightsecagg.protocol.uploads import UploadDesk
from lightsecagg.protocol.wire import encode, from_client


class Presence(Enum):
    """Where a client is."""

    UP = auto()
    AWAY = auto()
    GONE = auto()


class ServerMachine(ABC):
    """One server, one round. Not thread-safe; the streams it gives own their data and may be pulled in
    another thread.

    It has no time: the caller says ``deadline()`` when a stage has lasted long enough, and ``away``, ``back``
    and ``lose`` when a client's link breaks, resumes or is given up. Every call tells what to do next.
    """

    _rows: Rows
    _first: ServerStage

    def __init__(self, round_number: int, num_clients: int, target_survivors: int, desk: UploadDesk) -> None:
        self.round_number = round_number
        self._num_clients = num_clients
        self._target_survivors = target_survivors
        self._desk = desk
        self._stage = self._first
        self._presence = dict.fromkeys(range(1, num_clients + 1), Presence.UP)
        self._those_alive = self._those_up = frozenset(self._presence)
        self._offered: set[What] = set()
        self._abort_reason: AbortReason | None = None
        self._result: RoundResult | None = None
        self.late_messages = 0
        """Messages that came too late and were ignored."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(round={self.round_number}, stage={self._stage.value})"

    @property
    def stage(self) -> ServerStage:
        """Where the round stands, step by step."""
        return self._stage

    @property
    def phase(self) -> Phase:
        """Where the round stands: COLLECT, ENDORSE, RECOVER, DONE or ABORTED."""
        return PHASE_OF[self._stage]

    @property
    @abstractmethod
    def survivors(self) -> frozenset[int]:
        """S once it is frozen; until then the clients whose updates are in."""

    @property
    @abstractmethod
    def missing(self) -> frozenset[int]:
        """Whom the present stage still waits for, and who may still come."""

    @property
    def unconfirmed(self) -> frozenset[int]:
        """Who may not upload because some of its shares did not open."""
        return frozenset()

    @property
    @abstractmethod
    def can_freeze(self) -> bool:
        """Whether S may be fixed now."""

    @property
    @abstractmethod
    def can_close(self) -> bool:
        """Whether ``deadline()`` may close the stage: only absent clients are missing, the rest suffices."""

    @property
    @abstractmethod
    def can_decode(self) -> bool:
        """Whether ``finish()`` yields the result."""

    @property
    def slot_holders(self) -> dict[int, tuple[int, int]]:
        """Who holds an upload slot: client to (grant, parts that came); for the caller's ``slot_timeout``."""
        return self._desk.holders

    @property
    def uploads_wait(self) -> bool:
        """Whether a client that is ready waits for a slot."""
        return self._desk.someone_waits

    @abstractmethod
    def start(self) -> list[Action]:
        """Open the round: everybody hears of it, then gets the model."""

    def receive(self, number: int, message: bytes | memoryview) -> list[Action]:
        """Take a message of client ``number``; one that no order of delivery explains drops its sender.

        Its buffer must not change until the round is over: what is checked here is used as it lies there.

        Raises:
            LocalProtocolError: no such client.
        """
        if self._presence_of(number) is Presence.GONE:
            self.late_messages += 1
            return []
        try:
            decoded = from_client(message)
            if not self._concerns(decoded) or judge(self._rows, self._stage, decoded) is Verdict.LATE:
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
        """The client is gone for this round; if its update is in, it stays in."""
        return self._drop(ClientDropped(number, reason))

    def revoke(self, number: int) -> list[Action]:
        """Take the upload slot from a client that brought no part for ``slot_timeout`` while others wait."""
        return [] if self._presence_of(number) is Presence.GONE else self._desk.revoke(number)

    @abstractmethod
    def deadline(self) -> list[Action]:
        """Close the present stage with those who finished it, or abort where they are too few."""

    @abstractmethod
    def freeze(self) -> list[Action]:
        """Fix S as the clients whose updates are in.

        Raises:
            LocalProtocolError: ``can_freeze`` is false.
        """

    def abort(self, reason: AbortReason) -> list[Action]:
        """End the round without a sum."""
        if self._is_over():
            return []
        self._abort_reason = reason
        self._move(ServerStage.ABORTED)
        return self.end()

    @abstractmethod
    def finish(self) -> RoundResult:
        """The result; ``end()`` then tells the clients. Again: the same result.

        Raises:
            LocalProtocolError: ``can_decode`` is false.
            RoundAborted: the round was aborted, or its sum lies where no honest sum can.
        """

    def end(self) -> list[Action]:
        """Tell every client that is left how the round ended, once ``finish()`` returned or raised."""
        if not self._is_over():
            raise LocalProtocolError("end() comes after finish() or abort()")
        self._desk.admit(())
        outcome = "done" if self._abort_reason is None else self._abort_reason.value
        actions = self._send_to(self._presence, encode(m.RoundEnd(self.round_number, outcome)))
        last = Finished() if self._abort_reason is None else Aborted(self._abort_reason)
        return [StageReached(self._stage.value), *actions, last]

    @abstractmethod
    def _take(self, number: int, message: m.FromClient, raw: bytes | memoryview) -> list[Action]:
        """Act on a message that the tables let through."""

    @abstractmethod
    def _settle(self) -> list[Action]:
        """What follows from the present state: a step on, an abort, or an offer to the caller."""

    def _drop(self, dropped: ClientDropped) -> list[Action]:
        number = dropped.number
        if self._presence_of(number) is Presence.GONE or self._is_over():
            return []
        self._set_presence(number, Presence.GONE)
        return [dropped, *self._desk.suspend(number), *self._settle()]

    def _take_part(self, number: int, message: m.MaskedUpdate | m.PlainUpdate) -> list[Action]:
        actions = self._desk.take(number, message.grant, message.index, message.data)
        self.late_messages += actions is None
        return actions or []

    def _is_over(self) -> bool:
        return self._stage in (ServerStage.DONE, ServerStage.ABORTED)

    def _move(self, stage: ServerStage) -> None:
        self._stage = move(SERVER_MOVES, self._stage, stage)
        self._offered.clear()

    def _presence_of(self, number: int) -> Presence:
        if number not in self._presence:
            raise LocalProtocolError(f"client numbers are 1..{self._num_clients}, found {number}")
        return self._presence[number]

    def _set_presence(self, number: int, presence: Presence) -> None:
        # Both are asked for with every message.
        self._presence[number] = presence
        self._those_alive = frozenset(n for n, p in self._presence.items() if p is not Presence.GONE)
        self._those_up = frozenset(n for n, p in self._presence.items() if p is Presence.UP)

    def _alive(self) -> frozenset[int]:
        return self._those_alive

    def _up(self) -> frozenset[int]:
        return self._those_up

    def _offer_close(self) -> list[Action]:
        if self.can_close:
            return self._offer(What.CLOSE)
        self._offered.discard(What.CLOSE)
        return []

    def _offer(self, what: What) -> list[Action]:
        if what in self._offered:
            return []
        self._offered.add(what)
        return [Ready(what)]

    def _send_to(self, numbers: Iterable[int], message: bytes) -> list[Action]:
        return [Send(n, message) for n in sorted(numbers) if self._presence[n] is not Presence.GONE]

    def _concerns(self, message: m.FromClient) -> bool:
        """Whether a message is of this round; older ones are late, others impossible."""
        number = m.round_of(message)
        if number is None or number > self.round_number:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a message of no round that has begun")
        return number == self.round_number
