"""``lightsecagg mpi``: a server and its clients as the processes of one MPI world."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from lightsecagg.cli.client import halting
from lightsecagg.cli.common import (
    EXIT_BUG,
    find_identity,
    make_logs,
    make_tracker,
    read_settings,
    run_options,
    serve,
    starting,
)
from lightsecagg.errors import CommError, ConfigError, LightSecAggError, Reason
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.client import Client
from lightsecagg.managers.client_context import Observer
from lightsecagg.managers.participation import RefusedError
from lightsecagg.managers.server import Server
from lightsecagg.settings import Settings
from lightsecagg.tracking.events import Broadcast, ClientJoined, Event, Notice, Tracker
from lightsecagg.tracking.logs import show_logs

if TYPE_CHECKING:
    from lightsecagg.comm.mpi_world import World

_LAST_WORDS = 30.0  # seconds in which a server that has ended the run for its clients ends itself


class _OneVoice(click.Command):
    """Of all the processes that were given the same wrong words, only the first says so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            if os.environ.get("PMIX_RANK", "0") != "0":
                sys.exit(0)  # with another code mpirun would end the first before it has spoken
            raise


class _Aside(Tracker):
    """What a client warns of once it has joined; of what was wrong before the server warns, too."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._has_joined = False

    def emit(self, event: Event) -> None:
        self._has_joined |= isinstance(event, ClientJoined)
        if self._has_joined and isinstance(event, Notice) and event.level == "warning":
            _say(self._rank, f"warning: {event.text}")

    def close(self) -> None:
        pass


def _say(rank: int, text: object) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"client {rank}: {text}", err=True)


@click.command(cls=_OneVoice)
@run_options
@click.option(
    "--halt-at", metavar="RANK:ROUND:EVENT", hidden=True, help="Stop a client (SIGSTOP) at an event."
)
def mpi(config: Path, run_id: str, overrides: tuple[str, ...], runs: Path, halt_at: str | None) -> None:
    """Be the server (rank 0) or a client of RUN_ID, under mpirun or srun; see also run_mpi.sh."""
    with starting():
        world = _enter()
    try:
        if world.rank == 0:
            _serve(world, config, run_id, overrides, runs)
        halted, _, point = (halt_at or "").partition(":")
        observer = halting(point) if halted == str(world.rank) else None
        _take_part(world, config, run_id, overrides, runs, observer)
    except Exception:
        traceback.print_exc()
        world.leave(EXIT_BUG)


def _enter() -> World:
    """The world of this process.

    Raises:
        ConfigError: MPI is not installed, or there is nobody else.
    """
    try:
        from lightsecagg.comm.mpi_world import world  # noqa: PLC0415 - an extra, loaded where it is asked for

        found = world()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"MPI needs the package {error.name}, which is not installed; run: pip install 'lightsecagg[mpi]'"
        ) from error
    except CommError as error:
        raise ConfigError(str(error)) from error
    if found.size == 1:
        raise ConfigError(
            "wanted an MPI world of a server and its clients, found this process alone; start it with "
            "`bash run_mpi.sh CLIENTS RUN_ID`, or under mpirun or `srun --mpi=pmix`"
        )
    return found


def _read(world: World, config: Path, overrides: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings for this world: its size decides how many clients there are."""
    clients = world.size - 1
    written, _ = read_settings(config, overrides)
    settings, notices = read_settings(
        config, [*overrides, "comm_args.backend=MPI", f"device_args.worker_num={clients}"]
    )
    if settings.secure_aggregation_args.identity is not None:
        raise ConfigError(
            "secure_aggregation_args.identity: the clients of one world need one each; leave it out"
        )
    if written.device_args.worker_num != clients:
        notices.append(
            f"device_args.worker_num: {clients}, as the MPI world has {clients} processes beside the server; "
            f"the configuration says {written.device_args.worker_num}"
        )
    if not world.is_fault_tolerant:
        notices.append(
            "this MPI world has no fault tolerance (the library has none, or mpirun was started without "
            "`--with-ft ulfm`): if one process dies, MPI ends them all"
        )
    return settings, notices


def _serve(world: World, config: Path, run_id: str, overrides: Sequence[str], runs: Path) -> NoReturn:
    with starting(leave=world.leave):
        settings, notices = _read(world, config, overrides)
        folder = RunFolder(runs, run_id, settings)
        folder.check_unused()
        tracker, spans = make_tracker(settings, folder, 0, notices)
        server = Server(settings, folder, tracker, spans)

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def tell(present: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
                loop.call_soon_threadsafe(server.expect_at_most, present)

        world.watch(tell)
        await server.run()

    serve(run, tracker, leave=world.leave)


def _take_part(
    world: World,
    config: Path,
    run_id: str,
    overrides: Sequence[str],
    runs: Path,
    observer: Observer | None,
) -> NoReturn:
    rank = world.rank

    def tell(error: LightSecAggError) -> None:
        if isinstance(error, ConfigError):  # the server may have found the same
            world.wait_until(lambda: world.server_serves or world.server_ends or world.server_died)
        elif not isinstance(error, RefusedError) or Reason.RUN_OVER.value in str(error):
            # the server may have ended, and says why
            world.wait_until(lambda: world.server_ends or world.server_died, _LAST_WORDS)
        if not world.server_ends:
            _say(rank, error)

    def leave(code: int) -> NoReturn:
        world.leave(code if world.server_died else 0)  # the run ended as its server did

    with starting(tell, leave):
        settings, _ = _read(world, config, overrides)
        folder = RunFolder(runs, run_id, settings)
        logs, spans = make_logs(settings, folder, rank)
        tracker = Broadcast([*logs, _Aside(rank)])
        show_logs(tracker)
        identity = find_identity(settings, run_id, rank)
        client = Client(settings, folder, rank, identity, tracker, observer, spans)
    serve(client.run, tracker, tell, leave)
