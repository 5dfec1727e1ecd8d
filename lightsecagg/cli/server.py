"""``lightsecagg server``: serve a run."""

from __future__ import annotations

from pathlib import Path

import click

from lightsecagg.cli.common import EXIT_CONFIG, fail, make_tracker, read_settings, run_options, serve
from lightsecagg.errors import ConfigError
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.server import Server


@click.command()
@run_options
@click.option("--rank", type=int, default=0, hidden=True)
@click.option("--role", type=click.Choice(["server"]), default="server", hidden=True)
def server(
    config: Path,
    run_id: str,
    overrides: tuple[str, ...],
    runs: Path,
    rank: int,  # noqa: ARG001 - FedML's scripts pass it
    role: str,  # noqa: ARG001
) -> None:
    """Serve the run RUN_ID until its rounds are done."""
    try:
        settings, notices = read_settings(config, overrides)
        folder = RunFolder(runs, run_id, settings)
        folder.claim()
        tracker = make_tracker(settings, folder, "server", notices)
        process = Server(settings, folder, tracker)
    except ConfigError as error:
        fail(error, EXIT_CONFIG)
    try:
        serve(process.run)
    finally:
        tracker.close()
