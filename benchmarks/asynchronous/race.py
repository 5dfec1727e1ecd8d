"""Time to an accuracy, asynchronous against synchronous: both with masks, real processes over loopback gRPC.

The two runs of a seed go on at the same time, so that what else this machine does hits both. Their clients
sleep most of the time; how much longer a synchronous round took than its slowest client's training tells how
much anything was in anyone's way.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.asynchronous.curve import Curve, median_time
from benchmarks.asynchronous.tasks import CLIENTS, PACES, Choice, Task, sections
from benchmarks.asynchronous.trainers import PACES as PACES_VARIABLE
from benchmarks.asynchronous.tuning import Tuned
from benchmarks.runs import ONE_THREAD, Run
from lightsecagg.tracking.events import Evaluated, RoundAborted, RoundCompleted, RoundStarted, UpdateRefused
from lightsecagg.tracking.jsonl import Entry
from tests.brokers import free_port

_TRAINER = "benchmarks.asynchronous.trainers:paced_perceptron"


def race(task: Task, tuned: Tuned, seeds: Sequence[int]) -> dict[str, Any]:
    """For each mode, what its runs did; and how many times as long the synchronous one took to the target."""
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in tuned.choices}
    for seed in seeds:
        for mode, entries in side_by_side(task, tuned, seed).items():
            runs[mode].append({"seed": seed, **report(entries, tuned.target)})
    medians = {mode: median_time([run["seconds_to_target"] for run in found]) for mode, found in runs.items()}
    ratios = [
        sync["seconds_to_target"] / other["seconds_to_target"]
        for sync, other in zip(runs["sync"], runs["async"], strict=True)
        if sync["seconds_to_target"] and other["seconds_to_target"]
    ]
    return {
        "task": task.name,
        "paces": PACES,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "choices": {mode: asdict(choice) for mode, choice in tuned.choices.items()},
        "target": tuned.target,
        "seconds_to_target": medians,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "runs": runs,
    }


def side_by_side(task: Task, tuned: Tuned, seed: int) -> dict[str, list[Entry]]:
    """What the servers of one run a mode noted."""
    with contextlib.ExitStack() as stack:
        runs = {
            mode: _start(stack, task, choice, seed, tuned.models[mode])
            for mode, choice in tuned.choices.items()
        }
        return {mode: run.wait() for mode, run in runs.items()}


def _start(stack: contextlib.ExitStack, task: Task, choice: Choice, seed: int, models: int) -> Run:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    given = sections(task, choice, seed, models)
    given["model_args"] = {"trainer": _TRAINER}
    paces = ",".join(f"{pace:.4f}" for pace in (0, *PACES))
    run = Run(
        folder,
        CLIENTS,
        0,
        models,
        {"grpc": {"port": free_port()}},
        settings=given,
        environment={**ONE_THREAD, PACES_VARIABLE: paces},
    )
    stack.callback(run.kill)
    run.start()
    return run


def report(entries: Sequence[Entry], target: float) -> dict[str, Any]:
    """What one run did, from what its server noted."""
    curve = curve_of(entries)
    made = [entry.event for entry in entries if isinstance(entry.event, RoundCompleted)]
    stale = [late for event in made for late in event.staleness or ()]
    return {
        "seconds_to_target": curve.time_to(target),
        "settled_accuracy": curve.settled,
        "seconds": curve.seconds,
        "accuracies": curve.accuracies,
        "median_seconds_a_model": curve.seconds[-1] / len(made),
        "updates_a_second": sum(len(event.survivors) for event in made) / curve.seconds[-1],
        "mean_staleness": statistics.fmean(stale) if stale else None,
        "most_stale": max(stale, default=None),
        "aborted": sum(isinstance(entry.event, RoundAborted) for entry in entries),
        "refused": sum(isinstance(entry.event, UpdateRefused) for entry in entries),
    }


def curve_of(entries: Sequence[Entry]) -> Curve:
    """Accuracy over time, from when the first model went out; models that were not measured are left out."""
    start = next(entry.monotonic for entry in entries if isinstance(entry.event, RoundStarted))
    made = {
        entry.event.round: entry.monotonic - start
        for entry in entries
        if isinstance(entry.event, RoundCompleted)
    }
    points = sorted(
        (made[entry.event.round], entry.event.accuracy)
        for entry in entries
        if isinstance(entry.event, Evaluated) and entry.event.accuracy is not None
    )
    return Curve([second for second, _ in points], [accuracy for _, accuracy in points])
