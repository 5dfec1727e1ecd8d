"""The rows of the live panel: where each client stands, in rounds or beside a buffer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    Event,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    UpdateRefused,
    UploadDone,
)
from lightsecagg.tracking.wording import printable

_MOST_ROWS = 16
_STATUS_WIDTH = 18  # at least: columns that move with every change of status are hard to read

_WAITING = "waiting"
_IN_ROUND, _UPLOADED, _AVERAGED, _LEFT_OUT = (
    "in the round",
    "update is in",
    "in the average",
    "not in the average",
)
_JOINED, _BACK, _TRAINING = "joined", "back", "training"
_STYLES = {_UPLOADED: "cyan", _AVERAGED: "green", _LEFT_OUT: "yellow"}


class Clients:
    """What is known of each client of a run; a subclass says what the events of its kind of run mean."""

    _HEADER: tuple[str, ...] = ()  # of the columns beside the client's name and status

    def __init__(self) -> None:
        self._statuses: dict[int, str] = {}
        self._lost: set[int] = set()  # since they were last seen

    def emit(self, event: Event) -> None:
        """Take note of who comes and goes."""
        match event:
            case ClientJoined():
                self._set(event.rank, _WAITING)
            case ClientLost():
                self._statuses[event.rank] = self._lost_text(event)
                self._lost.add(event.rank)

    def __len__(self) -> int:
        """How many are there."""
        return len(self._statuses) - len(self._lost)

    def table(self) -> Table:
        """A row for each client; of many, a row for each status and for those that are lost."""
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(min_width=_STATUS_WIDTH)
        for _ in self._HEADER:
            table.add_column(justify="right", no_wrap=True)
        if self._HEADER and self._statuses:
            table.add_row("", "", *(Text(label, style="dim") for label in self._HEADER))
        shown = sorted(self._statuses)
        if len(shown) > _MOST_ROWS:
            self._add_groups(table)
            shown = sorted(self._lost)
        for rank in shown[:_MOST_ROWS]:
            status = self._statuses[rank]
            style = "red" if rank in self._lost else _STYLES.get(status, "")
            table.add_row(f"client {rank}", Text(printable(status), style=style), *self._cells([rank]))
        if rest := shown[_MOST_ROWS:]:
            table.add_row(f"{len(rest)} more", Text("lost", style="red"), *self._cells(rest))
        return table

    def _add_groups(self, table: Table) -> None:
        standing: dict[str, list[int]] = defaultdict(list)
        for rank, status in self._statuses.items():
            if rank not in self._lost:
                standing[status].append(rank)
        for status, group in standing.items():
            label = Text(status, style=_STYLES.get(status, ""))
            table.add_row(f"{len(group)} clients", label, *self._cells(group))

    def _lost_text(self, event: ClientLost) -> str:
        return f"lost ({event.reason})" + (f" while {event.phase}" if event.phase else "")

    def _cells(self, _: Sequence[int]) -> Iterable[Text]:
        """What stands under the header for these clients together."""
        return ()

    def _set(self, rank: int, status: str) -> None:
        self._statuses[rank] = status
        self._lost.discard(rank)


class RoundClients(Clients):
    """The clients of a synchronous run: what each has done in the round that is on."""

    def __init__(self) -> None:
        super().__init__()
        self._cohort: tuple[int, ...] = ()

    def emit(self, event: Event) -> None:
        """Take note of what a client does in its round."""
        super().emit(event)
        match event:
            case RoundStarted():
                self._cohort = event.cohort
                for rank in event.cohort:
                    self._set(rank, _IN_ROUND)
            case UploadDone():
                self._set(event.rank, _UPLOADED)
            case RoundCompleted():
                survivors = set(event.survivors)
                # A client that vanished after its upload is in the average, and still gone.
                for rank in set(self._cohort) - self._lost:
                    self._set(rank, _AVERAGED if rank in survivors else _LEFT_OUT)


class BufferClients(Clients):
    """The clients of an asynchronous run: who is there, and what became of each one's updates."""

    _HEADER = ("buffered", "used", "staleness", "refused")

    def __init__(self, buffer_size: int) -> None:
        super().__init__()
        self._has_begun = False
        self._filled = (0, buffer_size)
        self._buffered: Counter[int] = Counter()
        self._used: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()
        self._staleness: dict[int, int] = {}  # of the last update that was used

    @property
    def filled(self) -> tuple[int, int]:
        """How many updates are in the buffer, and how many it takes."""
        return self._filled

    def emit(self, event: Event) -> None:
        """Take note of who is there and of what becomes of updates."""
        known = set(self._statuses)
        super().emit(event)
        match event:
            case ClientJoined() if self._has_begun:
                self._set(event.rank, _BACK if event.rank in known else _JOINED)
            case RoundStarted():
                self._has_begun = True
                for rank in event.cohort:
                    self._set(rank, _TRAINING)
            case PhaseStarted(phase="collecting"):
                self._empty_if_full()
            case UploadDone():
                self._upload(event)
            case UpdateRefused():
                self._refused[event.rank] += 1
            case RoundCompleted(staleness=ages) if ages is not None:
                self._used.update(event.survivors)
                self._staleness.update(zip(event.survivors, ages, strict=True))
                self._empty_if_full()
            case RoundAborted():
                self._empty_if_full()

    def _upload(self, event: UploadDone) -> None:
        if event.done == 1:  # the next list may begin to fill before the last is averaged
            self._buffered.clear()
        self._buffered[event.rank] += 1
        self._filled = (event.done, event.of)
        # An update may enter the buffer after its client has died; that does not bring the client back.
        if event.rank not in self._lost:
            self._set(event.rank, _TRAINING)

    def _empty_if_full(self) -> None:
        done, size = self._filled
        if done >= size:
            self._buffered.clear()
            self._filled = (0, size)

    def _lost_text(self, event: ClientLost) -> str:
        return f"lost ({event.reason})"  # the phase is the server's: each client is at its own

    def _cells(self, ranks: Sequence[int]) -> Iterable[Text]:
        def total(counter: Counter[int], style: str = "") -> Text:
            return Text(str(sum(counter[rank] for rank in ranks) or ""), style=style)

        yield total(self._buffered, _STYLES[_UPLOADED])
        yield total(self._used)
        age = self._staleness.get(ranks[0]) if len(ranks) == 1 else None
        yield Text("" if age is None else str(age))
        yield total(self._refused, "yellow")
