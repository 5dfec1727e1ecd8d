"""The live picture of a run: round or version, phase, where each client is, and the accuracies so far."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lightsecagg.tracking.clients import BufferClients, RoundClients
from lightsecagg.tracking.events import (
    Evaluated,
    Event,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    RunStarted,
)
from lightsecagg.tracking.wording import aborted, percent, printable, unit_of

_MOST_ACCURACIES = 8


class Picture:
    """Where a run stands; ``emit`` moves it on and ``render`` draws it. Used by one thread."""

    def __init__(self) -> None:
        self._run: RunStarted | None = None
        self._round: int | None = None
        self._phase = "clients are joining"
        self._clients: RoundClients | BufferClients = RoundClients()
        self._accuracies: list[tuple[int, float]] = []

    def emit(self, event: Event) -> None:
        """Take note of what changes the picture."""
        self._clients.emit(event)
        match event:
            case RunStarted():
                self._run = event
                if event.buffer_size is not None:
                    self._clients = BufferClients(event.buffer_size)
            case RoundStarted():
                self._round, self._phase = event.round, "started"
            case PhaseStarted():
                self._phase = event.phase
            case RoundCompleted():
                self._phase = "done"
            case RoundAborted():
                self._phase = aborted(event, unit_of(self._run))
            case Evaluated(accuracy=accuracy) if accuracy is not None:
                self._accuracies = [*self._accuracies, (event.round, accuracy)][-_MOST_ACCURACIES:]

    def render(self) -> RenderableType:
        """The panel, for a terminal of any width."""
        parts: list[RenderableType] = [self._headline(), Text(), self._clients.table()]
        if self._accuracies:
            parts += [Text(), self._accuracy_table()]
        run = self._run
        kind = "" if run is None else "secure aggregation" if run.secure else "without masks"
        title = "" if run is None else f"run {printable(run.run_id)}, {kind}"
        return Panel(Group(*parts), title=Text(title), title_align="left")

    def _headline(self) -> Text:
        if self._round is None:
            total = f" of {self._run.num_clients}" if self._run else ""
            return Text(f"{self._phase}: {len(self._clients)}{total}", style="bold")
        text = f"{unit_of(self._run)} {self._round}  {self._phase}"
        if isinstance(self._clients, BufferClients) and self._phase == "collecting":
            done, size = self._clients.filled
            text += f": {done} of {size} updates are in the buffer"
        return Text(printable(text), style="bold")

    def _accuracy_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(unit_of(self._run), *(str(number) for number, _ in self._accuracies))
        table.add_row("accuracy", *(percent(accuracy) for _, accuracy in self._accuracies))
        return table
