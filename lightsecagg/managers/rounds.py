"""One synchronous round's clock: its steps one after another, each with its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Executor

from lightsecagg.errors import AbortReason, Reason, RoundAborted
from lightsecagg.managers.inbox import GRACE, Client, ClientEvent, Inbox, Status, StatusChanged
from lightsecagg.managers.runner import Runner
from lightsecagg.managers.session import Session
from lightsecagg.protocol.actions import Aborted, Action, Finished, Ready, UploadCompleted, What
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.transitions import ServerStage
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking.events import Tracker, UploadDone


class RoundRunner(Runner[ServerMachine]):
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
        super().__init__(machine, session, Inbox(cohort), settings, tracker, executor, spans)
        self._cohort = cohort
        self._numbers = {client: number for number, client in enumerate(cohort, start=1)}
        given = settings.secure_aggregation_args
        self._timeouts = {
            ServerStage.SHARING: given.share_timeout,
            ServerStage.REPORTING: given.report_timeout,
            ServerStage.UPLOADING: given.upload_timeout,
            ServerStage.ENDORSING: given.recovery_timeout,
            ServerStage.RECOVERING: given.recovery_timeout,
        }
        self._close_at = float("inf")
        self._uploaded = 0
        self._is_over = False
        self._count_traffic(cohort)

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
            self._transfers.close()
            self._session.done_with(self._inbox.close())
            for client in self._cohort:
                client.outbox.drop_forwarded()
                if client.status is Status.GONE:  # as the round ended, perhaps
                    self._tell_lost(client, client.gone_because)
            self._enter("")
        return self._machine.finish()

    @property
    def _round_number(self) -> int:
        return self._machine.round_number

    def _number_of(self, client: Client) -> int | None:
        return self._numbers.get(client)

    def _client_of(self, number: int) -> Client:
        return self._cohort[number - 1]

    def _absences(self) -> list[ClientEvent]:
        """Whoever broke off between the draw and the start."""
        return [
            StatusChanged(client, client.status) for client in self._cohort if client.status is not Status.UP
        ]

    def _next_wakeup(self) -> float:
        return min(super()._next_wakeup(), self._close_at)

    def _expire(self) -> list[Action]:
        now = time.monotonic()
        if now >= self._close_at:
            self._close_at = float("inf")
            if self._machine.can_close:
                return self._revoke_idle_slots(now) + self._machine.deadline()
        return super()._expire()

    async def _act(self, action: Action, later: Sequence[Action]) -> Sequence[Action]:  # noqa: ARG002
        match action:
            case UploadCompleted(number):
                self._uploaded += 1
                self._tracker.emit(
                    UploadDone(
                        round=self._round_number,
                        rank=self._client_of(number).rank,
                        done=self._uploaded,
                        of=len(self._machine.survivors | self._machine.missing),
                    )
                )
            case Ready(What.FREEZE):
                if self._machine.can_freeze:
                    return await self._call(self._machine.freeze)
            case Ready(What.CLOSE):
                self._close_at = self._grace_ends()
            case Ready(What.DECODE):
                self._enter("decoding")
                return await self._call(self._decode)
            case Finished() | Aborted():
                self._is_over = True
            case _:
                pass
        return ()

    def _decode(self) -> list[Action]:
        with contextlib.suppress(RoundAborted):  # `run` raises it again, once the clients were told
            self._machine.finish()
        return self._machine.end()

    def _grace_ends(self) -> float:
        missing = [self._client_of(number) for number in self._machine.missing]
        return max((client.changed_at + GRACE for client in missing), default=0.0)

    def _reached(self, stage: str) -> None:
        reached = ServerStage(stage)
        if reached in (ServerStage.ENDORSING, ServerStage.COUNTING):
            self._tell_who_is_left_out()
        self._close_at = float("inf")
        self._stage_ends = time.monotonic() + self._timeouts.get(reached, float("inf"))
        if reached in self._timeouts:
            self._enter(reached.value)

    def _tell_who_is_left_out(self) -> None:
        """The survivor set is fixed: whoever is not in it is lost for this round."""
        for number, client in enumerate(self._cohort, start=1):
            if number in self._machine.survivors:
                continue
            if number in self._machine.unconfirmed:
                self._tell_lost(client, Reason.UNCONFIRMED)
            else:
                self._tell_lost(client, Reason.LATE if client.status is Status.UP else Reason.AWAY)
