"""A run as processes on this machine: its clients may be unequal, come late, or be killed on the way."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightsecagg.errors import RunStopped
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.tracking import jsonl
from lightsecagg.tracking.events import RoundCompleted

_LOOK = 0.1  # seconds from one look at the run to the next
_LAST_WORDS = 10.0  # seconds that clients may take to end after their server


@dataclass(frozen=True)
class Cast:
    """Who takes part in a run, and what befalls them.

    Attributes:
        clients: how many there are: ranks 1 to ``clients``.
        killed: the rank that is killed (SIGKILL).
        halt_at: where it is killed, as ``lightsecagg client --halt-at`` takes it.
        paces: by rank, how many seconds local training lasts at least.
        late: by rank, which round or version must have been made before the client's process starts.
    """

    clients: int
    killed: int
    halt_at: str
    paces: Mapping[int, float] = field(default_factory=dict)
    late: Mapping[int, int] = field(default_factory=dict)


def play(config: Path, folder: RunFolder, overrides: Sequence[str], cast: Cast) -> Path:
    """Run the server, on a free port, and the clients to their end; the server's event log.

    The server has this process's terminal; what client RANK prints goes to ``client-RANK.out`` in the folder.

    Raises:
        ConfigError: the run's folder cannot be made.
        RunStopped: the server did not end well.
    """
    folder.prepare()
    log = folder.logs / "server.jsonl"
    common = ["--cf", str(config), "--run_id", folder.run_id, "--runs", str(folder.path.parent)]
    for override in (*overrides, f"comm_args.grpc.port={_free_port()}"):
        common += ["--set", override]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_started(["server", *common]))
        clients: dict[int, subprocess.Popen[bytes]] = {}
        waiting = {rank: cast.late.get(rank, 0) for rank in range(1, cast.clients + 1)}
        while server.poll() is None:
            made = _made(log) if any(waiting.values()) else 0
            for rank in [rank for rank, version in waiting.items() if version <= made]:
                del waiting[rank]
                words = ["client", *common, *_lot(cast, rank)]
                clients[rank] = stack.enter_context(_started(words, folder.path / f"client-{rank}.out"))
            if (victim := clients.get(cast.killed)) is not None and _has_halted(victim):
                victim.kill()  # to the others what a pulled plug would be
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_LOOK)
        for process in clients.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0 if server.returncode else _LAST_WORDS)
    if server.returncode:
        raise RunStopped(f"the server of run {folder.run_id} ended with exit code {server.returncode}")
    return log


@contextlib.contextmanager
def _started(words: Sequence[str], output: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this program, which does not outlive the block; what it prints goes to ``output``."""
    with output.open("wb") if output else contextlib.nullcontext() as file:
        program = [sys.executable, "-m", "lightsecagg", *words]
        error = subprocess.STDOUT if file else None
        process = subprocess.Popen(program, stdout=file, stderr=error)  # noqa: S603 - this program
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
            if process.poll() is None:
                process.kill()
                process.wait()


def _lot(cast: Cast, rank: int) -> Iterator[str]:
    """What sets one client apart from the others, as words on its command line."""
    yield from ("--rank", str(rank))
    if rank in cast.paces:
        yield from ("--pace", str(cast.paces[rank]))
    if rank == cast.killed:
        yield from ("--halt-at", cast.halt_at)


def _made(log: Path) -> int:
    """The last round or version that the server has made."""
    if not log.exists():
        return 0
    return max(
        (entry.event.round for entry in jsonl.read(log) if isinstance(entry.event, RoundCompleted)), default=0
    )


def _has_halted(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has stopped itself at its point."""
    with contextlib.suppress(ChildProcessError):  # it has ended
        return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
