"""What masks cost an asynchronous run: the wall time of an update beside plain FedBuff's.

Eight clients and a server, separate processes of the real program over loopback gRPC, train the CNN of
benchmarks/overlap.py, all at the same time on this machine's cores. Runs with masks and without take turns.
What is compared is a client's cycle, from one beginning of training to the next, and the time from one
version to the next. The first cycle of each client and the first two versions of each run are not measured.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.bench_plugins import Work
from benchmarks.runs import Run
from tests.brokers import free_port

CLIENTS = 8
DIMENSION = 1_206_590
BUFFER_SIZE = 8
MOST = 1.15
"""Times the cycle of plain FedBuff."""
LEAST_TRAINING = 3.0  # seconds
AIM = 3.8  # seconds for which the work is chosen: some trainings will be faster
TRIAL_EPOCHS = 2  # for choosing it
KINDS = ("LSA", "FedAvg")
REPEATS = 3
VERSIONS = 7


def one_run(kind: str, epochs: int, versions: int) -> dict[str, Any]:
    """The cycles, trainings and versions of one run, in seconds, without each one's first."""
    with contextlib.ExitStack() as stack:
        folder, records = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        work = Work(training=tuple(range(1, CLIENTS + 1)), records=str(records))
        run = Run(
            folder,
            CLIENTS,
            DIMENSION,
            versions,
            {"grpc": {"port": free_port()}},
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
        made = run.finish()
        times = [after["ended"] - before["ended"] for before, after in pairwise(made)]
        return {"kind": kind, "versions": times, **trainings(records)}


def trainings(records: Path) -> dict[str, list[float]]:
    cycles, trainings = [], []
    for path in sorted(records.iterdir()):
        notes = [json.loads(line) for line in path.read_text().splitlines()][1:]
        cycles += [after["started"] - before["started"] for before, after in pairwise(notes)]
        trainings += [note["ended"] - note["started"] for note in notes]
    return {"cycles": cycles, "trainings": trainings}


def choose_epochs() -> int:
    """So many that training takes `AIM` seconds, going by a trial of plain FedBuff on this machine now."""
    trial = one_run("FedAvg", TRIAL_EPOCHS, 3)
    training: float = statistics.median(trial["trainings"])
    return math.ceil(AIM / training * TRIAL_EPOCHS)


def compare(repeats: int = REPEATS, versions: int = VERSIONS) -> dict[str, Any]:
    """So many runs of each kind, each of so many measured versions."""
    epochs = choose_epochs()
    orders = [KINDS[:: 1 if repeat % 2 else -1] for repeat in range(repeats)]
    runs = [one_run(kind, epochs, versions) for order in orders for kind in order]
    secure, plain = ([run for run in runs if run["kind"] == kind] for kind in KINDS)
    return {
        "clients": CLIENTS,
        "dimension": DIMENSION,
        "buffer_size": BUFFER_SIZE,
        "epochs": epochs,
        "ratio_allowed": MOST,
        "secure": _summary(secure),
        "plain": _summary(plain),
        "ratio_of_cycles": ratio(secure, plain, "cycles"),
        "ratio_of_versions": ratio(secure, plain, "versions"),
        "runs": runs,
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    names = {"cycle": "cycles", "training": "trainings", "version": "versions"}
    return {name: statistics.median(s for run in runs for s in run[key]) for name, key in names.items()}


def ratio(secure: list[dict[str, Any]], plain: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Of the means of runs that follow each other; the median over these pairs, and each of them."""
    each = [statistics.fmean(a[key]) / statistics.fmean(b[key]) for a, b in zip(secure, plain, strict=True)]
    return {"median": statistics.median(each), "each": each}
