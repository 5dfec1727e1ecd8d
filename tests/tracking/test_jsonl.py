"""The event log: complete up to a crash, readable again, and never the end of a run."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from lightsecagg.tracking import jsonl
from lightsecagg.tracking.events import ClientJoined, Evaluated, Event, Notice
from lightsecagg.tracking.jsonl import JsonLines


def refuse_warning(text: str) -> None:
    raise AssertionError(text)


def log_at(path: Path) -> JsonLines:
    return JsonLines(
        path,
        warn=refuse_warning,
        monotonic=lambda: 12.5,
        now=lambda: datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=UTC),
    )


def test_line_has_times_name_and_fields_and_is_out_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    log = log_at(path)
    log.emit(ClientJoined(rank=3))
    assert json.loads(path.read_text()) == {
        "time": "2026-01-02T03:04:05.006+00:00",
        "monotonic": 12.5,
        "event": "ClientJoined",
        "rank": 3,
    }
    log.close()
    log.close()


@pytest.mark.parametrize("kind", ["run", "buffered_run"])
def test_every_event_of_a_run_comes_back_as_it_was(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    run: list[Event] = request.getfixturevalue(kind)
    log = log_at(tmp_path / "events.jsonl")
    for event in run:
        log.emit(event)
    log.close()
    entries = list(jsonl.read(tmp_path / "events.jsonl"))
    assert [entry.event for entry in entries] == run
    assert all(entry.monotonic == 12.5 and entry.time.tzinfo is not None for entry in entries)


def test_numbers_of_numpy_are_numbers_in_the_log(tmp_path: Path) -> None:
    log = log_at(tmp_path / "events.jsonl")
    log.emit(Evaluated(round=1, accuracy=np.float64(0.5)))
    log.close()
    assert [entry.event for entry in jsonl.read(tmp_path / "events.jsonl")] == [
        Evaluated(round=1, accuracy=0.5)
    ]


def test_line_of_a_version_names_the_age_of_each_update(tmp_path: Path, buffered_run: list[Event]) -> None:
    log = log_at(tmp_path / "events.jsonl")
    for event in buffered_run:
        log.emit(event)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines[0]["buffer_size"] == 3
    done = [(line["survivors"], line["staleness"]) for line in lines if line["event"] == "RoundCompleted"]
    assert done == [([2, 1, 1], [0, 0, 0]), ([3, 1, 4], [1, 0, 1])]
    (refused,) = [line for line in lines if line["event"] == "UpdateRefused"]
    assert (refused["rank"], refused["reason"], refused["round"]) == (3, "stale", 2)


def test_file_is_readable_by_others_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before = os.umask(0o022)
    try:
        for rank in (1, 2):
            log = log_at(path)
            log.emit(ClientJoined(rank=rank))
            log.close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.event for entry in jsonl.read(path)] == [ClientJoined(rank=1), ClientJoined(rank=2)]


def test_line_torn_by_a_crash_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = log_at(path)
    log.emit(ClientJoined(rank=1))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"time": "2026-01-0')
    log = log_at(path)
    log.emit(ClientJoined(rank=2))
    log.close()
    assert [entry.event for entry in jsonl.read(path)] == [ClientJoined(rank=1), ClientJoined(rank=2)]


def test_lines_that_are_no_events_of_ours_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    stamp = '"time": "2026-01-02T03:04:05+00:00", "monotonic": 1'
    path.write_text(
        f'[]\n{{}}\n{{{stamp}, "event": "Later"}}\n{{{stamp}, "event": "ClientJoined", "rank": "x"}}\n'
        f'{{{stamp}, "event": "UpdateRefused", "rank": 1, "reason": "stale", "round": null}}\n'
        f'{{{stamp}, "event": "ClientJoined", "rank": 1}}\n'
    )
    assert [entry.event for entry in jsonl.read(path)] == [ClientJoined(rank=1)]


def test_full_disk_is_warned_of_once_and_the_gap_is_told_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    warnings: list[str] = []
    log = JsonLines(path, warn=warnings.append)
    log.emit(ClientJoined(rank=1))
    real_write, room = os.write, 10

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    log.emit(ClientJoined(rank=2))  # torn after ten bytes
    log.emit(ClientJoined(rank=3))
    monkeypatch.setattr(os, "write", real_write)
    log.emit(ClientJoined(rank=4))
    log.close()
    assert warnings == [f"the event log {path} cannot be written (No space left on device); the run goes on"]
    assert [entry.event for entry in jsonl.read(path)] == [
        ClientJoined(rank=1),
        Notice(text="2 events before this line were lost", level="warning"),
        ClientJoined(rank=4),
    ]


def test_log_that_cannot_be_made_warns_and_lets_the_run_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    log = JsonLines(tmp_path / "file" / "events.jsonl")
    log.emit(ClientJoined(rank=1))
    log.emit(ClientJoined(rank=2))
    log.close()
    assert capsys.readouterr().err.count("warning: the event log") == 1
