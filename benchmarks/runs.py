"""Runs of the real program with training that takes no time: its configuration, processes and rounds."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import ranks
from lightsecagg.tracking import jsonl
from lightsecagg.tracking.events import ClientJoined, RoundCompleted, RoundStarted

HERE = Path(__file__).parent
RESULTS = HERE / "results"

RUN_ID = "bench"

# As run_mpi.sh calls it.
MPIRUN = (
    *(str(Path(sys.executable).parent / "mpirun"), "--oversubscribe", "--bind-to", "none"),
    *("--with-ft", "ulfm", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])),
)


_ABSENT = "import time; from mpi4py import MPI; time.sleep(600)"  # a rank that never joins


class Run:
    """A server and its clients, in a folder of their own; `comm_args` as in a configuration file."""

    def __init__(
        self,
        folder: Path,
        clients: int,
        dimension: int,
        rounds: int,
        comm_args: Mapping[str, Any],
        optimizer: str = "LSA",
    ) -> None:
        """One round more than is asked for: the first is not measured."""
        self._clients = clients
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_world = comm_args.get("backend") == "MPI"
        self._log = folder / RUN_ID / "server.jsonl"
        self._folder = folder
        self._config = folder / "config.yaml"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "data_args": {"dataset": "bench_plugins:empty", "partition_method": "homo"},
                    "model_args": {"trainer": "bench_plugins:InstantTrainer"},
                    "train_args": {"comm_round": rounds + 1, "federated_optimizer": optimizer},
                    "validation_args": {"frequency_of_the_test": rounds + 1},
                    "device_args": {"worker_num": clients},
                    "comm_args": dict(comm_args),
                }
            )
        )
        self._environment = {
            **os.environ,
            "LIGHTSECAGG_BENCH_DIMENSION": str(dimension),
            "PYTHONPATH": str(HERE),
            "HOME": str(folder),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *, without_last: bool = False) -> None:
        """Start the server and its clients; `without_last`: all but one, for which they wait."""
        if self._is_world:
            absent = [":", "-n", "1", sys.executable, "-c", _ABSENT] if without_last else []
            self._start("mpi", before=[*MPIRUN, "-n", str(self._clients + 1 - without_last)], beside=absent)
            return
        self._start("server")
        for rank in range(1, self._clients + 1 - without_last):
            self._start("client", "--rank", str(rank))

    def _start(self, *words: str, before: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
        program = [sys.executable, "-m", "lightsecagg", *words, "--cf", str(self._config), "--run_id", RUN_ID]
        process = subprocess.Popen(
            [*before, *program, "--runs", str(self._folder), *beside],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._processes.append(process)

    def pids(self) -> dict[int, int]:
        """The processes by rank, 0 being the server; of an MPI world those that live."""
        if self._is_world:
            return ranks(self._processes[0].pid)
        return {rank: process.pid for rank, process in enumerate(self._processes)}

    def wait_for_clients(self, count: int) -> None:
        """Wait until so many have joined."""
        while not self._log.exists() or _joined(self._log) < count:
            codes = [process.poll() for process in self._processes]
            assert not any(codes), f"exit codes {codes}"
            time.sleep(0.1)

    def finish(self) -> list[dict[str, Any]]:
        """Wait for the end; seconds and bytes of every round but the first, and when it began and ended."""
        codes = [process.wait() for process in self._processes]
        assert not any(codes), f"exit codes {codes}"
        return list(_rounds(self._log))[1:]

    def kill(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def _joined(log: Path) -> int:
    return sum(isinstance(entry.event, ClientJoined) for entry in jsonl.read(log))


def _rounds(log: Path) -> list[dict[str, Any]]:
    found, started = [], 0.0
    for entry in jsonl.read(log):
        if isinstance(entry.event, RoundStarted):
            started = entry.monotonic
        elif isinstance(entry.event, RoundCompleted):
            found.append(
                {
                    "started": started,
                    "ended": entry.monotonic,
                    "seconds": entry.monotonic - started,
                    "phases": dict(entry.event.seconds),
                    "bytes": dict(entry.event.bytes_by_phase),
                }
            )
    return found


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median round: in all, and for each phase."""
    phases = dict.fromkeys(phase for found in rounds for phase in found["phases"])
    return {
        "seconds": statistics.median(found["seconds"] for found in rounds),
        "seconds_by_phase": {p: statistics.median(f["phases"].get(p, 0.0) for f in rounds) for p in phases},
        "bytes_per_client": statistics.median(sum(found["bytes"].values()) for found in rounds),
        "bytes_per_client_by_phase": {
            p: statistics.median(f["bytes"].get(p, 0.0) for f in rounds) for p in phases
        },
        "rounds": len(rounds),
    }
