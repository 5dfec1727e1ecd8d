"""Messages of an asynchronous run that arrive once more, when they must not have any effect any more."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, TypeVar

from lightsecagg.protocol import messages as m
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.simulation.buffered_promises import Name, Promises
from lightsecagg.simulation.chaos import FlawError

_TRIES = 20  # messages that are looked at, for one that must be idle by now
_RECENT = 20  # messages among which every other one is sought: much may still go wrong with them

_Message = TypeVar("_Message")


class _Record(Generic[_Message]):
    """Messages that were taken, each with its client."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, _Message, bytes]] = []

    def add(self, number: int, message: _Message, raw: bytes) -> None:
        self._taken.append((number, message, raw))

    def forget(self, number: int) -> None:
        self._taken = [entry for entry in self._taken if entry[0] != number]

    def pick(
        self, rng: random.Random, is_idle: Callable[[int, _Message], bool]
    ) -> tuple[int, _Message, bytes] | None:
        """One that can do nothing any more, if there is one among some."""
        for _ in range(_TRIES if self._taken else 0):
            entry = rng.choice(self._taken[-_RECENT:] if rng.random() < 0.5 else self._taken)
            if is_idle(entry[0], entry[1]):
                return entry
        return None


class Replays:
    """Both sides' of one run.

    Args:
        rng: which message it is.
        promises: knows what is over.
    """

    def __init__(self, rng: random.Random, promises: Promises) -> None:
        self._rng = rng
        self._promises = promises
        self._to_server = _Record[m.FromClient]()
        self._to_clients = _Record[m.FromServer]()
        self._newest_list: dict[int, int] = {}
        self._spent: dict[int, set[Name]] = {}

    def forget(self, number: int) -> None:
        """Another process is to take the client's slot: nothing of the one before comes any more."""
        self._to_server.forget(number)
        self._to_clients.forget(number)
        self._newest_list.pop(number, None)
        self._spent.pop(number, None)

    def note_to_server(self, number: int, message: m.FromClient, raw: bytes) -> None:
        """The server takes a message."""
        self._to_server.add(number, message, raw)

    def note_to_client(self, number: int, message: m.FromServer, raw: bytes) -> None:
        """A client takes a message."""
        self._to_clients.add(number, message, raw)
        match message:
            case m.ListAnnounced(updates) | m.ListCertificate(updates):
                self._newest_list[number] = updates.number
            case m.Spent(masks):
                self._spent.setdefault(number, set()).update(masks)

    def to_server(self, server: BufferedServer) -> bool:
        """Repeat a message to the server; whether there was one.

        Raises:
            FlawError: it did something.
        """
        entry = self._to_server.pick(self._rng, lambda n, sent: self._promises.is_late(n, sent, server))
        if entry is None:
            return False
        number, message, raw = entry
        before = server.late_messages
        if server.receive(number, raw) or server.late_messages != before + 1:
            raise FlawError(f"a late {type(message).__name__} of client {number} was not ignored")
        return True

    def to_client(self, clients: dict[int, ClientUpload]) -> bool:
        """Repeat a message to a client; whether there was one.

        Args:
            clients: those that are there.

        Raises:
            FlawError: it did something.
        """
        entry = self._to_clients.pick(
            self._rng, lambda n, told: n in clients and self._is_idle(n, told, clients[n])
        )
        if entry is None:
            return False
        number, message, raw = entry
        if clients[number].receive(raw):
            raise FlawError(f"client {number} acted twice on a {type(message).__name__}")
        return True

    def _is_idle(self, number: int, message: m.FromServer, machine: ClientUpload) -> bool:
        """Whether the client, which has taken this message, can do nothing with it any more."""
        match message:
            case m.ListAnnounced(updates) | m.ListCertificate(updates):
                return updates.number == self._newest_list[number]
            case m.SealedSeed(mask) | m.EncodedMask(mask):
                return (mask.client, mask.upload) in self._spent.get(number, ())
            case m.ModelPart(upload) | m.UploadGrant(upload) | m.RoundEnd(upload):
                return upload < (machine.round_number or machine.highest_round + 1)
            case m.Spent():
                return True
            case _:
                return False
