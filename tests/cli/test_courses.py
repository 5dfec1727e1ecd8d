"""What the asynchronous demonstration makes of two event logs, and when it says that something is wrong."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from lightsecagg.cli.courses import Course, picture, table, target_of
from lightsecagg.cli.demo_async import verdict
from lightsecagg.errors import RunStopped
from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    Evaluated,
    Event,
    Notice,
    RoundCompleted,
    RoundStarted,
)
from lightsecagg.tracking.jsonl import JsonLines

Timed = tuple[float, Event]


def read(path: Path, events: Iterable[Timed]) -> Course:
    """The course of a server that said this at these seconds."""
    now = 0.0
    log = JsonLines(path, monotonic=lambda: now)
    for now, event in events:  # noqa: B007 - the log's clock reads it
        log.emit(event)
    log.close()
    return Course.read(path)


def started(number: int) -> RoundStarted:
    return RoundStarted(round=number, cohort=(1, 2), num_clients=6, target_survivors=4, privacy_threshold=1)


def made(number: int, clients: Sequence[int] = (1, 2), ages: Sequence[int] | None = None) -> RoundCompleted:
    return RoundCompleted(
        round=number,
        survivors=tuple(clients),
        seconds={},
        bytes_per_client=0.0,
        bytes_by_phase={},
        staleness=None if ages is None else tuple(ages),
    )


def models(
    times: Sequence[float], accuracies: Sequence[float], *, is_asynchronous: bool = False
) -> list[Timed]:
    """A run that starts at second 10 and makes models so many seconds later."""
    events: list[Timed] = [(10.0, started(1))]
    for number, (time, accuracy) in enumerate(zip(times, accuracies, strict=True), start=1):
        events.append((10.0 + time, made(number, (1, 2), (0, 3) if is_asynchronous else None)))
        events.append((10.3 + time, Evaluated(round=number, accuracy=accuracy)))
    return events


def shown(renderable: RenderableType) -> list[str]:
    """Its lines in a pipe of 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_times_count_from_the_first_start_to_a_model_and_not_to_its_measurement(tmp_path: Path) -> None:
    joined = (2.0, ClientJoined(rank=1))
    again = (16.0, started(2))
    course = read(tmp_path / "log", [joined, *models([5, 7, 9], [0.5, 0.8, 0.7]), again])
    assert course.accuracies == ((5.0, 0.5), (7.0, 0.8), (9.0, 0.7))
    assert (course.seconds, course.best, course.final) == (9.0, 0.8, 0.7)
    assert course.seconds_to(0.6) == 7.0
    assert [course.accuracy_at(second) for second in (4.9, 5, 8, 9, 9.1)] == [None, 0.5, 0.8, 0.7, None]


def test_updates_and_their_staleness_are_those_in_the_lists(tmp_path: Path) -> None:
    course = read(tmp_path / "a", models([1, 2], [0.5, 0.6], is_asynchronous=True))
    assert (course.updates, course.staleness) == (4, [0, 3, 0, 3])
    in_rounds = read(tmp_path / "s", models([1, 2], [0.5, 0.6]))
    assert (in_rounds.updates, in_rounds.staleness) == (4, [])


def test_version_that_was_not_measured_still_counts(tmp_path: Path) -> None:
    course = read(tmp_path / "log", [*models([1], [0.5]), (14.0, made(2))])
    assert (len(course.made), course.seconds, course.final) == (2, 4.0, 0.5)


@pytest.mark.parametrize("events", [[], [(1.0, started(1)), (2.0, made(1))], [(1.0, Notice(text="hello"))]])
def test_log_without_an_accuracy_is_refused(tmp_path: Path, events: list[Timed]) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(RunStopped, match="wanted a model whose accuracy was measured, found none in"):
        read(tmp_path / "log", events)


def test_target_is_one_that_both_reached(tmp_path: Path) -> None:
    high = read(tmp_path / "a", models([1, 2, 3], [0.5, 0.955, 0.9]))
    low = read(tmp_path / "b", models([1, 2, 3], [0.3, 0.889, 0.8]))
    assert target_of([high, low]) == target_of([low, high]) == 0.86
    assert (high.seconds_to(0.86), low.seconds_to(0.86)) == (2.0, 2.0)


def test_table_sets_both_side_by_side_and_gives_the_ratio(tmp_path: Path) -> None:
    fast = read(tmp_path / "a", models([1, 2, 3], [0.5, 0.9, 0.91], is_asynchronous=True))
    slow = read(tmp_path / "b", models([4, 7], [0.5, 0.9]))
    cells = {
        row[1].strip(): (row[2].strip(), row[3].strip())
        for row in (line.split("│") for line in shown(table("both", {"x": fast, "y": slow})))
        if len(row) == 5
    }
    assert cells == {
        "models made": ("3 versions", "2 rounds"),
        "updates used": ("6", "4"),
        "staleness": ("mean 1.5, at most 3", "none"),
        "final accuracy": ("91.0 %", "90.0 %"),
        "first start to last model": ("3.0 s", "7.0 s"),
        "time to 88 %": ("2.0 s", "7.0 s (3.5×)"),
    }


def test_picture_draws_each_run_until_it_ends_in_eighty_columns_without_colour(tmp_path: Path) -> None:
    short = read(tmp_path / "a", models([0, 5], [0.9, 0.9]))
    long = read(tmp_path / "b", models([0, 5, 10], [0.8, 0.9, 0.9]))
    lines = shown(picture({"short": short, "long": long}))
    assert max(map(len, lines)) < 80
    assert not any("\x1b" in line for line in lines)
    plot = {line[:9].strip(" │┤"): line[9:] for line in lines}
    # 66 columns are ten seconds: the first 32 end before second 5.
    assert plot["90 %"].rstrip() == "●" * 32 + "◉" + "○" * 33
    assert plot["80 %"].rstrip() == "○" * 32
    assert sum(line.count("●") + line.count("◉") for line in lines[:-1]) == 33
    assert lines[-1].split() == ["●", "short", "○", "long", "◉", "both"]
    assert lines[-2].split() == ["0", "s", "2", "s", "4", "s", "6", "s", "8", "s", "10", "s"]


def asynchronous(tmp_path: Path, accuracy: float = 0.9, *, without: Sequence[Event] = ()) -> Course:
    """A run of the demonstration: client 2 comes after version 4, and client 5 is killed after version 6."""
    late, killed = ClientJoined(rank=2), ClientLost(rank=5, reason="away")
    extra = {4: late, 6: killed}
    events: list[Timed] = [(0.0, started(1))]
    for number in range(1, 11):
        clients = (1, 2) if number > 4 and late not in without else (1, 3)
        events += [
            (number, made(number, clients, (0, 1))),
            (number, Evaluated(round=number, accuracy=accuracy)),
        ]
        if number in extra and extra[number] not in without:
            events.append((number, extra[number]))
    return read(tmp_path / "async", events)


def in_rounds(tmp_path: Path, seconds: float = 3.0) -> Course:
    times = [seconds, 2 * seconds, 3 * seconds]
    return read(tmp_path / "sync", models(times, [0.6, 0.8, 0.9]))


def test_verdict_says_what_became_of_the_late_and_the_killed_client(tmp_path: Path) -> None:
    assert verdict(asynchronous(tmp_path), in_rounds(tmp_path)).splitlines() == [
        "Client 2 joined after version 4, and 6 of its updates were used.",
        "Client 5 was killed after version 6, and 4 more were made.",
        "To 88 % the rounds took 9.0 times as long.",
    ]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (ClientJoined(rank=2), "wanted ClientJoined of client 2 in the server's log, found none"),
        (ClientLost(rank=5, reason="away"), "wanted ClientLost of client 5 in the server's log, found none"),
    ],
)
def test_run_without_its_late_or_killed_client_is_refused(tmp_path: Path, event: Event, said: str) -> None:
    with pytest.raises(RunStopped, match=said):
        verdict(asynchronous(tmp_path, without=[event]), in_rounds(tmp_path))


def test_late_client_of_whom_nothing_came_is_refused(tmp_path: Path) -> None:
    course = asynchronous(tmp_path, without=[ClientJoined(rank=2)])
    idle = Course((*course.events, ClientJoined(rank=2)), course.made, course.accuracies, course.seconds)
    with pytest.raises(RunStopped, match="client 2 joined after version 10 and 0 of its updates were used"):
        verdict(idle, in_rounds(tmp_path))


def test_run_that_stands_still_after_the_kill_is_refused(tmp_path: Path) -> None:
    course = asynchronous(tmp_path)
    last = Course(
        (*course.events, ClientLost(rank=5, reason="away")), course.made, course.accuracies, course.seconds
    )
    with pytest.raises(RunStopped, match="no version was made after client 5 was killed"):
        verdict(last, in_rounds(tmp_path))


def test_accuracy_more_than_five_points_below_is_refused_and_five_are_not(tmp_path: Path) -> None:
    assert verdict(asynchronous(tmp_path, accuracy=0.851), in_rounds(tmp_path))
    with pytest.raises(RunStopped, match=r"ends at 84\.9 %, more than 5 points below .* at 90\.0 %"):
        verdict(asynchronous(tmp_path, accuracy=0.849), in_rounds(tmp_path))


def test_run_that_is_not_sooner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"needed 1\.0 s to 88 %, the synchronous one only 0\.9 s"):
        verdict(asynchronous(tmp_path), in_rounds(tmp_path, seconds=0.3))
