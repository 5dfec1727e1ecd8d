"""``lightsecagg demo``: the main job on one machine, a client killed on the way, beside plain averaging."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from lightsecagg.cli.common import EXIT_CONFIG, EXIT_STOPPED, fail, read_settings, starting
from lightsecagg.errors import ConfigError, RunStopped
from lightsecagg.tracking import jsonl
from lightsecagg.tracking.summary import Summary

_KILLED_RANK = 3
_KILLED_ROUND = 4
_TOLERANCE = 0.01  # accuracy: one point
_PLACES = ("model", "log")  # long paths: each run's own summary has shown them


@click.command()
@click.option("--cf", "config", type=click.Path(path_type=Path), default=Path("config/fedml_config.yaml"))
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of all runs.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting.")
def demo(config: Path, runs: Path, overrides: tuple[str, ...]) -> None:
    """A server and its clients as separate processes; one is killed in the middle of a round."""
    console = Console()
    with starting():
        settings, _ = read_settings(config, overrides)
    if settings.device_args.worker_num < _KILLED_RANK or settings.train_args.comm_round < _KILLED_ROUND:
        fail(
            ConfigError(f"the demo wants worker_num ≥ {_KILLED_RANK} and comm_round ≥ {_KILLED_ROUND}"),
            EXIT_CONFIG,
        )
    stamp = time.strftime("%m%d-%H%M%S")
    summaries = {}
    for title, run_id, event, extra in (
        ("secure: LightSecAgg", f"demo-{stamp}-secure", "send MaskedUpdate", ()),
        (
            "plain: FedAvg",
            f"demo-{stamp}-plain",
            "send PlainUpdate",
            ("train_args.federated_optimizer=FedAvg",),
        ),
    ):
        console.rule(
            f"{title}; client {_KILLED_RANK} is killed (SIGKILL) as it uploads in round {_KILLED_ROUND}"
        )
        chosen = [*overrides, *extra, f"comm_args.grpc.port={_free_port()}"]
        code = _one_run(config, runs, run_id, chosen, settings.device_args.worker_num, event)
        if code:
            fail(RunStopped(f"the server of run {run_id} ended with exit code {code}"), EXIT_STOPPED)
        summaries[title] = _summarize(runs / run_id / "server.jsonl")
    console.print(_comparison(summaries))
    accuracies = [summary.final_accuracy for summary in summaries.values()]
    if None in accuracies or abs((accuracies[0] or 0) - (accuracies[1] or 0)) > _TOLERANCE:
        fail(RunStopped("the two accuracies differ by more than one point"), EXIT_STOPPED)
    console.print("The two accuracies agree within one point.")


def _one_run(
    config: Path, runs: Path, run_id: str, overrides: Sequence[str], workers: int, event: str
) -> int:
    """Server and clients of one run, and a kill; the server's exit code."""
    common = ["--cf", str(config), "--run_id", run_id, "--runs", str(runs)]
    for override in overrides:
        common += ["--set", override]
    program = [sys.executable, "-m", "lightsecagg"]
    with contextlib.ExitStack() as stack:
        _make_folder(runs / run_id)
        server = stack.enter_context(_ended(subprocess.Popen([*program, "server", *common])))
        clients = {}
        for rank in range(1, workers + 1):
            halt = ["--halt-at", f"{_KILLED_ROUND}:{event}"] if rank == _KILLED_RANK else []
            output = stack.enter_context((runs / run_id / f"client-{rank}.out").open("wb"))
            process = subprocess.Popen(
                [*program, "client", *common, "--rank", str(rank), *halt],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            clients[rank] = stack.enter_context(_ended(process))
        killer = threading.Thread(target=_kill_when_stopped, args=(clients[_KILLED_RANK],))
        killer.start()
        code = server.wait()
        for process in clients.values():
            if code:
                process.terminate()
            process.wait()
        killer.join()
    return code


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True)
    except OSError as error:
        fail(
            ConfigError(f"cannot make {path}: {error.strerror}; choose another place with --runs"),
            EXIT_CONFIG,
        )


def _kill_when_stopped(process: subprocess.Popen[bytes]) -> None:
    """The client stops itself at its point (``--halt-at``); this end is what a pulled plug would be."""
    with contextlib.suppress(ChildProcessError):  # it has ended and was waited for
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        process.kill()


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which does not outlive the block."""
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
