"""Asynchronous runs of real processes: clients that are killed, freeze, come late and come back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lightsecagg.identity import Identity
from tests.brokers import Mosquitto
from tests.e2e.processes import Run, assert_model_is_what_the_lists_say
from tests.e2e.test_mpi import halted_rank, mpirun, world

ONE_OF_FOUR = {"targeted_number_active_clients": 3, "privacy_guarantee": 1, "buffer_size": 3}
"""One of four clients may be lost; a list is of three different ones."""

ENOUGH = 100_000
"""Versions that no test waits for."""


def asynchronous(folder: Path, workers: int, versions: int, **changes: dict[str, Any]) -> Run:
    given: dict[str, dict[str, Any]] = {
        "data_args": {"partition_method": "hetero"},
        "model_args": {"trainer": "e2e_plugins:PullingTrainer"},
        "train_args": {"comm_round": versions, "server_lr": 0.5},
        "secure_aggregation_args": {"mode": "async", "max_weight": 100, "max_staleness": 40},
        "comm_args": {"reconnect_window": 1.0},
    }
    for section, values in changes.items():
        given[section] = {**given.get(section, {}), **values}
    return Run(folder, workers, **given)


def used(run: Run, *, after: int = 0) -> list[int]:
    """Whose updates are in the versions that came after the first so many."""
    return [rank for event in run.events("RoundCompleted")[after:] for rank in event["survivors"]]


KILLS = {
    # where client 2 is killed: whether its update is used all the same
    "training": False,
    "send EncodedMask": False,
    "send MaskedUpdate": False,
    "send PlainUpdate": False,
    "take RoundEnd": True,
    "send Endorse": False,
    "take ListCertificate": False,
}
HOLDS_ONLY = ("training", "send Endorse", "take ListCertificate")
"""Where it is killed before it has trained anything: it holds the others' shares."""


@pytest.mark.parametrize("event", KILLS)
def test_killed_client_costs_no_more_than_what_it_had_under_way(tmp_path: Path, event: str) -> None:
    train_args = {"federated_optimizer": "FedAvg" if "Plain" in event else "LSA"}
    with asynchronous(tmp_path, 4, 8, train_args=train_args, secure_aggregation_args=ONE_OF_FOUR) as run:
        gate, closed = run.gate(), run.gate()
        server = run.server()
        others = [run.client(rank, gate=gate) for rank in (1, 3, 4)]
        halt = None if event == "training" else f"1:{event}"
        doomed = run.client(2, halt=halt, gate=closed if event in HOLDS_ONLY else None)
        if not KILLS[event]:  # else a list that needs it might be under way already
            gate.let(12)
        if event == "training":
            doomed.expect("training")
        else:
            doomed.halted()
        doomed.kill()
        server.expect("lost client 2 (link_lost)")
        gate.let(100)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        assert used(run).count(2) == KILLS[event]
        assert [event["round"] for event in run.events("RoundCompleted")] == list(range(1, 9))
        assert_model_is_what_the_lists_say(run)


def test_who_comes_late_or_comes_back_takes_part_and_nobody_else_gets_the_slot(tmp_path: Path) -> None:
    numbers = {"targeted_number_active_clients": 4, "privacy_guarantee": 1, "buffer_size": 3, "min_joined": 4}
    with asynchronous(tmp_path, 5, 3, secure_aggregation_args=numbers) as run:
        usual, second, fifth = run.gate(), run.gate(), run.gate()
        server = run.server()
        clients = [run.client(rank, gate=usual) for rank in (1, 3, 4)]
        leaving = run.client(2, gate=second)
        usual.let(3)
        server.expect("version 1  done")
        clients.append(run.client(5, gate=fifth))
        fifth.let(1)
        usual.let(2)
        server.expect("version 2  done")
        leaving.kill()
        server.expect("lost client 2 (link_lost)")
        Identity.generate().save(tmp_path / "another")
        stranger = run.client(2, "--set", f"secure_aggregation_args.identity={tmp_path / 'another'}")
        assert stranger.exit_code() == 3, stranger.output()
        assert "rank 2 belongs to another identity for this run (slots are permanent)" in stranger.output()
        assert "take a free rank, or start with that identity's key" in stranger.output()
        clients.append(run.client(2, gate=second))
        second.let(1)
        usual.let(2)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 5
        assert 5 in used(run, after=1)[:3]
        assert 2 in used(run, after=2)
        assert used(run).count(2) == used(run).count(5) == 1
        assert_model_is_what_the_lists_say(run)


def test_too_few_clients_end_the_run_with_a_reason_and_the_last_version_on_disk(tmp_path: Path) -> None:
    numbers = ONE_OF_FOUR | {"key_timeout": 1}
    with asynchronous(tmp_path, 4, ENOUGH, secure_aggregation_args=numbers) as run:
        gate = run.gate()
        server = run.server()
        clients = [run.client(rank, gate=gate) for rank in range(1, 5)]
        gate.let(3)
        server.expect("version 1  done")
        for client in clients[:2]:
            client.kill()
        assert server.exit_code() == 4, server.output()
        assert "2 clients are left; at least 3 are needed (client" in server.output()
        assert [client.exit_code() for client in clients[2:]] == [4, 4]
        assert "the server ended the run early (stopped)" in clients[2].output()
        assert len(run.events("RoundCompleted")) == 1
        assert_model_is_what_the_lists_say(run)


def test_client_whose_training_goes_wrong_tries_each_version_once_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    numbers = {"targeted_number_active_clients": 3, "privacy_guarantee": 1, "buffer_size": 3}
    with asynchronous(tmp_path, 5, 2, secure_aggregation_args=numbers) as run:
        gate = run.gate()
        server = run.server()
        wrong = {1: "DivergingTrainer", 2: "FailingTrainer"}
        clients = [
            run.client(rank, "--set", f"model_args.trainer=e2e_plugins:{name}")
            for rank, name in wrong.items()
        ]
        clients += [run.client(rank, gate=gate) for rank in (3, 4, 5)]
        for _ in range(2):
            refused = {line.split("refused ")[1] for line in (server.expect("refused the") for _ in range(2))}
            assert refused == {
                "the update of client 1 (not_finite)\n",
                "the update of client 2 (training_failed)\n",
            }
            gate.let(3)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 5
        assert set(used(run)) == {3, 4, 5}
        assert "out of patience" in clients[1].output()
        assert "out of patience" not in server.output()
        assert_model_is_what_the_lists_say(run)


def test_late_update_weighs_less_and_one_that_is_too_late_is_refused_and_its_client_goes_on(
    tmp_path: Path,
) -> None:
    numbers = ONE_OF_FOUR | {"staleness": "polynomial(1)", "max_staleness": 2}
    with asynchronous(tmp_path, 4, 7, secure_aggregation_args=numbers) as run:
        usual, fourth = run.gate(), run.gate()
        server = run.server()
        clients = [run.client(rank, gate=usual) for rank in (1, 2, 3)]
        slow = run.client(4, gate=fourth)

        def versions(*numbers: int) -> None:
            for number in numbers:
                usual.let(3)
                server.expect(f"version {number}  done")

        versions(1, 2)
        usual.let(2)
        fourth.let(1)
        server.expect("version 3  done")
        versions(4, 5, 6)
        slow.expect("  stale")
        slow.expect("  training")  # now the gate's next pass is for the new one
        usual.let(2)
        fourth.let(1)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in [*clients, slow]] == [0] * 4
        staleness = [
            dict(zip(event["survivors"], event["staleness"], strict=True)).get(4)
            for event in run.events("RoundCompleted")
        ]
        assert staleness[:6] == [None, None, 2, None, None, None]
        assert staleness[6] in (0, 1), "it has taken a version that is not too old"
        assert [(event["rank"], event["reason"]) for event in run.events("UpdateRefused")] == [(4, "stale")]
        assert_model_is_what_the_lists_say(run, weights=(4, 2, 1))


@pytest.mark.parametrize(("window", "reason"), [(30.0, "away"), (0.5, "link_lost")])
def test_frozen_client_is_left_behind_and_comes_back_until_ctrl_c_ends_the_run_for_all(
    tmp_path: Path, window: float, reason: str
) -> None:
    comm_args = {"reconnect_window": window}
    with asynchronous(tmp_path, 4, ENOUGH, secure_aggregation_args=ONE_OF_FOUR, comm_args=comm_args) as run:
        server = run.server()
        frozen = run.client(2, halt="1:send ShareHeld")
        others = [run.client(rank) for rank in (1, 3, 4)]
        frozen.halted()
        server.expect(f"lost client 2 ({reason})")
        frozen.signal(signal.SIGCONT)
        server.expect("is in the buffer (client 2)")
        server.expect("done")
        server.signal(signal.SIGINT)
        assert server.exit_code() == 130, server.output()
        assert [client.exit_code() for client in [frozen, *others]] == [4] * 4
        assert "the server ended the run early (stopped)" in frozen.output()
        assert ("joining anew" in frozen.output()) == (reason == "link_lost")
        assert run.events("RunFinished")[0]["reason"] == "stopped_by_user"
        assert_model_is_what_the_lists_say(run)


def test_server_says_whom_it_waits_for_where_nothing_goes_on_without_them(tmp_path: Path) -> None:
    with asynchronous(
        tmp_path, 4, 3, secure_aggregation_args=ONE_OF_FOUR, comm_args={"reconnect_window": 30.0}
    ) as run:
        server = run.server()
        frozen = [run.client(rank, halt="1:send ShareHeld") for rank in (2, 3)]
        others = [run.client(rank) for rank in (1, 4)]
        for client in frozen:
            client.halted()
        server.expect("2 clients are there, and 3 are needed: waiting for the others")
        for client in frozen:
            client.signal(signal.SIGCONT)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in [*frozen, *others]] == [0] * 4
        lost = {(event["rank"], event["reason"]) for event in run.events("ClientLost")}
        assert lost == {(2, "away"), (3, "away")}
        assert_model_is_what_the_lists_say(run)


def test_client_takes_no_part_in_the_run_of_a_server_that_was_started_anew(tmp_path: Path) -> None:
    """There it would send updates of the same batches on the same model again."""
    comm_args = {"reconnect_window": 30.0}
    with asynchronous(tmp_path, 4, ENOUGH, secure_aggregation_args=ONE_OF_FOUR, comm_args=comm_args) as run:
        server = run.server()
        clients = [run.client(rank) for rank in (1, 2, 3, 4)]
        server.expect("version 3  done")
        server.kill()
        refused = run.server()
        assert refused.exit_code() == 2
        assert "move that folder with the model in it; and start the clients again" in refused.output()
        (tmp_path / "runs").rename(tmp_path / "former")
        anew = run.server()
        assert [client.exit_code() for client in clients] == [4] * 4
        assert all("start the client again" in client.output() for client in clients)
        clients = [run.client(rank) for rank in (1, 2, 3, 4)]
        anew.expect("version 1  done")
        anew.signal(signal.SIGINT)
        assert anew.exit_code() == 130, anew.output()


def test_ctrl_c_at_a_client_takes_it_out_and_the_versions_go_on(tmp_path: Path) -> None:
    with asynchronous(tmp_path, 4, 4, secure_aggregation_args=ONE_OF_FOUR) as run:
        gate = run.gate()
        server = run.server()
        leaving = run.client(1, gate=run.gate())
        others = [run.client(rank, gate=gate) for rank in (2, 3, 4)]
        gate.let(3)
        server.expect("version 1  done")
        leaving.signal(signal.SIGINT)
        assert leaving.exit_code() == 130, leaving.output()
        gate.let(100)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        assert [(lost["rank"], lost["reason"]) for lost in run.events("ClientLost")] == [
            (1, "stopped_by_user")
        ]
        assert_model_is_what_the_lists_say(run)


def test_broker_may_be_restarted_while_an_update_is_on_its_way(tmp_path: Path) -> None:
    broker = Mosquitto.write(tmp_path).start()
    comm_args = {"backend": "MQTT", "mqtt": {"port": broker.port}, "reconnect_window": 30.0}
    numbers = {"targeted_number_active_clients": 3, "privacy_guarantee": 1}  # U = N: nobody may be lost
    try:
        with asynchronous(tmp_path, 3, 4, secure_aggregation_args=numbers, comm_args=comm_args) as run:
            server = run.server()
            clients = [
                run.client(rank, halt="1:send MaskedUpdate" if rank == 2 else None) for rank in (1, 2, 3)
            ]
            clients[1].halted()
            broker.restart(signal.SIGKILL)
            clients[1].signal(signal.SIGCONT)
            assert server.exit_code() == 0, server.output()
            assert [client.exit_code() for client in clients] == [0] * 3
            assert [sorted(event["survivors"]) for event in run.events("RoundCompleted")] == [[1, 2, 3]] * 4
            assert run.events("RoundAborted") == run.events("UpdateRefused") == []
            assert_model_is_what_the_lists_say(run)
    finally:
        broker.stop()


def test_killed_rank_of_an_mpi_world_is_a_client_that_dropped_out(tmp_path: Path) -> None:
    with (
        asynchronous(tmp_path, 4, 6, secure_aggregation_args=ONE_OF_FOUR) as run,
        world(run, mpirun(5), "--halt-at", "2:1:send MaskedUpdate") as process,
    ):
        os.kill(halted_rank(process), signal.SIGKILL)
        assert process.exit_code() == 0, process.output()
        assert set(used(run)) == {1, 3, 4}
        assert_model_is_what_the_lists_say(run)


def test_all_in_one_process_over_the_local_carrier(tmp_path: Path) -> None:
    with asynchronous(tmp_path, 4, 6) as run:
        alone = run._start(["run", *run._common()], None)
        assert alone.exit_code() == 0, alone.output()
        assert_model_is_what_the_lists_say(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("secure_aggregation_args.mode=fast", "secure_aggregation_args.mode: wanted"),
        ("secure_aggregation_args.buffer_size=2", "secure_aggregation_args.buffer_size: wanted"),
        (
            "secure_aggregation_args.min_buffer_clients=2",
            "secure_aggregation_args.min_buffer_clients: wanted",
        ),
        ("secure_aggregation_args.staleness=linear", "secure_aggregation_args.staleness: wanted 'constant'"),
        ("secure_aggregation_args.max_staleness=-1", "secure_aggregation_args.max_staleness: wanted"),
        ("train_args.client_num_per_round=3", "in async mode no client waits for a round"),
    ],
)
def test_settings_that_make_no_asynchronous_run_are_told_in_one_line(
    tmp_path: Path, change: str, said: str
) -> None:
    with asynchronous(tmp_path, 4, 2) as run:
        server = run.server("--set", change)
        assert server.exit_code() == 2, server.output()
        assert said in server.output()
        assert len(server.output().splitlines()) == 1
