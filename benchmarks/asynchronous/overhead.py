"""What masks cost an asynchronous run: the wall time of an update beside plain FedBuff's.

Eight clients and a server, separate processes of the real program over loopback gRPC, train the CNN of
benchmarks/overlap.py, all of them for real. They have this machine's cores to share, so that whatever masks
cost takes time from somebody's training; with a machine for each client most of it would hide behind the
training, as benchmarks/overlap.py shows for rounds.

A run with masks and one without take turns of a few seconds. Every update takes as many batches of training,
so the batches of a turn tell the wall time of an update; the ratio is the median over pairs of turns that
follow each other. Beside it stand a client's cycle, from one beginning of training to the next, and the time
from one version to the next, both by the clock of the run's own turns.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.asynchronous.turns import Turns, take_turns
from benchmarks.bench_plugins import Work
from benchmarks.runs import Run
from lightsecagg.tracking.events import RoundCompleted
from lightsecagg.tracking.jsonl import Entry
from tests.brokers import free_port

CLIENTS = 8
DIMENSION = 1_206_590
BUFFER_SIZE = 8
MOST = 1.15
"""Times the update of plain FedBuff."""
LEAST_TRAINING = 3.0  # seconds
AIM = 3.8  # seconds for which the work is chosen: some trainings will be faster
TRIAL_EPOCHS, TRIAL_VERSIONS = 2, 3  # for choosing it
TURNS, TURN = 18, 6.0  # of each run, and seconds of each
KINDS = ("LSA", "FedAvg")

_FOR_EVER = 10**6  # versions
_UNMEASURED = 1  # turns at the beginning and at the end: some trainings of the last one were never noted

Notes = dict[int, list[dict[str, Any]]]
"""By rank, what a client noted of each of its trainings."""


def start(stack: contextlib.ExitStack, kind: str, records: Path, epochs: int, versions: int) -> Run:
    """A run whose clients note when they train; it ends with the stack."""
    records.mkdir()
    work = Work(training=tuple(range(1, CLIENTS + 1)), records=str(records))
    run = Run(
        Path(stack.enter_context(tempfile.TemporaryDirectory())),
        CLIENTS,
        DIMENSION,
        versions,
        {"grpc": {"port": free_port()}, "heartbeat_timeout": 10 * TURN},
        kind,
        settings={
            "data_args": {"dataset": "bench_plugins:images"},
            "model_args": {"trainer": "bench_plugins:RecordingTrainer"},
            "train_args": {"batch_size": 20, "epochs": epochs},
            "secure_aggregation_args": {"mode": "async", "buffer_size": BUFFER_SIZE},
        },
        environment={"LIGHTSECAGG_BENCH_WORK": msgspec.json.encode(work).decode()},
    )
    stack.callback(run.kill)
    run.start()
    return run


def read_notes(records: Path) -> Notes:
    """What the clients of a run noted."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(records.iterdir())
    }


def choose_epochs() -> int:
    """So many that training takes `AIM` seconds, going by a trial of plain FedBuff on this machine now."""
    with contextlib.ExitStack() as stack:
        records = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trial"
        start(stack, "FedAvg", records, TRIAL_EPOCHS, TRIAL_VERSIONS).finish()
        notes = read_notes(records)
    trainings = [note["ended"] - note["started"] for found in notes.values() for note in found[1:]]
    seconds: float = statistics.median(trainings)
    return math.ceil(AIM / seconds * TRIAL_EPOCHS)


def compare(turns: int = TURNS) -> dict[str, Any]:
    """So many turns of each kind of run."""
    epochs = choose_epochs()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {kind: start(stack, kind, folder / kind, epochs, _FOR_EVER) for kind in KINDS}
        for run in runs.values():
            run.wait_for_clients(CLIENTS)
        worked = take_turns(runs, turns, TURN)
        secure, plain = (
            summary(read_notes(folder / kind), runs[kind].noted(), worked[kind]) for kind in KINDS
        )
    each = [a / b for a, b in zip(secure["updates"], plain["updates"], strict=True)]
    return {
        "clients": CLIENTS,
        "dimension": DIMENSION,
        "buffer_size": BUFFER_SIZE,
        "epochs": epochs,
        "turn": TURN,
        "ratio_allowed": MOST,
        "ratio": statistics.median(each),
        "ratios": each,
        "secure": secure,
        "plain": plain,
    }


def summary(notes: Notes, entries: Sequence[Entry], turns: Turns) -> dict[str, Any]:
    """Medians, in seconds of the run's own clock, and the wall time of an update in each measured turn."""
    cycles = [
        turns.between(before["started"], after["started"])
        for found in notes.values()
        for before, after in pairwise(found)
    ]
    trainings = [turns.between(note["started"], note["ended"]) for found in notes.values() for note in found]
    made = [entry.monotonic for entry in entries if isinstance(entry.event, RoundCompleted)]
    versions = [turns.between(before, after) for before, after in pairwise(made)]
    updates = seconds_an_update(notes, turns)
    return {
        "update": statistics.median(updates),
        "cycle": _median(cycles),
        "training": _median(trainings),
        "version": _median(versions),
        "updates": updates,
        "cycles": len(cycles),
        "versions": len(versions),
    }


def seconds_an_update(notes: Notes, turns: Turns) -> list[float]:
    """How long one client takes for an update, in each measured turn."""
    trainings = [note for found in notes.values() for note in found]
    (batches,) = {len(note["batches"]) for note in trainings}
    moments = [moment for note in trainings for moment in note["batches"]]
    return [
        (end - start) * len(notes) * batches / sum(start <= moment < end for moment in moments)
        for start, end in turns.spans[_UNMEASURED:-_UNMEASURED]
    ]


def _median(seconds: Sequence[float | None]) -> float:
    return statistics.median(each for each in seconds if each is not None)
