"""A run in a few rows: gathers events, and says at the end what came out, at what cost, and where it lies."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from lightsecagg.tracking.events import (
    ClientLost,
    Evaluated,
    Event,
    RoundAborted,
    RoundCompleted,
    RunFinished,
    RunStarted,
    Tracker,
)
from lightsecagg.tracking.wording import duration, loss_of, percent, printable, ranks, size

_MOST_LOSSES = 20


class Summary(Tracker):
    """What a run amounts to so far.

    Attributes:
        started, finished: how the run began and ended; None until then.
        completed, aborted: the rounds, in order.
        losses: clients lost, in order; one may be lost in several rounds.
        accuracy: of the global model after a round, where it was evaluated.
    """

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.finished: RunFinished | None = None
        self.completed: list[RoundCompleted] = []
        self.aborted: list[RoundAborted] = []
        self.losses: list[ClientLost] = []
        self.accuracy: dict[int, float] = {}

    def emit(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.started = event
            case RunFinished():
                self.finished = event
            case RoundCompleted():
                self.completed.append(event)
            case RoundAborted():
                self.aborted.append(event)
            case ClientLost():
                self.losses.append(event)
            case Evaluated(round=number, accuracy=accuracy) if accuracy is not None:
                self.accuracy[number] = accuracy

    def close(self) -> None:
        """Nothing is held."""

    @property
    def final_accuracy(self) -> float | None:
        """The last accuracy there is."""
        if self.finished is not None and self.finished.accuracy is not None:
            return self.finished.accuracy
        return self.accuracy[max(self.accuracy)] if self.accuracy else None

    @property
    def bytes_per_client(self) -> float | None:
        """Mean bytes to and from a client in a round that completed."""
        return fmean(event.bytes_per_client for event in self.completed) if self.completed else None

    @property
    def seconds_per_phase(self) -> dict[str, float]:
        """Mean wall time of each phase over the rounds that completed, in the order of the phases."""
        phases = dict.fromkeys(phase for event in self.completed for phase in event.seconds)
        return {
            phase: fmean(event.seconds[phase] for event in self.completed if phase in event.seconds)
            for phase in phases
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and text, for what is known; what this side of the run cannot know has no row."""
        makers: tuple[Callable[[], list[tuple[str, str]]], ...] = (self._ending, self._result, self._cost)
        rows = [row for make in makers for row in make()] + self._clients() + self._places()
        return [(label, printable(text)) for label, text in rows]

    def _ending(self) -> list[tuple[str, str]]:
        if self.finished is None:
            return []
        reason = f": {self.finished.reason}" if self.finished.reason else ""
        return [("outcome", f"{self.finished.outcome}{reason} after {duration(self.finished.seconds)}")]

    def _result(self) -> list[tuple[str, str]]:
        completed = self.finished.rounds if self.finished else len(self.completed)
        aborted = self.finished.aborted if self.finished else len(self.aborted)
        reasons = ", ".join(f"round {event.round} {event.reason}" for event in self.aborted[:_MOST_LOSSES])
        text = f"{completed} completed" + (f", {aborted} aborted" if aborted else "")
        rows = [("rounds", f"{text} ({reasons})" if reasons else text)]
        if self.final_accuracy is not None:
            rows.append(("accuracy", percent(self.final_accuracy)))
        return rows

    def _cost(self) -> list[tuple[str, str]]:
        if self.bytes_per_client is None:
            return []
        phases = [f"{phase} {duration(seconds)}" for phase, seconds in self.seconds_per_phase.items()]
        return [
            ("bytes per client and round", size(self.bytes_per_client)),
            ("time per phase and round", ", ".join(phases) or "-"),
        ]

    def _clients(self) -> list[tuple[str, str]]:
        rows = []
        if self.completed:
            always = set.intersection(*(set(event.survivors) for event in self.completed))
            rows.append(("in every average", f"clients {ranks(always)}"))
        for event in self.losses[:_MOST_LOSSES]:
            where = f"round {event.round}, " if event.round is not None else ""
            rows.append(("lost", f"{where}{loss_of(event)}"))
        if len(self.losses) > _MOST_LOSSES:
            rows.append(("lost", f"and {len(self.losses) - _MOST_LOSSES} more, in the log"))
        return rows

    def _places(self) -> list[tuple[str, str]]:
        if self.started is None:
            return []
        places = (("model", self.started.model_path), ("log", self.started.log_path))
        return [(label, path) for label, path in places if path]
