"""Real processes of a run: started, stopped at exact points, killed, and read."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from lightsecagg.settings import Settings, load
from lightsecagg.training.base import Array, LocalData
from lightsecagg.training.partition import partition
from tests.e2e import e2e_plugins

HERE = Path(__file__).parent
PATIENCE = 60.0

BASE: dict[str, dict[str, Any]] = {
    "data_args": {"dataset": "e2e_plugins:tiny", "partition_method": "homo"},
    "model_args": {"trainer": "e2e_plugins:KnownTrainer"},
    "train_args": {"comm_round": 2},
    "secure_aggregation_args": {"join_timeout": 60, "finish_timeout": 5, "key_timeout": 10},
    "comm_args": {
        "heartbeat_interval": 0.5,
        "heartbeat_timeout": 2.0,
        "reconnect_window": 4.0,
        "connect_timeout": 60,
    },
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Heard:
    """A process whose output is read line by line."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def expect(self, text: str) -> str:
        """Wait for a line that holds ``text``; from then on only what comes after it."""
        while True:
            line = self._queue.get(timeout=PATIENCE)
            assert line is not None, f"ended without {text!r}:\n{''.join(self.lines)}"
            self.lines.append(line)
            if text in line:
                return line

    def exit_code(self) -> int:
        code = self.popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def output(self) -> str:
        """Everything it printed, once it has ended or been ended."""
        self.exit_code()
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        self._queue.put(None)
        return "".join(self.lines)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


class Gate:
    """How many trainings the clients at it may begin: a FIFO out of which each takes a byte."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._file = os.open(path, os.O_RDWR)

    def let(self, trainings: int) -> None:
        """Let so many more through."""
        os.write(self._file, bytes(trainings))

    def close(self) -> None:
        os.close(self._file)


class Process(Heard):
    """One process of the program."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        halt: str | None,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if halt is not None:
            words = [*words, "--halt-at", halt]
        super().__init__(
            subprocess.Popen(
                [*inside, sys.executable, "-m", "lightsecagg", *words],
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    **os.environ,
                    "HOME": str(cwd),
                    "PYTHONPATH": str(HERE),
                    "COLUMNS": "400",
                    **(environment or {}),
                },
            )
        )

    def halted(self) -> None:
        """Wait until the process has stopped itself at its point."""
        found = os.waitid(os.P_PID, self.popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert found is not None
        assert found.si_code == os.CLD_STOPPED, f"never halted:\n{self.output()}"

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(PATIENCE)


class Run:
    """One run in a folder of its own; use as a context manager."""

    def __init__(
        self,
        folder: Path,
        workers: int,
        *,
        inside: Mapping[int, Sequence[str]] | None = None,
        **changes: dict[str, Any],
    ) -> None:
        """`inside`: by rank, 0 the server, the words that start a command on that host."""
        self.folder = folder
        self._inside = inside or {}
        self.run_id = "r1"
        self.port = free_port()
        values = {section: {**given, **changes.pop(section, {})} for section, given in BASE.items()}
        values |= changes
        values.setdefault("device_args", {})["worker_num"] = workers
        values["comm_args"]["grpc"] = {"port": self.port, **values["comm_args"].get("grpc", {})}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(values))
        self._started: list[Process] = []
        self._gates: list[Gate] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.close()
        for gate in self._gates:
            gate.close()

    def gate(self) -> Gate:
        """A gate, closed, for clients of this run."""
        gate = Gate(self.folder / f"gate-{len(self._gates)}")
        self._gates.append(gate)
        return gate

    def server(self, *words: str) -> Process:
        return self._start(["server", *self._common(), *words], None, self._inside.get(0, ()))

    def client(self, rank: int, *words: str, halt: str | None = None, gate: Gate | None = None) -> Process:
        """`gate`: at which its trainings wait."""
        words = ("client", *self._common(), "--rank", str(rank), *words)
        environment = None
        if gate is not None:
            words = (*words, "--set", "model_args.trainer=e2e_plugins:GatedTrainer")
            environment = {"E2E_GATE": str(gate.path)}
        return self._start(words, halt, self._inside.get(rank, ()), environment)

    def _common(self) -> list[str]:
        return ["--cf", str(self.config), "--run_id", self.run_id, "--runs", str(self.folder / "runs")]

    def _start(
        self,
        words: Sequence[str],
        halt: str | None,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        process = Process(words, self.folder, halt, inside, environment)
        self._started.append(process)
        return process

    @property
    def settings(self) -> Settings:
        return load(self.config)[0]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The server's log: every event of this name."""
        lines = (self.folder / "runs" / self.run_id / "server.jsonl").read_text().splitlines()
        return [entry for line in lines if (entry := msgspec.json.decode(line))["event"] == name]

    def model(self) -> dict[str, Any]:
        with np.load(self.folder / "runs" / self.run_id / "model.npz") as file:
            return dict(file)

    def local_data(self, rank: int) -> LocalData:
        """The samples of one client, found anew from the settings."""
        dataset, settings = e2e_plugins.tiny(), self.settings
        data = settings.data_args
        silos = partition(dataset.train_y, settings.num_silos, data.partition_method, data.partition_alpha, 0)
        return LocalData(dataset.train_x[silos[rank - 1]], dataset.train_y[silos[rank - 1]])


def assert_model_is_the_exact_mean(run: Run) -> None:
    """The model file is Σ over rounds of Σ n·δ / Σ n over the reported S, within the quantizer's step."""
    wanted = [Fraction(0)] * e2e_plugins.DIMENSION
    slack = Fraction(0)
    completed = run.events("RoundCompleted")
    for event in completed:
        data = map(run.local_data, event["survivors"])
        parts = [(e2e_plugins.known_delta(samples), len(samples)) for samples in data]
        total = sum(weight for _, weight in parts)
        for index in range(e2e_plugins.DIMENSION):
            wanted[index] += sum(Fraction(float(delta[index])) * weight for delta, weight in parts) / total
        # Each survivor's coordinate is rounded by at most half a step of 2^-16 in units of max_weight.
        slack += Fraction(len(parts) * 1000, 2 * total * 2**16)
    model = run.model()
    worst = max(abs(Fraction(float(found)) - want) for found, want in zip(model["w"], wanted, strict=True))
    assert worst <= slack + Fraction(1, 10**12)
    assert model["steps"].tolist() == [5], "integer buffers stay the server's"


def versions(
    lists: Sequence[tuple[Sequence[int], Sequence[int]]],
    settings: Settings,
    local_data: Callable[[int], LocalData],
    weights: Sequence[int],
) -> list[tuple[Array, float]]:
    """The versions of the model that clients with a ``PullingTrainer`` make, and how far off each may be.

    Args:
        lists: whose updates are in each, and how many versions old each update is.
        settings: of the run; ``server_lr`` and the quantizer's.
        local_data: the samples of a rank.
        weights: of updates that are 0, 1, 2 … versions old.
    """
    given, rate = settings.secure_aggregation_args, settings.train_args.server_lr
    made: list[tuple[Array, float]] = [(np.zeros(e2e_plugins.DIMENSION), 0.0)]
    for ranks, staleness in lists:
        counts = [
            weights[age] * min(len(local_data(rank)), given.max_weight)
            for rank, age in zip(ranks, staleness, strict=True)
        ]
        bases = [made[-1 - age] for age in staleness]
        deltas = [
            e2e_plugins.known_delta(local_data(rank)) - e2e_plugins.PULL * base
            for rank, (base, _) in zip(ranks, bases, strict=True)
        ]
        # Unbiased rounding is off by less than a step, of updates that travel as n / max_weight of them.
        step = sum(weights[age] for age in staleness) * given.max_weight / 2**given.precision_parameter
        off = step / sum(counts) + e2e_plugins.PULL * max(slack for _, slack in bases) + 1e-6
        before, slack = made[-1]
        made.append((before + rate * np.average(deltas, axis=0, weights=counts), slack + rate * off))
    return made[1:]


def assert_model_is_what_the_lists_say(run: Run, weights: Sequence[int] = (1,) * 1025) -> None:
    """The model file is the last version that the server's log makes; see ``versions``."""
    lists = [(event["survivors"], event["staleness"]) for event in run.events("RoundCompleted")]
    wanted, slack = versions(lists, run.settings, run.local_data, weights)[-1]
    model = run.model()
    np.testing.assert_allclose(model["w"], wanted, rtol=0, atol=slack)
    assert model["steps"].tolist() == [5], "integer buffers stay the server's"
