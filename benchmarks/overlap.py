"""What secure aggregation costs beside real training: ``python -m benchmarks.overlap``.

Eight clients and a server, separate processes of the real program over loopback gRPC, train a CNN of
1,206,590 parameters for at least 5 s a round: (a) all of them, (b) one, beside seven that sleep meanwhile.
A secure run and a run of FedAvg take turns, round by round, so that what else this machine does hits both:
the ratio is the median over pairs of rounds that follow each other. The first round of each is not measured,
nor what lies between two rounds: the clients' new keys, a few milliseconds.

Clients that drop do so at upload: they have dealt their shares and trained, and leave the round instead of
uploading, in both kinds of run alike. A client that is killed instead costs the round a grace of 2 s, in both
kinds alike too, which would only bring the ratio nearer to 1.

Beside it stands how much of its rate training keeps while one process's codec works (benchmarks/beside.py).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.bench_plugins import Work
from benchmarks.runs import RESULTS, Run, medians
from tests.brokers import free_port

CLIENTS = 8
DIMENSION = 1_206_590
SITUATIONS = {"a": tuple(range(1, CLIENTS + 1)), "b": (1,)}  # who trains; the others sleep
DROPOUTS = (0.0, 0.25)
MOST = 1.1  # times the round of FedAvg
LEAST_TRAINING = 5.0  # seconds
AIM = 6.0  # seconds for which the work is chosen: some rounds will be faster
TRIAL_EPOCHS = 4  # for choosing it
KINDS = ("LSA", "FedAvg")

_TIMES = ("training", "until_trained", "after_training")


def start(stack: contextlib.ExitStack, kind: str, work: Work, epochs: int) -> Run:
    """A run whose clients note when they train; it ends with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    run = Run(
        folder,
        CLIENTS,
        DIMENSION,
        work.rounds - 1,
        {"grpc": {"port": free_port()}},
        kind,
        settings={
            "data_args": {"dataset": "bench_plugins:images"},
            "model_args": {"trainer": "bench_plugins:RecordingTrainer"},
            "train_args": {"batch_size": 20, "epochs": epochs},
            "validation_args": {"frequency_of_the_test": 1},
        },
        environment={"LIGHTSECAGG_BENCH_WORK": msgspec.json.encode(work).decode()},
    )
    stack.callback(run.kill)
    run.start()
    return run


def choose_epochs(training: tuple[int, ...]) -> int:
    """So many that training takes `AIM` seconds, going by a trial of FedAvg on this machine now."""
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(tempfile.TemporaryDirectory())
        run = start(stack, "FedAvg", Work(training=training, records=records, rounds=2), TRIAL_EPOCHS)
        (found,) = _with_training(run.finish(), Path(records))
    return math.ceil(AIM / float(found["training"]) * TRIAL_EPOCHS)


def take_turns(work: Work, epochs: int) -> dict[str, list[dict[str, Any]]]:
    """The measured rounds of a run of each kind."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "turns").write_text(KINDS[0])
        pool = stack.enter_context(ThreadPoolExecutor())
        ends = {}
        for kind, other in (KINDS, KINDS[::-1]):
            records, turns = folder / kind, folder / "turns"
            records.mkdir()
            own = replace(work, records=str(records), turns=str(turns), name=kind, other=other)
            ends[pool.submit(start(stack, kind, own, epochs).finish)] = kind
        return {ends[end]: _with_training(end.result(), folder / ends[end]) for end in as_completed(ends)}


def _with_training(rounds: list[dict[str, Any]], records: Path) -> list[dict[str, Any]]:
    """The rounds, with what their clients noted."""
    notes = [json.loads(line) for path in records.iterdir() for line in path.read_text().splitlines()]
    return [
        {**found, **_times(found, [n for n in notes if found["started"] <= n["ended"] <= found["ended"]])}
        for found in rounds
    ]


def _times(found: dict[str, Any], notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Where a round's time went, and the batches and seconds of training, also while shares went out."""
    trainings = [note for note in notes if note["batches"]]
    last = max(note["ended"] for note in notes)
    shared = found["started"] + sum(found["phases"].get(phase, 0.0) for phase in ("sharing", "reporting"))
    return {
        "until_trained": last - found["started"],
        "after_training": found["ended"] - last,
        "training": max(note["ended"] - note["started"] for note in trainings),
        "pace": _pace(trainings, math.inf),
        "pace_while_sharing": _pace(trainings, shared),
    }


def _pace(trainings: list[dict[str, Any]], until: float) -> tuple[int, float]:
    batches = sum(time < until for note in trainings for time in note["batches"])
    return batches, sum(max(0.0, min(note["ended"], until) - note["started"]) for note in trainings)


def compare(situation: str, dropout: float, epochs: int, rounds: int) -> dict[str, Any]:
    """So many rounds of both kinds."""
    drops = tuple(range(CLIENTS, CLIENTS - round(dropout * CLIENTS), -1))
    work = Work(training=SITUATIONS[situation], dropping=drops, rounds=rounds + 1)
    found = take_turns(work, epochs)
    secure, plain = (found[kind] for kind in KINDS)
    survivors = {each["survivors"] for each in secure + plain}
    assert survivors == {CLIENTS - len(drops)}, f"wanted {CLIENTS - len(drops)} survivors, found {survivors}"
    return {
        "situation": situation,
        "dropout": dropout,
        "epochs": epochs,
        "secure": _summary(secure),
        "plain": _summary(plain),
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(secure, plain, strict=True)),
        "rate_kept": _kept(secure, plain, "pace"),
        "rate_kept_while_sharing": _kept(secure, plain, "pace_while_sharing"),
    }


def _kept(secure: list[dict[str, Any]], plain: list[dict[str, Any]], pace: str) -> float | None:
    """Batches a second against those of FedAvg; None where the shares were out before training began."""
    batches, seconds = (sum(each[pace][place] for each in secure) for place in (0, 1))
    all_batches, all_seconds = (sum(each["pace"][place] for each in plain) for place in (0, 1))
    return float(batches / seconds / (all_batches / all_seconds)) if seconds else None


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    times = {key: statistics.median(each[key] for each in rounds) for key in _TIMES}
    return {**medians(rounds), **times}


def beside_the_codec() -> list[dict[str, Any]]:
    """Training beside one codec thread: with a core left to that, and with none."""
    cores = os.cpu_count() or 1
    found = []
    for torch_threads in sorted({max(1, cores - 1), cores}):
        words = [sys.executable, "-m", "benchmarks.beside", str(torch_threads), "1"]
        found.append(json.loads(subprocess.run(words, check=True, capture_output=True).stdout))
    return found


@click.command()
@click.option("--situation", "situations", multiple=True, type=click.Choice(tuple(SITUATIONS)))
@click.option("--dropout", "dropouts", multiple=True, type=float, help="Only these; no file is written then.")
@click.option("--rounds", default=8, show_default=True, help="Measured rounds of each kind.")
def main(situations: tuple[str, ...], dropouts: tuple[float, ...], rounds: int) -> None:
    """Measure, print tables and write benchmarks/results/overlap.json."""
    load = os.getloadavg()[0]
    results = []
    for situation in situations or SITUATIONS:
        epochs = choose_epochs(SITUATIONS[situation])
        for dropout in dropouts or DROPOUTS:
            results.append(compare(situation, dropout, epochs, rounds))
            print(
                f"({situation}) {dropout:.0%} drop: {results[-1]['ratio']:.3f}x the time of FedAvg",
                flush=True,
            )
    beside = beside_the_codec()
    if not situations and not dropouts:
        RESULTS.mkdir(exist_ok=True)
        machine = {"machine": platform.platform(), "cores": os.cpu_count(), "load_at_start": load}
        record = {**machine, "ratio_allowed": MOST, "results": results, "beside_the_codec": beside}
        (RESULTS / "overlap.json").write_text(json.dumps(record, indent=2) + "\n")
    _print(results)
    _print_beside(beside)


def _print(results: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"A round with {LEAST_TRAINING:g} s of training over loopback gRPC, medians; at most {MOST}"
    )
    for column in (
        *("", "drop", "training", "secure", "FedAvg", "ratio", "until trained", "then"),
        *("rate kept", "while sharing", "phases, secure (uploading has the training)"),
    ):
        table.add_column(column, justify="right")
    for row in results:
        secure, plain = row["secure"], row["plain"]
        more = [secure[key] - plain[key] for key in ("until_trained", "after_training")]
        table.add_row(
            f"({row['situation']})",
            f"{row['dropout']:.0%}",
            _against_goal(f"{plain['training']:.2f} s", is_met=plain["training"] >= LEAST_TRAINING),
            f"{secure['seconds']:.2f} s",
            f"{plain['seconds']:.2f} s",
            _against_goal(f"{row['ratio']:.3f}", is_met=row["ratio"] <= MOST),
            *(f"{1000 * seconds:+.0f} ms" for seconds in more),
            *(
                "-" if row[key] is None else f"{row[key]:.0%}"
                for key in ("rate_kept", "rate_kept_while_sharing")
            ),
            ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in secure["seconds_by_phase"].items()),
        )
    Console(width=200).print(table)


def _print_beside(results: list[dict[str, Any]]) -> None:
    table = Table(title="Batches a second of training alone, and beside a codec that never rests")
    for column in ("torch threads", "codec threads", "alone", "beside", "kept"):
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(
            str(row["torch_threads"]),
            str(row["codec_threads"]),
            f"{row['batches_per_second_alone']:.1f}",
            f"{row['batches_per_second_beside']:.1f}",
            f"{row['rate_kept']:.0%}",
        )
    Console(width=100).print(table)


def _against_goal(text: str, *, is_met: bool) -> str:
    return text if is_met else f"[bold red]{text}[/]"


if __name__ == "__main__":
    main()
