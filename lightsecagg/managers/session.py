"""Who takes part: joining, presence, readiness, and the messages of those who joined.

The session pumps the hub's events; what concerns a round goes to the round's own queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, Reason, RemoteProtocolError
from lightsecagg.identity import Roster
from lightsecagg.managers.inbox import GRACE, Client, FromClient, Inbox, RoundEvent, Status, StatusChanged
from lightsecagg.managers.outbox import OnArrival, Outbox
from lightsecagg.managers.relay import Relay
from lightsecagg.managers.scheme import Free
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.joining import JoiningRefusedError, ServerJoining, refusal, welcome
from lightsecagg.protocol.terms import Run, is_signed
from lightsecagg.protocol.wire import encode, from_client
from lightsecagg.sealing import is_round_key
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking.events import ClientJoined, ClientLost, ClientRefused, Tracker

_HELLO_TIMEOUT = 30.0  # seconds that a connection may take to say who it is
_MOST_JOINING = 64  # connections beside the ranks' own that may be about to say it: then one of a crowd goes
_PATIENCE = 0.5  # seconds in which a connection that is turned away may take the reason

_LEAST_UNDER_WAY = 4 * comm.MAX_FRAME  # between clients: less would be one after the other


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Newcomer:
    """A connection that has not said who it is, or not proved it."""

    joining: ServerJoining
    authenticated_as: str | None
    timer: asyncio.TimerHandle


@dataclass
class Session:
    """The clients of one run. Belongs to one event loop.

    Args:
        hub: the carrier.
        run: the run that may be joined.
        worker_num: ranks are 1..worker_num.
        agreed: what must be alike at joining, key path to value.
        layout: the model's entries.
        given: settings that the server sets.
        roster: who may take part.
        secure: whether readiness comes as a signed round key.
        authenticated_as: the name under which the carrier must know a client, ``{rank}`` being its rank.
        stall_timeout: seconds that a client's buffer may stay full.
        relay_buffer: bytes that may be under way to one client; a quarter of it to all, before senders wait.
        tracker: is told who comes and goes.
        spans: is told what takes how long.
    """

    hub: comm.Hub
    run: Run
    worker_num: int
    agreed: Mapping[str, str]
    layout: Sequence[m.Entry]
    given: Mapping[str, str]
    roster: Roster | None
    secure: bool
    authenticated_as: str | None
    stall_timeout: float
    relay_buffer: int
    tracker: Tracker
    spans: Spans = no_spans
    clients: dict[int, Client] = field(default_factory=dict)
    inbox: Inbox | None = None
    """Of the round that runs; between rounds late messages are dropped."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _joining: dict[int, _Newcomer] = field(default_factory=dict)
    _ranks: dict[int, int] = field(default_factory=dict)
    _refused: dict[bytes, Reason] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_over: bool = False
    """Whether the run has ended: nobody joins any more."""

    def __post_init__(self) -> None:
        self._relay = Relay(
            max(self.relay_buffer // 4, _LEAST_UNDER_WAY),
            self.relay_buffer,
            self.stall_timeout,
            self.hub.give_credit,
            self._give_up_stalled,
        )

    async def pump(self) -> None:
        """Take the hub's events for ever."""
        while True:
            event = await self.hub.receive(holds_credit=True)
            match event:
                case comm.Arrived():
                    self._arrived(event)
                case comm.Payload():
                    if not self._payload(event.peer, event.data):
                        self.hub.give_credit(event.peer, len(event.data))
                case comm.Away():
                    self._set_status(event.peer, Status.AWAY)
                case comm.Back():
                    self._set_status(event.peer, Status.UP)
                case comm.Gone():
                    self._gone(event.peer, event.reason)
            await self._notify()

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until ``condition`` holds, looking after every event; False where ``timeout`` was first."""
        try:
            async with asyncio.timeout(timeout), self.changed:
                await self.changed.wait_for(condition)
        except TimeoutError:
            return condition()
        return True

    def look_again(self) -> None:
        """Something else than an event may have made a condition of ``until`` true."""
        self._spawn(self._notify())

    def up(self) -> list[Client]:
        """The clients that are there, by rank."""
        return [client for _, client in sorted(self.clients.items()) if client.status is Status.UP]

    def here(self) -> list[Client]:
        """The clients that are there or may come back, by rank."""
        return [client for _, client in sorted(self.clients.items()) if client.status is not Status.GONE]

    def free(self) -> list[Client]:
        """The clients that may be drawn into a round now, by rank; of those with one key, the first."""
        found: dict[object, Client] = {}
        for client in self.up():
            if client.free is not None:
                key = client.rank if client.free.member is None else client.free.member.key
                found.setdefault(key, client)
        return list(found.values())

    def expel(self, client: Client, reason: Reason) -> None:
        """Turn a client away for the rest of the run."""
        self._refused[client.identity] = reason
        for holder in self.here():
            if holder.identity == client.identity:
                self._part_with(holder, reason)

    def done_with(self, events: Iterable[RoundEvent]) -> None:
        """Give the senders of the messages among these their credit."""
        for event in events:
            if isinstance(event, FromClient):
                self.hub.give_credit(event.client.peer, len(event.message))

    def forward(self, event: FromClient, receiver: Client) -> None:
        """Send a client's message on to another, as it came."""
        if receiver.status is Status.GONE:
            self.done_with([event])
            return
        arrived = self._relay.begin(event.client.peer, receiver.peer, len(event.message))
        receiver.outbox.put(event.message, arrived)

    def bytes_of(self, client: Client) -> int:
        """Bytes on the wire to and from a client; 0 once it is gone."""
        stats = self.hub.stats(client.peer)
        return stats.bytes_sent + stats.bytes_received

    async def finish(self, outcome: str, timeout: float) -> None:  # noqa: ASYNC109
        """Tell everybody that the run is over, and wait until those who are there know it."""
        self.is_over = True
        message = encode(m.Finish(outcome))
        for client in self.here():
            client.free = None
            client.outbox.drop_streams()
            client.outbox.put(message)
        await self.until(lambda: all(client.knows_end for client in self.up()), timeout)
        # Somebody whose link has just broken gets the moment that a round would give it.
        absent = [client.changed_at for client in self.here() if not client.knows_end]
        patience = max(absent, default=0.0) + GRACE - time.monotonic()
        if patience > 0:
            await self.until(lambda: all(client.knows_end for client in self.here()), min(patience, timeout))

    async def close(self) -> None:
        """Stop sending."""
        if self._tasks:  # last words are under way
            await asyncio.wait(self._tasks, timeout=GRACE)
        tasks = [client.sender for client in self.clients.values() if client.sender is not None]
        for task in [*tasks, *self._tasks]:
            task.cancel()
        for newcomer in self._joining.values():
            newcomer.timer.cancel()
        self._relay.close()
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    def _arrived(self, event: comm.Arrived) -> None:
        joining = ServerJoining(self.run, self.worker_num, self.agreed, self.layout, self.roster)
        timer = asyncio.get_running_loop().call_later(_HELLO_TIMEOUT, self._let_go, event.peer)
        self._joining[event.peer] = _Newcomer(joining, event.authenticated_as, timer)
        if len(self._joining) > _MOST_JOINING + self.worker_num:
            self._let_go(self._one_of_the_crowd())
        with contextlib.suppress(CommError):  # it may have left again: its own event will say so
            self.hub.try_send(event.peer, joining.challenge())

    def _payload(self, peer: int, data: bytes | memoryview) -> bool:
        """Act on a message; whether the round has it, and holds its sender's credit."""
        if peer in self._joining:
            self._hello(peer, data)
            return False
        rank = self._ranks.get(peer)
        if rank is None:
            return False
        client = self.clients[rank]
        try:
            message = from_client(data)
        except RemoteProtocolError as error:
            self.expel(client, error.reason)
            return False
        match message:
            case m.RoundKeyMessage() if self.secure:
                self._take_key(client, message)
            case m.PlainReady() if not self.secure:
                client.free = Free(None)
            case m.FinishAcknowledged() if self.is_over:
                client.knows_end = True
            case m.Hello() | m.RoundKeyMessage() | m.PlainReady() | m.FinishAcknowledged():
                self.expel(client, Reason.PROTOCOL_VIOLATION)
            case _ if self.inbox is not None:
                return self.inbox.put(FromClient(client, data))
            case _:
                pass  # anything of an ended round is late
        return False

    def _hello(self, peer: int, data: bytes | memoryview) -> None:
        newcomer = self._joining[peer]
        try:
            applicant = newcomer.joining.receive(data)
            self._compare_names(applicant.rank, newcomer.authenticated_as)
            self._admit(peer, applicant.rank, applicant.identity)
        except JoiningRefusedError as error:
            rank = _rank_named(data)
            self.tracker.emit(ClientRefused(rank=rank, reason=error.reason.value, detail=error.detail))
            self._turn_away(peer, error.reason, error.detail)
        else:
            del self._joining[peer]
            newcomer.timer.cancel()

    def _compare_names(self, rank: int, found: str | None) -> None:
        """Hold the rank against whom the carrier knows, where the settings ask for it."""
        if self.authenticated_as is None:
            return
        wanted = self.authenticated_as.replace("{rank}", str(rank))
        if found != wanted:
            raise JoiningRefusedError(
                Reason.NOT_AUTHENTICATED,
                f"rank {rank} must be {wanted!r} to the carrier (comm_args.authenticated_as at the server), "
                f"which knows {'nobody' if found is None else repr(found)} there",
            )

    def _admit(self, peer: int, rank: int, identity: bytes) -> None:
        if self.is_over:
            raise JoiningRefusedError(Reason.RUN_OVER)
        if identity in self._refused:
            raise JoiningRefusedError(Reason.REFUSED_FOR_RUN, self._refused[identity].value)
        holder = self.clients.get(rank)
        if holder is not None and holder.status is not Status.GONE:
            if holder.status is Status.UP:
                raise JoiningRefusedError(
                    Reason.RANK_TAKEN,
                    f"rank {rank} is taken by a client that is up: stop that one, or take another rank",
                )
            if holder.identity != identity:
                raise JoiningRefusedError(Reason.RANK_TAKEN, f"rank {rank} waits for its own identity")
            self._part_with(holder, Reason.REPLACED)
        taken = [c.rank for c in self.here() if c.identity == identity and c.rank != rank]
        if taken:
            raise JoiningRefusedError(Reason.RANK_TAKEN, f"this identity is rank {taken[0]} already")
        outbox = Outbox(partial(self._deliver, peer))
        client = Client(rank, identity, peer, outbox)
        client.sender = asyncio.create_task(self._run_outbox(client))
        self.clients[rank] = client
        self._ranks[peer] = rank
        outbox.put(welcome(self.given))
        self.tracker.emit(ClientJoined(rank=rank))

    def _take_key(self, client: Client, message: m.RoundKeyMessage) -> None:
        member = m.Member(client.rank, client.identity, message.sequence, message.key, message.signature)
        if (
            message.sequence <= client.sequence
            or not is_signed(member, self.run)
            or not is_round_key(message.key)
        ):
            self.expel(client, Reason.BAD_SIGNATURE)
            return
        client.sequence = message.sequence
        client.free = Free(member)

    async def _deliver(self, peer: int, message: bytes | memoryview, on_arrival: OnArrival | None) -> None:
        with self.spans("send"):
            async with asyncio.timeout(self.stall_timeout):
                await self.hub.send(peer, message, on_arrival)

    async def _run_outbox(self, client: Client) -> None:
        try:
            await client.outbox.run()
        except TimeoutError:
            self._give_up_stalled(client.peer)
        except CommError:
            pass  # the hub's own event says why
        except Exception:
            log.exception("sending to client %s failed", client.rank)
            self._lost(client, Reason.LINK_LOST)

    def _give_up_stalled(self, peer: int) -> None:
        """A client that takes too little of what it is sent is gone: the others do not wait for it."""
        if (rank := self._ranks.get(peer)) is not None:
            self._lost(self.clients[rank], Reason.STALLED)
            self._spawn(self.hub.close_peer(peer, Reason.STALLED.value, _PATIENCE))

    def _set_status(self, peer: int, status: Status) -> None:
        rank = self._ranks.get(peer)
        if rank is None:
            return
        client = self.clients[rank]
        client.status = status
        self._relay.set_absent(peer, status is Status.AWAY)
        client.changed_at = time.monotonic()
        client.absence_is_told = False
        if self.inbox is not None:
            self.inbox.tell(StatusChanged(client, status))

    def _gone(self, peer: int, reason: str) -> None:
        if peer in self._joining:
            self._joining.pop(peer).timer.cancel()
        rank = self._ranks.get(peer)
        if rank is not None:
            if (sender := self.clients[rank].sender) is not None:
                sender.cancel()
            known = Reason(reason) if reason in set(Reason) else Reason.LINK_LOST
            self._lost(self.clients[rank], known)

    def _lost(self, client: Client, reason: Reason) -> None:
        """The client is gone for good: the round hears of it, or people do."""
        self._ranks.pop(client.peer, None)
        self._relay.forget(client.peer)
        if client.status is Status.GONE:
            return
        client.status, client.free, client.gone_because = Status.GONE, None, reason
        if self.inbox is not None and self.inbox.concerns(client):
            self.inbox.tell(StatusChanged(client, Status.GONE))
        elif not self.is_over:
            client.loss_is_told = True
            self.tracker.emit(ClientLost(rank=client.rank, reason=reason.value))
        self._spawn(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _part_with(self, client: Client, reason: Reason) -> None:
        """Tell a client why, and let its session end."""
        client.outbox.drop_streams()
        client.outbox.put(refusal(reason))
        self._lost(client, reason)
        self._spawn(self._close_peer(client, reason))

    async def _close_peer(self, client: Client, reason: Reason) -> None:
        if client.sender is not None and not client.sender.done():
            drained = asyncio.create_task(client.outbox.drained())
            await asyncio.wait(
                {drained, client.sender}, timeout=self.stall_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            drained.cancel()
        await self.hub.close_peer(client.peer, reason.value)
        if client.sender is not None:
            client.sender.cancel()

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
        self._joining.pop(peer).timer.cancel()
        self._spawn(self.hub.close_peer(peer, comm.SERVER_FULL, _PATIENCE))

    def _turn_away(self, peer: int, reason: Reason, detail: str) -> None:
        self._joining.pop(peer).timer.cancel()
        with contextlib.suppress(CommError):
            self.hub.try_send(peer, refusal(reason, detail))
        self._spawn(self.hub.close_peer(peer, reason.value, _PATIENCE))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _rank_named(data: bytes | memoryview) -> int | None:
    try:
        message = from_client(data)
    except RemoteProtocolError:
        return None
    return message.rank if isinstance(message, m.Hello) else None
