"""Time and bytes of a round over loopback gRPC, secure beside plain: ``python -m benchmarks.rounds``.

Server and clients are separate processes of the real program; training takes no time. Secure and plain runs
alternate, and medians over all rounds but each run's first are compared.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.runs import RESULTS, Run, medians
from tests.brokers import free_port

FEDML_SECONDS = {
    7_850: 0.075,
    1_206_590: 2.2,
}  # FedML's LightSecAgg, mended by hand, N = 4, on such a machine


def one_run(clients: int, dimension: int, rounds: int, optimizer: str) -> list[dict[str, Any]]:
    """Seconds and bytes of every round but the first."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), clients, dimension, rounds, {"grpc": {"port": free_port()}}, optimizer)
        run.start()
        return run.finish()


@click.command()
@click.option("--clients", multiple=True, type=int, default=(4, 10), show_default=True)
@click.option(
    "--dimension", "dimensions", multiple=True, type=int, default=(7_850, 1_206_590), show_default=True
)
@click.option("--rounds", default=6, show_default=True, help="Measured rounds of each run.")
@click.option("--repeats", default=2, show_default=True, help="Runs of each kind, alternating.")
def main(clients: tuple[int, ...], dimensions: tuple[int, ...], rounds: int, repeats: int) -> None:
    """Measure, print a table and write benchmarks/results/rounds.json."""
    results = []
    for dimension in dimensions:
        for count in clients:
            measured: dict[str, list[dict[str, Any]]] = {"LSA": [], "FedAvg": []}
            for _ in range(repeats):
                for optimizer, found in measured.items():
                    found.extend(one_run(count, dimension, rounds, optimizer))
            secure, plain = medians(measured["LSA"]), medians(measured["FedAvg"])
            results.append(
                {
                    "clients": count,
                    "dimension": dimension,
                    "secure": secure,
                    "plain": plain,
                    "ratio_seconds": secure["seconds"] / plain["seconds"],
                    "ratio_bytes": secure["bytes_per_client"] / plain["bytes_per_client"],
                }
            )
            print(
                f"N={count} d={dimension}: {results[-1]['ratio_seconds']:.2f}x the time of FedAvg", flush=True
            )
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": platform.platform(), "cores": os.cpu_count(), "results": results}
    (RESULTS / "rounds.json").write_text(json.dumps(record, indent=2) + "\n")
    _print(results)


def _print(results: list[dict[str, Any]]) -> None:
    table = Table(title="A round over loopback gRPC, median; training takes no time")
    for column in (
        "N",
        "d",
        "secure",
        "FedAvg",
        "ratio",
        "secure, phases",
        "bytes a client",
        "ratio",
        "FedML",
    ):
        table.add_column(column, justify="right")
    for row in results:
        secure, plain = row["secure"], row["plain"]
        phases = ", ".join(f"{p} {1000 * s:.0f}" for p, s in secure["seconds_by_phase"].items())
        fedml = FEDML_SECONDS.get(row["dimension"]) if row["clients"] == 4 else None
        table.add_row(
            str(row["clients"]),
            f"{row['dimension']:,}",
            f"{1000 * secure['seconds']:.0f} ms",
            f"{1000 * plain['seconds']:.0f} ms",
            f"{row['ratio_seconds']:.2f}",
            f"{phases} ms",
            f"{secure['bytes_per_client']:,.0f}",
            f"{row['ratio_bytes']:.2f}",
            f"{1000 * fedml:.0f} ms" if fedml else "",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
