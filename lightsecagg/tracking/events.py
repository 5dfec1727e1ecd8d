"""What happens in a run, as values, and who is told of it.

No event has room for a secret, nor for one client's loss or sample count: those stay in that client's own
log. Clients are named by rank; reasons are the codes of ``lightsecagg.errors``.

An asynchronous run has no rounds: clients train at their own pace, and the server buffers their updates and
averages each full buffer, a *list*. There ``round`` is the *version* of the global model that the list makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A server or client is set up and about to listen or to connect.

    Attributes:
        role: "server", "client", or "run" for all in one process.
        secure: whether updates are masked.
        address: where the server listens, or where the client looks for it.
        buffer_size: updates in a list; None in a synchronous run.
    """

    run_id: str
    role: str
    num_clients: int
    target_survivors: int
    privacy_threshold: int
    address: str
    secure: bool
    model_path: str
    log_path: str
    buffer_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClientJoined:
    """A client has joined the run, or joined it anew."""

    rank: int


@dataclass(frozen=True, kw_only=True)
class ClientRefused:
    """Somebody who wanted to join was turned away; ``rank`` is None where it named none."""

    rank: int | None
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ClientLost:
    """A client is out of a round or of the run; ``round`` and ``phase`` are None between rounds."""

    rank: int
    reason: str
    round: int | None = None
    phase: str | None = None


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """A round was announced to ``cohort`` (ranks).

    In an asynchronous run: the buffer of the next version begins to fill, and ``cohort`` is there. After a
    ``RoundAborted`` it does so again for the same version.
    """

    round: int
    cohort: tuple[int, ...]
    num_clients: int
    target_survivors: int
    privacy_threshold: int


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """A step of the round begins: sharing, reporting, uploading, endorsing, recovering or decoding.

    In an asynchronous run: collecting, endorsing or recovering. What comes in after collecting is in the next
    list.
    """

    round: int
    phase: str


@dataclass(frozen=True, kw_only=True)
class UploadDone:
    """The update of ``rank`` is in: ``done`` of the ``of`` that may come, or that fill the buffer."""

    round: int
    rank: int
    done: int
    of: int


@dataclass(frozen=True, kw_only=True)
class UpdateRefused:
    """In an asynchronous run: an update that the server did not take; its client may train another.

    Attributes:
        reason: "stale", "too_few_holders", "not_finite" or "training_failed".
    """

    rank: int
    reason: str
    round: int


@dataclass(frozen=True, kw_only=True)
class RoundCompleted:
    """The average over ``survivors`` (ranks) is in the model.

    Attributes:
        survivors: in an asynchronous run whose updates were in the list; a fast client may stand there twice.
        staleness: in an asynchronous run, aligned with ``survivors``: how many versions old each update was.
        seconds: wall time of each phase, in the order of the phases.
        bytes_per_client: what went to and came from a client of the cohort on the wire, on average.
        bytes_by_phase: the same for each phase; it adds up to ``bytes_per_client``.
    """

    round: int
    survivors: tuple[int, ...]
    seconds: Mapping[str, float]
    bytes_per_client: float
    bytes_by_phase: Mapping[str, float]
    staleness: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RoundAborted:
    """A round, or a list with all its updates, ended without a sum; the last good model stands."""

    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The global model after ``round``, on the server's test data; accuracy is in 0..1."""

    round: int
    accuracy: float | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One line that people should see once."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """The run is over.

    Attributes:
        rounds: rounds, or lists, whose average is in the model.
        aborted: those that ended without one.
        outcome: "completed", "stopped" or "failed".
        reason: why it did not complete, None if it did.
        seconds: wall time of the whole run.
    """

    rounds: int
    aborted: int
    outcome: str
    seconds: float
    accuracy: float | None = None
    reason: str | None = None


Event = (
    RunStarted
    | ClientJoined
    | ClientRefused
    | ClientLost
    | RoundStarted
    | PhaseStarted
    | UploadDone
    | UpdateRefused
    | RoundCompleted
    | RoundAborted
    | Evaluated
    | Notice
    | RunFinished
)


class Tracker(ABC):
    """Is told of every event, in order, by one thread."""

    @abstractmethod
    def emit(self, event: Event) -> None:
        """Take note of ``event``. Must not block for long: the caller serves clients too."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; may be called twice, and without a ``RunFinished`` before it."""


class Broadcast(Tracker):
    """Passes every event on to several trackers; one that fails is left out, and the run goes on."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def emit(self, event: Event) -> None:
        failed = [error for tracker in tuple(self._trackers) if (error := self._try(tracker, event))]
        for text in failed:
            self.emit(Notice(text=text, level="warning"))

    def close(self) -> None:
        """Close all; one that cannot be closed keeps none of the others open."""
        while self._trackers:
            tracker = self._trackers.pop()
            with suppress(Exception):
                tracker.close()

    def _try(self, tracker: Tracker, event: Event) -> str | None:
        try:
            tracker.emit(event)
        except Exception as error:  # whatever a screen, a disk or a service does, no round may end for it
            self._trackers.remove(tracker)
            with suppress(Exception):
                tracker.close()
            # The type only: the text of a foreign exception may hold anything.
            name, kind = type(tracker).__name__, type(error).__name__
            return f"{name} stopped working ({kind}); the run goes on without it"
        return None
