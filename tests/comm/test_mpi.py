"""What only MPI has: real worlds of a server and two clients, whose ranks die, freeze and talk nonsense."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightsecagg.comm.mpi_world import _is_sibling
from tests.e2e.processes import PATIENCE, Heard

MPIRUN = (
    str(Path(sys.executable).parent / "mpirun"),
    *("--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none"),
)
RANKS = Path(__file__).with_name("mpi_ranks.py")


@contextmanager
def running(scenario: str, code: int = 0) -> Iterator[Heard]:
    """An mpirun of three ranks; `code`: with which the server ends."""
    world = Heard(
        subprocess.Popen(
            [*MPIRUN, "-n", "3", sys.executable, str(RANKS), scenario, str(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        )
    )
    try:
        yield world
    finally:
        if world.popen.poll() is None:
            world.popen.terminate()  # mpirun ends its ranks, stopped ones too
            world.popen.wait(PATIENCE)
        world.close()


@pytest.fixture(scope="module")
def fair() -> str:
    """What a world says in which nobody dies, and rank 2 sends all kinds of nonsense."""
    with running("fair") as world:
        output = world.output()
        assert world.popen.returncode == 0, output
    return output


def test_every_size_arrives_in_order_and_exactly_at_once_from_two_ranks(fair: str) -> None:
    for rank in (1, 2):
        assert f"rank {rank} exact 24" in fair


def test_message_over_the_limit_is_not_allocated_and_harms_nobody(fair: str) -> None:
    grown = [int(found) for found in re.findall(r"rank 0 grew by (\d+)", fair)]
    assert len(grown) == 2
    assert max(grown) < 60 * 2**20, "64 MiB would have come on top of what the frames take"


def test_garbage_from_a_rank_disturbs_nobody_not_even_its_own_session(fair: str) -> None:
    for rank in (1, 2):
        assert f"rank {rank} echoed 50" in fair
        assert f"rank 0 gone client-{rank} goodbye" in fair
    assert "away" not in fair


def test_world_that_ends_well_says_nothing_of_its_own(fair: str) -> None:
    assert all(line.startswith("rank ") for line in fair.splitlines()), fair


def test_killed_rank_is_away_at_once_then_gone_and_the_others_go_on() -> None:
    with running("killed") as world:
        world.expect("rank 0 away client-2")
        world.expect("rank 0 gone client-2 link_lost")
        output = world.output()
        assert output.count("rank 1 echoed 50") == 2
        assert world.popen.returncode == 0, output
        assert all(line.startswith("rank ") for line in output.splitlines()), output


def test_clients_of_a_killed_server_learn_it_and_end() -> None:
    with running("server killed") as world:
        output = world.output()
    for rank in (1, 2):
        assert f"rank {rank} server away" in output
        assert f"rank {rank} server gone link_lost" in output


def test_frozen_rank_is_away_by_its_silence_and_back_when_it_is_continued() -> None:
    with running("frozen") as world:
        pid = int(world.expect("rank 2 pid").split()[-1])
        world.expect("rank 0 away client-2")
        os.kill(pid, signal.SIGCONT)
        world.expect("rank 0 back client-2")
        output = world.output()
        assert "rank 2 echoed 50" in output
        assert "rank 0 gone client-2 goodbye" in output
        assert world.popen.returncode == 0, output


def test_no_rank_can_have_a_process_killed_that_mpirun_did_not_start() -> None:
    with subprocess.Popen(["sleep", "5"]) as stranger:
        assert not _is_sibling(stranger.pid)
        stranger.kill()
    assert not _is_sibling(os.getpid())
    assert not _is_sibling(os.getppid())
    assert not _is_sibling(0)


@pytest.mark.parametrize("code", [0, 7])
def test_rank_that_stays_frozen_does_not_keep_the_world_from_ending(code: int) -> None:
    with running("frozen at the end", code) as world:
        output = world.output()
        assert "rank 0 gone client-2 link_lost" in output
        assert "rank 2 is frozen and says no farewell: it is killed" in output
        assert world.popen.returncode == code, output
        assert ("MPI_ABORT" in output) == bool(code), output
