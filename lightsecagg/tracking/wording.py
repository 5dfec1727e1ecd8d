"""Events in words: the one line that people read for each of them, and how numbers look in it."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Literal

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    ClientRefused,
    Evaluated,
    Event,
    Notice,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    RunFinished,
    RunStarted,
    UpdateRefused,
    UploadDone,
)

Unit = Literal["round", "version", "upload"]
"""What the numbers of a run count."""

_MOST_RANKS_IN_FULL = 12


def unit_of(run: RunStarted | None) -> Unit:
    """``version`` for an asynchronous run, ``upload`` at its clients; ``round`` for others and before any."""
    if run is None or run.buffer_size is None:
        return "round"
    return "upload" if run.role == "client" else "version"


def printable(text: str) -> str:
    """``text`` without control characters: parts of it may come from peers, and a terminal obeys some."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def ranks(numbers: Iterable[int]) -> str:
    """Ranks in ascending order; long lists as ranges: ``1-40 42-50``."""
    ordered = sorted(numbers)
    if not ordered:
        return "none"
    if len(ordered) <= _MOST_RANKS_IN_FULL:
        return " ".join(map(str, ordered))
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(map(str, run)) for run in runs)


def percent(accuracy: float | None) -> str:
    """``91.4 %``, or a dash where there is none."""
    return "-" if accuracy is None else f"{100 * accuracy:.1f} %"


def size(number: float) -> str:
    """Bytes with a decimal unit: ``1.2 MB``."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def duration(seconds: float) -> str:
    """``0.8 s``, ``42 ms`` or ``3 min 20 s``."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def loss_of(event: ClientLost) -> str:
    """``client 4 (link_lost) while sharing``."""
    phase = f" while {event.phase}" if event.phase else ""
    return f"client {event.rank} ({event.reason}){phase}"


def completed(event: RoundCompleted, evaluated: Evaluated | None = None, unit: Unit = "round") -> str:
    """The line of a round or version that is done, with its accuracy where it was evaluated."""
    result = f", {_measures(evaluated)}" if evaluated else ""
    seconds = duration(sum(event.seconds.values()))
    return f"{unit} {event.round}  done: {_averaged(event)}{result}  ({seconds})"


def line(event: Event, unit: Unit = "round") -> str:
    """What a log for people says of ``event``, in a run whose numbers count ``unit``."""
    return printable(_line(event, unit))


def _line(event: Event, unit: Unit) -> str:
    match event:
        case RunStarted():
            text = _run_started(event)
        case ClientJoined():
            text = f"client {event.rank} joined"
        case ClientRefused():
            who = "a client" if event.rank is None else f"client {event.rank}"
            text = f"refused {who} ({event.reason}){': ' + event.detail if event.detail else ''}"
        case ClientLost(round=None):
            text = f"lost {loss_of(event)}"
        case RoundCompleted():
            text = completed(event, unit=unit)
        case Notice():
            text = f"warning: {event.text}" if event.level == "warning" else event.text
        case RunFinished():
            why = f": {event.reason}" if event.reason else ""
            text = f"run {event.outcome}{why}  ({event.rounds} {unit}s, {duration(event.seconds)})"
        case _:
            text = f"{unit} {event.round}  {_step(event, unit)}"
    return text


def _step(
    event: ClientLost | RoundStarted | PhaseStarted | UploadDone | UpdateRefused | RoundAborted | Evaluated,
    unit: Unit,
) -> str:
    """What happened in a round, or on the way to a version."""
    match event:
        case ClientLost():
            text = f"lost {loss_of(event)}"
        case RoundStarted() if unit == "version":
            text = f"the buffer begins to fill; clients {ranks(event.cohort)} are there"
        case RoundStarted():
            text = f"started with clients {ranks(event.cohort)} ({_numbers(event)})"
        case PhaseStarted():
            text = event.phase
        case UploadDone() if event.done > event.of:  # some wait for a later list
            text = f"{event.done} updates are in the buffer (client {event.rank})"
        case UploadDone():
            where = "in the buffer" if unit == "version" else "in"
            text = f"update {event.done} of {event.of} is {where} (client {event.rank})"
        case UpdateRefused():
            text = f"refused the update of client {event.rank} ({event.reason})"
        case RoundAborted():
            text = aborted(event, unit)
        case Evaluated():
            text = _measures(event)
    return text


def aborted(event: RoundAborted, unit: Unit = "round") -> str:
    """``aborted: too_few_shared``, or what that means for the updates of a list."""
    if unit == "version":
        return f"the list failed: {event.reason}; its updates are lost"
    return f"aborted: {event.reason}"


def _averaged(event: RoundCompleted) -> str:
    """Whose updates are in the average; for a list also how old each was, or the span of that if many."""
    if event.staleness is None:
        return f"clients {ranks(event.survivors)} in the average"
    listed = sorted(zip(event.survivors, event.staleness, strict=True))
    if len(listed) <= _MOST_RANKS_IN_FULL:
        who = " ".join(str(rank) for rank, _ in listed)
        ages = " ".join(str(age) for _, age in listed)
        return f"clients {who} in the average, staleness {ages}"
    who = ranks(set(event.survivors))
    ages = f"{min(event.staleness)} to {max(event.staleness)}, mean {fmean(event.staleness):.1f}"
    return f"{len(listed)} updates of clients {who} in the average, staleness {ages}"


def _run_started(event: RunStarted) -> str:
    kind = "secure aggregation" if event.secure else "plain averaging, updates are not masked"
    if event.role == "client":
        return f"run {event.run_id}  client, server at {event.address}, {kind}"
    buffer = "" if event.buffer_size is None else f", a buffer of {event.buffer_size} updates"
    return f"run {event.run_id}  {event.role} at {event.address}, {kind}, {_numbers(event)}{buffer}"


def _numbers(event: RunStarted | RoundStarted) -> str:
    return f"N {event.num_clients}, U {event.target_survivors}, T {event.privacy_threshold}"


def _measures(event: Evaluated) -> str:
    parts = []
    if event.accuracy is not None:
        parts.append(f"accuracy {percent(event.accuracy)}")
    if event.loss is not None:
        parts.append(f"loss {event.loss:.4g}")
    return ", ".join(parts) or "evaluated"
