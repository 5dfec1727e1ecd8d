"""Rounds with many clients over every carrier on this one machine: ``python -m benchmarks.crowd``.

Server and clients are separate processes of the real program; training takes no time. The broker has the
configuration that `lightsecagg mqtt-config` writes, with a password for each client.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.processes import Watch
from benchmarks.runs import RESULTS, Run, medians
from tests.brokers import Mosquitto, free_port

CARRIERS = ("GRPC", "MQTT", "MPI")


@contextlib.contextmanager
def comm_args(carrier: str, clients: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The section of the configuration, and the broker where one is needed."""
    match carrier:
        case "GRPC":
            yield {"grpc": {"port": free_port()}}
        case "MQTT":
            with _broker(clients, folder / "broker") as port:
                credentials = str(folder / "broker/credentials")
                yield {
                    "backend": "MQTT",
                    "authenticated_as": "client-{rank}",
                    "mqtt": {"port": port, "credentials": credentials},
                }
        case _:
            yield {"backend": "MPI", "authenticated_as": "client-{rank}"}


@contextlib.contextmanager
def _broker(clients: int, folder: Path) -> Iterator[int]:
    port = free_port()
    options = ["--clients", str(clients), "--out", str(folder), "--port", str(port)]
    words = [sys.executable, "-m", "lightsecagg", "mqtt-config", *options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    broker = Mosquitto(folder / "mosquitto.conf", port).start()
    try:
        yield port
    finally:
        broker.stop()


def crowd(carrier: str, clients: int, dimension: int, rounds: int) -> dict[str, Any]:
    """Let so many clients complete one round more than is asked for, and measure the others."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        section = stack.enter_context(comm_args(carrier, clients, folder))
        run = Run(folder, clients, dimension, rounds, section)
        stack.callback(run.kill)
        with Watch(run.pids) as watch:
            run.start()
            found = run.finish()
    cpu_seconds = watch.cpu_between(found[0]["started"], found[-1]["ended"])
    return {
        "carrier": carrier,
        "clients": clients,
        "dimension": dimension,
        "wanted": rounds,
        **medians(found),
        "cpu_seconds_per_round": cpu_seconds / len(found),
        "server_peak_bytes": watch.peak_bytes[0],
        "client_peak_bytes": max(size for rank, size in watch.peak_bytes.items() if rank),
    }


@click.command()
@click.option("--carrier", "carriers", multiple=True, type=click.Choice(CARRIERS), default=CARRIERS)
@click.option("--clients", default=50, show_default=True)
@click.option("--dimension", "dimensions", multiple=True, type=int, default=(7_850,), show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Measured rounds of each run.")
def main(carriers: tuple[str, ...], clients: int, dimensions: tuple[int, ...], rounds: int) -> None:
    """Measure, print a table and write benchmarks/results/crowd.json."""
    load = os.getloadavg()[0]
    results = []
    for dimension in dimensions:
        for carrier in carriers:
            results.append(crowd(carrier, clients, dimension, rounds))
            print(f"{carrier} d={dimension}: {results[-1]['rounds']} rounds completed", flush=True)
    RESULTS.mkdir(exist_ok=True)
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "load_at_start": load}
    (RESULTS / "crowd.json").write_text(json.dumps({**machine, "results": results}, indent=2) + "\n")
    _print(results)


def _print(results: list[dict[str, Any]]) -> None:
    table = Table(title="Rounds of a crowd on one machine, medians; training takes no time")
    columns = (
        "carrier",
        "N",
        "d",
        "completed",
        "seconds",
        "CPU seconds",
        "bytes a client",
        "server",
        "client",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(
            row["carrier"],
            str(row["clients"]),
            f"{row['dimension']:,}",
            f"{row['rounds']} of {row['wanted']}",
            f"{row['seconds']:.2f}",
            f"{row['cpu_seconds_per_round']:.2f}",
            f"{row['bytes_per_client']:,.0f}",
            f"{row['server_peak_bytes'] / 1e6:.0f} MB",
            f"{row['client_peak_bytes'] / 1e6:.0f} MB",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
