"""``lightsecagg server``: serve a run."""

from __future__ import annotations

from pathlib import Path

import click

from lightsecagg.cli.common import check_backend, make_tracker, read_settings, run_options, serve, starting
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
    with starting():
        settings, notices = read_settings(config, overrides)
        check_backend(settings)
        folder = RunFolder(runs, run_id, settings)
        folder.check_unused()
        tracker, spans = make_tracker(settings, folder, 0, notices)
        process = Server(settings, folder, tracker, spans)
    serve(process.run, tracker)
