"""What every server of an asynchronous run has: versions, uploads at any time, and the buffer."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    Aborted,
    Action,
    ClientDropped,
    StageReached,
    UpdateRefused,
    UploadCompleted,
    What,
)
from lightsecagg.protocol.attendance import Attendance, Presence
from lightsecagg.protocol.buffered.buffer import Rules, Upload, choose
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.transitions import BUFFER_MOVES, BufferStage, UpdateState, move
from lightsecagg.protocol.uploads import UploadDesk, Vector
from lightsecagg.protocol.wire import encode


class BufferMachine(Attendance):
    """One server, one asynchronous run (its use: see ``Attendance``). Not thread-safe.

    ``publish`` gives a version to the clients that are free, each starts an upload on it, and updates that
    come in wait in the buffer. Whenever that holds a list, ``Ready(FREEZE)`` is offered; after ``freeze``,
    ``Ready(DECODE)`` and ``finish`` the caller publishes the next version. A list that fails (``Aborted``)
    is lost with its updates.

    Args:
        capacity: slots, and so client numbers, are 1..capacity.
        rules: what a list must be.
        desk: takes the uploads; gives them to ``_take_in``.
    """

    def __init__(self, capacity: int, rules: Rules, desk: UploadDesk) -> None:
        super().__init__(dict.fromkeys(range(1, capacity + 1), Presence.GONE), desk)
        self.version = -1
        """The newest global version; −1 before the first."""
        self.list_number = 0
        """How many lists were frozen."""
        self.rules = rules
        self._stage = BufferStage.COLLECTING
        self._model = self._model_hash = b""
        self._uploads: dict[int, Upload] = {}
        self._buffer: list[Upload] = []
        self._chosen: list[Upload] = []
        self._known: dict[tuple[int, int], Upload] = {}  # all of these, by client and number
        self._free: dict[int, m.Member | None] = {}
        self._not_before: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._started = 0
        self._is_stirred = True  # something happened that may let a client start or a list be made

    def __repr__(self) -> str:
        return f"{type(self).__name__}(version={self.version}, stage={self._stage.value})"

    @property
    def stage(self) -> BufferStage:
        return self._stage

    @property
    def buffer_size(self) -> int:
        """K, updates in a list."""
        return self.rules.size

    @property
    def buffered(self) -> int:
        """Updates that wait for their list."""
        return len(self._buffer)

    @property
    def alive(self) -> frozenset[int]:
        """Clients that are there or may come back."""
        return self._alive()

    @property
    @abstractmethod
    def needed(self) -> int:
        """Clients without whom nothing goes on."""

    @property
    def unheld(self) -> dict[int, int]:
        """Clients whose update is ready while too few hold its shares, to its number; for the caller's
        ``report_timeout``, after which it may ``give_up``.
        """
        return {
            number: upload.name.upload
            for number, upload in self._uploads.items()
            if not self._is_held(upload) and self._desk.state(number) is UpdateState.READY
        }

    @property
    def can_freeze(self) -> bool:
        """Whether the buffer holds a list that those who are there can answer for."""
        return self._stage is BufferStage.COLLECTING and self._choose(self._up()) is not None

    @property
    @abstractmethod
    def can_decode(self) -> bool:
        """Whether ``finish()`` yields the list's sum."""

    def free(self, number: int, member: m.Member | None) -> list[Action]:
        """The client is there and may be started on an upload: it published a key that none has used.

        Args:
            number: its slot; whoever held it before is gone.
            member: its entry with that key; None in a run without masks.
        """
        if self._presence_of(number) is not Presence.GONE and number in self._uploads:
            return self.lose(number, Reason.PROTOCOL_VIOLATION)
        self._set_presence(number, Presence.UP)
        self._free[number] = member
        self._occupy(number, member)
        self._is_stirred = True
        return self._settle()

    def publish(self, model: bytes) -> list[Action]:
        """The next version: the first one, or what was made of the sum that ``finish()`` gave.

        Raises:
            LocalProtocolError: no list was finished since the last version.
        """
        if self.version >= 0:
            self._move(BufferStage.COLLECTING)
        self.version += 1
        self._is_stirred = True
        self._model, self._model_hash = model, hashlib.sha256(model).digest()
        actions = self._end_list()
        for number, upload in list(self._uploads.items()):
            if self.rules.is_too_old(upload, self.version):
                actions += self._refuse(number, Reason.STALE)
        for upload in [upload for upload in self._buffer if self.rules.is_too_old(upload, self.version)]:
            actions += self._evict(upload, Reason.STALE)
        return [*actions, *self._settle()]

    def stalled(self) -> list[Action]:
        """Nothing came in for long: who withdrew may try again; where enough updates of enough clients make
        no list, the oldest goes, so that others can come.
        """
        if self._stage is not BufferStage.COLLECTING:
            return []
        self._not_before.clear()
        self._is_stirred = True
        clients = {upload.name.client for upload in self._buffer}
        is_enough = len(self._buffer) >= self.rules.size and len(clients) >= self.rules.least
        return [*(self._relieve(is_patient=False) if is_enough else []), *self._settle()]

    def give_up(self, number: int) -> list[Action]:
        """Refuse an update of ``unheld``: it could stand in no list."""
        if number not in self.unheld:
            return []
        return [*self._refuse(number, Reason.TOO_FEW_HOLDERS), *self._settle()]

    def freeze(self) -> list[Action]:
        """Make the next list.

        Raises:
            LocalProtocolError: ``can_freeze`` is false.
        """
        chosen = self._choose(self._up()) if self._stage is BufferStage.COLLECTING else None
        if chosen is None:
            raise LocalProtocolError("freeze() wants can_freeze: a list whose updates enough clients hold")
        self._chosen = chosen
        gone = {upload.key for upload in chosen}
        self._buffer = [upload for upload in self._buffer if upload.key not in gone]
        self.list_number += 1
        weights = [self.rules.weight(upload, self.version) for upload in chosen]
        actions = self._begin_list(chosen, weights)
        for upload in chosen:
            upload.parts = ()
        return [StageReached(self._stage.value), *actions, *self._settle()]

    @abstractmethod
    def finish(self) -> ListResult:
        """The mean over the list; ``publish()`` then goes on.

        Raises:
            LocalProtocolError: ``can_decode`` is false.
            RoundAborted: it lies where no honest sum can; ``abort()`` then goes on.
        """

    @abstractmethod
    def deadline(self) -> list[Action]:
        """The present stage of the list has lasted long enough: it fails. Nothing else is timed here."""

    def abort(self, reason: AbortReason, *, is_lesson: bool = False) -> list[Action]:
        """The list fails: its updates are lost, and never tried again.

        Args:
            reason: why.
            is_lesson: whether the next list goes without those who let this one fail.
        """
        if self._stage not in (BufferStage.ENDORSING, BufferStage.RECOVERING):
            return []
        self._move(BufferStage.COLLECTING)
        return [Aborted(reason, is_lesson), *self._end_list(), *self._settle()]

    @abstractmethod
    def _begin_upload(self, upload: Upload, member: m.Member | None) -> list[Action]:
        """Tell everybody concerned that ``upload`` begins."""

    @abstractmethod
    def _begin_list(self, chosen: Sequence[Upload], weights: Sequence[int]) -> list[Action]:
        """Sum the updates, whose parts are let go of afterwards, and move to the next stage."""

    @abstractmethod
    def _advance(self) -> list[Action]:
        """What follows for the list under way."""

    def _take_update(self, number: int, message: m.MaskedUpdate | m.PlainUpdate) -> list[Action]:
        actions = self._take_part(number, message)
        if UploadCompleted(number) in actions:
            if len(self._uploads[number].holders) < self.rules.quorum:  # one was lost while it came
                return self._refuse(number, Reason.TOO_FEW_HOLDERS)
            upload = self._uploads.pop(number)
            self._buffer.append(upload)
            self._is_stirred = True
            actions += self._desk.end(number)
            actions += self._send_to([number], encode(m.RoundEnd(upload.name.upload, "done")))
        return actions

    def _take_in(self, number: int, parts: list[Vector]) -> None:
        self._uploads[number].parts = parts

    def _concerns(self, number: int, message: m.FromClient) -> bool:
        match message:
            case m.Leave():
                return True
            case m.Endorse() | m.AggregateEncodedMask():
                return self._is_present(message.round, self.list_number, self.list_number)
            case m.ShareHeld(mask):
                known = mask.upload if (mask.client, mask.upload) in self._known else None
                return self._is_present(mask.upload, known, self._last.get(mask.client, 0))
            case m.SealedSeeds(mask) | m.EncodedMask(mask) if mask.client != number:
                raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share under another's name")
            case m.SealedSeeds(mask) | m.EncodedMask(mask):
                found: int | None = mask.upload
            case _:
                found = m.round_of(message)
        if found is None:
            return True  # of no upload: the tables say that it cannot come
        upload = self._uploads.get(number)
        present = None if upload is None else upload.name.upload
        return self._is_present(found, present, self._last.get(number, 0))

    @staticmethod
    def _is_present(found: int, present: int | None, last: int) -> bool:
        if found > last:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a message of nothing that has begun")
        return found == present

    def _settle(self) -> list[Action]:
        # Most messages stir nothing, and looking at every client and update would cost more than they do.
        if not self._is_stirred:
            return [] if self._stage is BufferStage.COLLECTING else self._advance()
        self._is_stirred = False
        actions = self._relieve() if self._stage is BufferStage.COLLECTING else []
        actions += self._start_those_free()
        room = len(self._buffer) < self.rules.room
        held = {number for number, upload in self._uploads.items() if self._is_held(upload)}
        actions += self._desk.admit(held if room else ())
        return [*actions, *self._advance()]

    def _offer_list(self) -> list[Action]:
        if self.can_freeze:
            return self._offer(What.FREEZE)
        self._offered.discard(What.FREEZE)
        return []

    def _choose(self, present: frozenset[int]) -> list[Upload] | None:
        return choose(self._buffer, self.version, self.rules, present)

    def _relieve(self, *, is_patient: bool = True) -> list[Action]:
        """A buffer that makes no list, and to which nobody can add, would stay so: its oldest update goes.

        Only where those who are left can make a list at all: else they would train for nothing, for ever.

        Args:
            is_patient: whether somebody who trains, or may come back to it, counts as adding.
        """
        actions: list[Action] = []
        while (
            self._is_shut(is_patient=is_patient)
            and sum(map(self._is_willing, self._alive())) >= self.needed
            and self._choose(self._alive()) is None
        ):
            oldest = min(self._buffer, key=lambda upload: (upload.name.version, upload.name.upload))
            actions += self._evict(oldest, Reason.CROWDED_OUT)
        return actions

    def _is_shut(self, *, is_patient: bool) -> bool:
        """Whether no further update can come into the buffer."""
        if not self._buffer:
            return False
        adding = (self._may_add(number, is_patient=is_patient) for number in self._alive())
        return len(self._buffer) >= self.rules.room or not any(adding)

    def _may_add(self, number: int, *, is_patient: bool) -> bool:
        if number in self._uploads:
            return is_patient
        is_there = is_patient or number in self._free
        return is_there and self._is_willing(number) and self._has_room_for(number)

    def _is_willing(self, number: int) -> bool:
        """Whether the client has not withdrawn, or left, on this version."""
        return self.version >= self._not_before.get(number, 0)

    def _has_room_for(self, number: int) -> bool:
        """Whether another update of this client may wait.

        Those of the list under way count: who waits for it starts on the version that is made of it.
        """
        waiting = sum(upload.name.client == number for upload in (*self._buffer, *self._chosen))
        return waiting < self.rules.each

    def _start_those_free(self) -> list[Action]:
        actions: list[Action] = []
        for number in [number for number in self._free if self._may_start(number)]:
            member = self._free.pop(number)
            self._started += 1
            self._last[number] = self._started
            upload = Upload(m.MaskName(number, self.version, self._started))
            self._uploads[number] = self._known[upload.key] = upload
            self._desk.begin(number, self._started)
            actions += self._begin_upload(upload, member)
        return actions

    def _may_start(self, number: int) -> bool:
        return (
            self._is_willing(number)
            and self._stage is not BufferStage.PUBLISHING
            and number in self._up()
            and self._has_room_for(number)
        )

    def _leave(self, number: int, reason: Reason) -> list[Action]:
        return self._drop(ClientDropped(number, reason, left=True))

    def _withdraw(self, number: int, reason: Reason) -> list[Action]:
        """The client could not train on this version: it waits for another."""
        upload = self._uploads.pop(number)
        self._is_stirred = True
        self._not_before[number] = upload.name.version + 1
        return [UpdateRefused(number, reason), *self._desk.end(number), *self._spend([upload])]

    def _refuse(self, number: int, reason: Reason) -> list[Action]:
        """The client's upload ends before it was whole."""
        upload = self._uploads.pop(number)
        self._is_stirred = True
        return [
            UpdateRefused(number, reason),
            *self._send_to([number], encode(m.RoundEnd(upload.name.upload, reason.value))),
            *self._desk.end(number),
            *self._spend([upload]),
        ]

    def _evict(self, upload: Upload, reason: Reason) -> list[Action]:
        """An update leaves the buffer unused."""
        self._buffer.remove(upload)
        self._is_stirred = True
        return [UpdateRefused(upload.name.client, reason), *self._spend([upload])]

    def _end_list(self) -> list[Action]:
        chosen, self._chosen = self._chosen, []
        return [StageReached(self._stage.value), *self._spend(chosen)]

    def _spend(self, uploads: Sequence[Upload]) -> list[Action]:
        """No list will name these uploads any more: whoever holds a share may erase it."""
        for upload in uploads:
            del self._known[upload.key]
        receivers = set[int]().union(*(upload.cohort for upload in uploads))
        return self._send_to(receivers, encode(m.Spent(tuple(upload.key for upload in uploads))))

    def _drop(self, dropped: ClientDropped) -> list[Action]:
        number = dropped.number
        if self._presence_of(number) is Presence.GONE:
            return []
        self._set_presence(number, Presence.GONE)
        self._free.pop(number, None)
        if dropped.left:
            self._not_before[number] = self.version + 1  # what made it leave would do so again at once
        actions: list[Action] = [dropped, *self._desk.end(number)]
        if (upload := self._uploads.pop(number, None)) is not None:
            actions += self._spend([upload])
        for other in self._known.values():
            other.holders.discard(number)
            other.cohort -= {number}
        return [*actions, *self._vacate(number), *self._settle()]

    def _is_held(self, upload: Upload) -> bool:
        """Whether enough clients that are not gone hold its shares."""
        return len(upload.holders) >= self.rules.quorum

    @abstractmethod
    def _occupy(self, number: int, member: m.Member | None) -> None:
        """The client has its slot, with this key."""

    @abstractmethod
    def _vacate(self, number: int) -> list[Action]:
        """The client's slot is empty; it is in no cohort and holds nothing any more."""

    def _set_presence(self, number: int, presence: Presence) -> None:
        super()._set_presence(number, presence)
        self._is_stirred = True

    def _move(self, stage: BufferStage) -> None:
        self._stage = move(BUFFER_MOVES, self._stage, stage)
        self._offered.clear()
        self._is_stirred = True
