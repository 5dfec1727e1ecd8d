"""The trace: sound events of Chrome's format from any thread, whole up to a kill, and one file for a run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from lightsecagg.cli.main import main
from lightsecagg.spans import SpanName, Spans, no_spans
from lightsecagg.tracking import trace as module
from lightsecagg.tracking.events import (
    ClientLost,
    Event,
    Notice,
    PhaseStarted,
    RoundAborted,
    RoundStarted,
    RunFinished,
)
from lightsecagg.tracking.trace import Trace, wall_clock

SECOND = 1_000_000  # microseconds
NANOSECOND = 1e-9

REQUIRED = {
    "X": {"ts", "dur", "cat"},
    "b": {"ts", "cat", "id2"},
    "e": {"ts", "cat", "id2"},
    "i": {"ts", "s"},
    "M": {"args"},
}
"""What the format demands of an event by its ``ph``, beside name, ph, pid and tid."""

Json = dict[str, Any]


class Clock:
    """Stands still until it is moved."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.nanoseconds = round(seconds / NANOSECOND)

    def __call__(self) -> int:
        return self.nanoseconds

    def pass_(self, seconds: float) -> None:
        self.nanoseconds += round(seconds / NANOSECOND)


def events_of(path: Path) -> list[Json]:
    """The events of one process's file, by the format's own rule: a missing bracket is added."""
    return json.loads(path.read_text() + "]")


def merged(folder: Path) -> list[Json]:
    """The events of the run in ``folder``, as the command merges them."""
    done = CliRunner().invoke(main, ["trace", str(folder)])
    assert done.exit_code == 0, done.output
    return json.loads((folder / "trace.json").read_text())["traceEvents"]


def spans_of(events: list[Json]) -> list[str]:
    return [event["name"] for event in events if event["ph"] in "Xb" and event["cat"] == "span"]


def check(events: list[Json]) -> None:
    """Every rule of the format that a viewer relies on."""
    tracks: dict[tuple[int, int], list[Json]] = defaultdict(list)
    pairs: dict[tuple[int, str, str], list[Json]] = defaultdict(list)
    named = set()
    for event in events:
        assert {"name", "ph", "pid", "tid"} | REQUIRED[event["ph"]] <= set(event), event
        assert all(type(event[key]) is int for key in {"pid", "tid", "ts", "dur"} & set(event)), event
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append(event)
        elif event["ph"] in "be":
            pairs[event["pid"], event["cat"], event["id2"]["local"]].append(event)
        elif event["name"] == "process_name":
            named.add(event["pid"])
    for bars in tracks.values():
        check_nesting(bars)
    for pair in pairs.values():
        assert [end["ph"] for end in pair] == ["b", "e"]
        assert pair[0]["name"] == pair[1]["name"]
        assert pair[0]["ts"] <= pair[1]["ts"]
    assert {event["pid"] for event in events} == named


def check_nesting(bars: list[Json]) -> None:
    open_until: list[int] = []
    for bar in sorted(bars, key=lambda bar: (bar["ts"], -bar["dur"])):
        while open_until and open_until[-1] <= bar["ts"]:
            open_until.pop()
        end = bar["ts"] + bar["dur"]
        assert not open_until or end <= open_until[-1], f"{bar} sticks out of what encloses it"
        open_until.append(end)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace-client-3.json"


def test_span_is_one_event_with_its_start_and_duration_in_microseconds(path: Path) -> None:
    clock = Clock(1_767_323_045.0)
    trace = Trace(path, 3, clock)
    with trace("encode"):
        clock.pass_(0.25)
    trace.close()
    (span,) = [event for event in events_of(path) if event["ph"] == "X"]
    assert span == {
        "name": "encode",
        "ph": "X",
        "pid": 3,
        "tid": threading.get_native_id(),
        "ts": 1_767_323_045 * SECOND,
        "dur": SECOND // 4,
        "cat": "span",
    }


def test_trace_is_what_the_machines_take_as_spans(path: Path) -> None:
    trace = Trace(path, 3)
    spans: Spans = trace
    for name in get_args(SpanName):
        with spans(name):
            pass
    trace.close()
    assert spans_of(events_of(path)) == list(get_args(SpanName))


@pytest.mark.parametrize(("rank", "name"), [(0, "server"), (3, "client 3")])
def test_processes_and_threads_have_their_names_and_places(path: Path, rank: int, name: str) -> None:
    trace = Trace(path, rank)

    def work() -> None:
        with trace("train"):
            pass

    thread = threading.Thread(target=work, name="training_0")
    thread.start()
    thread.join()
    trace.close()
    events = events_of(path)
    check(events)
    said = {(event["name"], event["tid"]): event["args"] for event in events if event["ph"] == "M"}
    (span,) = [event for event in events if event["ph"] == "X"]
    assert said["process_name", 0] == {"name": name}
    assert said["process_sort_index", 0] == {"sort_index": rank}
    assert said["thread_name", span["tid"]] == {"name": "training_0"}
    assert said["thread_name", 0] == {"name": "rounds"}


def test_clock_is_the_systems_when_it_is_set() -> None:
    before = module.time.time_ns()
    now = wall_clock()()
    after = module.time.time_ns()
    assert before - 1e9 <= now <= after + 1e9


def test_error_within_a_span_passes_and_the_span_is_recorded(path: Path) -> None:
    trace = Trace(path, 3)
    with pytest.raises(ZeroDivisionError), trace("decode"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), no_spans("decode"):
        raise ZeroDivisionError
    trace.close()
    assert spans_of(events_of(path)) == ["decode"]


def test_nobody_listening_costs_no_new_object() -> None:
    with no_spans("seal") as outer, no_spans("seal") as inner:
        assert outer is inner is None
    assert no_spans("seal") is no_spans("send")


def test_span_within_a_span_nests_though_both_are_cut_to_microseconds(path: Path) -> None:
    clock = Clock()
    trace = Trace(path, 3, clock)
    for start in range(0, 2500, 100):  # nanoseconds
        clock.nanoseconds = 10_000 * (start + 1) + start
        with trace("upload"):
            clock.pass_(200 * NANOSECOND)
            with trace("mask"):
                clock.pass_(2700 * NANOSECOND)
    trace.close()
    events = events_of(path)
    check(events)
    assert {event["ph"] for event in events if event["name"] in ("upload", "mask")} == {"X"}


async def test_spans_of_coroutines_that_take_turns_are_pairs_beside_the_thread(path: Path) -> None:
    clock = Clock()
    trace = Trace(path, 3, clock)
    second_began, first_ended = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with trace("send"):
            await second_began.wait()
            clock.pass_(1)
        first_ended.set()

    async def second() -> None:
        with trace("send"):
            second_began.set()
            await first_ended.wait()
            clock.pass_(2)

    await asyncio.gather(first(), second())
    trace.close()
    events = events_of(path)
    check(events)
    ends = [(event["ph"], event["ts"]) for event in events if event["name"] == "send"]
    assert ends == [("b", 0), ("e", SECOND), ("b", 0), ("e", 3 * SECOND)]


def test_generators_that_pause_within_spans_spoil_no_track(path: Path) -> None:
    clock = Clock()
    trace = Trace(path, 3, clock)

    def step(name: str) -> Iterator[None]:
        with trace(name):
            yield

    first, second = step("expand"), step("encode")
    for turn in (first, second, first, second):
        next(turn, None)
        clock.pass_(1)
    with trace("seal"):
        clock.pass_(1)
    trace.close()
    events = events_of(path)
    check(events)
    assert {event["name"]: event["ph"] for event in events if event["ph"] in "Xb"} == {
        "expand": "b",
        "encode": "X",
        "seal": "X",
    }


def test_span_that_another_thread_ends_is_a_pair(path: Path) -> None:
    trace = Trace(path, 3)

    def step() -> Iterator[None]:
        with trace("encode"):
            yield

    steps = step()
    next(steps)
    thread = threading.Thread(target=steps.close)
    thread.start()
    thread.join()
    with trace("seal"):
        pass
    trace.close()
    events = events_of(path)
    check(events)
    assert {event["name"]: event["ph"] for event in events if event["ph"] in "Xb"} == {
        "encode": "b",
        "seal": "X",
    }


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns a thousand times more often than usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 1000)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_record_at_once_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT", 0)
    trace = Trace(path, 3)
    each, together = 1000, threading.Barrier(4)

    def work(name: SpanName) -> None:
        together.wait()
        for _ in range(each):
            with trace(name), trace("seal"):
                pass

    names: tuple[SpanName, ...] = ("expand", "encode", "mask")
    threads = [threading.Thread(target=work, args=(name,), name=name) for name in names]
    for thread in threads:
        thread.start()
    together.wait()
    while any(thread.is_alive() for thread in threads):
        trace.close()
    trace.close()
    events = events_of(path)
    check(events)
    assert Counter(spans_of(events)) == {**dict.fromkeys(names, each), "seal": 3 * each}
    bars = [(event["name"], event["tid"]) for event in events if event["ph"] == "X"]
    assert len(set(bars)) == 6  # each thread has its own name, its own track, and the seals within


def test_one_thread_writes_at_a_time(path: Path) -> None:
    is_first, second = threading.Lock(), threading.Event()

    class Watched(type(path)):
        def open(self, *words: Any, **further: Any) -> Any:
            if is_first.acquire(blocking=False):
                other.start()
                assert not second.wait(0.2)
            else:
                second.set()
            return super().open(*words, **further)

    trace = Trace(Watched(path), 3, Clock())

    def work() -> None:
        with trace("sum"):
            pass
        trace.close()

    other = threading.Thread(target=work)
    trace.close()
    other.join()
    assert spans_of(events_of(path)) == ["sum"]


def test_rounds_and_their_phases_are_bars_of_one_track(path: Path, run: list[Event]) -> None:
    clock = Clock()
    trace = Trace(path, 0, clock)
    for event in run:
        trace.emit(event)
        clock.pass_(1)
    starts = {type(event): SECOND * place for place, event in reversed(list(enumerate(run)))}
    begins = [SECOND * place for place, event in enumerate(run) if isinstance(event, RoundStarted)]
    phases = [SECOND * place for place, event in enumerate(run) if isinstance(event, PhaseStarted)]
    completed = next(SECOND * place for place, event in enumerate(run) if "Completed" in type(event).__name__)
    events = events_of(path)
    check(events)
    bars = {
        event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events if event["ph"] == "X"
    }
    assert bars == {
        "round 3": (begins[0], completed),
        "sharing": (phases[0], phases[1]),
        "uploading": (phases[1], completed),
        "round 4": (begins[1], starts[RoundAborted]),
    }
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0}
    moments = {event["name"]: (event["ts"], event["args"]) for event in events if event["ph"] == "i"}
    assert moments == {
        "lost client 4": (starts[ClientLost], {"reason": "link_lost"}),
        "aborted": (starts[RoundAborted], {"reason": "too_few_shared"}),
    }


def test_versions_of_an_asynchronous_run_are_bars_and_refusals_moments(
    path: Path, buffered_run: list[Event]
) -> None:
    clock = Clock()
    trace = Trace(path, 0, clock)
    for event in buffered_run:
        trace.emit(event)
        clock.pass_(1)
    events = events_of(path)
    check(events)
    bars = [event["name"] for event in events if event["ph"] == "X"]
    list_of = ["collecting", "endorsing", "recovering"]
    assert bars == [*list_of, "version 1", *list_of, "version 2", *list_of, "version 2"]
    moments = [(event["name"], event["args"]) for event in events if event["ph"] == "i"]
    assert moments == [
        ("lost client 4", {"reason": "link_lost"}),
        ("refused the update of client 3", {"reason": "stale"}),
        ("aborted", {"reason": "too_few_answers"}),
    ]
    tracks = [
        event["args"]["name"] for event in events if (event["name"], event["tid"]) == ("thread_name", 0)
    ]
    assert tracks[-1] == "versions"  # the last name of a track is the one that a viewer shows


def test_phases_of_a_client_overlap_and_so_are_moments(path: Path) -> None:
    trace = Trace(path, 3, Clock(5.0))
    trace.emit(PhaseStarted(round=2, phase="sharing"))
    trace.emit(PhaseStarted(round=2, phase="training"))
    moments = [event for event in events_of(path) if event["ph"] == "i"]
    assert [(event["name"], event["ts"], event["s"], event["args"]) for event in moments] == [
        ("sharing", 5 * SECOND, "p", {"round": 2}),
        ("training", 5 * SECOND, "p", {"round": 2}),
    ]


def test_run_that_is_stopped_within_a_round_ends_its_bars(path: Path) -> None:
    clock = Clock()
    trace = Trace(path, 0, clock)
    trace.emit(RoundStarted(round=1, cohort=(1, 2), num_clients=2, target_survivors=2, privacy_threshold=0))
    trace.emit(PhaseStarted(round=1, phase="sharing"))
    clock.pass_(2)
    trace.emit(RunFinished(rounds=0, aborted=0, outcome="stopped", seconds=2.0))
    bars = [event for event in events_of(path) if event["ph"] == "X"]
    assert {(event["name"], event["ts"], event["dur"]) for event in bars} == {
        ("round 1", 0, 2 * SECOND),
        ("sharing", 0, 2 * SECOND),
    }


def test_killed_process_leaves_all_up_to_the_last_phase(path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from lightsecagg.tracking.events import PhaseStarted
from lightsecagg.tracking.trace import Trace
trace = Trace(Path({str(path)!r}), 3)
with trace("encode"):
    pass
trace.emit(PhaseStarted(round=1, phase="training"))
with trace("train"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    events = events_of(path)
    check(events)
    assert spans_of(events) == ["encode"]


def test_spans_are_in_the_file_after_half_a_second_without_a_phase(path: Path) -> None:
    clock = Clock(1000.0)
    trace = Trace(path, 3, clock)
    for name in ("expand", "encode", "seal"):
        with trace(name):
            clock.pass_(0.3)
    assert spans_of(events_of(path)) == ["expand", "encode"]


def test_file_that_is_torn_anywhere_loses_that_line_only_and_is_carried_on(path: Path) -> None:
    first = Trace(path, 3, Clock(1.0))
    for name in ("expand", "encode", "seal"):
        with first(name):
            pass
    first.close()
    whole = path.read_bytes()
    last_line = whole.rindex(b"\n") + 1
    for torn in range(last_line, len(whole)):
        path.write_bytes(whole[:torn])
        second = Trace(path, 3, Clock(2.0))
        with second("train"):
            pass
        second.close()
        events = merged(path.parent)
        check(events)
        assert spans_of(events) == ["expand", "encode", "train"]
    path.write_bytes(whole)
    assert spans_of(merged(path.parent)) == ["expand", "encode", "seal"]


def test_process_that_is_started_anew_repeats_no_pair(path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from lightsecagg.tracking.trace import Trace
async def main():
    with trace("send"):
        pass
trace = Trace(Path({str(path)!r}), 3)
asyncio.run(main())
trace.close()
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True)
    events = merged(path.parent)
    check(events)
    assert len({event["id2"]["local"] for event in events if "id2" in event}) == 2
    assert spans_of(events_of(path)) == ["send", "send"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a full disk to try")
def test_full_disk_is_told_once_and_ends_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT", 0)
    trace = Trace(Path("/dev/full"), 0)
    with caplog.at_level(logging.WARNING, "lightsecagg"):
        for _ in range(20):
            with trace("sum"):
                pass
        trace.emit(PhaseStarted(round=1, phase="sharing"))
        trace.close()
    assert caplog.messages == [
        "the trace /dev/full cannot be written (No space left on device); the run goes on"
    ]


def test_disk_that_is_there_again_is_written_to_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "later"
    trace = Trace(folder / "trace-server.json", 0)
    with trace("sum"):
        pass
    trace.close()
    folder.mkdir()
    with trace("decode"):
        pass
    trace.close()
    assert spans_of(events_of(folder / "trace-server.json")) == ["decode"]
    assert len(caplog.messages) == 1


def test_thread_that_is_writing_may_record_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's log is told to the trackers, the trace among them; a generator may be closed any time."""
    trace = Trace(tmp_path / "nowhere" / "trace-server.json", 0, Clock())
    monkeypatch.setattr(module, "_WAIT", 0)
    told = []

    class Back(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record)
            trace.emit(Notice(text=record.getMessage(), level="warning"))
            with trace("sum"):
                pass

    handler = Back()
    module.log.addHandler(handler)
    try:
        trace.emit(PhaseStarted(round=1, phase="sharing"))  # hangs where that waits for the writing
    finally:
        module.log.removeHandler(handler)
    assert len(told) == 1


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The traces of a server and two clients in runs/my_run, each a second and a half after the other."""
    folder = tmp_path / "runs" / "my_run"
    folder.mkdir(parents=True)
    for rank, name in ((0, "sum"), (1, "train"), (2, "encode")):
        clock = Clock(1000.0 - 1.5 * rank)
        who = f"client-{rank}" if rank else "server"
        trace = Trace(folder / f"trace-{who}.json", rank, clock)
        with trace(name):
            clock.pass_(1)
        trace.close()
    return tmp_path / "runs"


@pytest.mark.parametrize("named", ["by run id", "by folder"])
def test_command_merges_a_runs_files_into_one_in_order_of_time(runs: Path, named: str) -> None:
    words = ["my_run", "--runs", str(runs)] if named == "by run id" else [str(runs / "my_run")]
    for _ in range(2):  # what it wrote itself is not read again
        done = CliRunner().invoke(main, ["trace", *words])
        assert done.exit_code == 0, done.output
    path = runs / "my_run" / "trace.json"
    assert done.stdout == f"{path}: 3 spans of 3 processes; open it at https://ui.perfetto.dev\n"
    document = json.loads(path.read_text())
    events = document["traceEvents"]
    check(events)
    assert spans_of(events) == ["encode", "train", "sum"]
    assert [event.get("ts", 0) for event in events] == sorted(event.get("ts", 0) for event in events)
    assert document["displayTimeUnit"] == "ms"


def test_merging_puts_what_encloses_first_where_both_begin_together(path: Path) -> None:
    clock = Clock(1.0)
    trace = Trace(path, 3, clock)
    with trace("upload"):
        with trace("mask"):
            clock.pass_(1)
        clock.pass_(1)
    trace.close()
    assert spans_of(events_of(path)) == ["mask", "upload"]
    assert spans_of(merged(path.parent)) == ["upload", "mask"]


def test_lines_that_are_no_events_of_ours_are_left_out(path: Path) -> None:
    path.write_bytes(
        b'[\n{"name": "seal", "ph": "X", "pid": 3, "tid": 1, "ts": "soon"},\n7,\n{"name": "\xff"},\n'
        b'{"name": "process_name", "ph": "M", "pid": 3, "tid": 0, "args": {"name": "client 3"}},\n'
        b'{"name": "encode", "ph": "X", "pid": 3, "tid": 1, "ts": 5, "dur": 1, "cat": "span"}'
    )
    events = merged(path.parent)
    check(events)
    assert spans_of(events) == ["encode"]


def test_run_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["trace", "nowhere", "--runs", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr == (
        f"lightsecagg: RUN: wanted the folder of a run or a RUN_ID in {tmp_path} (--runs), "
        "found neither at 'nowhere'\n"
    )


def test_run_without_traces_is_told_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "my_run").mkdir()
    done = CliRunner().invoke(main, ["trace", "my_run", "--runs", str(tmp_path)])
    assert done.exit_code == 2
    assert "--set tracking_args.trace=true" in done.stderr


def test_merged_file_that_cannot_be_written_is_told(runs: Path) -> None:
    (runs / "my_run" / "trace.json").mkdir()
    done = CliRunner().invoke(main, ["trace", "my_run", "--runs", str(runs)])
    assert done.exit_code == 2
    assert "trace.json: Is a directory" in done.stderr
