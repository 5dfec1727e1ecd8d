"""What every server-side round has: its cohort, the walk through the tables, and the end."""

from __future__ import annotations

from abc import abstractmethod

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    Aborted,
    Action,
    ClientDropped,
    Finished,
    StageReached,
    What,
)
from lightsecagg.protocol.attendance import Attendance, Presence
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.transitions import (
    PHASE_OF,
    SERVER_MOVES,
    Phase,
    ServerStage,
    move,
)
from lightsecagg.protocol.uploads import UploadDesk
from lightsecagg.protocol.wire import encode


class ServerMachine(Attendance):
    """One server, one round, one cohort (its use: see ``Attendance``). Not thread-safe."""

    _first: ServerStage

    def __init__(self, round_number: int, num_clients: int, target_survivors: int, desk: UploadDesk) -> None:
        super().__init__(dict.fromkeys(range(1, num_clients + 1), Presence.UP), desk)
        self.round_number = round_number
        self._target_survivors = target_survivors
        for number in self._presence:
            desk.begin(number, round_number)
        self._stage = self._first
        self._abort_reason: AbortReason | None = None
        self._result: RoundResult | None = None

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

    @abstractmethod
    def start(self) -> list[Action]:
        """Open the round: everybody hears of it, then gets the model."""

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

    def _drop(self, dropped: ClientDropped) -> list[Action]:
        number = dropped.number
        if self._presence_of(number) is Presence.GONE or self._is_over():
            return []
        self._set_presence(number, Presence.GONE)
        return [dropped, *self._desk.suspend(number), *self._settle()]

    def _is_over(self) -> bool:
        return self._stage in (ServerStage.DONE, ServerStage.ABORTED)

    def _move(self, stage: ServerStage) -> None:
        self._stage = move(SERVER_MOVES, self._stage, stage)
        self._offered.clear()

    def _offer_close(self) -> list[Action]:
        if self.can_close:
            return self._offer(What.CLOSE)
        self._offered.discard(What.CLOSE)
        return []

    def _concerns(self, number: int, message: m.FromClient) -> bool:  # noqa: ARG002
        found = m.round_of(message)
        if found is None or found > self.round_number:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a message of no round that has begun")
        return found == self.round_number
