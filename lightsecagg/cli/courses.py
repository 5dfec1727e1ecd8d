"""The courses of two runs side by side, from their servers' event logs: a table, and a picture in text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Column, Table
from rich.text import Text

from lightsecagg.errors import RunStopped
from lightsecagg.tracking import jsonl
from lightsecagg.tracking.events import Evaluated, Event, RoundCompleted, RoundStarted
from lightsecagg.tracking.wording import duration, percent

_BELOW = 0.02  # the target is two points below the best that both reached
_WIDTH = 66  # columns of the picture beside its axis
_ROWS = 17
_STEP = 2.5  # percent a row
_MARKS, _BOTH = "●○", "◉"
_STYLES = ("green", "yellow")


@dataclass(frozen=True)
class Course:
    """One run as it went.

    Attributes:
        events: all, in order.
        made: the rounds or versions that were made.
        accuracies: seconds from the first start to a model, and that model's accuracy in 0..1; in order, at
            least one.
        seconds: from the first start to the last model.
    """

    events: tuple[Event, ...]
    made: tuple[RoundCompleted, ...]
    accuracies: tuple[tuple[float, float], ...]
    seconds: float

    @classmethod
    def read(cls, log: Path) -> Course:
        """The course of the run whose server wrote ``log``.

        Raises:
            RunStopped: the log tells of no model that was measured.
        """
        entries = tuple(jsonl.read(log))
        starts = [entry.monotonic for entry in entries if isinstance(entry.event, RoundStarted)]
        times, accuracies = {}, []
        for entry in entries:
            match entry.event:
                case RoundCompleted(round=number):
                    times[number] = entry.monotonic - starts[0]
                case Evaluated(round=number, accuracy=accuracy) if accuracy is not None:
                    accuracies.append((times[number], accuracy))
        if not accuracies:
            raise RunStopped(f"wanted a model whose accuracy was measured, found none in {log}")
        events = tuple(entry.event for entry in entries)
        made = tuple(event for event in events if isinstance(event, RoundCompleted))
        return cls(events, made, tuple(accuracies), max(times.values()))

    @property
    def best(self) -> float:
        """The highest accuracy of a model."""
        return max(accuracy for _, accuracy in self.accuracies)

    @property
    def final(self) -> float:
        """The accuracy that was measured last."""
        return self.accuracies[-1][1]

    @property
    def updates(self) -> int:
        """How many updates are in the model."""
        return sum(len(event.survivors) for event in self.made)

    @property
    def staleness(self) -> list[int]:
        """Of each update that was used, in versions; empty for a run in rounds."""
        return [age for event in self.made for age in event.staleness or ()]

    def seconds_to(self, target: float) -> float:
        """Until there was a model of at least this accuracy, which is at most ``best``."""
        return next(seconds for seconds, accuracy in self.accuracies if accuracy >= target)

    def accuracy_at(self, seconds: float) -> float | None:
        """Of the newest model that was measured; None before the first and after the end."""
        if seconds > self.seconds:
            return None
        known = [accuracy for made, accuracy in self.accuracies if made <= seconds]
        return known[-1] if known else None


def target_of(courses: Sequence[Course]) -> float:
    """An accuracy that all of them reach, in whole percent."""
    return math.floor(100 * (min(course.best for course in courses) - _BELOW)) / 100


def table(title: str, courses: Mapping[str, Course]) -> Table:
    """What two runs came to, side by side.

    Args:
        title: of the table.
        courses: by their names; the second is compared with the first.
    """
    target = target_of(list(courses.values()))
    first = next(iter(courses.values())).seconds_to(target)
    made = Table("", *(Column(name, justify="right") for name in courses), title=title)
    rows = [_row(course, target, first) for course in courses.values()]
    for label in rows[0]:
        made.add_row(label, *(row[label] for row in rows))
    return made


def _row(course: Course, target: float, first: float) -> dict[str, str]:
    ages, needed = course.staleness, course.seconds_to(target)
    ratio = f" ({needed / first:.1f}×)" if needed != first else ""
    return {
        "models made": f"{len(course.made)} {'versions' if ages else 'rounds'}",
        "updates used": str(course.updates),
        "staleness": f"mean {fmean(ages):.1f}, at most {max(ages)}" if ages else "none",
        "final accuracy": percent(course.final),
        "first start to last model": duration(course.seconds),
        f"time to {100 * target:.0f} %": f"{duration(needed)}{ratio}",
    }


def picture(courses: Mapping[str, Course]) -> Text:
    """The upper part of the accuracy over time, in lines of less than 80 columns.

    Args:
        courses: two, by their names.
    """
    top = _STEP * math.ceil(100 * max(course.best for course in courses.values()) / _STEP)
    end = max(course.seconds for course in courses.values())
    marks = _marks(list(courses.values()), top, end)
    drawn = Text("accuracy\n")
    for row in range(_ROWS):
        level = top - _STEP * row
        drawn.append(f"{level:5.0f} % ┤" if level % (2 * _STEP) == 0 else f"{'│':>9}")
        for column in range(_WIDTH):
            drawn.append(*marks.get((row, column), (" ", "")))
        drawn.append("\n")
    drawn.append(f"{'└':>9}{'─' * _WIDTH}\n{'':8}{_seconds(end)}\n{'':8}")
    for mark, style, name in zip(_MARKS, _STYLES, courses, strict=True):
        drawn.append(mark, style)
        drawn.append(f" {name}   ")
    return drawn.append(f"{_BOTH} both")


def _marks(courses: Sequence[Course], top: float, end: float) -> dict[tuple[int, int], tuple[str, str]]:
    """Mark and style by row, from the top, and column."""
    marks: dict[tuple[int, int], tuple[str, str]] = {}
    for course, mark, style in zip(courses, _MARKS, _STYLES, strict=True):
        for column in range(_WIDTH):
            accuracy = course.accuracy_at(end * (column + 1) / _WIDTH)
            if accuracy is not None:
                place = round((top - 100 * accuracy) / _STEP), column
                marks[place] = (_BOTH, "") if place in marks else (mark, style)
    return marks


def _seconds(end: float) -> str:
    """The labels below the axis: a handful of round numbers."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, math.ceil(end)) if end <= 7 * step)
    labels = ""
    for second in range(0, math.floor(end) + 1, step):
        labels = labels.ljust(round(second / end * _WIDTH)) + f"{second} s"
    return labels
