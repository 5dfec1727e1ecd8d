"""One round of a run's trace as a picture: ``python -m benchmarks.trace_picture runs/RUN_ID/trace.json``.

Perfetto shows the same and more; this is what a page of documentation can hold.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lightsecagg.spans import SpanName

COLOURS: dict[SpanName, str] = {
    "train": "#c9d3dd",  # wide, and what the others are to be hidden behind
    "evaluate": "#9fb0c0",
    "expand": "#f4b942",
    "encode": "#e4572e",
    "seal": "#9c2f55",
    "unseal": "#d988a8",
    "send": "#76b041",
    "relay": "#3f7d20",
    "receive": "#b9d87b",
    "upload": "#17806d",
    "quantize": "#8fd3f4",
    "mask": "#2e86de",
    "endorse": "#6c5ce7",
    "sum": "#b39cd0",
    "decode": "#2d2a6e",
}
"""Warm: a client's shares. Green: the network. Blue: a client's update. Violet: recovery."""

ROUND_TRACK = 0  # the thread under which the server's rounds and phases stand
SERVER = 0

_LANE = 0.2  # inches
_GAP = 0.8  # lanes between two processes
_LETTER = 0.0075  # width of one, of the plot's

Json = dict[str, Any]
Interval = tuple[float, float]
"""Start and length, in seconds."""


@dataclass
class Lane:
    """One row of the picture: a thread, or the spans of one name that overlapped on the event loop."""

    label: str
    bars: dict[tuple[int, str], list[Interval]] = field(default_factory=lambda: defaultdict(list))
    """By how many spans of the lane enclose them, and their name."""


class Picture:
    """One round of a merged trace, cut out of the run and measured from the round's beginning."""

    def __init__(self, events: Sequence[Json], number: int | None) -> None:
        self._events = events
        rounds = {
            event["name"]: event
            for event in self._of_track(SERVER, ROUND_TRACK)
            if event["name"].startswith("round ")
        }
        if not rounds:
            raise click.UsageError("the trace holds no round that ended: the server's trace is missing")
        self.name = f"round {number}" if number is not None else list(rounds)[-1]
        if self.name not in rounds:
            raise click.UsageError(f"--round: wanted one of {', '.join(rounds)}, found {number}")
        self._begin = rounds[self.name]["ts"]
        self.seconds = rounds[self.name]["dur"] / 1e6

    def phases(self) -> list[tuple[str, Interval]]:
        """The steps of the server's round."""
        bars = [
            event for event in self._of_track(SERVER, ROUND_TRACK) if not event["name"].startswith("round ")
        ]
        cut = [(bar["name"], self._cut(bar["ts"], bar["ts"] + bar["dur"])) for bar in bars]
        return [(name, interval) for name, interval in cut if interval]

    def processes(self) -> dict[int, str]:
        """The names of the processes by their ranks."""
        named = (event for event in self._events if event["name"] == "process_name")
        return {event["pid"]: event["args"]["name"] for event in sorted(named, key=lambda e: e["pid"])}

    def lanes(self, rank: int) -> list[Lane]:
        """What a process did in the round: its threads, then what overlapped on its event loop."""
        lanes: dict[str, Lane] = {}
        for label, depth, name, begin, end in (*self._of_threads(rank), *self._of_loop(rank)):
            if interval := self._cut(begin, end):
                lanes.setdefault(label, Lane(label)).bars[depth, name].append(interval)
        return list(lanes.values())

    def _of_track(self, rank: int, tid: int) -> list[Json]:
        return [
            event
            for event in self._events
            if event["ph"] == "X" and (event["pid"], event["tid"]) == (rank, tid)
        ]

    def _of_threads(self, rank: int) -> Iterator[tuple[str, int, str, int, int]]:
        threads = {
            event["tid"]: event["args"]["name"].removesuffix("_0")
            for event in self._events
            if event["name"] == "thread_name" and event["pid"] == rank and event["tid"] != ROUND_TRACK
        }
        for tid, label in sorted(threads.items(), key=lambda item: item[1]):
            enclosing: list[int] = []
            for event in self._of_track(rank, tid):
                while enclosing and enclosing[-1] <= event["ts"]:
                    enclosing.pop()
                end = event["ts"] + event["dur"]
                yield label, len(enclosing), event["name"], event["ts"], end
                enclosing.append(end)

    def _of_loop(self, rank: int) -> Iterator[tuple[str, int, str, int, int]]:
        begun: dict[str, Json] = {}
        found = []
        for event in self._events:
            if event["pid"] == rank and event["ph"] == "b":
                begun[event["id2"]["local"]] = event
            elif event["pid"] == rank and event["ph"] == "e":
                begin = begun.pop(event["id2"]["local"])["ts"]
                found.append((event["name"], 0, event["name"], begin, event["ts"]))
        order = list(COLOURS)
        yield from sorted(found, key=lambda span: order.index(span[0]))

    def _cut(self, begin: int, end: int) -> Interval | None:
        start = max(0.0, (begin - self._begin) / 1e6)
        stop = min(self.seconds, (end - self._begin) / 1e6)
        return (start, stop - start) if start <= stop else None


def draw(picture: Picture, ranks: Iterable[int], out: Path) -> None:
    """Draw the processes of these ranks, one beneath the other, and write a PNG."""
    groups = [(name, picture.lanes(rank)) for rank, name in picture.processes().items() if rank in ranks]
    groups = [(name, lanes) for name, lanes in groups if lanes]
    height = sum(len(lanes) + _GAP for _, lanes in groups)
    figure, axes = plt.subplots(figsize=(13, height * _LANE + 1.6))
    _draw_phases(axes, picture)
    row, places, labels, used = 0.0, [], [], set()
    for name, lanes in groups:
        axes.text(
            -0.075, row, name, transform=axes.get_yaxis_transform(), weight="bold", ha="right", va="center"
        )
        for lane in lanes:
            _draw_lane(axes, lane, row)
            used |= {name for _, name in lane.bars}
            places.append(row)
            labels.append(lane.label)
            row += 1
        axes.axhline(row + _GAP / 2 - 0.5, color="white", linewidth=2)
        row += _GAP
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(row - 0.5 - _GAP / 2, -0.7)
    axes.set_xlim(0, picture.seconds)
    axes.set_xlabel(f"seconds since the beginning of {picture.name}")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    shown = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in used]
    figure.legend(handles=shown, loc="lower center", ncols=len(shown), frameon=False, fontsize=8)
    figure.subplots_adjust(left=0.13, right=0.99, bottom=0.85 / figure.get_figheight(), top=0.98)
    figure.savefig(out, dpi=110, bbox_inches="tight")


def _draw_lane(axes: Axes, lane: Lane, row: float) -> None:
    for (depth, name), bars in sorted(lane.bars.items()):
        height = 0.8 * 0.7**depth
        # The edge keeps what is shorter than a pixel in sight.
        axes.broken_barh(
            bars, (row - height / 2, height), color=COLOURS[name], edgecolor=COLOURS[name], linewidth=0.5
        )


def _draw_phases(axes: Axes, picture: Picture) -> None:
    """Stripes behind all, with their names above, in as many lines as they need."""
    lines: list[float] = []
    for (name, (start, length)), shade in zip(picture.phases(), cycle(("#f3f3f3", "#e6e6e6")), strict=False):
        axes.axvspan(start, start + length, color=shade, zorder=0, linewidth=0)
        left = start / picture.seconds
        line = next((place for place, right in enumerate(lines) if right <= left), len(lines))
        lines[line : line + 1] = [left + _LETTER * (len(name) + 1)]
        axes.annotate(
            name,
            (left, 1),
            (2, 4 + 10 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8,
            color="#555555",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=3 - 0.1 * line,  # a line to a name passes behind the names beneath it
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6, "relpos": (0, 0)},
        )


@click.command()
@click.argument("trace", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--round", "number", type=int, help="[default: the last that ended]")
@click.option("--clients", type=int, help="Only the first so many. [default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/trace.png"), show_default=True)
def main(trace: Path, number: int | None, clients: int | None, out: Path) -> None:
    """Draw one round of TRACE, which `lightsecagg trace` wrote."""
    picture = Picture(json.loads(trace.read_text())["traceEvents"], number)
    ranks = sorted(picture.processes())
    draw(picture, ranks if clients is None else ranks[: clients + 1], out)
    print(f"{out}: {picture.name}, {picture.seconds:.2f} s")


if __name__ == "__main__":
    main()
