"""Uploads on both sides: a client's one vector under one mask, and the server's slots and running sum."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy.typing as npt

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.kernels import spread
from lightsecagg.protocol.actions import SERVER, Action, Send, UploadCompleted
from lightsecagg.protocol.messages import Message, UploadGrant
from lightsecagg.protocol.transitions import UPDATE_MOVES, UpdateState, move
from lightsecagg.protocol.wire import encode, part_count, part_length
from lightsecagg.spans import Spans, no_spans

Vector = npt.NDArray[Any]


_Own = TypeVar("_Own")


class OutgoingUpload(Generic[_Own]):
    """One client's vector as it leaves: every grant gets the same bytes from part 0.

    Args:
        own: what is to be uploaded, not yet concealed.
        conceal: makes the vector that leaves of it; called once, when the first part is pulled.
        length: coordinates of that vector.
        part: coordinates in a part.
        pack: a slice of the vector to bytes.
        message: (grant, index, data) to the message of a part.
        spans: is told what takes how long.
    """

    def __init__(
        self,
        own: _Own,
        conceal: Callable[[_Own], Vector],
        length: int,
        part: int,
        pack: Callable[[Vector], memoryview],
        message: Callable[[int, int, memoryview], Message],
        spans: Spans = no_spans,
    ) -> None:
        self._own = [own]
        self._conceal: Callable[[_Own], Vector] | None = conceal
        self._concealed: Vector | None = None
        self._length = length
        self._part = part
        self._pack = pack
        self._message = message
        self._spans = spans
        self._grant: int | None = None
        self.is_whole = False
        """Whether every part of some grant has been pulled."""

    def close(self) -> _Own | None:
        """End every iterator at its next pull; what was to be uploaded, if no part of it ever left."""
        self._grant = None
        own = self._claim()
        self._conceal = self._concealed = None
        return own

    def halt(self) -> None:
        """End every iterator at its next pull."""
        self._grant = None

    def parts(self, grant: int) -> Iterator[Send]:
        """The parts under ``grant``; an older grant's iterator ends at its next pull."""
        self._grant = grant
        return self._parts(grant)

    def _parts(self, grant: int) -> Iterator[Send]:
        count = part_count(self._length, self._part)
        with self._spans("upload"):
            for index in range(count):
                vector = self._masked() if self._grant == grant else None
                if vector is None:
                    return
                data = self._pack(vector[index * self._part : (index + 1) * self._part])
                self.is_whole |= index == count - 1
                yield Send(SERVER, encode(self._message(grant, index, data)))

    def _masked(self) -> Vector | None:
        """What leaves, or None where ``close`` came first."""
        concealed, conceal = self._concealed, self._conceal
        if concealed is None and conceal is not None and (own := self._claim()) is not None:
            concealed = self._concealed = conceal(own)
            self._conceal = None
        return concealed

    def _claim(self) -> _Own | None:
        """What is to be uploaded, once: to the first part that is pulled or ``close``, in any threads.

        Taking from a list is atomic, so what leaves is never given back for another mask as well.
        """
        try:
            return self._own.pop()
        except IndexError:
            return None


@dataclass
class _Upload:
    """What the server knows of one client's upload."""

    round: int
    state: UpdateState = UpdateState.TRAINING
    grant: int = 0
    granted: set[int] = field(default_factory=set)
    partial: list[Vector] = field(default_factory=list)


class RunningSum:
    """The sum of the vectors that came in whole.

    Args:
        total: zeros, as long as the vectors.
        part: coordinates in a part.
        add: adds a part, as the desk read it, to a slice of ``total``.
        spans: is told what takes how long.
    """

    def __init__(
        self, total: Vector, part: int, add: Callable[[Vector, Vector], None], spans: Spans = no_spans
    ) -> None:
        self.total = total
        self._part = part
        self._add = add
        self._spans = spans

    def take(self, _number: int, parts: Sequence[Vector]) -> None:
        """Add one client's vector."""
        with self._spans("sum"):
            spread(partial(self._add_parts, parts), len(parts), 1)

    def _add_parts(self, parts: Sequence[Vector], start: int, stop: int) -> None:
        for place in range(start, stop):
            self._add(self.total[place * self._part : (place + 1) * self._part], parts[place])


class UploadDesk:
    """The server's side: grants a few slots at a time, and hands on updates that are whole.

    Args:
        length: coordinates of each vector.
        part: coordinates in a part.
        read: (data, count) to a checked part; raises RemoteProtocolError.
        take_in: is given a client's number and the checked parts of its whole vector.
        slots: grants that are out at a time, and so partial updates in memory.
    """

    def __init__(
        self,
        length: int,
        part: int,
        read: Callable[[memoryview, int], Vector],
        take_in: Callable[[int, list[Vector]], None],
        slots: int,
    ) -> None:
        self._length = length
        self._part = part
        self._read = read
        self._take_in = take_in
        self._slots = slots
        self._uploads: dict[int, _Upload] = {}
        self._queue: deque[int] = deque()
        self._admitted: frozenset[int] = frozenset()
        self._next_grant = 1
        self.inside: frozenset[int] = frozenset()
        """Whose vectors are in."""

    @property
    def holders(self) -> dict[int, tuple[int, int]]:
        """Who holds a slot: client to (grant, parts that came)."""
        return {
            number: (upload.grant, len(upload.partial))
            for number, upload in self._uploads.items()
            if upload.state is UpdateState.GRANTED
        }

    @property
    def someone_waits(self) -> bool:
        """Whether a client that may upload and is ready waits for a slot."""
        return any(number in self._admitted for number in self._queue)

    def begin(self, number: int, round_number: int) -> None:
        """The client is to train an update; its grants will name this round."""
        self._uploads[number] = _Upload(round_number)
        self.inside -= {number}

    def end(self, number: int) -> list[Action]:
        """Nothing more comes of the client's update; its slot is free."""
        self._uploads.pop(number, None)
        if number in self._queue:
            self._queue.remove(number)
        return self._grant()

    def state(self, number: int) -> UpdateState:
        """Where this client's update is."""
        return self._uploads[number].state

    def admit(self, numbers: Iterable[int]) -> list[Action]:
        """Only these clients get grants; they may be ready already, and others may follow later."""
        self._admitted = frozenset(numbers)
        return self._grant()

    def ready(self, number: int, *, waits: bool = True) -> list[Action]:
        """The client's update is trained.

        Args:
            waits: whether it queues for a slot now; an absent client does so when it resumes.

        Raises:
            RemoteProtocolError: it said so before.
        """
        upload = self._uploads[number]
        if upload.state is not UpdateState.TRAINING:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "UpdateReady was said twice")
        upload.state = move(UPDATE_MOVES, upload.state, UpdateState.READY)
        if waits:
            self._queue.append(number)
        return self._grant()

    def suspend(self, number: int) -> list[Action]:
        """The client is away or gone: its slot and partial update are lost."""
        upload = self._uploads.get(number)
        if upload is not None and upload.state is UpdateState.GRANTED:
            upload.state = move(UPDATE_MOVES, upload.state, UpdateState.READY)
            upload.partial = []
        elif number in self._queue:
            self._queue.remove(number)
        return self._grant()

    def resume(self, number: int) -> list[Action]:
        """The client is back; if it was ready it waits for a slot again."""
        upload = self._uploads.get(number)
        if upload is not None and upload.state is UpdateState.READY and number not in self._queue:
            self._queue.append(number)
        return self._grant()

    def revoke(self, number: int) -> list[Action]:
        """Take a slot from a client that brings nothing; it queues again, behind the others."""
        upload = self._uploads.get(number)
        if upload is None or upload.state is not UpdateState.GRANTED:
            return []
        upload.state = move(UPDATE_MOVES, upload.state, UpdateState.READY)
        upload.partial = []
        self._queue.append(number)
        return self._grant()

    def take(self, number: int, grant: int, index: int, data: memoryview) -> list[Action] | None:
        """One part; None where its grant was withdrawn, so that it is late.

        Raises:
            RemoteProtocolError: no such grant, or not the next part, or not of its length or range.
        """
        upload = self._uploads[number]
        if grant not in upload.granted:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a part under a grant that was never given")
        if upload.state is UpdateState.READY or grant != upload.grant:
            return None
        if upload.state is UpdateState.IN:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a part after the last")
        if index != len(upload.partial):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a part of an update out of order")
        upload.partial.append(self._read(data, part_length(self._length, self._part, index)))
        if len(upload.partial) < part_count(self._length, self._part):
            return []
        parts, upload.partial = upload.partial, []
        upload.state = move(UPDATE_MOVES, upload.state, UpdateState.IN)
        self.inside |= {number}
        self._take_in(number, parts)
        return [UploadCompleted(number), *self._grant()]

    def _grant(self) -> list[Action]:
        actions: list[Action] = []
        free = self._slots - len(self.holders)
        waiting = [number for number in self._queue if number in self._admitted][: max(free, 0)]
        for number in waiting:
            self._queue.remove(number)
            upload = self._uploads[number]
            upload.state = move(UPDATE_MOVES, upload.state, UpdateState.GRANTED)
            upload.grant = self._next_grant
            upload.granted.add(upload.grant)
            self._next_grant += 1
            actions.append(Send(number, encode(UploadGrant(upload.round, upload.grant))))
        return actions
