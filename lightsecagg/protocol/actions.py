"""What the machines ask of their caller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lightsecagg.errors import AbortReason, Reason

SERVER = 0
"""The server, where a client number is wanted."""


@dataclass(frozen=True)
class Send:
    """Deliver ``message`` to client ``to`` (0: the server), in the order in which it was given."""

    to: int
    message: bytes | memoryview


@dataclass(frozen=True)
class Stream:
    """Deliver a long output to ``to``; it is computed as it is pulled and may be pulled in another thread.

    An urgent one goes before the others: somebody waits for it.
    """

    to: int
    sends: Iterator[Send]
    is_urgent: bool = False


class What(StrEnum):
    """What may happen now, if the caller wants it."""

    SHARING = "sharing"  # client: pull shares() and send them
    TRAINING = "training"  # client: the model is whole; train, then upload()
    # server: only absent clients are missing; while can_close holds, deadline() closes the step without them
    CLOSE = "close"
    FREEZE = "freeze"  # server: nobody who is there is missing; freeze() fixes the survivor set
    DECODE = "decode"  # server: finish() yields the result


@dataclass(frozen=True)
class Ready:
    """``what`` may happen now."""

    what: What


@dataclass(frozen=True)
class StageReached:
    """Server: the round moved on (for progress and timers)."""

    stage: str


@dataclass(frozen=True)
class ClientDropped:
    """Server: the client is out of this round; ``left`` where it said so itself."""

    number: int
    reason: Reason
    left: bool = False


@dataclass(frozen=True)
class UploadCompleted:
    """Server: the client's masked update is in the sum."""

    number: int


@dataclass(frozen=True)
class UpdateRefused:
    """Server, asynchronous runs: the client's update does not enter the buffer; it may train another."""

    number: int
    reason: Reason


@dataclass(frozen=True)
class Finished:
    """Server: the round is over and its sum was decoded."""


@dataclass(frozen=True)
class Aborted:
    """Server: the round, or the list of an asynchronous run, is over without a sum.

    ``is_lesson`` where the next list goes without those who let this one fail: it need not fail too.
    """

    reason: AbortReason
    is_lesson: bool = False


@dataclass(frozen=True)
class Left:
    """Client: it is out of the round; what it held of others is erased.

    ``detail`` says for its own log what the server is not told.
    """

    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class RoundOver:
    """Client: the server ended the round, with this outcome; what it held of others is erased."""

    outcome: str


Action = (
    Send
    | Stream
    | Ready
    | StageReached
    | ClientDropped
    | UploadCompleted
    | UpdateRefused
    | Finished
    | Aborted
    | Left
    | RoundOver
)
