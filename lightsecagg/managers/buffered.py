"""The asynchronous way to run: one machine for the whole run, versions of the model instead of rounds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

from lightsecagg.errors import AbortReason, Reason, RoundAborted, RunStopped
from lightsecagg.managers.context import ServerContext
from lightsecagg.managers.evaluation import Evaluations
from lightsecagg.managers.inbox import Client, ClientEvent, Inbox, KeyPublished, Status, StatusChanged
from lightsecagg.managers.runner import Runner
from lightsecagg.managers.scheme import Free
from lightsecagg.protocol.actions import Aborted, Action, Ready, UpdateRefused, UploadCompleted, What
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.tracking import events

_UNUSED = 3  # updates of one client in a row, after which people are told what to change
_REMEDIES = {
    Reason.STALE: "more versions behind than secure_aggregation_args.max_staleness; raise it, or buffer_size",
    Reason.CROWDED_OUT: "no list had a place for them; raise secure_aggregation_args.buffer_size, or let "
    "staleness be constant",
}


class BufferedRun(Runner[BufferMachine]):
    """Runs the lists of one run, each of which makes a version. One object, one run, one event loop.

    A client's number is its rank, a slot for the whole run. Its holder is the process that published a key
    for it last; nothing else is heard of that rank, and nothing is sent to another.

    Raises:
        ConfigError: the settings do not make such a run.
    """

    def __init__(self, context: ServerContext) -> None:
        super().__init__(
            context.scheme.buffered_server(context.session.run, context.spans),
            context.session,
            Inbox(None),
            context.settings,
            context.tracker,
            context.machines,
            context.spans,
        )
        self._context = context
        given = context.settings.secure_aggregation_args
        self._recovery_timeout = given.recovery_timeout
        self._report_timeout = given.report_timeout
        self._upload_timeout = given.upload_timeout
        self._key_timeout = given.key_timeout
        self._holders: dict[int, Client] = {}
        self._keys: dict[int, bytes] = {}
        self._unheld: dict[int, tuple[int, float]] = {}
        self._came_in_at = float("inf")
        self._stalled_at = 0.0  # when the machine was told last that nothing comes in
        self._short_since = float("inf")
        self._is_waiting = False  # for clients that are away
        self._unused = Counter[int]()  # updates in a row, by client
        self._evaluations = Evaluations(context.model, context.tracker)

    @property
    def buffer_size(self) -> int:
        """Updates in a list."""
        return self._machine.buffer_size

    async def run(self) -> None:
        """Make all versions.

        Raises:
            RunStopped: too few clients are left, nothing comes in, or too many lists in a row failed.
        """
        self._session.inbox = self._inbox
        try:
            try:
                await self._open()
                while not self._context.is_complete:
                    await self._take(await self._next_events())
                    await self._carry_out(await self._call(self._expire))
                    self._tell_if_it_waits()
            except asyncio.CancelledError:
                await self._call(lambda: None)  # a model may be on its way to the disk
                raise
            finally:
                self._close()
            await self._evaluations.finish()
        finally:
            await self._evaluations.stop()

    def _close(self) -> None:
        """Hear nothing more, and send nothing that is only for this run."""
        self._session.inbox = None
        self._transfers.close()
        rest = self._inbox.close()
        self._session.done_with(rest)
        for client in (*self._holders.values(), *(event.client for event in rest)):
            client.outbox.drop_forwarded()
            if client.status is Status.GONE:
                self._tell_gone(client)

    @property
    def _round_number(self) -> int:
        return self._context.number

    def _number_of(self, client: Client) -> int | None:
        return client.rank if self._holders.get(client.rank) is client else None

    def _client_of(self, number: int) -> Client:
        return self._holders[number]

    async def _open(self) -> None:
        """Let those begin who published a key before this run heard of it, on the first version."""
        ready = [(client, client.free, client.status) for client in self._session.here()]
        for client, free, status in ready:
            if free is not None:
                client.free = None
                await self._occupy(client, free)
                if status is Status.AWAY:
                    away = partial(self._machine.away, client.rank)
                    await self._carry_out(await self._call(away))
        await self._carry_out(await self._begin_version())

    async def _take(self, heard: Sequence[ClientEvent]) -> None:
        """Feed the machine; what it asks for before a key comes goes to who held the slot before that."""
        todo = deque(heard)
        try:
            while todo and not self._context.is_complete:
                batch: list[ClientEvent] = []
                while todo and not isinstance(todo[0], KeyPublished):
                    batch.append(todo.popleft())
                if batch:
                    await super()._take(batch)
                elif isinstance(published := todo[0], KeyPublished):
                    # The last word of one that is gone is still to come: it does not take part again.
                    if published.client.status is not Status.GONE:
                        await self._occupy(published.client, published.free)
                    self._session.done_with([todo.popleft()])
        finally:
            self._session.done_with(todo)
        for event in heard:
            if isinstance(event, StatusChanged) and event.status is Status.GONE:
                self._tell_gone(event.client)

    async def _occupy(self, client: Client, free: Free) -> None:
        """The client has its rank's slot from now on, with this key."""
        rank, member = client.rank, free.member
        if (twin := self._twin_of(rank, free)) is not None:
            self._context.warn(
                f"client {rank} published the key of client {twin}: it takes no part until it has its own"
            )
            return
        if (former := self._holders.get(rank)) is not None:
            self._transfers.stop(former)
        self._holders[rank] = client
        if member is not None:
            self._keys[rank] = member.key
        if client not in self._traffic:
            self._count_traffic([client])
        self._forget_loss(rank)  # it takes part again
        await self._carry_out(await self._call(lambda: self._machine.free(rank, member)))

    def _twin_of(self, rank: int, free: Free) -> int | None:
        """Who has the same key: everybody would leave a cohort in which it stands twice."""
        for number, key in self._keys.items():
            if number != rank and free.member is not None and free.member.key == key:
                return number
        return None

    def _next_wakeup(self) -> float:
        times = [super()._next_wakeup(), self._short_since + self._key_timeout]
        times += [since + self._report_timeout for _, since in self._unheld.values()]
        if self._machine.stage is BufferStage.COLLECTING:
            times += [self._came_in_at + self._upload_timeout, self._stalled_until]
        return min(times)

    def _expire(self) -> list[Action]:
        actions = super()._expire()
        now = time.monotonic()
        came_in = [since for _, parts, since in self._slots.values() if parts]
        self._came_in_at = max([self._came_in_at, *came_in])
        self._check_that_it_goes_on(now)
        return actions + self._give_up_unheld(now) + self._tell_stalled(now)

    def _check_that_it_goes_on(self, now: float) -> None:
        alive, needed = len(self._machine.alive), self._machine.needed
        self._short_since = min(self._short_since, now) if alive < needed else float("inf")
        if now >= self._short_since + self._key_timeout:
            losses = f" ({self.losses})" if self.losses else ""
            raise RunStopped(
                f"{alive} clients are left; at least {needed} are needed{losses}, and no other came within "
                f"{self._key_timeout:g} s (secure_aggregation_args.key_timeout)"
            )
        if self._machine.stage is not BufferStage.COLLECTING:
            self._came_in_at = now
        if now >= self._came_in_at + self._upload_timeout:
            raise RunStopped(
                f"no part of an update came in for {self._upload_timeout:g} s "
                f"(secure_aggregation_args.upload_timeout); {self._machine.buffered} of "
                f"{self._machine.buffer_size} updates are in the buffer"
            )

    def _tell_if_it_waits(self) -> None:
        """Say at once who is away where nothing goes on without them; of others the next version tells."""
        there = sum(client.status is Status.UP for client in self._holders.values())
        needed = self._machine.needed
        was_waiting, self._is_waiting = self._is_waiting, there < min(needed, len(self._holders))
        if self._is_waiting and not was_waiting:
            self._context.tell_who_is_away()
            self._tracker.emit(
                events.Notice(
                    text=f"{there} clients are there, and {needed} are needed: waiting for the others",
                    level="warning",
                )
            )

    @property
    def _stalled_until(self) -> float:
        return max(self._came_in_at, self._stalled_at) + self._report_timeout

    def _tell_stalled(self, now: float) -> list[Action]:
        """Now and then, while nothing comes in: what waits for others may wait in vain."""
        if self._machine.stage is not BufferStage.COLLECTING or now < self._stalled_until:
            return []
        self._stalled_at = now
        return self._machine.stalled()

    def _give_up_unheld(self, now: float) -> list[Action]:
        """Updates that wait for holders, for too long."""
        actions: list[Action] = []
        waiting: dict[int, tuple[int, float]] = {}
        for number, upload in self._machine.unheld.items():
            seen = self._unheld.get(number)
            waiting[number] = seen if seen and seen[0] == upload else (upload, now)
            if now - waiting[number][1] >= self._report_timeout:
                actions += self._machine.give_up(number)
        self._unheld = waiting
        return actions

    async def _act(self, action: Action, later: Sequence[Action]) -> Sequence[Action]:
        if self._context.is_complete:
            return ()
        match action:
            case UploadCompleted(number):
                self._transfers.stop(self._client_of(number))
                self._came_in_at = time.monotonic()
                done = self._machine.buffered - sum(isinstance(other, UploadCompleted) for other in later)
                self._tracker.emit(
                    events.UploadDone(
                        round=self._round_number, rank=number, done=done, of=self._machine.buffer_size
                    )
                )
            case UpdateRefused(number, reason):  # of an older upload, perhaps, than the one under way
                self._tracker.emit(
                    events.UpdateRefused(rank=number, reason=reason.value, round=self._round_number)
                )
                self._count_unused(number, reason)
            case Ready(What.FREEZE):
                return await self._freeze()
            case Ready(What.DECODE):
                return await self._make_version() if self._machine.can_decode else ()
            case Aborted(reason, is_lesson):
                self._list_failed(reason, is_lesson)
            case _:
                pass
        return ()

    def _count_unused(self, number: int, reason: Reason) -> None:
        self._unused[number] += 1
        if self._unused[number] >= _UNUSED and reason in _REMEDIES:
            self._context.warn(
                f"{_UNUSED} updates in a row of client {number} were not used: {_REMEDIES[reason]}"
            )

    async def _freeze(self) -> Sequence[Action]:
        return await self._call(self._machine.freeze) if self._machine.can_freeze else ()

    async def _make_version(self) -> Sequence[Action]:
        """Decode the list, and make the next version of it."""
        context = self._context
        self._enter("decoding")
        try:
            result = await self._call(self._decode)
        except RoundAborted as error:
            reason = error.reason
            return await self._call(lambda: self._machine.abort(reason))
        self._enter("")
        for entry in result.entries:
            self._unused.pop(entry.client, None)
        context.complete(
            events.RoundCompleted(
                round=self._round_number,
                survivors=tuple(entry.client for entry in result.entries),
                staleness=tuple(entry.staleness for entry in result.entries),
                seconds=self.seconds,
                bytes_per_client=sum(self.bytes.values()),
                bytes_by_phase=self.bytes,
            )
        )
        self._start_counting_anew()
        number = self._round_number
        actions = () if context.is_complete else await self._begin_version()
        if context.is_evaluation_due:
            self._evaluations.add(number)
        return actions

    def _decode(self) -> ListResult:
        result = self._machine.finish()
        self._context.model.take_over(result.mean)
        return result

    async def _begin_version(self) -> Sequence[Action]:
        """Publish the model as it is now; what the machine asks."""
        context = self._context
        context.number += 1

        def publish() -> list[Action]:
            context.folder.store_round(context.number)
            return self._machine.publish(context.model.dump())

        actions = await self._call(publish)
        context.tell_who_is_away()
        self._begin_collecting()
        return actions

    def _list_failed(self, reason: AbortReason, is_lesson: bool) -> None:
        self._context.abort(reason, self.losses, is_lesson=is_lesson)
        self._begin_collecting()

    def _begin_collecting(self) -> None:
        alive = self._machine.alive
        cohort = [n for n, client in self._holders.items() if n in alive and client.status is Status.UP]
        self._context.announce_round(tuple(sorted(cohort)), self._context.planned)
        self._enter(BufferStage.COLLECTING.value)
        self._stage_ends, self._came_in_at = float("inf"), time.monotonic()

    def _start_counting_anew(self) -> None:
        """For the next version."""
        self.seconds, self.bytes = {}, {}
        self._traffic = {
            client: size for client, size in self._traffic.items() if client.status is not Status.GONE
        }

    def _reached(self, stage: str) -> None:
        is_timed = stage in (BufferStage.ENDORSING, BufferStage.RECOVERING)
        self._stage_ends = time.monotonic() + self._recovery_timeout if is_timed else float("inf")
        if is_timed:
            self._enter(stage)

    def _dropped(self, client: Client, reason: Reason, left: bool) -> None:
        client.outbox.drop_forwarded()  # it holds nothing any more
        super()._dropped(client, reason, left)

    def _tell_gone(self, client: Client) -> None:
        """Tell people that a client is gone for good, also one that never took part."""
        if client not in self._lost:
            self._forget_loss(client.rank)
            self._tell_lost(client, client.gone_because)
        client.loss_is_told = True

    def _forget_loss(self, rank: int) -> None:
        self._lost = {client: reason for client, reason in self._lost.items() if client.rank != rank}
