"""The trace of a run: steps and rounds as events of Chrome's Trace Event Format, which Perfetto opens.

Each process of a run appends to a file of its own, in the format's array form, whose closing bracket may be
missing; each event is a line, so that a kill tears one at most. ``merge`` puts the files of a run together.

Source: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from lightsecagg.tracking.events import (
    ClientLost,
    Event,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    RunFinished,
    RunStarted,
    Tracker,
    UpdateRefused,
)
from lightsecagg.tracking.wording import Unit, unit_of

log = logging.getLogger(__name__)

_Phase = Literal["X", "b", "e", "i", "M"]

_WAIT = 500_000_000  # nanoseconds: what was recorded so long before a kill is in the file
_ROUND_TRACK = 0  # no thread of any system has this number


class TraceEvent(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One event, with the format's own names.

    Attributes:
        ph: "X" a step with its duration, "b" and "e" the ends of one that overlaps others on its thread,
            "i" a moment, "M" the name or place of a process or thread.
        pid: the rank of who recorded it; 0 is the server.
        tid: the system's number of the thread, 0 for the track of the rounds.
        ts: microseconds since 1970.
        dur: microseconds.
        id2: what pairs "b" with "e" within a process.
        s: whom a moment concerns; "p" is the process.
    """

    name: str
    ph: _Phase
    pid: int
    tid: int
    ts: int | None = None
    dur: int | None = None
    cat: str = ""
    id2: dict[str, str] | None = None
    s: str = ""
    args: dict[str, Any] | None = None


def wall_clock() -> Callable[[], int]:
    """A clock of nanoseconds since 1970 that never jumps: it is set here once, and then runs on its own."""
    start = time.time_ns() - time.perf_counter_ns()
    return lambda: start + time.perf_counter_ns()


class _Here(threading.local):
    """The present thread's number, and which of its spans are open; ``tell`` hears of each new thread."""

    def __init__(self, tell: Callable[[int, str], None]) -> None:
        self.tid = threading.get_native_id()
        self.open: list[object] = []
        tell(self.tid, threading.current_thread().name)


class Trace(Tracker):
    """Records the spans of one process, from any of its threads, and as a tracker its rounds or versions.

    It is a ``lightsecagg.spans.Spans``: ``with trace("encode"): ...``. Names and times are all that it keeps.
    What is recorded is written down by and by, and whenever a round or a phase begins or ends. A disk that is
    full or gone costs events, never the run.

    Args:
        path: the file to append to; its folder exists.
        rank: whose trace it is; 0 is the server.
        now: nanoseconds since 1970.
    """

    def __init__(self, path: Path, rank: int, now: Callable[[], int] | None = None) -> None:
        self._path = path
        self._rank = rank
        self._now = now or wall_clock()
        self._pending: deque[TraceEvent] = deque()
        self._writing = threading.Lock()
        self._written = self._now()  # when
        self._has_warned = False
        self._unit: Unit = "round"
        self._bars: list[tuple[str, int]] = []  # the round that is on, and in it the phase: name and start
        # A client that was started anew shares its file, and its rank, with the process before.
        self._ids = itertools.count(os.getpid() << 32)
        self._name("process_name", 0, name=f"client {rank}" if rank else "server")
        self._name("process_sort_index", 0, sort_index=rank)
        self._name("thread_name", _ROUND_TRACK, name="rounds")
        self._here = _Here(lambda tid, name: self._name("thread_name", tid, name=name))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Record a span of this name, for as long as the context lasts, even if it ends with an error."""
        here, is_in_coroutine = self._here, _runs_loop()
        tid, opened, span = here.tid, here.open, object()
        opened.append(span)
        began = self._now()
        try:
            yield
        finally:
            ended = self._now()
            # Coroutines take turns on their thread, and a generator may pause within a span, or be closed by
            # another thread. The spans of a track must nest: one that does not is drawn beside the track.
            nests = not is_in_coroutine and here.open is opened and opened[-1] is span
            opened.remove(span)
            if nests:
                self._bar(name, "span", tid, began, ended)
            else:
                self._pair(name, tid, began, ended)

    def emit(self, event: Event) -> None:
        now = self._now()
        match event:
            case RunStarted() if unit_of(event) != self._unit:
                self._unit = unit_of(event)
                self._name("thread_name", _ROUND_TRACK, name=f"{self._unit}s")
            case RoundStarted():
                self._end_bars(0, now)
                self._bars.append((f"{self._unit} {event.round}", now))
            case PhaseStarted() if self._bars:
                self._end_bars(1, now)
                self._bars.append((event.phase, now))
            case PhaseStarted():  # of a client: nothing says when it ends
                self._moment(event.phase, now, **{self._unit: event.round})
            case ClientLost():
                self._moment(f"lost client {event.rank}", now, reason=event.reason)
            case UpdateRefused():
                self._moment(f"refused the update of client {event.rank}", now, reason=event.reason)
            case RoundAborted():
                self._moment("aborted", now, reason=event.reason)
                self._end_bars(0, now)
            case RoundCompleted() | RunFinished():
                self._end_bars(0, now)
            case _:
                return
        with self._writing:
            self._write()

    def close(self) -> None:
        with self._writing:
            self._write()

    def _end_bars(self, depth: int, now: int) -> None:
        """End the phase (depth 1), or the round with it (depth 0)."""
        while len(self._bars) > depth:
            name, began = self._bars.pop()
            self._bar(name, "round", _ROUND_TRACK, began, now)

    def _name(self, what: str, tid: int, **value: str | int) -> None:
        self._add(what, "M", tid, args=value)

    def _moment(self, name: str, now: int, **args: str | int) -> None:
        self._add(name, "i", _ROUND_TRACK, ts=now // 1000, cat="round", s="p", args=args)

    def _bar(self, name: str, cat: str, tid: int, began: int, ended: int) -> None:
        # Both ends are cut to microseconds, and not the duration: so what nests still does.
        start, end = began // 1000, ended // 1000
        self._add(name, "X", tid, ts=start, dur=end - start, cat=cat)

    def _pair(self, name: str, tid: int, began: int, ended: int) -> None:
        same = {"local": hex(next(self._ids))}
        self._add(name, "b", tid, ts=began // 1000, cat="span", id2=same)
        self._add(name, "e", tid, ts=ended // 1000, cat="span", id2=same)

    def _add(self, name: str, ph: _Phase, tid: int, **further: Any) -> None:
        event = TraceEvent(name=name, ph=ph, pid=self._rank, tid=tid, **further)
        self._pending.append(event)
        # Whoever finds the file being written leaves the rest to the next: that may be this very thread, in
        # which the garbage collector closes a generator.
        if self._now() - self._written >= _WAIT and self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    def _write(self) -> None:
        """Append what is pending; belongs to the holder of the lock."""
        self._written = self._now()
        lines = [msgspec.json.encode(self._pending.popleft()) for _ in range(len(self._pending))]
        if not lines:
            return
        try:
            with self._path.open("ab") as file:
                # Every event begins a line: where a kill or a full disk tore one, no other is lost.
                file.write((b",\n" if file.tell() else b"[\n") + b",\n".join(lines))
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "the trace %s cannot be written (%s); the run goes on", self._path, error.strerror
                )


def _runs_loop() -> bool:
    """Whether this is the thread of an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def read(path: Path) -> Iterator[TraceEvent]:
    """The events of the file at ``path``; torn lines are skipped."""
    decoder = msgspec.json.Decoder(TraceEvent)
    for line in path.read_bytes().splitlines():
        try:
            event = decoder.decode(line.removesuffix(b","))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        yield event


def merge(files: Iterable[Path]) -> list[TraceEvent]:
    """The events of all files: names first, then by time, and what encloses others before them."""
    events = [event for file in files for event in read(file)]
    return sorted(events, key=lambda event: (event.ts or 0, -(event.dur or 0)))
