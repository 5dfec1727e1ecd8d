"""The event log: one JSON object a line, written through at once, so that it holds all up to a crash."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec

from lightsecagg.tracking.events import Event, Notice, Tracker

_EVENTS: dict[str, type[Any]] = {event.__name__: event for event in get_args(Event)}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    # NumPy's float64 is a float to every type checker, and no float to the encoder.
    return value.item()


class JsonLines(Tracker):
    """Appends to the file at ``path``, which is made with the first event.

    A disk that is full or gone costs events, never the run: ``warn`` hears of it once, every later event is
    tried again, and the first that goes through is preceded by a ``Notice`` that says how many are missing.
    """

    def __init__(
        self,
        path: Path,
        *,
        warn: Callable[[str], None] = _warn,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._warn = warn
        self._monotonic = monotonic
        self._now = now
        self._descriptor: int | None = None
        self._lost = 0
        self._torn = False  # the file may end in the middle of a line

    def emit(self, event: Event) -> None:
        try:
            if self._lost:
                self._write(Notice(text=f"{self._lost} events before this line were lost", level="warning"))
                self._lost = 0
            self._write(event)
        except OSError as error:
            if not self._lost:
                self._warn(
                    f"the event log {self._path} cannot be written ({error.strerror}); the run goes on"
                )
            self._lost += 1

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, event: Event) -> None:
        line = msgspec.json.encode(
            {
                "time": self._now().astimezone(UTC).isoformat(timespec="milliseconds"),
                "monotonic": round(self._monotonic(), 6),
                "event": type(event).__name__,
                **msgspec.to_builtins(event, enc_hook=_plain),
            }
        )
        if self._descriptor is None:
            self._descriptor = self._open()
        data = b"\n" * self._torn + line + b"\n"
        self._torn = True
        # One unbuffered write a line: nothing waits in this process for a flush that a kill would prevent.
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        end = os.fstat(descriptor).st_size
        # An earlier process may have been killed in the middle of a line.
        self._torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        return descriptor


@dataclass(frozen=True)
class Entry:
    """One line of the log: when (UTC; seconds of the writer's monotonic clock), and what."""

    time: datetime
    monotonic: float
    event: Event


def read(path: Path) -> Iterator[Entry]:
    """The entries of the log at ``path``; torn lines and unknown events are skipped."""
    for line in path.read_bytes().splitlines():
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
            when = datetime.fromisoformat(fields.pop("time"))
            monotonic = float(fields.pop("monotonic"))
            event = msgspec.convert(fields, _EVENTS[fields.pop("event")])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
        yield Entry(when, monotonic, event)
