"""``lightsecagg demo``: the main job on one machine, a client killed on the way, beside plain averaging."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from lightsecagg.cli.cast import Cast, play
from lightsecagg.cli.common import EXIT_STOPPED, fail, read_settings, starting
from lightsecagg.errors import ConfigError, RunStopped
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.settings import Settings
from lightsecagg.tracking import jsonl
from lightsecagg.tracking.summary import Summary

_F = TypeVar("_F", bound=Callable[..., Any])

_KILLED_RANK = 3
_KILLED_ROUND = 4
_TOLERANCE = 0.01  # accuracy: one point
_PLACES = ("model", "log")  # long paths: each run's own summary has shown them


def demo_options(command: _F) -> _F:
    """The options of a demonstration, which names its runs itself."""
    for option in reversed(
        (
            click.option(
                "--cf",
                "config",
                type=click.Path(path_type=Path),
                default=Path("config/fedml_config.yaml"),
                show_default=True,
                help="Configuration file.",
            ),
            click.option(
                "--runs",
                type=click.Path(path_type=Path),
                default=Path("runs"),
                show_default=True,
                help="Folder of all runs.",
            ),
            click.option(
                "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting."
            ),
        )
    ):
        command = option(command)
    return command


@click.command()
@demo_options
def demo(config: Path, runs: Path, overrides: tuple[str, ...]) -> None:
    """A server and its clients as separate processes; one is killed in the middle of a round."""
    with starting():
        chosen = [*overrides, "secure_aggregation_args.mode=sync"]
        settings, _ = read_settings(config, chosen)
        workers, rounds = settings.device_args.worker_num, settings.train_args.comm_round
        if workers < _KILLED_RANK or rounds < _KILLED_ROUND:
            raise ConfigError(
                f"demo: wanted device_args.worker_num ≥ {_KILLED_RANK} and train_args.comm_round ≥ "
                f"{_KILLED_ROUND}, found {workers} and {rounds}"
            )
        try:
            _show(Console(), config, runs, chosen, settings)
        except RunStopped as error:
            fail(error, EXIT_STOPPED)


def _show(console: Console, config: Path, runs: Path, overrides: Sequence[str], settings: Settings) -> None:
    stamp = time.strftime("%m%d-%H%M%S")
    summaries = {}
    for title, name, event, extra in (
        ("secure: LightSecAgg", "secure", "send MaskedUpdate", ()),
        ("plain: FedAvg", "plain", "send PlainUpdate", ("train_args.federated_optimizer=FedAvg",)),
    ):
        console.rule(
            f"{title}; client {_KILLED_RANK} is killed (SIGKILL) as it uploads in round {_KILLED_ROUND}"
        )
        folder = RunFolder(runs, f"demo-{stamp}-{name}", settings)
        cast = Cast(settings.device_args.worker_num, _KILLED_RANK, f"{_KILLED_ROUND}:{event}")
        summaries[title] = _summarize(play(config, folder, [*overrides, *extra], cast))
    console.print(_comparison(summaries))
    accuracies = [summary.final_accuracy for summary in summaries.values()]
    if None in accuracies or abs((accuracies[0] or 0) - (accuracies[1] or 0)) > _TOLERANCE:
        raise RunStopped("the two accuracies differ by more than one point")
    console.print("The two accuracies agree within one point.")


def _summarize(log: Path) -> Summary:
    summary = Summary()
    for entry in jsonl.read(log):
        summary.emit(entry.event)
    return summary


def _comparison(summaries: dict[str, Summary]) -> Table:
    table = Table(title="Secure and plain, side by side")
    table.add_column("")
    for title in summaries:
        table.add_column(title, overflow="fold")
    rows = [dict(summary.rows()) for summary in summaries.values()]
    for name in dict.fromkeys(name for row in rows for name in row if name not in _PLACES):
        table.add_row(name, *(row.get(name, "") for row in rows))
    return table
