"""Models on their way to clients: a few at a time, and to each client the newest one only."""

from __future__ import annotations

from collections.abc import Iterator

from lightsecagg.managers.inbox import Client
from lightsecagg.managers.turns import Done, Turns
from lightsecagg.protocol.actions import Send

_TRANSFERS = 4
"""Clients to which the model is on its way at a time: frames of it are made and kept for each of them."""

_TURN = 1.0
"""Seconds after which the next client's transfer begins beside one that is not at its end."""


class Transfers:
    """Long outputs to clients, which can be cut short. Belongs to one event loop."""

    def __init__(self) -> None:
        self._turns = Turns(_TRANSFERS, _TURN)
        self._transfers: dict[Client, _Transfer] = {}

    def send(self, client: Client, sends: Iterator[Send]) -> None:
        """Send a long output when its turn comes; what is left of an older one to this client is not sent."""
        self.stop(client)
        transfer = self._transfers[client] = _Transfer(client, sends)
        self._turns.take(transfer.start)

    def stop(self, client: Client) -> None:
        """Send the client no more of what is on its way to it."""
        if (transfer := self._transfers.pop(client, None)) is not None:
            transfer.stop()

    def close(self) -> None:
        """Send nobody any more."""
        self._turns.close()
        for client in list(self._transfers):
            self.stop(client)


class _Transfer:
    """One long output to one client; it is done when the last message of it has arrived, or once stopped."""

    def __init__(self, client: Client, sends: Iterator[Send]) -> None:
        self._client = client
        self._sends = sends
        self._done: Done = lambda: None
        self._messages = self._arrived = 0
        self._is_whole = self._is_stopped = False

    def start(self, done: Done) -> None:
        self._done = done
        if self._is_stopped:
            done()
        else:
            self._client.outbox.stream(self._count(), on_arrival=self._note)

    def stop(self) -> None:
        self._is_stopped = True
        self._sends = iter(())  # an old model is not kept until its turn comes
        self._client.outbox.drop_streams()
        self._done()

    def _count(self) -> Iterator[Send]:
        for send in self._sends:
            self._messages += 1
            yield send
        self._is_whole = True
        self._end_if_there()

    def _note(self) -> None:
        self._arrived += 1
        self._end_if_there()

    def _end_if_there(self) -> None:
        if self._is_whole and self._arrived == self._messages:
            self._done()
