"""A run in a few rows: gathers events, and says at the end what came out, at what cost, and where it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from statistics import fmean

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    Evaluated,
    Event,
    RoundAborted,
    RoundCompleted,
    RunFinished,
    RunStarted,
    Tracker,
    UpdateRefused,
)
from lightsecagg.tracking.wording import duration, loss_of, percent, printable, ranks, size, unit_of

_MOST_LOSSES = 20


class Summary(Tracker):
    """What a run amounts to so far.

    Attributes:
        started, finished: how the run began and ended; None until then.
        completed, aborted: the rounds or lists, in order.
        losses: clients lost, in order; one may be lost in several rounds.
        joined: who took part, if only for a while.
        refusals: how often an update was refused, by reason.
        accuracy: of the global model after a round or version, where it was evaluated.
    """

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.finished: RunFinished | None = None
        self.completed: list[RoundCompleted] = []
        self.aborted: list[RoundAborted] = []
        self.losses: list[ClientLost] = []
        self.joined: set[int] = set()
        self.refusals: Counter[str] = Counter()
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
            case ClientJoined():
                self.joined.add(event.rank)
            case ClientLost():
                self.losses.append(event)
            case UpdateRefused():
                self.refusals[event.reason] += 1
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
        """Mean bytes to and from a client in a round or version that completed."""
        return fmean(event.bytes_per_client for event in self.completed) if self.completed else None

    @property
    def seconds_per_phase(self) -> dict[str, float]:
        """Mean wall time of each phase over what completed, in the order of the phases."""
        phases = dict.fromkeys(phase for event in self.completed for phase in event.seconds)
        return {
            phase: fmean(event.seconds[phase] for event in self.completed if phase in event.seconds)
            for phase in phases
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and text, for what is known; what this side of the run cannot know has no row."""
        makers: tuple[Callable[[], list[tuple[str, str]]], ...] = (
            self._ending,
            self._result,
            self._cost,
            self._averages,
            self._losses,
            self._places,
        )
        rows = [row for make in makers for row in make()]
        return [(label, printable(text)) for label, text in rows]

    def _ending(self) -> list[tuple[str, str]]:
        if self.finished is None:
            return []
        reason = f": {self.finished.reason}" if self.finished.reason else ""
        return [("outcome", f"{self.finished.outcome}{reason} after {duration(self.finished.seconds)}")]

    def _result(self) -> list[tuple[str, str]]:
        completed = self.finished.rounds if self.finished else len(self.completed)
        aborted = self.finished.aborted if self.finished else len(self.aborted)
        unit = unit_of(self.started)
        reasons = ", ".join(f"{unit} {event.round} {event.reason}" for event in self.aborted[:_MOST_LOSSES])
        failures = "aborted" if unit == "round" else "list failed" if aborted == 1 else "lists failed"
        text = f"{completed} {'delivered' if unit == 'upload' else 'completed'}"
        text += f", {aborted} {failures}" if aborted else ""
        rows = [(f"{unit}s", f"{text} ({reasons})" if reasons else text)]
        if self.final_accuracy is not None:
            rows.append(("accuracy", percent(self.final_accuracy)))
        return rows

    def _cost(self) -> list[tuple[str, str]]:
        if self.bytes_per_client is None:
            return []
        unit = unit_of(self.started)
        phases = [f"{phase} {duration(seconds)}" for phase, seconds in self.seconds_per_phase.items()]
        return [
            (f"bytes per client and {unit}", size(self.bytes_per_client)),
            (f"time per phase and {unit}", ", ".join(phases) or "-"),
        ]

    def _averages(self) -> list[tuple[str, str]]:
        """Whose updates were used: a round has one of each client, a list what came first."""
        if unit_of(self.started) != "round":
            return self._updates()
        if not self.completed:
            return []
        always = set.intersection(*(set(event.survivors) for event in self.completed))
        return [("in every average", f"clients {ranks(always)}")]

    def _updates(self) -> list[tuple[str, str]]:
        rows = []
        if self.completed:
            used = Counter(rank for event in self.completed for rank in event.survivors)
            fewest, most = min(used.values()), max(used.values())
            each = f"{fewest} to {most}" if fewest < most else f"{most}"
            never = self.joined - used.keys()
            others = f", none of clients {ranks(never)}" if never else ""
            rows.append(("updates used", f"{used.total()} of clients {ranks(used)}, {each} of each{others}"))
            ages = [age for event in self.completed for age in event.staleness or ()]
            rows.append(("staleness", f"{fmean(ages):.1f} on average, {max(ages)} at most"))
        if self.completed or self.refusals:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.refusals.items()))
            rows.append(("updates refused", counts or "none"))
        return rows

    def _losses(self) -> list[tuple[str, str]]:
        rows = []
        for event in self.losses[:_MOST_LOSSES]:
            where = f"{unit_of(self.started)} {event.round}, " if event.round is not None else ""
            rows.append(("lost", f"{where}{loss_of(event)}"))
        if len(self.losses) > _MOST_LOSSES:
            rows.append(("lost", f"and {len(self.losses) - _MOST_LOSSES} more, in the log"))
        return rows

    def _places(self) -> list[tuple[str, str]]:
        if self.started is None:
            return []
        places = (("model", self.started.model_path), ("log", self.started.log_path))
        return [(label, path) for label, path in places if path]
