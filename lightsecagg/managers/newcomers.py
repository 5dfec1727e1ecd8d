"""Connections that have not said who they are: greeted, heard once, and let in or turned away."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.joining import JoiningRefusedError, ServerJoining, refusal
from lightsecagg.protocol.wire import from_client
from lightsecagg.tracking.events import ClientRefused, Tracker

_HELLO_TIMEOUT = 30.0  # seconds that a connection may take to say who it is
_MOST_JOINING = 64  # connections beside the ranks' own that may be about to say it: then one of a crowd goes


@dataclass(frozen=True)
class _Newcomer:
    """A connection that has not said who it is, or not proved it."""

    joining: ServerJoining
    authenticated_as: str | None
    timer: asyncio.TimerHandle


class Newcomers:
    """The door of a run. Belongs to one event loop.

    Args:
        hub: the carrier.
        worker_num: the ranks of the run.
        greet: makes what speaks with one connection.
        authenticated_as: the name under which the carrier must know a client, ``{rank}`` being its rank.
        admit: lets (peer, rank, identity) in, or raises JoiningRefusedError.
        close_peer: closes a connection with a reason that it may still take.
        tracker: is told who is refused.
    """

    def __init__(
        self,
        hub: comm.Hub,
        worker_num: int,
        greet: Callable[[], ServerJoining],
        authenticated_as: str | None,
        admit: Callable[[int, int, bytes], None],
        close_peer: Callable[[int, str], None],
        tracker: Tracker,
    ) -> None:
        self._hub = hub
        self._worker_num = worker_num
        self._greet = greet
        self._authenticated_as = authenticated_as
        self._admit = admit
        self._close_peer = close_peer
        self._tracker = tracker
        self._joining: dict[int, _Newcomer] = {}

    def __contains__(self, peer: int) -> bool:
        return peer in self._joining

    def __len__(self) -> int:
        return len(self._joining)

    def arrived(self, event: comm.Arrived) -> None:
        """Greet a new connection; where they are a crowd, one of them goes."""
        joining = self._greet()
        timer = asyncio.get_running_loop().call_later(_HELLO_TIMEOUT, self._let_go, event.peer)
        self._joining[event.peer] = _Newcomer(joining, event.authenticated_as, timer)
        if len(self._joining) > _MOST_JOINING + self._worker_num:
            self._let_go(self._one_of_the_crowd())
        with contextlib.suppress(CommError):  # it may have left again: its own event will say so
            self._hub.try_send(event.peer, joining.challenge())

    def hello(self, peer: int, data: bytes | memoryview) -> None:
        """Hear who a connection is."""
        newcomer = self._joining[peer]
        try:
            applicant = newcomer.joining.receive(data)
            self._compare_names(applicant.rank, newcomer.authenticated_as)
            self._admit(peer, applicant.rank, applicant.identity)
        except JoiningRefusedError as error:
            rank = _rank_named(data)
            self._tracker.emit(ClientRefused(rank=rank, reason=error.reason.value, detail=error.detail))
            self._turn_away(peer, error.reason, error.detail)
        else:
            self.forget(peer)

    def forget(self, peer: int) -> None:
        """The connection is none of these, or no longer."""
        if (newcomer := self._joining.pop(peer, None)) is not None:
            newcomer.timer.cancel()

    def close(self) -> None:
        """Wait for nobody any more."""
        for newcomer in self._joining.values():
            newcomer.timer.cancel()

    def _compare_names(self, rank: int, found: str | None) -> None:
        """Hold the rank against whom the carrier knows, where the settings ask for it."""
        if self._authenticated_as is None:
            return
        wanted = self._authenticated_as.replace("{rank}", str(rank))
        if found != wanted:
            raise JoiningRefusedError(
                Reason.NOT_AUTHENTICATED,
                f"rank {rank} must be {wanted!r} to the carrier (comm_args.authenticated_as at the server), "
                f"which knows {'nobody' if found is None else repr(found)} there",
            )

    def _one_of_the_crowd(self) -> int:
        """A newcomer by chance, of those without a name that the carrier proves, or else of the largest name.

        So who can prove a name is not crowded out by others, and nobody for having come first.
        """
        names = Counter(newcomer.authenticated_as for newcomer in self._joining.values())
        name = max(names, key=lambda name: (name is None, names[name]))
        return random.choice(
            [p for p, newcomer in self._joining.items() if newcomer.authenticated_as == name]
        )

    def _let_go(self, peer: int) -> None:
        """Close a connection that did not say who it is; an honest one will come again."""
        self.forget(peer)
        self._close_peer(peer, comm.SERVER_FULL)

    def _turn_away(self, peer: int, reason: Reason, detail: str) -> None:
        self.forget(peer)
        with contextlib.suppress(CommError):
            self._hub.try_send(peer, refusal(reason, detail))
        self._close_peer(peer, reason.value)


def _rank_named(data: bytes | memoryview) -> int | None:
    try:
        message = from_client(data)
    except RemoteProtocolError:
        return None
    return message.rank if isinstance(message, m.Hello) else None
