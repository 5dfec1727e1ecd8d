"""What every client-side round has: the model, one upload, the walk through the tables, and the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lightsecagg.errors import LocalProtocolError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Left, Ready, RoundOver, Send, Stream, What
from lightsecagg.protocol.model import ModelAssembly
from lightsecagg.protocol.transitions import CLIENT_MOVES, ClientStage, Rows, Verdict, judge, move
from lightsecagg.protocol.uploads import OutgoingUpload
from lightsecagg.protocol.wire import encode, from_server


@dataclass(kw_only=True)
class Running:
    """What a client has of a round that has begun; dropping it is erasing the round."""

    round: int
    assembly: ModelAssembly
    upload: OutgoingUpload[Any] | None = None


_Opening = TypeVar("_Opening", m.RoundStart, m.UploadStart, m.PlainStart)
_Running = TypeVar("_Running", bound=Running)


class ClientMachine(ABC, Generic[_Opening, _Running]):
    """One client, one round. Not thread-safe; the iterators it gives own their data and may be pulled in
    another thread.

    Args:
        after_round: the highest round number seen so far.
    """

    _rows: Rows
    _opening: type[_Opening]

    def __init__(self, after_round: int) -> None:
        self.highest_round = after_round
        """The highest round number that this client has seen, in this round or before it."""
        self._stage = ClientStage.KEYED
        self._running: _Running | None = None
        self._unsent: Any = None
        self.round_number: int | None = None
        """The round's number, once it has begun."""
        self.late_messages = 0
        """Messages that came too late and were ignored."""

    @property
    def stage(self) -> ClientStage:
        """Where the round stands here."""
        return self._stage

    @property
    def model(self) -> bytes:
        """The global model, once ``Ready(TRAINING)`` was given.

        Raises:
            LocalProtocolError: it is not whole yet, or the round is over.
        """
        if self._running is None or self._running.assembly.model is None:
            raise LocalProtocolError("no model: it is there from Ready(TRAINING) to the end of the round")
        return self._running.assembly.model

    @property
    @abstractmethod
    def can_upload(self) -> bool:
        """Whether ``upload()`` may be called."""

    @abstractmethod
    def round_key(self) -> Send:
        """What tells the server that this client is free for a round, and under which key."""

    @abstractmethod
    def upload(self, update: Any) -> Iterator[Send]:
        """Hand over the one update of this round; its parts follow as a ``Stream`` when a grant comes.

        Raises:
            LocalProtocolError: ``can_upload`` is false.
            UpdateError: the update has another shape or type.
        """

    def receive(self, message: bytes | memoryview) -> list[Action]:
        """Take a message of the server; what it cannot have sent makes the client leave."""
        try:
            return self._accept(from_server(message))
        except RemoteProtocolError as error:
            return self.leave(error.reason, str(error))

    def reclaim(self) -> Any:
        """After the round: the update, if no part of it ever left, for use in another round; else None."""
        unsent, self._unsent = self._unsent, None
        return unsent

    def leave(self, reason: Reason, detail: str = "") -> list[Action]:
        """Leave the round, telling the server the reason, and erase what is held; ``detail`` stays here."""
        if self._stage is ClientStage.OVER:
            return []
        actions: list[Action] = [Left(reason, detail)]
        if self.round_number is not None:
            actions.insert(0, Send(SERVER, encode(m.Leave(self.round_number, reason))))
        self._end()
        return actions

    def withdraw(self, reason: Reason) -> list[Action]:
        """No update will come of this round, for this reason of the client's own."""
        return self.leave(reason)

    @abstractmethod
    def _start(self, start: _Opening) -> list[Action]:
        """Take part in the round, or raise why not; sets what is running and the stage."""

    @abstractmethod
    def _take(self, running: _Running, message: m.FromServer) -> list[Action]:
        """Act on a message of the running round that the tables let through."""

    def _accept(self, message: m.FromServer) -> list[Action]:
        if not self._concerns(message) or judge(self._rows, self._stage, message) is Verdict.LATE:
            self.late_messages += 1
            return []
        return self._dispatch(message)

    def _concerns(self, message: m.FromServer) -> bool:
        """Whether a message is of this round; one of an older round is late, one of a later round illegal."""
        number = m.round_of(message)
        if self.round_number is None:
            return isinstance(message, self._opening) or number is None or number > self.highest_round
        return number is None or number >= self.round_number

    def _dispatch(self, message: m.FromServer) -> list[Action]:
        running = self._running
        if isinstance(message, self._opening):
            return self._open(message) if running is None else self._superseded(running, message)
        if running is None or m.round_of(message) != running.round:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a message of a round that did not begin")
        match message:
            case m.ModelPart():
                running.assembly.take(message.index, message.data)
                return self._offer_training(running)
            case m.UploadGrant():
                if running.upload is None:
                    raise RemoteProtocolError(
                        Reason.PROTOCOL_VIOLATION, "a grant before the update was ready"
                    )
                return [Stream(SERVER, running.upload.parts(message.grant))]
            case m.RoundEnd():
                self._end()
                return [RoundOver(message.outcome)]
            case _:
                return self._take(running, message)

    def _open(self, start: _Opening) -> list[Action]:
        self.round_number = start.round
        if start.round <= self.highest_round:
            raise RemoteProtocolError(
                Reason.STALE_ROUND, f"round {start.round} is not above {self.highest_round}"
            )
        self.highest_round = start.round
        return self._start(start)

    def _superseded(self, running: _Running, start: _Opening) -> list[Action]:
        """A later round began without a word about the end of this one."""
        if start.round <= running.round:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a round that began twice")
        self.highest_round = start.round
        self._end()
        return [RoundOver("superseded")]

    def _offer_training(self, running: _Running) -> list[Action]:
        return [Ready(What.TRAINING)] if running.assembly.complete() else []

    def _end(self) -> None:
        """Erase the round: the server may have kept every ciphertext."""
        if self._running is not None and self._running.upload is not None:
            self._unsent = self._running.upload.close()
        self._running = None
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.OVER)
