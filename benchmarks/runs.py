"""Runs of the real program: its configuration, processes and rounds. Training takes no time by default."""

from __future__ import annotations

import os
import signal
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


ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Keeps the processes of a run from fighting over the cores, which people's own do not know of."""

Sections = Mapping[str, Mapping[str, Any]]

_ABSENT = "import time; from mpi4py import MPI; time.sleep(600)"  # a rank that never joins


class Run:
    """A server and its clients, in a folder of their own.

    Args:
        comm_args: as in a configuration file.
        settings: other sections, whose values take the place of those here.
        environment: what the processes find beside the dimension and, outside of MPI, their rank (the
            server's is 0) under LIGHTSECAGG_BENCH_....
    """

    def __init__(
        self,
        folder: Path,
        clients: int,
        dimension: int,
        rounds: int,
        comm_args: Mapping[str, Any],
        optimizer: str = "LSA",
        *,
        settings: Sections | None = None,
        environment: Mapping[str, str] = ONE_THREAD,
    ) -> None:
        """One round more than is asked for: the first is not measured."""
        self._clients = clients
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_world = comm_args.get("backend") == "MPI"
        self._log = folder / RUN_ID / "server.jsonl"
        self._folder = folder
        self._config = folder / "config.yaml"
        sections: dict[str, dict[str, Any]] = {
            "data_args": {"dataset": "bench_plugins:empty", "partition_method": "homo"},
            "model_args": {"trainer": "bench_plugins:InstantTrainer"},
            "train_args": {"comm_round": rounds + 1, "federated_optimizer": optimizer},
            "validation_args": {"frequency_of_the_test": rounds + 1},
            "device_args": {"worker_num": clients},
            "comm_args": dict(comm_args),
        }
        for name, values in (settings or {}).items():
            sections.setdefault(name, {}).update(values)
        self._config.write_text(yaml.safe_dump(sections))
        self._environment = {
            **os.environ,
            "LIGHTSECAGG_BENCH_DIMENSION": str(dimension),
            "PYTHONPATH": str(HERE),
            "HOME": str(folder),
            **environment,
        }

    def start(self, *, without_last: bool = False) -> None:
        """Start the server and its clients; `without_last`: all but one, for which they wait."""
        started = self._clients - without_last
        if self._is_world:
            absent = [":", "-n", "1", sys.executable, "-c", _ABSENT] if without_last else []
            self._start("mpi", before=[*MPIRUN, "-n", str(started + 1)], beside=absent)
            return
        self._start("server")
        for _ in range(started):
            self.start_client()

    def start_client(self) -> None:
        """Start the next client."""
        self._start("client", "--rank", str(len(self._processes)))

    def _start(self, *words: str, before: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
        program = [sys.executable, "-m", "lightsecagg", *words, "--cf", str(self._config), "--run_id", RUN_ID]
        process = subprocess.Popen(
            [*before, *program, "--runs", str(self._folder), *beside],
            env={**self._environment, "LIGHTSECAGG_BENCH_RANK": str(len(self._processes))},
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
        return _rounds(self.wait())[1:]

    def wait(self) -> list[jsonl.Entry]:
        """Wait for the end; all that the server noted."""
        codes = [process.wait() for process in self._processes]
        assert not any(codes), f"exit codes {codes}"
        return self.noted()

    def noted(self) -> list[jsonl.Entry]:
        """All that the server has noted so far."""
        return list(jsonl.read(self._log))

    def freeze(self) -> None:
        """Stop the processes where they are; outside of MPI, whose ranks are not ours."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.terminate()
        self.thaw()
        for process in self._processes:
            process.wait()


def _joined(log: Path) -> int:
    return sum(isinstance(entry.event, ClientJoined) for entry in jsonl.read(log))


def _rounds(entries: Sequence[jsonl.Entry]) -> list[dict[str, Any]]:
    found, started = [], 0.0
    for entry in entries:
        if isinstance(entry.event, RoundStarted):
            started = entry.monotonic
        elif isinstance(entry.event, RoundCompleted):
            found.append(
                {
                    "started": started,
                    "ended": entry.monotonic,
                    "seconds": entry.monotonic - started,
                    "survivors": len(entry.event.survivors),
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
