"""What the commands share: options, configuration, trackers, and how a process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from lightsecagg.errors import CommError, ConfigError, LightSecAggError, RunStopped
from lightsecagg.identity import Identity
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.participation import RefusedError
from lightsecagg.settings import Settings, load
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking.events import Broadcast, Notice, Tracker
from lightsecagg.tracking.jsonl import JsonLines
from lightsecagg.tracking.logs import show_logs
from lightsecagg.tracking.terminal import Terminal
from lightsecagg.tracking.trace import Trace

EXIT_BUG = 1  # our own mistake: a traceback says where
EXIT_CONFIG = 2  # wrong words on the command line, or a wrong configuration
EXIT_REFUSED = 3  # the server turned this client away
EXIT_STOPPED = 4  # the run ended early, with a reason
EXIT_NETWORK = 5  # no server, or an address that cannot be had
EXIT_INTERRUPTED = 130  # Ctrl-C

# What gRPC prints of its own on stderr says less than our errors do.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_F = TypeVar("_F", bound=Callable[..., Any])


def run_options(command: _F) -> _F:
    """The options that every process of a run takes, with FedML's names."""
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
            click.option("--run_id", "--run-id", "run_id", required=True, help="Name of the run."),
            click.option(
                "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting."
            ),
            click.option(
                "--runs",
                type=click.Path(path_type=Path),
                default=Path("runs"),
                show_default=True,
                help="Folder of all runs.",
            ),
        )
    ):
        command = option(command)
    return command


def read_settings(config: Path, overrides: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings and their notices; plug-ins may lie beside the file or in the present folder.

    Raises:
        ConfigError: they are wrong.
    """
    for folder in (config.resolve().parent, Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return load(config, overrides)


def make_logs(settings: Settings, folder: RunFolder, rank: int) -> tuple[list[Tracker], Spans]:
    """The event log of one process and, where the settings ask for it, its trace; the server's rank is 0.

    Returns:
        What is told of events, and what is told of spans.

    Raises:
        ConfigError: the run's folder cannot be made.
    """
    folder.prepare()
    name = f"client-{rank}" if rank else "server"
    log = JsonLines(folder.logs / f"{name}.jsonl")
    if not settings.tracking_args.trace:
        return [log], no_spans
    trace = Trace(folder.logs / f"trace-{name}.json", rank)
    return [log, trace], trace


def make_tracker(
    settings: Settings, folder: RunFolder, rank: int, notices: Sequence[str]
) -> tuple[Tracker, Spans]:
    """The terminal, ``make_logs``, and what else the settings ask for.

    Raises:
        ConfigError: the run's folder cannot be made.
    """
    logs, spans = make_logs(settings, folder, rank)
    trackers: list[Tracker] = [Terminal(), *logs]
    given = settings.tracking_args
    if given.enable_wandb and rank == 0:
        from lightsecagg.tracking.wandb import WandbTracker  # noqa: PLC0415 - an extra, loaded where it is asked for

        trackers.append(
            WandbTracker(
                project=given.wandb_project,
                name=given.wandb_name or folder.run_id,
                api_key=given.wandb_key.get_secret_value() if given.wandb_key else None,
                config=settings.model_dump(exclude={"tracking_args"}, mode="json"),
                directory=folder.path,
            )
        )
    tracker = Broadcast(trackers)
    show_logs(tracker)
    for text in notices:
        tracker.emit(Notice(text=text, level="warning"))
    return tracker, spans


def check_backend(settings: Settings) -> None:
    """Processes that are started one by one cannot meet on every carrier.

    Raises:
        ConfigError: it is one of those that have a command of their own.
    """
    match settings.comm_args.backend:
        case "LOCAL":
            raise ConfigError(
                "comm_args.backend: LOCAL keeps server and clients in one process: use `lightsecagg run`"
            )
        case "MPI":
            raise ConfigError(
                "comm_args.backend: MPI starts server and clients together: use "
                "`bash run_mpi.sh CLIENTS RUN_ID`, or `lightsecagg mpi` under mpirun or srun"
            )


def find_identity(settings: Settings, run_id: str, rank: int) -> Identity:
    """The identity that the settings name, or this rank's own, made at its first use.

    Raises:
        ConfigError: a named one is missing, or one that is there cannot be read.
    """
    named = settings.secure_aggregation_args.identity
    path = default_identity(run_id, rank) if named is None else Path(named)
    if named is None and not path.exists():
        if settings.secure_aggregation_args.roster is not None:
            # A new identity could not be in the roster.
            raise ConfigError(
                f"no identity at {path}, and the run has a roster; make one with "
                f"`lightsecagg keygen --run_id {run_id} --rank {rank}` and have its key added, "
                "or name one in secure_aggregation_args.identity"
            )
        try:
            Identity.generate().save(path)
        except ConfigError:
            if not path.exists():  # otherwise another process of this rank was first, with the same right
                raise
    return Identity.load(path)


def default_identity(run_id: str, rank: int) -> Path:
    """Where a rank's identity lies unless the settings say otherwise."""
    return Path.home() / ".config" / "lightsecagg" / "identities" / f"{run_id}-{rank}"


Tell = Callable[[LightSecAggError], None]
"""Says in one line why a process ends early."""

Leave = Callable[[int], NoReturn]
"""Ends the process with a code."""


def _tell(error: LightSecAggError) -> None:
    click.echo(f"lightsecagg: {error}", err=True)


@contextlib.contextmanager
def starting(tell: Tell = _tell, leave: Leave = sys.exit) -> Iterator[None]:
    """While a process sets itself up: a wrong configuration, or Ctrl-C, ends it in one line."""
    try:
        yield
    except ConfigError as error:
        tell(error)
        leave(EXIT_CONFIG)
    except KeyboardInterrupt:
        leave(EXIT_INTERRUPTED)


def serve(
    work: Callable[[], Coroutine[Any, Any, None]],
    tracker: Tracker,
    tell: Tell = _tell,
    leave: Leave = os._exit,
) -> NoReturn:
    """Run a process of a run to its end and exit with the code that says how it ended.

    Ctrl-C and SIGTERM stop it cleanly; a second one at once.
    """
    code = _run(work, tracker, tell)
    with contextlib.suppress(OSError):  # whoever read us may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    # A user's training that asks nobody whether to stop must not keep the process for as long as it likes.
    leave(code)


def _run(work: Callable[[], Coroutine[Any, Any, None]], tracker: Tracker, tell: Tell) -> int:
    try:
        try:
            asyncio.run(_interruptible(work, tracker))
        finally:
            tracker.close()
    except (ConfigError, RunStopped, CommError) as error:
        with contextlib.suppress(OSError):
            tell(error)
        return _code_of(error)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return EXIT_BUG
    return 0


def _code_of(error: LightSecAggError) -> int:
    match error:
        case ConfigError():
            return EXIT_CONFIG
        case RefusedError():
            return EXIT_REFUSED
        case RunStopped():
            return EXIT_STOPPED
        case _:
            return EXIT_NETWORK


def fail(error: LightSecAggError, code: int) -> NoReturn:
    """Say what is wrong, in one line on stderr, and exit."""
    _tell(error)
    sys.exit(code)


async def _interruptible(work: Callable[[], Coroutine[Any, Any, None]], tracker: Tracker) -> None:
    task = asyncio.create_task(work())
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped:
            tracker.close()  # the live terminal gives the cursor back
            os._exit(EXIT_INTERRUPTED)
        stopped = True
        task.cancel()
        tracker.emit(Notice(text="stopping; once more to leave at once"))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await task
