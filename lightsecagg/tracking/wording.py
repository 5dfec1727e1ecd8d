"""Events in words: the one line that people read for each of them, and how numbers look in it."""

from __future__ import annotations

from collections.abc import Iterable

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
    UploadDone,
)

_MOST_RANKS_IN_FULL = 12


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


def completed(event: RoundCompleted, evaluated: Evaluated | None = None) -> str:
    """The line of a round that is done, with its accuracy where it was evaluated."""
    result = f", {_measures(evaluated)}" if evaluated else ""
    who = f"clients {ranks(event.survivors)} in the average"
    return f"round {event.round}  done: {who}{result}  ({duration(sum(event.seconds.values()))})"


def line(event: Event) -> str:
    """What a log for people says of ``event``."""
    return printable(_line(event))


def _line(event: Event) -> str:
    match event:
        case RunStarted():
            return _run_started(event)
        case ClientJoined():
            text = f"client {event.rank} joined"
        case ClientRefused():
            who = "a client" if event.rank is None else f"client {event.rank}"
            text = f"refused {who} ({event.reason}){': ' + event.detail if event.detail else ''}"
        case ClientLost():
            where = f"round {event.round}  " if event.round is not None else ""
            text = f"{where}lost {loss_of(event)}"
        case RoundStarted():
            text = f"round {event.round}  started with clients {ranks(event.cohort)} ({_numbers(event)})"
        case PhaseStarted():
            text = f"round {event.round}  {event.phase}"
        case UploadDone():
            text = f"round {event.round}  update {event.done} of {event.of} is in (client {event.rank})"
        case RoundCompleted():
            text = completed(event)
        case RoundAborted():
            text = f"round {event.round}  aborted: {event.reason}"
        case Evaluated():
            text = f"round {event.round}  {_measures(event)}"
        case Notice():
            text = f"warning: {event.text}" if event.level == "warning" else event.text
        case RunFinished():
            why = f": {event.reason}" if event.reason else ""
            text = f"run {event.outcome}{why}  ({event.rounds} rounds, {duration(event.seconds)})"
    return text


def _run_started(event: RunStarted) -> str:
    kind = "secure aggregation" if event.secure else "plain averaging, updates are not masked"
    if event.role == "client":
        return f"run {event.run_id}  client, server at {event.address}, {kind}"
    return f"run {event.run_id}  {event.role} at {event.address}, {kind}, {_numbers(event)}"


def _numbers(event: RunStarted | RoundStarted) -> str:
    return f"N {event.num_clients}, U {event.target_survivors}, T {event.privacy_threshold}"


def _measures(event: Evaluated) -> str:
    parts = []
    if event.accuracy is not None:
        parts.append(f"accuracy {percent(event.accuracy)}")
    if event.loss is not None:
        parts.append(f"loss {event.loss:.4g}")
    return ", ".join(parts) or "evaluated"
