"""One round's clock: it feeds a machine with messages and deadlines, and carries out what that asks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from lightsecagg.errors import AbortReason, Reason, RoundAborted
from lightsecagg.managers.inbox import GRACE, Client, FromClient, Inbox, RoundEvent, Status, StatusChanged
from lightsecagg.managers.session import Session
from lightsecagg.managers.turns import Done, Turns
from lightsecagg.protocol.actions import (
    Aborted,
    Action,
    ClientDropped,
    Finished,
    Ready,
    Send,
    StageReached,
    Stream,
    UploadCompleted,
    What,
)
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.transitions import ServerStage
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking.events import ClientLost, PhaseStarted, Tracker, UploadDone

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


_TRANSFERS = 4
"""Clients to which the model is on its way at a time: frames of it are made and kept for each of them."""

_TURN = 1.0
"""Seconds after which the next client's transfer begins beside one that is not at its end."""


class RoundRunner:
    """Runs one round to its end. One object, one round, one event loop.

    Args:
        machine: the round.
        session: the clients.
        cohort: who takes part; client numbers are the places from 1.
        settings: the timeouts.
        tracker: is told what happens.
        executor: the one thread on which the machine runs.
        spans: is told what takes how long.
    """

    def __init__(
        self,
        machine: ServerMachine,
        session: Session,
        cohort: Sequence[Client],
        settings: Settings,
        tracker: Tracker,
        executor: Executor,
        spans: Spans = no_spans,
    ) -> None:
        self._machine = machine
        self._session = session
        self._cohort = cohort
        self._inbox = Inbox(cohort)
        self._numbers = {client: number for number, client in enumerate(cohort, start=1)}
        self._tracker = tracker
        self._executor = executor
        self._spans = spans
        self._slot_timeout = settings.secure_aggregation_args.slot_timeout
        given = settings.secure_aggregation_args
        self._timeouts = {
            ServerStage.SHARING: given.share_timeout,
            ServerStage.REPORTING: given.report_timeout,
            ServerStage.UPLOADING: given.upload_timeout,
            ServerStage.ENDORSING: given.recovery_timeout,
            ServerStage.RECOVERING: given.recovery_timeout,
        }
        self._stage_ends = float("inf")
        self._close_at = float("inf")
        self._turns = Turns(_TRANSFERS, _TURN)
        self._slots: dict[int, tuple[int, int, float]] = {}
        self._uploaded = 0
        self._lost: dict[Client, Reason] = {}
        self._is_over = False
        self._clock = time.monotonic()
        self._phase = ""
        self._traffic = {client: session.bytes_of(client) for client in cohort}
        self.seconds: dict[str, float] = {}
        """Wall time of each phase so far."""
        self.bytes: dict[str, float] = {}
        """Bytes on the wire in each phase so far, to and from a client, on average."""

    async def run(self) -> RoundResult:
        """Run the round.

        Raises:
            RoundAborted: it ended without a sum.
        """
        self._session.inbox = self._inbox
        try:
            await self._carry_out(await self._call(self._machine.start))
            await self._carry_out(await self._call(lambda: self._feed(self._absences())))
            while not self._is_over:
                await self._take(await self._next_events())
                await self._carry_out(await self._call(self._expire))
        except asyncio.CancelledError:
            # On the machine's own thread: a call of it may be under way there.
            await self._carry_out(await self._call(lambda: self._machine.abort(AbortReason.STOPPED)))
            raise
        finally:
            self._session.inbox = None
            self._turns.close()
            self._session.done_with(self._inbox.close())
            for client in self._cohort:
                client.outbox.drop_streams()
                client.outbox.drop_forwarded()
                if client.status is Status.GONE:  # as the round ended, perhaps
                    self._tell_lost(client, client.gone_because)
            self._enter("")
        return self._machine.finish()

    @property
    def losses(self) -> str:
        """Who was lost and why, for people; empty where nobody was."""
        return ", ".join(f"client {client.rank} {reason.value}" for client, reason in self._lost.items())

    def _absences(self) -> list[RoundEvent]:
        """Whoever broke off between the draw and the start."""
        return [
            StatusChanged(client, client.status) for client in self._cohort if client.status is not Status.UP
        ]

    async def _next_events(self) -> list[RoundEvent]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._next_wakeup() - time.monotonic())):
                await self._inbox.wait()
        return self._inbox.take()

    async def _take(self, events: Sequence[RoundEvent]) -> None:
        """Feed the machine; who sent what it passes on as it came gets credit when that has gone on."""
        waiting = {id(event.message): event for event in events if isinstance(event, FromClient)}
        try:
            await self._carry_out(await self._call(lambda: self._feed(events)), waiting)
        finally:
            self._session.done_with(waiting.values())

    def _feed(self, events: Sequence[RoundEvent]) -> list[Action]:
        actions: list[Action] = []
        for event in events:
            number = self._numbers[event.client]
            if isinstance(event, FromClient):
                with self._spans("receive"):
                    actions += self._machine.receive(number, event.message)
            elif event.status is Status.AWAY:
                actions += self._machine.away(number)
            elif event.status is Status.UP:
                actions += self._machine.back(number)
            else:
                actions += self._machine.lose(number, event.client.gone_because)
        return actions

    def _next_wakeup(self) -> float:
        times = [self._stage_ends, self._close_at]
        if self._machine.uploads_wait:
            times += [since + self._slot_timeout for _, _, since in self._slots.values()]
        return min(times)

    def _expire(self) -> list[Action]:
        """What the clock alone brings about."""
        now = time.monotonic()
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
        if now >= self._close_at:
            self._close_at = float("inf")
            if self._machine.can_close:
                return actions + self._machine.deadline()
        if now >= self._stage_ends:
            self._stage_ends = float("inf")
            actions += self._machine.deadline()
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
                    self._session.forward(waiting.pop(id(message)), self._cohort[to - 1])
                case Send(to, message):
                    self._cohort[to - 1].outbox.put(message)
                case Stream(to, sends):
                    self._turns.take(partial(_transfer, self._cohort[to - 1], sends))
                case StageReached(stage):
                    self._reached(ServerStage(stage))
                case ClientDropped(number, reason, left):
                    self._dropped(self._cohort[number - 1], reason, left)
                case UploadCompleted(number):
                    self._uploaded += 1
                    self._tracker.emit(
                        UploadDone(
                            round=self._machine.round_number,
                            rank=self._cohort[number - 1].rank,
                            done=self._uploaded,
                            of=len(self._machine.survivors | self._machine.missing),
                        )
                    )
                case Ready(What.FREEZE):
                    if self._machine.can_freeze:
                        todo.extend(await self._call(self._machine.freeze))
                case Ready(What.CLOSE):
                    self._close_at = self._grace_ends()
                case Ready(What.DECODE):
                    self._enter("decoding")
                    todo.extend(await self._call(self._decode))
                case Finished() | Aborted():
                    self._is_over = True
                case _:
                    pass

    def _decode(self) -> list[Action]:
        with contextlib.suppress(RoundAborted):  # `run` raises it again, once the clients were told
            self._machine.finish()
        return self._machine.end()

    def _grace_ends(self) -> float:
        missing = [self._cohort[number - 1] for number in self._machine.missing]
        return max((client.changed_at + GRACE for client in missing), default=0.0)

    def _reached(self, stage: ServerStage) -> None:
        if stage in (ServerStage.ENDORSING, ServerStage.COUNTING):
            self._tell_who_is_left_out()
        self._close_at = float("inf")
        self._stage_ends = time.monotonic() + self._timeouts.get(stage, float("inf"))
        if stage in self._timeouts:
            self._enter(stage.value)

    def _passed_bytes(self) -> int:
        """Bytes of all clients since the last call; one that is gone has no count any more, and adds none."""
        before = sum(self._traffic.values())
        for client in self._cohort:
            self._traffic[client] = max(self._traffic[client], self._session.bytes_of(client))
        return sum(self._traffic.values()) - before

    def _tell_who_is_left_out(self) -> None:
        """The survivor set is fixed: whoever is not in it is lost for this round."""
        for number, client in enumerate(self._cohort, start=1):
            if number in self._machine.survivors:
                continue
            if number in self._machine.unconfirmed:
                self._tell_lost(client, Reason.UNCONFIRMED)
            else:
                self._tell_lost(client, Reason.LATE if client.status is Status.UP else Reason.AWAY)

    def _tell_lost(self, client: Client, reason: Reason) -> None:
        """Tell people once a round, and once for good, that a client is lost."""
        if client in self._lost or client.loss_is_told:
            return
        self._lost[client] = reason
        client.loss_is_told = client.status is Status.GONE
        client.absence_is_told = client.status is Status.AWAY
        number, phase = self._machine.round_number, self._phase or None
        self._tracker.emit(ClientLost(rank=client.rank, reason=reason.value, round=number, phase=phase))

    def _enter(self, phase: str) -> None:
        now = time.monotonic()
        passed = self._passed_bytes()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._clock
            self.bytes[self._phase] = self.bytes.get(self._phase, 0.0) + passed / len(self._cohort)
        self._clock, self._phase = now, phase
        if phase:
            self._tracker.emit(PhaseStarted(round=self._machine.round_number, phase=phase))

    def _dropped(self, client: Client, reason: Reason, left: bool) -> None:
        self._tell_lost(client, reason)
        # What a client says of its own leaving is about the server's messages, unless it is about itself.
        if reason in (_OWN_TERMS if left else _HOSTILE):
            self._session.expel(client, reason)


def _transfer(client: Client, sends: Iterator[Send], done: Done) -> None:
    """Send a long output to a client; it is done when the last message of it has arrived."""
    messages = arrived = 0
    is_whole = False

    def count() -> Iterator[Send]:
        nonlocal messages, is_whole
        for send in sends:
            messages += 1
            yield send
        is_whole = True
        end_if_there()

    def note() -> None:
        nonlocal arrived
        arrived += 1
        end_if_there()

    def end_if_there() -> None:
        if is_whole and arrived == messages:
            done()

    client.outbox.stream(count(), on_arrival=note)
