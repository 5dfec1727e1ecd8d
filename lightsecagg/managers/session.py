"""Who takes part: joining, presence, readiness, and the messages of those who joined.

The session pumps the hub's events; what concerns a runner goes to its inbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, Reason, RemoteProtocolError
from lightsecagg.identity import Roster
from lightsecagg.managers.inbox import (
    GRACE,
    Client,
    ClientEvent,
    FromClient,
    Inbox,
    KeyPublished,
    Status,
    StatusChanged,
)
from lightsecagg.managers.newcomers import Newcomers
from lightsecagg.managers.outbox import OnArrival, Outbox
from lightsecagg.managers.relay import Relay
from lightsecagg.managers.scheme import Free
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.joining import JoiningRefusedError, ServerJoining, refusal, welcome
from lightsecagg.protocol.terms import Run, is_signed
from lightsecagg.protocol.wire import encode, from_client
from lightsecagg.sealing import is_round_key
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking.events import ClientJoined, ClientLost, Tracker

_PATIENCE = 0.5  # seconds in which a connection that is turned away may take the reason

_LEAST_UNDER_WAY = 4 * comm.MAX_FRAME  # between clients: less would be one after the other


log = logging.getLogger(__name__)


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
        permanent_slots: whether a rank belongs to the first identity that joins under it, for the whole run.
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
    permanent_slots: bool
    tracker: Tracker
    spans: Spans = no_spans
    clients: dict[int, Client] = field(default_factory=dict)
    inbox: Inbox | None = None
    """Of the runner that runs; between rounds late messages are dropped."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _ranks: dict[int, int] = field(default_factory=dict)
    _owners: dict[int, bytes] = field(default_factory=dict)
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
        self._newcomers = Newcomers(
            self.hub,
            self.worker_num,
            lambda: ServerJoining(self.run, self.worker_num, self.agreed, self.layout, self.roster),
            self.authenticated_as,
            self._admit,
            lambda peer, reason: self._spawn(self.hub.close_peer(peer, reason, _PATIENCE)),
            self.tracker,
        )

    async def pump(self) -> None:
        """Take the hub's events for ever."""
        while True:
            event = await self.hub.receive(holds_credit=True)
            match event:
                case comm.Arrived():
                    self._newcomers.arrived(event)
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

    def done_with(self, events: Iterable[ClientEvent]) -> None:
        """Give the senders of the messages among these their credit."""
        for event in events:
            if isinstance(event, FromClient | KeyPublished):
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
        self._newcomers.close()
        self._relay.close()
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    def _payload(self, peer: int, data: bytes | memoryview) -> bool:
        """Act on a message; whether the runner has it, and holds its sender's credit."""
        if peer in self._newcomers:
            self._newcomers.hello(peer, data)
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
                return self._take_key(client, message, data)
            case m.PlainReady() if not self.secure:
                return self._set_free(client, Free(None), data)
            case m.FinishAcknowledged() if self.is_over:
                client.knows_end = True
            case m.Hello() | m.RoundKeyMessage() | m.PlainReady() | m.FinishAcknowledged():
                self.expel(client, Reason.PROTOCOL_VIOLATION)
            case _ if self.inbox is not None:
                return self.inbox.put(FromClient(client, data))
            case _:
                pass  # anything of an ended round is late
        return False

    def _admit(self, peer: int, rank: int, identity: bytes) -> None:
        if self.is_over:
            raise JoiningRefusedError(Reason.RUN_OVER)
        if identity in self._refused:
            raise JoiningRefusedError(Reason.REFUSED_FOR_RUN, self._refused[identity].value)
        if self.permanent_slots:
            self._check_slot(rank, identity)
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

    def _check_slot(self, rank: int, identity: bytes) -> None:
        """Whoever came back as another client would meet shares that were dealt to the one before."""
        if self._owners.get(rank, identity) != identity:
            raise JoiningRefusedError(
                Reason.RANK_TAKEN,
                f"rank {rank} belongs to another identity for this run (slots are permanent): take a free "
                "rank, or start with that identity's key",
            )
        own = [slot for slot, owner in self._owners.items() if owner == identity and slot != rank]
        if own:
            raise JoiningRefusedError(
                Reason.RANK_TAKEN,
                f"this identity is rank {own[0]} for this run (slots are permanent): start as that rank, or "
                "take another identity",
            )

    def _take_key(self, client: Client, message: m.RoundKeyMessage, data: bytes | memoryview) -> bool:
        member = m.Member(client.rank, client.identity, message.sequence, message.key, message.signature)
        if (
            message.sequence <= client.sequence
            or not is_signed(member, self.run)
            or not is_round_key(message.key)
        ):
            self.expel(client, Reason.BAD_SIGNATURE)
            return False
        client.sequence = message.sequence
        return self._set_free(client, Free(member), data)

    def _set_free(self, client: Client, free: Free, data: bytes | memoryview) -> bool:
        """The client may take part: a runner that hears of keys takes it, or else it waits to be drawn.

        Its slot is its own from here on, and not from joining: who never takes part keeps nobody out.
        """
        self._owners.setdefault(client.rank, client.identity)
        if self.inbox is not None and self.inbox.put(KeyPublished(client, free, data)):
            return True
        client.free = free
        return False

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
        self._newcomers.forget(peer)
        rank = self._ranks.get(peer)
        if rank is not None:
            if (sender := self.clients[rank].sender) is not None:
                sender.cancel()
            known = Reason(reason) if reason in set(Reason) else Reason.LINK_LOST
            self._lost(self.clients[rank], known)

    def _lost(self, client: Client, reason: Reason) -> None:
        """The client is gone for good: the runner hears of it, or people do."""
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
