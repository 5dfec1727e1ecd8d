"""``lightsecagg run``: server and clients in one process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from lightsecagg.cli.common import (
    find_identity,
    make_logs,
    make_tracker,
    read_settings,
    run_options,
    serve,
    starting,
)
from lightsecagg.errors import ConfigError, LightSecAggError, RunStopped
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.client import Client
from lightsecagg.managers.server import Server
from lightsecagg.tracking.events import Broadcast, Event, Notice, Tracker

log = logging.getLogger(__name__)

_LAST_WORDS = 5.0  # seconds that clients may take to end after the server


class _Aside(Tracker):
    """What a client warns of, on the server's terminal and under the client's name."""

    def __init__(self, rank: int, tracker: Tracker) -> None:
        self._rank = rank
        self._tracker = tracker

    def emit(self, event: Event) -> None:
        if isinstance(event, Notice) and event.level == "warning":
            self._tracker.emit(Notice(text=f"client {self._rank}: {event.text}", level="warning"))

    def close(self) -> None:
        pass


@click.command()
@run_options
def run(config: Path, run_id: str, overrides: tuple[str, ...], runs: Path) -> None:
    """Run the server and all worker_num clients of RUN_ID in this process, without a network."""
    with starting():
        settings, notices = read_settings(config, [*overrides, "comm_args.backend=LOCAL"])
        if settings.secure_aggregation_args.identity is not None:
            raise ConfigError(
                "secure_aggregation_args.identity: the clients of one process need one each; leave it out"
            )
        folder = RunFolder(runs, run_id, settings)
        folder.check_unused()
        tracker, spans = make_tracker(settings, folder, 0, notices)
        server = Server(settings, folder, tracker, spans)

        def make_client(rank: int) -> Client:
            logs, spans = make_logs(settings, folder, rank)
            own = Broadcast([*logs, _Aside(rank, tracker)])
            return Client(settings, folder, rank, find_identity(settings, run_id, rank), own, spans=spans)

        clients = [make_client(rank) for rank in range(1, settings.device_args.worker_num + 1)]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, LightSecAggError):
                log.error("%s failed", task.get_name(), exc_info=error)
            if type(error) is not RunStopped:  # the server has said that itself
                tracker.emit(Notice(text=f"{task.get_name()} ended: {error}", level="warning"))

    async def everybody() -> None:
        tasks = []
        for rank, client in enumerate(clients, start=1):
            tasks.append(asyncio.create_task(client.run(), name=f"client {rank}"))
            tasks[-1].add_done_callback(ended)
        try:
            await server.run()
        finally:
            # What a client says about the end is what the server said first.
            _, late = await asyncio.wait(tasks, timeout=_LAST_WORDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    serve(everybody, tracker)
