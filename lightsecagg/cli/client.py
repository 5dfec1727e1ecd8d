"""``lightsecagg client``: take part in a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from lightsecagg.cli.common import (
    check_backend,
    find_identity,
    make_tracker,
    read_settings,
    run_options,
    serve,
    starting,
)
from lightsecagg.errors import ConfigError
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.client import Client
from lightsecagg.managers.client_context import Observer


@click.command()
@run_options
@click.option("--rank", type=int, required=True, help="Which client this is: 1..worker_num.")
@click.option("--role", type=click.Choice(["client"]), default="client", hidden=True)
@click.option("--halt-at", metavar="ROUND:EVENT", hidden=True, help="Stop (SIGSTOP) at an event.")
@click.option(
    "--pace", type=float, default=0.0, metavar="SECONDS", hidden=True, help="Train at least so long."
)
def client(
    config: Path,
    run_id: str,
    overrides: tuple[str, ...],
    runs: Path,
    rank: int,
    role: str,  # noqa: ARG001 - FedML's scripts pass it
    halt_at: str | None,
    pace: float,
) -> None:
    """Take part in the run RUN_ID as client RANK; waits for the server where that is not there yet."""
    with starting():
        settings, notices = read_settings(config, overrides)
        check_backend(settings)
        if not 1 <= rank <= settings.device_args.worker_num:
            raise ConfigError(
                f"--rank: wanted 1..{settings.device_args.worker_num} (device_args.worker_num), found {rank}"
            )
        folder = RunFolder(runs, run_id, settings)
        tracker, spans = make_tracker(settings, folder, rank, notices)
        identity = find_identity(settings, run_id, rank)
        process = Client(settings, folder, rank, identity, tracker, halting(halt_at), spans, pace)
    serve(process.run, tracker)


def halting(halt_at: str | None) -> Observer | None:
    """For demonstrations and tests: stop the process at an exact point, to be killed or continued there."""
    if halt_at is None:
        return None
    round_text, event = halt_at.split(":")
    rounds, is_due = 0, True

    def observe(seen: str) -> None:
        nonlocal rounds, is_due
        rounds += seen in ("take RoundStart", "take UploadStart", "take PlainStart")
        if is_due and rounds == int(round_text) and seen == event:
            is_due = False  # once: a process that was continued may come by again
            os.kill(os.getpid(), signal.SIGSTOP)

    return observe
