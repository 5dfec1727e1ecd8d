"""Our link over each carrier beside the bare library: ``python -m benchmarks.carriers``.

A group is a server and its clients, processes of their own, with all connections set up. For every number of
peers there are two groups, one of links and one of the bare library's ends (benchmarks/ends), and they take
turns: a ratio is the median over pairs of turns that follow each other, so that what else this machine does
hits both. CPU time is that of all processes of the group, the broker's included.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks.ends.scenario import Spec
from benchmarks.processes import cpu_seconds
from benchmarks.runs import MPIRUN, RESULTS, Run
from tests.brokers import Mosquitto, free_port
from tests.certificates import Authority

DIRECTIONS = ("up", "down", "echo")
SIZES = (5, 64)  # MiB for each peer
PEERS = (1, 8)
GOAL = 0.7
IDLE_GOAL = 0.02
IDLE_CLIENTS = 4
SETTLING = 2.0  # seconds before nothing is measured


@dataclass(frozen=True, slots=True)
class Carrier:
    """What is compared: a carrier's name for people, and how a configuration writes it."""

    name: str
    backend: str
    settings: dict[str, Any] = field(default_factory=dict)
    broker: int | None = None  # its process id
    words: tuple[str, ...] = ()  # more for mpirun

    def ready(self) -> dict[str, Any]:
        """The settings, with a port of its own for a server that wants one."""
        return {**self.settings, "port": free_port()} if self.backend == "GRPC" else self.settings


class Plan(NamedTuple):
    """How long to measure."""

    seconds: float  # for each pair of numbers that is compared
    least_turns: int
    idle_seconds: float


FULL, QUICK = Plan(1.2, 3, 10.0), Plan(0.2, 1, 3.0)


class Turn(NamedTuple):
    """Of one group's transfers in a turn, for every byte that a peer was to move."""

    seconds: float
    cpu_seconds: float


class Group:
    """A server and its clients, ready to transfer."""

    def __init__(self, carrier: Carrier, peers: int, *, is_link: bool) -> None:
        self._carrier = carrier
        self._peers = peers
        self._is_link = is_link
        self._settings = {**carrier.ready(), "run": "ends"}
        self._processes: list[subprocess.Popen[str]] = []
        if carrier.backend == "MPI":
            self._start([*MPIRUN, *carrier.words, "-n", str(peers + 1)], None)
            self._hear()
        else:
            self._start([], 0)
            self._hear()
            for rank in range(1, peers + 1):
                self._start([], rank)
        found = self._hear()
        self.server: int = found["server"]
        self.clients: list[int] = found["clients"]
        self.everybody = [self.server, *self.clients, *([carrier.broker] if carrier.broker else [])]

    def _start(self, before: list[str], rank: int | None) -> None:
        spec = Spec(self._carrier.backend, self._is_link, self._peers, rank, self._settings)
        words = [*before, sys.executable, "-m", "benchmarks.ends", json.dumps(asdict(spec))]
        pipe = subprocess.DEVNULL if rank else subprocess.PIPE
        self._processes.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True))

    def _hear(self) -> Any:
        output = self._processes[0].stdout
        assert output is not None
        line = output.readline()
        assert line, f"the server of {self._carrier.name} has ended"
        return json.loads(line)

    def turn(self, direction: str, blocks: int, times: int) -> Turn:
        """Make transfers one after the other."""
        before = sum(map(cpu_seconds, self.everybody))
        said = self._processes[0].stdin
        assert said is not None
        said.write(f"{direction} {blocks} {times}\n")
        said.flush()
        seconds = statistics.median(self._hear())
        used = sum(map(cpu_seconds, self.everybody)) - before
        return Turn(seconds, used / times)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def compare(link: Group, bare: Group, peers: int, direction: str, size: int, plan: Plan) -> dict[str, Any]:
    """Let both take turns."""
    small = min(SIZES)
    first = [group.turn(direction, small, 2).seconds for group in (link, bare)]  # warms up
    times = max(1, round(plan.seconds / plan.least_turns / (sum(first) * size / small)))
    pairs: list[tuple[Turn, Turn]] = []
    end = time.monotonic() + plan.seconds
    while len(pairs) < plan.least_turns or time.monotonic() < end:
        order = (link, bare) if len(pairs) % 2 else (bare, link)
        found = {group: group.turn(direction, size, times) for group in order}
        pairs.append((found[link], found[bare]))
    total = peers * size * 2**20
    ours, theirs = zip(*pairs, strict=True)
    return {
        "direction": direction,
        "mebibytes": size,
        "peers": peers,
        "turns": len(pairs),
        "link_megabytes_per_second": total / 1e6 / statistics.median(turn.seconds for turn in ours),
        "bare_megabytes_per_second": total / 1e6 / statistics.median(turn.seconds for turn in theirs),
        "ratio": statistics.median(bare.seconds / link.seconds for link, bare in pairs),
        "link_cpu_seconds_per_gigabyte": statistics.median(turn.cpu_seconds for turn in ours) / total * 1e9,
        "bare_cpu_seconds_per_gigabyte": statistics.median(turn.cpu_seconds for turn in theirs) / total * 1e9,
        "ratio_cpu": statistics.median(bare.cpu_seconds / link.cpu_seconds for link, bare in pairs),
    }


def start_waiting(carrier: Carrier, stack: contextlib.ExitStack) -> dict[str, list[int]]:
    """Processes that wait, by what they are: on connected links, and in a run that misses one client."""
    group = Group(carrier, IDLE_CLIENTS, is_link=True)
    stack.callback(group.close)
    section = {} if carrier.backend == "MPI" else {carrier.backend.lower(): carrier.ready()}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    run = Run(folder, IDLE_CLIENTS, 1, 1, {"backend": carrier.backend, **section})
    stack.callback(run.kill)
    run.start(without_last=True)
    run.wait_for_clients(IDLE_CLIENTS - 1)
    pids = run.pids()
    return {
        "link_client": group.clients,
        "link_server": [group.server],
        "program_client": [pids[rank] for rank in range(1, IDLE_CLIENTS)],
        "program_server": [pids[0]],
    }


def idle(carriers: list[Carrier], seconds: float) -> list[dict[str, Any]]:
    """The mean part of a core that a process of each kind uses while nothing happens."""
    with contextlib.ExitStack() as stack:
        waiting = {carrier.name: start_waiting(carrier, stack) for carrier in carriers}
        pids = {pid for kinds in waiting.values() for found in kinds.values() for pid in found}
        time.sleep(SETTLING)
        start, before = time.monotonic(), {pid: cpu_seconds(pid) for pid in pids}
        time.sleep(seconds)
        wall = time.monotonic() - start
        share = {pid: (cpu_seconds(pid) - before[pid]) / wall for pid in pids}
    return [
        {
            "carrier": name,
            **{kind: statistics.mean(share[pid] for pid in found) for kind, found in kinds.items()},
        }
        for name, kinds in waiting.items()
    ]


@contextlib.contextmanager
def all_carriers() -> Iterator[list[Carrier]]:
    """The carriers, with a certificate and a broker for those that need one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        broker = Mosquitto.write(folder).start()
        try:
            yield [
                Carrier("gRPC", "GRPC"),
                Carrier("gRPC, mTLS", "GRPC", authority.issue("anybody").settings(authority.ca)),
                Carrier("MQTT", "MQTT", {"port": broker.port}, broker.pid),
                # Within a machine MPI copies from memory to memory, once; between machines a network does.
                Carrier("MPI, memory", "MPI"),
                Carrier("MPI, TCP", "MPI", words=("--mca", "btl", "self,tcp")),
            ]
        finally:
            broker.stop()


def throughput(carrier: Carrier, peers: int, plan: Plan) -> list[dict[str, Any]]:
    """Compare link and library in all directions."""
    with contextlib.ExitStack() as stack:
        link, bare = (Group(carrier, peers, is_link=is_link) for is_link in (True, False))
        stack.callback(link.close)
        stack.callback(bare.close)
        return [
            {"carrier": carrier.name, **compare(link, bare, peers, direction, size, plan)}
            for size in SIZES
            for direction in DIRECTIONS
        ]


@click.command()
@click.option("--carrier", "names", multiple=True, help="Only these, e.g. MPI; no file is written then.")
@click.option("--quick", is_flag=True, help="One turn of each, and no file is written.")
def main(names: tuple[str, ...], quick: bool) -> None:
    """Measure, print two tables and write benchmarks/results/carriers.json."""
    plan = QUICK if quick else FULL
    load = os.getloadavg()[0]
    transfers = []
    with all_carriers() as carriers:
        wanted = [carrier for carrier in carriers if not names or carrier.name in names]
        for carrier in wanted:
            for peers in PEERS:
                transfers += throughput(carrier, peers, plan)
            print(f"{carrier.name}: measured", flush=True)
        waits = idle(wanted, plan.idle_seconds)
    if not quick and not names:
        RESULTS.mkdir(exist_ok=True)
        machine = {"machine": platform.platform(), "cores": os.cpu_count(), "load_at_start": load}
        record = {**machine, "throughput": transfers, "idle": waits}
        (RESULTS / "carriers.json").write_text(json.dumps(record, indent=2) + "\n")
    _print_throughput(transfers)
    _print_idle(waits)


def _print_throughput(rows: list[dict[str, Any]]) -> None:
    table = Table(
        title="Our link beside the bare library, medians; ratios are bare's time or CPU over the link's"
    )
    for column in (
        "carrier",
        "peers",
        "MiB each",
        "direction",
        "link",
        "bare",
        "ratio",
        "CPU link",
        "CPU bare",
        "ratio",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["carrier"],
            str(row["peers"]),
            str(row["mebibytes"]),
            row["direction"],
            f"{row['link_megabytes_per_second']:,.0f} MB/s",
            f"{row['bare_megabytes_per_second']:,.0f} MB/s",
            _against_goal(f"{row['ratio']:.2f}", is_met=row["ratio"] >= GOAL),
            f"{row['link_cpu_seconds_per_gigabyte']:.2f} s/GB",
            f"{row['bare_cpu_seconds_per_gigabyte']:.2f} s/GB",
            f"{row['ratio_cpu']:.2f}",
        )
    Console(width=160).print(table)


def _print_idle(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Waiting, % of a core for each process")
    kinds = ("link_client", "link_server", "program_client", "program_server")
    for column in ("carrier", *(kind.replace("_", ", ") for kind in kinds)):
        table.add_column(column, justify="right")
    for row in rows:
        shown = [_against_goal(f"{100 * row[kind]:.2f}", is_met=row[kind] < IDLE_GOAL) for kind in kinds]
        table.add_row(row["carrier"], *shown)
    Console(width=160).print(table)


def _against_goal(text: str, *, is_met: bool) -> str:
    return text if is_met else f"[bold red]{text}[/]"


if __name__ == "__main__":
    main()
