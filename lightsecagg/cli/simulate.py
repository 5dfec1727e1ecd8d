"""``lightsecagg simulate``: rounds with many clients in one process, and what they cost each party."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from lightsecagg.cli.common import EXIT_BUG, EXIT_CONFIG, fail, starting
from lightsecagg.errors import ConfigError, ParameterError, RoundAborted
from lightsecagg.kernels import set_threads
from lightsecagg.parameters import MAX_CLIENTS, Parameters
from lightsecagg.simulation.cost import Phase
from lightsecagg.simulation.experiment import Experiment, InexactSumError, PhaseCost, Report, Watch
from lightsecagg.simulation.experiment import simulate as run_experiment
from lightsecagg.simulation.losses import MOMENTS, Moment
from lightsecagg.tracking.wording import duration, size

_RATE = click.FloatRange(0, 1, max_open=True)
_REDRAW_SECONDS = 0.1
_ROWS: tuple[tuple[str, Callable[[PhaseCost], str]], ...] = (
    ("client", lambda _: ""),
    (" sends", lambda cost: size(cost.client.sent)),
    (" receives", lambda cost: size(cost.client.received)),
    (" computes", lambda cost: _time(cost.client.seconds)),
    (" at most", lambda cost: _time(cost.most.seconds)),
    ("server", lambda _: ""),
    (" sends", lambda cost: size(cost.server.sent)),
    (" receives", lambda cost: size(cost.server.received)),
    (" computes", lambda cost: _time(cost.server.seconds)),
)


@click.command()
@click.option("--clients", type=click.IntRange(2, MAX_CLIENTS), default=100, show_default=True, help="N.")
@click.option(
    "--dimension", type=click.IntRange(min=1), default=10_000, show_default=True, help="Length of an update."
)
@click.option("--dropout", type=_RATE, default=0.3, show_default=True, help="Share of clients that vanish.")
@click.option("--moment", type=click.Choice(MOMENTS), help="When they do.  [default: at each, by turns]")
@click.option(
    "--collusion", type=_RATE, default=0.3, show_default=True, help="Share of clients that may collude."
)
@click.option("--target-survivors", type=click.IntRange(min=1), help="U.  [default: from the rates]")
@click.option("--privacy-threshold", type=click.IntRange(min=0), help="T.  [default: from the rates]")
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Who vanishes.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="File for the figures.")
def simulate(
    clients: int,
    dimension: int,
    dropout: float,
    moment: Moment | None,
    collusion: float,
    target_survivors: int | None,
    privacy_threshold: int | None,
    rounds: int,
    seed: int,
    path: Path | None,
) -> None:
    """Run rounds with many clients, some of which vanish, and show what a round costs.

    Server, clients and the bytes of their messages are the real ones; there is no network, no training and
    no model. Every round's sum is compared with the plain sum of its survivors' updates.
    """
    with starting():
        try:
            parameters = _plan(clients, dropout, collusion, target_survivors, privacy_threshold)
            losses = math.floor(Decimal(str(dropout)) * clients)
            moments = MOMENTS if moment is None else (moment,)
            experiment = Experiment(parameters, dimension, rounds, losses, moments, seed)
        except ParameterError as error:
            raise ConfigError(str(error)) from None
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--json: {path.absolute().parent} is no folder")
        set_threads(1)  # a core a party
        started = time.monotonic()
        try:
            with _progress(clients, rounds) as watch:
                report = run_experiment(experiment, time.process_time, watch)
        except (RoundAborted, InexactSumError) as error:
            fail(error, EXIT_BUG)
        seconds, memory = time.monotonic() - started, _peak_memory()
    console = Console(highlight=False)
    console.print(_table(experiment, report))
    for line in _notes(experiment, report):
        console.print(line)
    console.print(f"All in one process: {duration(seconds)}, {size(memory)} of memory at its peak.")
    if path is not None:
        _write(path, experiment, report, seconds, memory)


def _plan(
    clients: int, dropout: float, collusion: float, survivors: int | None, threshold: int | None
) -> Parameters:
    if survivors is not None and threshold is not None:
        return Parameters(clients, survivors, threshold)
    planned = Parameters.from_rates(clients, dropout, collusion)
    return Parameters(
        clients,
        planned.target_survivors if survivors is None else survivors,
        planned.privacy_threshold if threshold is None else threshold,
    )


@contextmanager
def _progress(clients: int, rounds: int) -> Iterator[Watch]:
    """How far it is, drawn between the machines' work so that it costs them nothing; at a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=clients)
        title, drawn = "", 0.0

        def watch(round_number: int, phase: Phase) -> None:
            nonlocal title, drawn
            now = f"round {round_number} of {rounds}: {phase}"
            if now != title:
                title = now
                progress.reset(task, description=title)
            progress.advance(task)
            if time.monotonic() - drawn > _REDRAW_SECONDS:
                drawn = time.monotonic()
                progress.refresh()

        yield watch


def _table(experiment: Experiment, report: Report) -> Table:
    numbers = experiment.parameters
    table = Table(
        title=f"A round with N = {numbers.num_clients}, U = {numbers.target_survivors}, "
        f"T = {numbers.privacy_threshold}, d = {experiment.dimension:,}; {experiment.losses} clients vanish",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for cost in report.costs:
        table.add_column(cost.name, justify="right")
    for name, cell in _ROWS:
        table.add_row(name, *map(cell, report.costs))
    return table


def _notes(experiment: Experiment, report: Report) -> Iterator[str]:
    sums = "Its sum is" if experiment.rounds == 1 else f"All {experiment.rounds} sums are"
    yield f"{sums} exact: that of the updates of the {_several(report.survivors)} clients that are in it."
    stayed = experiment.parameters.num_clients - experiment.losses
    yield (
        f"A client: the mean of the {stayed} that stayed. Bytes are those of the messages, "
        "computing is in seconds of one core."
    )
    yield (
        f"Not counted: the N + U = {report.checks} signatures that a client checks "
        f"({_time(report.checks * report.check_seconds)}; here each is checked once for all clients), "
        "training, the model, and what carriers add."
    )


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else duration(seconds)


def _several(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, "every Linux has it"
    return int(found[1]) * 1024


def _write(path: Path, experiment: Experiment, report: Report, seconds: float, memory: int) -> None:
    figures = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "experiment": asdict(experiment),
        "seconds": seconds,
        "peak_memory_bytes": memory,
        "report": asdict(report),
    }
    try:
        path.write_text(json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        fail(ConfigError(f"cannot write {path}: {error.strerror}"), EXIT_CONFIG)
