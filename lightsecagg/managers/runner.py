"""The clock beside a machine: it feeds it with messages and deadlines, and carries out what that asks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Generic, Protocol, TypeVar

from lightsecagg.errors import Reason
from lightsecagg.managers.inbox import Client, ClientEvent, FromClient, Inbox, Status, StatusChanged
from lightsecagg.managers.session import Session
from lightsecagg.managers.transfers import Transfers
from lightsecagg.protocol.actions import Action, ClientDropped, Send, StageReached, Stream
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking.events import ClientLost, PhaseStarted, Tracker

_T = TypeVar("_T")

_OWN_TERMS = frozenset({Reason.BELOW_FLOOR, Reason.TERMS_DIFFER})
"""Reasons for which a client would leave every round of this run: it is not asked again."""

_HOSTILE = frozenset(
    {
        Reason.PROTOCOL_VIOLATION,
        Reason.MALFORMED,
        Reason.BAD_LENGTH,
        Reason.BAD_ELEMENT,
        Reason.BAD_SIGNATURE,
    }
)
"""Reasons that no honest client gives cause for: its sender is turned away."""


class Machine(Protocol):
    """What a runner asks of its machine, whichever way the run goes; see ``ServerMachine``."""

    @property
    def slot_holders(self) -> dict[int, tuple[int, int]]: ...

    @property
    def uploads_wait(self) -> bool: ...

    def receive(self, number: int, message: bytes | memoryview) -> list[Action]: ...

    def away(self, number: int) -> list[Action]: ...

    def back(self, number: int) -> list[Action]: ...

    def lose(self, number: int, reason: Reason) -> list[Action]: ...

    def revoke(self, number: int) -> list[Action]: ...

    def deadline(self) -> list[Action]: ...


_Machine = TypeVar("_Machine", bound=Machine)


class Runner(ABC, Generic[_Machine]):
    """Runs a machine; every call of it is made on one thread. One object, one machine, one event loop.

    Args:
        machine: who says what is to be done.
        session: the clients.
        inbox: what this runner hears of them.
        settings: the timeouts.
        tracker: is told what happens.
        executor: the one thread on which the machine runs.
        spans: is told what takes how long.
    """

    def __init__(
        self,
        machine: _Machine,
        session: Session,
        inbox: Inbox,
        settings: Settings,
        tracker: Tracker,
        executor: Executor,
        spans: Spans = no_spans,
    ) -> None:
        self._machine = machine
        self._session = session
        self._inbox = inbox
        self._tracker = tracker
        self._executor = executor
        self._spans = spans
        self._slot_timeout = settings.secure_aggregation_args.slot_timeout
        self._stage_ends = float("inf")
        self._transfers = Transfers()
        self._slots: dict[int, tuple[int, int, float]] = {}
        self._lost: dict[Client, Reason] = {}
        self._clock = time.monotonic()
        self._phase = ""
        self._traffic: dict[Client, int] = {}
        self.seconds: dict[str, float] = {}
        """Wall time of each phase so far."""
        self.bytes: dict[str, float] = {}
        """Bytes on the wire in each phase so far, to and from a client, on average."""

    @property
    def losses(self) -> str:
        """Who is lost and why, for people; empty where nobody is."""
        return ", ".join(f"client {client.rank} {reason.value}" for client, reason in self._lost.items())

    @property
    @abstractmethod
    def _round_number(self) -> int:
        """The number under which people are told what happens."""

    @abstractmethod
    def _number_of(self, client: Client) -> int | None:
        """The client's number; None for one that the machine does not know, or no longer."""

    @abstractmethod
    def _client_of(self, number: int) -> Client:
        """Who has this number."""

    @abstractmethod
    def _reached(self, stage: str) -> None:
        """Set the timers of a new stage."""

    @abstractmethod
    async def _act(self, action: Action, later: Sequence[Action]) -> Sequence[Action]:
        """Carry out what only this way of running has.

        Args:
            action: what is to be done.
            later: what the machine asked after it, and has done its part of already.

        Returns:
            what the machine asks further.
        """

    async def _next_events(self) -> list[ClientEvent]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._next_wakeup() - time.monotonic())):
                await self._inbox.wait()
        return self._inbox.take()

    async def _take(self, heard: Sequence[ClientEvent]) -> None:
        """Feed the machine; who sent what it passes on as it came gets credit when that has gone on."""
        waiting = {id(event.message): event for event in heard if isinstance(event, FromClient)}
        try:
            await self._carry_out(await self._call(lambda: self._feed(heard)), waiting)
        finally:
            self._session.done_with(waiting.values())

    def _feed(self, events: Iterable[ClientEvent]) -> list[Action]:
        return [action for event in events for action in self._feed_one(event)]

    def _feed_one(self, event: ClientEvent) -> list[Action]:
        number = self._number_of(event.client)
        if number is None:
            return []
        match event:
            case FromClient():
                with self._spans("receive"):
                    return self._machine.receive(number, event.message)
            case StatusChanged(_, Status.AWAY):
                return self._machine.away(number)
            case StatusChanged(_, Status.UP):
                return self._machine.back(number)
            case StatusChanged(client, Status.GONE):
                return self._machine.lose(number, client.gone_because)
            case _:
                return []

    def _next_wakeup(self) -> float:
        times = [self._stage_ends]
        if self._machine.uploads_wait:
            times += [since + self._slot_timeout for _, _, since in self._slots.values()]
        return min(times)

    def _expire(self) -> list[Action]:
        """What the clock alone brings about."""
        now = time.monotonic()
        actions = self._revoke_idle_slots(now)
        if now >= self._stage_ends:
            self._stage_ends = float("inf")
            actions += self._machine.deadline()
        return actions

    def _revoke_idle_slots(self, now: float) -> list[Action]:
        actions: list[Action] = []
        progress: dict[int, tuple[int, int, float]] = {}
        for number, (grant, parts) in self._machine.slot_holders.items():
            seen = self._slots.get(number)
            progress[number] = seen if seen and seen[:2] == (grant, parts) else (grant, parts, now)
        self._slots = progress
        if self._machine.uploads_wait:
            for number, (_, _, since) in progress.items():
                if now - since >= self._slot_timeout:
                    actions += self._machine.revoke(number)
        return actions

    async def _call(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _carry_out(
        self, actions: Sequence[Action], waiting: dict[int, FromClient] | None = None
    ) -> None:
        """Do what the machine asks.

        Args:
            waiting: messages that it was fed, by identity; those that are passed on are taken out.
        """
        todo = deque(actions)
        while todo:
            match todo.popleft():
                case Send(to, message) if waiting and id(message) in waiting:
                    self._session.forward(waiting.pop(id(message)), self._client_of(to))
                case Send(to, message):
                    self._client_of(to).outbox.put(message)
                case Stream(to, sends):
                    self._transfers.send(self._client_of(to), sends)
                case StageReached(stage):
                    self._reached(stage)
                case ClientDropped(number, reason, left):
                    self._dropped(self._client_of(number), reason, left)
                case action:
                    todo.extend(await self._act(action, todo))

    def _dropped(self, client: Client, reason: Reason, left: bool) -> None:
        self._transfers.stop(client)
        self._tell_lost(client, reason)
        # What a client says of its own leaving is about the server's messages, unless it is about itself.
        if reason in (_OWN_TERMS if left else _HOSTILE):
            client.loss_is_told = True
            self._session.expel(client, reason)

    def _tell_lost(self, client: Client, reason: Reason) -> None:
        """Tell people that a client is lost, unless they know."""
        if client in self._lost or client.loss_is_told:
            return
        self._lost[client] = reason
        client.loss_is_told = client.status is Status.GONE
        client.absence_is_told = client.status is Status.AWAY
        phase = self._phase or None
        self._tracker.emit(
            ClientLost(rank=client.rank, reason=reason.value, round=self._round_number, phase=phase)
        )

    def _count_traffic(self, clients: Iterable[Client]) -> None:
        """Count the bytes of these clients from now on."""
        self._traffic |= {client: self._session.bytes_of(client) for client in clients}

    def _passed_bytes(self) -> int:
        """Bytes of all clients since the last call; one that is gone has no count any more, and adds none."""
        before = sum(self._traffic.values())
        for client in self._traffic:
            self._traffic[client] = max(self._traffic[client], self._session.bytes_of(client))
        return sum(self._traffic.values()) - before

    def _enter(self, phase: str) -> None:
        now = time.monotonic()
        passed = self._passed_bytes()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._clock
            self.bytes[self._phase] = self.bytes.get(self._phase, 0.0) + passed / max(1, len(self._traffic))
        self._clock, self._phase = now, phase
        if phase:
            self._tracker.emit(PhaseStarted(round=self._round_number, phase=phase))
