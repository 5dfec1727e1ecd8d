"""What the parts of a server work with, and how far its run is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from lightsecagg.errors import AbortReason, Reason, RunStopped
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.global_model import GlobalModel
from lightsecagg.managers.inbox import Status
from lightsecagg.managers.scheme import Scheme
from lightsecagg.managers.session import Session
from lightsecagg.parameters import Parameters
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans
from lightsecagg.tracking import events

_T = TypeVar("_T")


@dataclass
class ServerContext:
    """One run at the server, whichever way it goes. Belongs to one event loop.

    Attributes:
        machines: the one thread on which machines run, and the model is changed.
        planned: N, U and T where all clients are there.
        number: that was announced last: of a round, or of the version that is being made.
        completed, aborted: how many rounds, or lists, ended so.
    """

    settings: Settings
    folder: RunFolder
    session: Session
    scheme: Scheme
    model: GlobalModel
    tracker: events.Tracker
    machines: Executor
    spans: Spans
    planned: Parameters
    number: int = 0
    completed: int = 0
    aborted: int = 0
    _aborts_in_a_row: int = 0
    _told: set[str] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        """Whether all rounds are done."""
        return self.completed >= self.settings.train_args.comm_round

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the model is to be measured after the round that was completed last."""
        return self.is_complete or self.completed % self.settings.validation_args.frequency_of_the_test == 0

    def complete(self, event: events.RoundCompleted) -> None:
        """The present round's mean is in the model."""
        self.completed += 1
        self._aborts_in_a_row = 0
        self.tracker.emit(event)

    def abort(self, reason: AbortReason, losses: str, *, is_lesson: bool = False) -> None:
        """The present round ended without a sum.

        Args:
            reason: why.
            losses: who was lost in it, for people.
            is_lesson: whether the next one goes without those who let it fail; then this one does not count
                against the run.

        Raises:
            RunStopped: it was one too many in a row.
        """
        self.aborted += 1
        self._aborts_in_a_row += not is_lesson
        self.tracker.emit(events.RoundAborted(round=self.number, reason=reason.value))
        if self._aborts_in_a_row >= self.settings.secure_aggregation_args.max_aborts:
            ended = "lists in a row failed" if self.settings.asynchronous else "rounds in a row were aborted"
            raise RunStopped(
                f"{self._aborts_in_a_row} {ended}, the last one with {reason.value}"
                f"{' (' + losses + ')' if losses else ''}"
            )

    def warn(self, *texts: str) -> None:
        """Say each of these once in the run."""
        for text in texts:
            if text not in self._told:
                self._told.add(text)
                self.tracker.emit(events.Notice(text=text, level="warning"))

    def warn_of(self, parameters: Parameters) -> None:
        """Say once what a choice of numbers does not give, also a new one because clients were lost."""
        if self.settings.secure:
            self.warn(*parameters.warnings())

    def tell_who_is_away(self) -> None:
        """Say of each absence once that a round begins without the client."""
        for client in self.session.here():
            if client.status is Status.AWAY and not client.absence_is_told:
                client.absence_is_told = True
                self.tracker.emit(events.ClientLost(rank=client.rank, reason=Reason.AWAY.value))

    def announce_round(self, cohort: tuple[int, ...], parameters: Parameters) -> None:
        """Say that the round, or the way to the next version, begins with these ranks."""
        self.warn_of(parameters)
        self.tracker.emit(
            events.RoundStarted(
                round=self.number,
                cohort=cohort,
                num_clients=parameters.num_clients,
                target_survivors=parameters.target_survivors,
                privacy_threshold=parameters.privacy_threshold,
            )
        )

    async def in_machine_thread(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, called where the machines run."""
        return await asyncio.get_running_loop().run_in_executor(self.machines, work)
