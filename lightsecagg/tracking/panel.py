"""The live picture of a run: round, phase, a row for each client, and the accuracies so far."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    Evaluated,
    Event,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    RunStarted,
    UploadDone,
)
from lightsecagg.tracking.wording import percent, printable

_MOST_ROWS = 16
_MOST_ACCURACIES = 8

_WAITING, _IN_ROUND, _UPLOADED, _AVERAGED, _LEFT_OUT = (
    "waiting",
    "in the round",
    "update is in",
    "in the average",
    "not in the average",
)
_STYLES = {_UPLOADED: "cyan", _AVERAGED: "green", _LEFT_OUT: "yellow"}


class Picture:
    """Where a run stands; ``emit`` moves it on and ``render`` draws it. Used by one thread."""

    def __init__(self) -> None:
        self._run: RunStarted | None = None
        self._round: int | None = None
        self._phase = "clients are joining"
        self._cohort: tuple[int, ...] = ()
        self._clients: dict[int, str] = {}
        self._lost: set[int] = set()  # gone since the last round began
        self._accuracies: list[tuple[int, float]] = []

    def emit(self, event: Event) -> None:
        """Take note of what changes the picture."""
        match event:
            case RunStarted():
                self._run = event
            case ClientJoined():
                self._set(event.rank, _WAITING)
            case ClientLost():
                phase = f" while {event.phase}" if event.phase else ""
                self._clients[event.rank] = f"lost ({event.reason}){phase}"
                self._lost.add(event.rank)
            case RoundStarted():
                self._round, self._phase, self._cohort = event.round, "started", event.cohort
                for rank in event.cohort:
                    self._set(rank, _IN_ROUND)
            case PhaseStarted():
                self._phase = event.phase
            case UploadDone():
                self._set(event.rank, _UPLOADED)
            case RoundCompleted():
                self._complete(event)
            case RoundAborted():
                self._phase = f"aborted: {event.reason}"
            case Evaluated(accuracy=accuracy) if accuracy is not None:
                self._accuracies = [*self._accuracies, (event.round, accuracy)][-_MOST_ACCURACIES:]

    def render(self) -> RenderableType:
        """The panel, for a terminal of any width."""
        parts: list[RenderableType] = [self._headline(), Text(), self._client_table()]
        if self._accuracies:
            parts += [Text(), self._accuracy_table()]
        run = self._run
        kind = "" if run is None else "secure aggregation" if run.secure else "without masks"
        title = "" if run is None else f"run {printable(run.run_id)}, {kind}"
        return Panel(Group(*parts), title=Text(title), title_align="left")

    def _set(self, rank: int, status: str) -> None:
        self._clients[rank] = status
        self._lost.discard(rank)

    def _complete(self, event: RoundCompleted) -> None:
        self._phase = "done"
        survivors = set(event.survivors)
        for rank in self._cohort:
            # A client that vanished after its upload is in the average, and still gone.
            if rank not in self._lost:
                self._set(rank, _AVERAGED if rank in survivors else _LEFT_OUT)

    def _headline(self) -> Text:
        if self._round is None:
            total = f" of {self._run.num_clients}" if self._run else ""
            return Text(f"{self._phase}: {len(self._clients) - len(self._lost)}{total}", style="bold")
        return Text(printable(f"round {self._round}  {self._phase}"), style="bold")

    def _client_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        shown = sorted(self._clients) if len(self._clients) <= _MOST_ROWS else sorted(self._lost)
        if len(self._clients) > _MOST_ROWS:
            standing = (status for rank, status in self._clients.items() if rank not in self._lost)
            for status, count in Counter(standing).items():
                table.add_row(Text(f"{count} clients"), Text(status, style=_STYLES.get(status, "")))
        for rank in shown[:_MOST_ROWS]:
            status = self._clients[rank]
            style = "red" if rank in self._lost else _STYLES.get(status, "")
            table.add_row(Text(f"client {rank}"), Text(printable(status), style=style))
        if len(shown) > _MOST_ROWS:
            table.add_row(Text(f"{len(shown) - _MOST_ROWS} more"), Text("lost", style="red"))
        return table

    def _accuracy_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row("round", *(str(number) for number, _ in self._accuracies))
        table.add_row("accuracy", *(percent(accuracy) for _, accuracy in self._accuracies))
        return table
