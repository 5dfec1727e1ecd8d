"""Whole runs of real processes over gRPC, with clients and servers that die, freeze and come back."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.e2e_plugins import known_delta
from tests.e2e.processes import Run, assert_model_is_the_exact_mean

PHASES = {
    # the message at which clients are killed in round 1: whether they are in its average
    "send SealedSeeds": False,
    "send SharesHeld": False,
    "take Candidates": False,
    "send MaskedUpdate": False,
    "take SurvivorSet": True,
    "send Endorse": True,
    "take Certificate": True,
    "send AggregateEncodedMask": True,
}


@pytest.mark.parametrize("event", PHASES)
def test_killing_as_many_clients_as_tolerated_changes_only_who_is_in_the_average(
    tmp_path: Path, event: str
) -> None:
    with Run(tmp_path, workers=5) as run:
        server = run.server()
        clients = {rank: run.client(rank, halt=f"1:{event}" if rank == 3 else None) for rank in range(1, 6)}
        clients[3].halted()
        clients[3].kill()
        assert server.exit_code() == 0, server.output()
        assert [clients[rank].exit_code() for rank in (1, 2, 4, 5)] == [0] * 4
        survivors = [event["survivors"] for event in run.events("RoundCompleted")]
        assert survivors == [[1, 2, 3, 4, 5] if PHASES[event] else [1, 2, 4, 5], [1, 2, 4, 5]]
        left_out = [lost["rank"] for lost in run.events("ClientLost") if lost["round"] == 1]
        assert left_out == ([] if PHASES[event] else [3])
        assert_model_is_the_exact_mean(run)


def test_one_more_than_tolerated_aborts_the_round_and_the_rest_carry_on(tmp_path: Path) -> None:
    with Run(tmp_path, workers=5) as run:
        server = run.server()
        doomed = [run.client(rank, halt="1:send MaskedUpdate") for rank in (1, 2)]
        others = [run.client(rank) for rank in (3, 4, 5)]
        for client in doomed:
            client.halted()
        for client in doomed:
            client.kill()
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        assert [event["reason"] for event in run.events("RoundAborted")] == ["too_few_updates"]
        assert [event["survivors"] for event in run.events("RoundCompleted")] == [[3, 4, 5]] * 2
        assert [event["round"] for event in run.events("RoundCompleted")] == [2, 3], (
            "a retry has a new number"
        )
        assert_model_is_the_exact_mean(run)


def test_run_stops_with_a_reason_and_keeps_the_model_when_the_floors_no_longer_hold(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3, secure_aggregation_args={"key_timeout": 2}) as run:
        server = run.server()
        doomed = run.client(1, halt="2:send SharesHeld")
        others = [run.client(rank) for rank in (2, 3)]
        doomed.halted()
        doomed.kill()
        assert server.exit_code() == 4, server.output()
        assert "2 clients are left; at least 3 are needed" in server.output()
        assert [client.exit_code() for client in others] == [4, 4]
        assert "the server ended the run early" in others[0].output()
        assert len(run.events("RoundCompleted")) == 1
        assert_model_is_the_exact_mean(run)


def test_clients_that_start_first_wait_for_the_server(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        clients = [run.client(rank) for rank in (1, 2, 3)]
        for client in clients:
            client.expect("waiting for the server")
        server = run.server()
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 3
        assert_model_is_the_exact_mean(run)


def test_frozen_client_is_left_behind_and_comes_back_for_later_rounds(tmp_path: Path) -> None:
    changes = {"train_args": {"comm_round": 30}, "comm_args": {"reconnect_window": 30.0}}
    with Run(tmp_path, workers=4, **changes) as run:
        server = run.server()
        frozen = run.client(2, halt="1:send SharesHeld")
        others = [run.client(rank) for rank in (1, 3, 4)]
        frozen.halted()
        server.expect("lost client 2 (away)")
        frozen.signal(signal.SIGCONT)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in [frozen, *others]] == [0] * 4
        survivors = [event["survivors"] for event in run.events("RoundCompleted")]
        assert survivors[0] == [1, 3, 4]
        assert survivors[-1] == [1, 2, 3, 4]
        assert_model_is_the_exact_mean(run)


def test_killed_client_may_be_started_again_and_takes_its_rank_back(tmp_path: Path) -> None:
    changes = {
        "train_args": {"comm_round": 3},
        "secure_aggregation_args": {"min_clients": 4, "key_timeout": 60},
    }
    with Run(tmp_path, workers=4, **changes) as run:
        server = run.server()
        first = run.client(2, halt="1:take SurvivorSet")
        others = [run.client(rank) for rank in (1, 3, 4)]
        first.halted()
        first.kill()
        second = run.client(2)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in [second, *others]] == [0] * 4
        assert [event["survivors"] for event in run.events("RoundCompleted")][-1] == [1, 2, 3, 4]
        assert_model_is_the_exact_mean(run)


def test_clients_stop_with_a_reason_when_the_server_is_killed(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3, comm_args={"reconnect_window": 1.5}) as run:
        server = run.server()
        clients = [run.client(1, halt="1:take ReportShares"), run.client(2), run.client(3)]
        clients[0].halted()
        server.kill()
        clients[0].signal(signal.SIGCONT)
        assert [client.exit_code() for client in clients] == [4] * 3, clients[0].output()
        assert "the server is gone (link_lost)" in clients[1].output()


def test_ctrl_c_at_the_server_stops_everybody_and_keeps_the_model(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        server = run.server()
        halted = run.client(1, halt="2:take ReportShares")
        others = [run.client(2), run.client(3)]
        halted.halted()
        server.signal(signal.SIGINT)
        halted.signal(signal.SIGCONT)
        assert server.exit_code() == 130, server.output()
        assert [client.exit_code() for client in [halted, *others]] == [4] * 3
        assert len(run.events("RoundCompleted")) == 1
        assert_model_is_the_exact_mean(run)


def test_ctrl_c_at_a_client_takes_it_out_and_the_round_goes_on(tmp_path: Path) -> None:
    with Run(tmp_path, workers=4) as run:
        server = run.server()
        leaving = run.client(1, halt="1:take Candidates")
        others = [run.client(rank) for rank in (2, 3, 4)]
        leaving.halted()
        leaving.signal(signal.SIGINT)
        leaving.signal(signal.SIGCONT)
        assert leaving.exit_code() == 130, leaving.output()
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        lost = run.events("ClientLost")
        assert (lost[0]["rank"], lost[0]["reason"]) == (1, "stopped_by_user")
        assert_model_is_the_exact_mean(run)


@pytest.mark.parametrize(
    ("trainer", "reason"), [("DivergingTrainer", "not_finite"), ("FailingTrainer", "training_failed")]
)
def test_client_whose_training_goes_wrong_leaves_the_round_and_the_rest_finish(
    tmp_path: Path, trainer: str, reason: str
) -> None:
    with Run(tmp_path, workers=4, train_args={"comm_round": 1}) as run:
        server = run.server()
        bad = run.client(1, "--set", f"model_args.trainer=e2e_plugins:{trainer}")
        others = [run.client(rank) for rank in (2, 3, 4)]
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in [bad, *others]] == [0] * 4
        assert [(event["rank"], event["reason"]) for event in run.events("ClientLost")] == [(1, reason)]
        assert "out of patience" not in server.output()
        assert_model_is_the_exact_mean(run)


def test_strangers_are_refused_by_name_and_the_run_goes_on(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        server = run.server()
        clients = [run.client(rank) for rank in (1, 2)]
        for client in clients:
            client.expect("joined")
        refused = {
            "rank_taken": run.client(1),
            "wrong_run": run.client(3, "--run_id", "another"),
            "settings_differ (secure_aggregation_args.clip": run.client(
                3, "--set", "secure_aggregation_args.clip=4.0"
            ),
            "layout_differs (entry w float64[23] at the server, w float64[24] at the client": run.client(
                3, "--set", "model_args.trainer=e2e_plugins:WiderTrainer"
            ),
        }
        for text, client in refused.items():
            assert client.exit_code() == 3, client.output()
            assert text in client.output()
        outside = run.client(4)
        assert outside.exit_code() == 2
        assert "wanted 1..3 (device_args.worker_num), found 4" in outside.output()
        third = run.client(3)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in [*clients, third]] == [0] * 3
        assert_model_is_the_exact_mean(run)


def test_plain_client_cannot_join_a_secure_run(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        server = run.server()
        plain = run.client(1, "--set", "train_args.federated_optimizer=FedAvg")
        assert plain.exit_code() == 3
        assert "settings_differ" in plain.output()
        clients = [run.client(rank) for rank in (1, 2, 3)]
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 3


def test_used_port_is_refused_and_costs_no_run_id(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        with socket.socket() as occupied:
            occupied.bind(("127.0.0.1", run.port))
            occupied.listen()
            first = run.server()
            assert first.exit_code() == 5
            assert str(run.port) in first.output()
        server = run.server()
        clients = [run.client(rank) for rank in (1, 2, 3)]
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 3
        again = run.server()
        assert again.exit_code() == 2
        assert "choose another RUN_ID" in again.output()


def test_forgotten_session_is_joined_anew_under_a_higher_round_number(tmp_path: Path) -> None:
    """The client is away for longer than its window: the server forgets it, and takes it back."""
    changes = {"train_args": {"comm_round": 40}, "comm_args": {"reconnect_window": 1.0}}
    with Run(tmp_path, workers=4, **changes) as run:
        server = run.server()
        frozen = run.client(2, halt="1:send SharesHeld")
        others = [run.client(rank) for rank in (1, 3, 4)]
        frozen.halted()
        server.expect("lost client 2 (link_lost)")
        frozen.signal(signal.SIGCONT)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        assert frozen.exit_code() == 0, frozen.output()
        assert "joining anew" in frozen.output()
        assert [event["survivors"] for event in run.events("RoundCompleted")][-1] == [1, 2, 3, 4]
        assert_model_is_the_exact_mean(run)


def test_fedavg_runs_the_same_without_masks_and_survives_a_kill(tmp_path: Path) -> None:
    with Run(tmp_path, workers=4, train_args={"comm_round": 2, "federated_optimizer": "FedAvg"}) as run:
        server = run.server()
        doomed = run.client(2, halt="1:send PlainUpdate")
        others = [run.client(rank) for rank in (1, 3, 4)]
        doomed.halted()
        doomed.kill()
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        assert [event["survivors"] for event in run.events("RoundCompleted")] == [[1, 3, 4]] * 2
        data = [run.local_data(rank) for rank in (1, 3, 4)]
        mean = np.average([known_delta(d) for d in data], axis=0, weights=[len(d) for d in data])
        np.testing.assert_allclose(run.model()["w"], 2 * mean, rtol=1e-5)


def test_all_in_one_process_over_the_local_carrier(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        alone = run._start(["run", *run._common()], None)
        assert alone.exit_code() == 0, alone.output()
        assert_model_is_the_exact_mean(run)
