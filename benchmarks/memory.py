"""Peak memory of server and clients, however many there are: ``python -m benchmarks.memory``.

Server and clients are separate processes of the real program over loopback gRPC; training takes no time. The
peaks are the kernel's own (VmHWM), so that none falls between two looks, less the pages of library files.

- A server's figure is its peak in the rounds above its baseline, which is what it holds when all clients but
  one have joined: the last one starts after that look, since with it the first round begins.
- A client's figure is its peak in secure rounds above the same rank's in rounds of FedAvg, which is what
  model and training take: the median over all clients. FedAvg makes an update too, so beside it stands the
  peak above that of FedAvg up to the end of training, when there is none yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks.processes import Watch, available_bytes, forget_peak, own_peak_bytes, put_first_in_line
from benchmarks.runs import RESULTS, Run, medians
from lightsecagg.field import PrimeField
from tests.brokers import free_port

DIMENSION = 5_288_548
ORDER = 2**31 - 1  # of both cohorts' field: the smaller one by itself would take a smaller one
MOST_GROWTH = 1.2  # of the server's figure from the smallest cohort to the largest
ROUNDS = 1  # beside the first, which counts here as well: a peak at the very end of one is seen in the other
PATIENCE = 600.0  # seconds; many clients share two cores
SPARE = 2**30  # bytes that shall stay free while the crowd runs


class Size(NamedTuple):
    """A cohort and what it tolerates."""

    clients: int
    target_survivors: int
    privacy_threshold: int

    @property
    def allowed(self) -> int:
        """Bytes that a client may take above model and training: four vectors, and the shares it receives."""
        columns = -(-(DIMENSION + 1) // (self.target_survivors - self.privacy_threshold))
        shares = (self.clients - self.target_survivors) * columns * PrimeField(ORDER).element_bytes
        return 4 * 4 * DIMENSION + shares


SIZES = (Size(10, 7, 5), Size(50, 35, 25))


class Peaks(NamedTuple):
    """Of one run, in bytes; clients by rank."""

    baseline: int
    server: int
    clients: dict[int, int]
    trained: dict[int, int]  # up to the end of the first training
    rounds: dict[str, Any]


def one_run(size: Size, optimizer: str) -> Peaks:
    """The peaks of a run's processes."""
    with contextlib.ExitStack() as stack:
        folder, records = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        run = Run(
            folder,
            size.clients,
            DIMENSION,
            ROUNDS,
            {"grpc": {"port": free_port()}, "heartbeat_timeout": PATIENCE, "stall_timeout": PATIENCE},
            optimizer,
            settings={"secure_aggregation_args": _numbers(size)},
            environment={"LIGHTSECAGG_BENCH_RECORDS": str(records)},
        )
        stack.callback(run.kill)
        with Watch(run.pids, own_peak_bytes) as watch:
            run.start(without_last=True)
            run.wait_for_clients(size.clients - 1)
            server = run.pids()[0]
            forget_peak(server)
            baseline = own_peak_bytes(server)
            run.start_client()
            rounds = medians(run.finish())
        trained = {int(path.name): int(path.read_text()) for path in records.iterdir()}
    highest = watch.peak_bytes.pop(0)
    return Peaks(baseline, highest, watch.peak_bytes, trained, rounds)


def _numbers(size: Size) -> dict[str, Any]:
    timeouts = ("share", "report", "upload", "slot", "recovery", "key", "finish")
    return {
        "targeted_number_active_clients": size.target_survivors,
        "privacy_guarantee": size.privacy_threshold,
        "prime_number": ORDER,
        **{f"{name}_timeout": PATIENCE for name in timeouts},
    }


def check_room(clients: int, before: dict[str, Any]) -> None:
    """Refuse what would not fit, going by what fewer clients took."""
    wanted = clients * before["client_peak_bytes"] + before["server_bytes"] + SPARE
    found = available_bytes()
    if wanted > found:
        raise click.ClickException(
            f"{clients} clients of {_megabytes(before['client_peak_bytes'])} want {_megabytes(wanted)} of "
            f"memory, found {_megabytes(found)}: end what else runs here, or measure with --quick"
        )


def measure(size: Size) -> dict[str, Any]:
    """Both kinds of run with one cohort."""
    plain = one_run(size, "FedAvg")
    secure = one_run(size, "LSA")
    return {
        **size._asdict(),
        "processes": size.clients + 1,
        "rounds": secure.rounds["rounds"] + 1,
        "seconds": secure.rounds["seconds"],
        "server_baseline_bytes": secure.baseline,
        "server_bytes": secure.server - secure.baseline,
        "server_bytes_plain": plain.server - plain.baseline,
        "client_peak_bytes": statistics.median(secure.clients.values()),
        "client_peak_bytes_plain": statistics.median(plain.clients.values()),
        "client_bytes": _median_difference(secure.clients, plain.clients),
        "client_bytes_above_training": _median_difference(secure.clients, plain.trained),
        "client_bytes_allowed": size.allowed,
    }


def _median_difference(peaks: dict[int, int], others: dict[int, int]) -> float:
    return statistics.median(peak - others[rank] for rank, peak in peaks.items())


@click.command()
@click.option("--quick", is_flag=True, help="The small cohort only; no file is written.")
def main(quick: bool) -> None:
    """Measure, print a table and write benchmarks/results/memory.json."""
    put_first_in_line()
    results: list[dict[str, Any]] = []
    for size in SIZES[:1] if quick else SIZES:
        if results:
            check_room(size.clients, results[-1])
        results.append(measure(size))
        print(f"N={size.clients}: measured", flush=True)
    growth = results[-1]["server_bytes"] / results[0]["server_bytes"]
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        record = {
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "dimension": DIMENSION,
            "server_growth": growth,
            "server_growth_allowed": MOST_GROWTH,
            "results": results,
        }
        (RESULTS / "memory.json").write_text(json.dumps(record, indent=2) + "\n")
    _print(results, growth)


def _print(results: list[dict[str, Any]], growth: float) -> None:
    table = Table(
        title=f"Peak memory, d = {DIMENSION:,}; the server's grows "
        f"{_against_goal(f'{growth:.2f}', is_met=growth <= MOST_GROWTH)} times (at most {MOST_GROWTH})"
    )
    for column in (
        *("N", "U", "T", "server above baseline", "FedAvg's", "client in all", "FedAvg's"),
        *("above FedAvg's", "at most", "above training"),
    ):
        table.add_column(column, justify="right")
    for row in results:
        is_met = row["client_bytes"] <= row["client_bytes_allowed"]
        table.add_row(
            *(str(row[key]) for key in Size._fields),
            _megabytes(row["server_bytes"]),
            _megabytes(row["server_bytes_plain"]),
            _megabytes(row["client_peak_bytes"]),
            _megabytes(row["client_peak_bytes_plain"]),
            _against_goal(_megabytes(row["client_bytes"]), is_met=is_met),
            _megabytes(row["client_bytes_allowed"]),
            _megabytes(row["client_bytes_above_training"]),
        )
    Console(width=160).print(table)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _against_goal(text: str, *, is_met: bool) -> str:
    return text if is_met else f"[bold red]{text}[/]"


if __name__ == "__main__":
    main()
