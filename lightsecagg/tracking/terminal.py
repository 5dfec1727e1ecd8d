"""The run on the screen: a live panel at a server's terminal, elsewhere one plain line an event."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightsecagg.tracking.events import (
    ClientJoined,
    Evaluated,
    Event,
    PhaseStarted,
    RoundCompleted,
    RoundStarted,
    RunFinished,
    RunStarted,
    Tracker,
    UploadDone,
)
from lightsecagg.tracking.panel import Picture
from lightsecagg.tracking.summary import Summary
from lightsecagg.tracking.wording import Unit, completed, line, printable, unit_of

# With many clients these come in bursts, and drawing the panel for each would cost more than the round.
_FREQUENT = (ClientJoined, UploadDone)
_REDRAW_SECONDS = 0.1

# Shown by the panel, so no line of their own above it.
_IN_PANEL = (PhaseStarted, RoundStarted, UploadDone)


class _Screen(Console):
    """Standard output whose reader may go away; Rich would end the process then, and the run with it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What the interpreter still flushes at its exit needs a place to go.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Terminal(Tracker):
    """Shows a run on ``console`` (standard output by default). Draws in the calling thread only."""

    def __init__(
        self, console: Console | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or _Screen(highlight=False)
        self._monotonic = monotonic
        self._summary = Summary()
        self._picture = Picture()
        self._unit: Unit = "round"
        self._has_begun = False
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._held: RoundCompleted | None = None  # waits for its accuracy, until the next event at most

    def emit(self, event: Event) -> None:
        self._summary.emit(event)
        self._picture.emit(event)
        if isinstance(event, RunStarted):
            self._unit = unit_of(event)
            if event.role != "client" and self._console.is_interactive:
                self._start_live()
        self._has_begun |= isinstance(event, RoundStarted)
        merged = self._release(event)
        if isinstance(event, RoundCompleted):
            self._held = event
        elif not merged and not (self._live and self._is_in_panel(event)):
            self._print(line(event, self._unit))
        self._draw(event)
        if isinstance(event, RunFinished):
            self._finish()

    def close(self) -> None:
        if self._held is not None:
            self._print(line(self._held, self._unit))
            self._held = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _is_in_panel(self, event: Event) -> bool:
        # Who joins once the run has begun came late or came back: lines tell of losses, so of returns too.
        return isinstance(event, _IN_PANEL) or (isinstance(event, ClientJoined) and not self._has_begun)

    def _start_live(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def _release(self, event: Event) -> bool:
        """Print the round that is held, with ``event`` where that is its evaluation; tells whether it was."""
        held, self._held = self._held, None
        if held is None:
            return False
        evaluated = event if isinstance(event, Evaluated) and event.round == held.round else None
        self._print(printable(completed(held, evaluated, self._unit)))
        return evaluated is not None

    def _draw(self, event: Event) -> None:
        now = self._monotonic()
        if self._live is None or (isinstance(event, _FREQUENT) and now - self._drawn_at < _REDRAW_SECONDS):
            return
        self._drawn_at = now
        self._live.update(self._picture.render(), refresh=True)

    def _print(self, text: str) -> None:
        # Text, not markup: what stands in brackets is not ours to interpret. Rich flushes each print.
        self._console.print(Text(text), soft_wrap=True)

    def _finish(self) -> None:
        self.close()
        rows = self._summary.rows()
        if not self._console.is_interactive:
            width = max(len(label) for label, _ in rows)
            for label, text in rows:
                self._print(f"  {label:<{width}}  {text}")
            return
        table = Table("summary", "", title_justify="left")
        for label, text in rows:
            table.add_row(Text(label), Text(text, overflow="fold"))
        self._console.print(table)
