"""Whole runs of the real program as MPI worlds: clients that die and freeze, and words that are wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightsecagg.identity import Identity, encode_key
from tests.e2e.processes import HERE, PATIENCE, Process, Run, assert_model_is_the_exact_mean

ROOT = HERE.parent.parent
MPIRUN = str(Path(sys.executable).parent / "mpirun")


def mpirun(processes: int, *, is_fault_tolerant: bool = True) -> list[str]:
    words = ["env", "TERM=dumb", MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", str(processes)]
    return [*words, "--with-ft", "ulfm"] if is_fault_tolerant else words


@contextmanager
def world(run: Run, words: list[str], *further: str) -> Iterator[Process]:
    """The run as one MPI world; mpirun ends its ranks when it is told to end."""
    process = Process(["mpi", *run._common(), *further], run.folder, None, words)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.terminate()
            process.popen.wait(PATIENCE)
        process.close()


def halted_rank(process: Process) -> int:
    """The process id of the rank that has stopped itself; nobody but its parent is told of that."""
    children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for pid in children.read_text().split():
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return int(pid)
        time.sleep(0.02)
    raise AssertionError(f"no rank has halted:\n{process.output()}")


def survivors(run: Run) -> list[list[int]]:
    return [event["survivors"] for event in run.events("RoundCompleted")]


def test_script_runs_a_world_to_its_end_and_only_the_server_talks(tmp_path: Path) -> None:
    with Run(tmp_path, workers=7) as run:
        done = subprocess.run(
            ["bash", str(ROOT / "run_mpi.sh"), "4", run.run_id, *run._common()],
            cwd="/",
            env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(HERE)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert survivors(run) == [[1, 2, 3, 4]] * 2
        assert "device_args.worker_num: 4, as the MPI world has 4 processes beside the server" in done.stdout
        assert "fault tolerance" not in done.stdout
        assert "\x1b" not in done.stdout, "it goes to no terminal"
        assert "client 1:" not in done.stdout + done.stderr
        assert done.stderr == ""
        assert (tmp_path / "runs" / run.run_id / "client-4.jsonl").exists()


def test_killed_rank_is_a_client_that_dropped_out(tmp_path: Path) -> None:
    with (
        Run(tmp_path, workers=4) as run,
        world(run, mpirun(5), "--halt-at", "2:1:send MaskedUpdate") as process,
    ):
        os.kill(halted_rank(process), signal.SIGKILL)
        assert process.exit_code() == 0, process.output()
        assert survivors(run) == [[1, 3, 4]] * 2
        assert [(lost["rank"], lost["round"]) for lost in run.events("ClientLost")] == [(2, 1)]
        assert_model_is_the_exact_mean(run)


def test_frozen_rank_is_left_behind_and_comes_back_for_later_rounds(tmp_path: Path) -> None:
    changes = {"train_args": {"comm_round": 20}, "comm_args": {"reconnect_window": 30.0}}
    with (
        Run(tmp_path, workers=4, **changes) as run,
        world(run, mpirun(5), "--halt-at", "3:1:send SharesHeld") as process,
    ):
        frozen = halted_rank(process)
        process.expect("lost client 3 (away)")
        os.kill(frozen, signal.SIGCONT)
        assert process.exit_code() == 0, process.output()
        assert survivors(run)[0] == [1, 2, 4]
        assert survivors(run)[-1] == [1, 2, 3, 4]
        assert_model_is_the_exact_mean(run)


def test_killed_server_is_told_by_a_client_and_by_the_exit_code(tmp_path: Path) -> None:
    with (
        Run(tmp_path, workers=3, comm_args={"reconnect_window": 1.0}) as run,
        world(run, mpirun(4), "--halt-at", "1:1:take ReportShares") as process,
    ):
        client = halted_rank(process)
        children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()
        server = next(
            int(pid) for pid in children if b"\0PMIX_RANK=0\0" in Path(f"/proc/{pid}/environ").read_bytes()
        )
        os.kill(server, signal.SIGKILL)
        os.kill(client, signal.SIGCONT)
        assert process.exit_code() == 4, process.output()
        assert ": the server is gone (link_lost)" in process.output()


def test_world_without_fault_tolerance_says_what_that_means_and_completes(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run, world(run, mpirun(4, is_fault_tolerant=False)) as process:
        process.expect("this MPI world has no fault tolerance")
        assert process.exit_code() == 0, process.output()
        assert process.output().count("fault tolerance") == 1
        assert_model_is_the_exact_mean(run)


def test_stranger_is_refused_by_the_roster_and_says_so_once(tmp_path: Path) -> None:
    with Run(tmp_path, workers=4) as run:
        identities = tmp_path / ".config" / "lightsecagg" / "identities"
        identities.mkdir(parents=True)
        lines = []
        for rank in (1, 2, 3, 4):
            own, listed = Identity.generate(), Identity.generate()  # client 4 is somebody else than it says
            own.save(identities / f"{run.run_id}-{rank}")
            lines.append(f"{rank} {encode_key(listed.public if rank == 4 else own.public)}\n")
        (tmp_path / "roster").write_text("".join(lines))
        changes = [f"secure_aggregation_args.roster={tmp_path / 'roster'}"]
        words = [word for change in changes for word in ("--set", change)]
        with world(run, mpirun(5), *words) as process:
            assert process.exit_code() == 4, process.output()
            said = [line for line in process.output().splitlines() if line.startswith(("client", "light"))]
            assert [line for line in said if not line.endswith("joined")] == [
                "client 4: the server refused this client: unknown_identity "
                "(not in the server's roster as rank 4)",
                "lightsecagg: too many clients have ended before they joined; at least 4 are needed",
            ]


def test_what_ends_the_server_is_told_once_and_ends_the_world_with_its_code(tmp_path: Path) -> None:
    with (
        Run(tmp_path, workers=3) as run,
        world(run, mpirun(4), "--set", "train_args.comm_round=x") as process,
    ):
        assert process.exit_code() == 2, process.output()
        assert process.output().splitlines() == [
            "lightsecagg: --set train_args.comm_round: wanted a whole number, found 'x'"
        ]


def test_word_that_nobody_knows_is_told_once(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run, world(run, mpirun(4), "--sett") as process:
        assert process.exit_code() == 2, process.output()
        assert process.output().count("No such option") == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["mpi"], "found this process alone; start it with `bash run_mpi.sh CLIENTS RUN_ID`"),
        (["server", "--set", "comm_args.backend=MPI"], "use `bash run_mpi.sh CLIENTS RUN_ID`"),
        (["client", "--rank", "1", "--set", "comm_args.backend=MPI"], "use `bash run_mpi.sh CLIENTS RUN_ID`"),
    ],
)
def test_command_that_cannot_be_a_world_says_which_can(tmp_path: Path, words: list[str], wanted: str) -> None:
    with Run(tmp_path, workers=3) as run:
        process = run._start([*words, *run._common()], None)
        assert process.exit_code() == 2
        assert wanted in process.output()
        assert len(process.output().splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["many"], ["0"]])
def test_script_without_a_number_of_clients_says_how_it_is_used(words: list[str]) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "run_mpi.sh"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage: bash run_mpi.sh CLIENTS" in done.stderr
