"""Whole runs between hosts of their own: cables pulled and put back in every phase, and slow lines."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.brokers import Mosquitto
from tests.e2e.e2e_plugins import LARGE_DIMENSION, known_delta
from tests.e2e.processes import Process, Run, assert_model_is_the_exact_mean
from tests.network.hosts import Host, network

SERVER = 0
EVERYBODY = [1, 2, 3, 4]

PHASES = {
    # the moment at which a client's cable is pulled: the phase that waits if nobody can be spared, and
    # whether this client is in the average if it can
    "send SealedSeeds": ("sharing", False),
    "send SharesHeld": ("reporting", False),
    "take Candidates": ("uploading", False),
    "send MaskedUpdate": ("uploading", False),
    "take SurvivorSet": ("endorsing", True),
    "send Endorse": ("endorsing", True),
    "take Certificate": ("recovering", True),
    "send AggregateEncodedMask": ("recovering", True),
}
COLLECTING, RECOVERING = list(PHASES)[:4], list(PHASES)[4:]  # a moment for every client: rank k in round k
in_every_phase = pytest.mark.parametrize(
    "moments", [COLLECTING, RECOVERING], ids=["collecting", "recovering"]
)


def run_on(hosts: list[Host], folder: Path, **changes: dict[str, Any]) -> Run:
    """A run with its server on the first host and a client on each of the others."""
    plaintext = {"host": hosts[SERVER].address, "insecure": True}
    comm = {"reconnect_window": 30.0, "grpc": plaintext, **changes.pop("comm_args", {})}
    inside = {rank: host.inside for rank, host in enumerate(hosts)}
    return Run(folder, len(hosts) - 1, inside=inside, comm_args=comm, **changes)


def start_clients(run: Run, moments: list[str]) -> dict[int, Process]:
    """Client k halts in round k at the k-th moment."""
    return {k: run.client(k, halt=f"{k}:{moment}") for k, moment in enumerate(moments, start=1)}


def pull(host: Host, halted: Process) -> None:
    """Pull a cable exactly while a client is halted, which then goes on."""
    halted.halted()
    host.unplug()
    halted.signal(signal.SIGCONT)


def survivors(run: Run) -> list[list[int]]:
    return [event["survivors"] for event in run.events("RoundCompleted")]


def assert_rounds_wait_for_cables(run: Run, moments: list[str], cables: list[tuple[Host, list[int]]]) -> None:
    """In round k, at client k's moment, the k-th cable is pulled, until those whom it cuts off notice."""
    server = run.server()
    clients = start_clients(run, moments)
    for rank, (host, cut_off) in enumerate(cables, start=1):
        pull(host, clients[rank])
        for other in cut_off:
            clients[other].expect("lost the server")
        host.plug()
        for other in cut_off:
            clients[other].expect("reached the server again")
    assert server.exit_code() == 0, server.output()
    assert [client.exit_code() for client in clients.values()] == [0] * 4
    assert run.events("RoundAborted") == run.events("ClientLost") == []
    assert survivors(run) == [EVERYBODY] * 4
    for event, moment in zip(run.events("RoundCompleted"), moments, strict=True):
        assert event["seconds"][PHASES[moment][0]] > 1.0, "the round waited where the cable was pulled"
    assert_model_is_the_exact_mean(run)


NOBODY_CAN_BE_SPARED = {
    "train_args": {"comm_round": 4},
    "secure_aggregation_args": {"targeted_number_active_clients": 4, "privacy_guarantee": 2},
}


@in_every_phase
def test_round_that_can_spare_nobody_waits_for_a_client_whose_cable_is_out(
    tmp_path: Path, moments: list[str]
) -> None:
    with network(4) as hosts, run_on(hosts, tmp_path, **NOBODY_CAN_BE_SPARED) as run:
        assert_rounds_wait_for_cables(run, moments, [(hosts[rank], [rank]) for rank in EVERYBODY])


@in_every_phase
def test_server_whose_cable_is_out_loses_nobody(tmp_path: Path, moments: list[str]) -> None:
    with network(4) as hosts, run_on(hosts, tmp_path, **NOBODY_CAN_BE_SPARED) as run:
        assert_rounds_wait_for_cables(run, moments, [(hosts[SERVER], EVERYBODY)] * 4)


def test_over_mqtt_the_cables_of_client_server_and_broker_may_be_out(tmp_path: Path) -> None:
    with network(5) as (*hosts, broker_host):
        config = tmp_path / "mosquitto.conf"
        config.write_text(f"listener 1883 {broker_host.address}\nallow_anonymous true\nuser root\n")
        broker = Mosquitto(config, 1883, broker_host.inside).start()
        mqtt = {"host": broker_host.address, "insecure": True}
        changes = {**NOBODY_CAN_BE_SPARED, "comm_args": {"backend": "MQTT", "mqtt": mqtt}}
        moments = ["send SharesHeld", "send MaskedUpdate", "take SurvivorSet", "take Certificate"]
        cables = [(hosts[1], [1]), (hosts[SERVER], EVERYBODY), (broker_host, EVERYBODY), (hosts[4], [4])]
        try:
            with run_on(hosts, tmp_path, **changes) as run:
                assert_rounds_wait_for_cables(run, moments, cables)
        finally:
            broker.stop()


def test_round_ends_without_a_client_whose_cable_is_out_and_the_next_one_has_it_again(tmp_path: Path) -> None:
    moments = ["send SealedSeeds", "send SharesHeld", "send MaskedUpdate", "send Endorse"]
    changes = {
        "train_args": {"comm_round": 5},
        "secure_aggregation_args": {"min_clients": 4, "key_timeout": 60},  # the next round waits for it
        "validation_args": {"frequency_of_the_test": 1},  # each round is told as soon as it is done
    }
    with network(4) as hosts, run_on(hosts, tmp_path, **changes) as run:
        server = run.server()
        clients = start_clients(run, moments)
        for rank in EVERYBODY:
            pull(hosts[rank], clients[rank])
            clients[rank].expect("lost the server")
            server.expect(f"round {rank}  done")
            hosts[rank].plug()
            clients[rank].expect("reached the server again")
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients.values()] == [0] * 4
        left_out = [rank for rank, moment in enumerate(moments, start=1) if not PHASES[moment][1]]
        lost = [(event["round"], event["rank"], event["reason"]) for event in run.events("ClientLost")]
        assert lost == [(rank, rank, "away") for rank in left_out]
        wanted = [[r for r in EVERYBODY if r != rank or r not in left_out] for rank in EVERYBODY]
        assert survivors(run) == [*wanted, EVERYBODY]
        assert_model_is_the_exact_mean(run)


def test_client_whose_cable_is_never_put_back_is_dropped_and_says_so(tmp_path: Path) -> None:
    with network(4) as hosts, run_on(hosts, tmp_path, comm_args={"reconnect_window": 3.0}) as run:
        server = run.server()
        cut_off = run.client(1, halt="1:send MaskedUpdate")
        others = [run.client(rank) for rank in (2, 3, 4)]
        pull(hosts[1], cut_off)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in others] == [0] * 3
        assert cut_off.exit_code() == 4
        assert "the server is gone (link_lost)" in cut_off.output()
        assert survivors(run) == [[2, 3, 4]] * 2
        assert_model_is_the_exact_mean(run)


def test_full_slow_line_is_no_absence(tmp_path: Path) -> None:
    """20 Mb/s up, 100 Mb/s down: twelve megabytes fill a client's line for longer than it may be silent."""
    up, down = 20, 100
    changes = {"train_args": {"comm_round": 1}, "model_args": {"trainer": "e2e_plugins:LargeTrainer"}}
    with network(4) as hosts, run_on(hosts, tmp_path, **changes) as run:
        for host in hosts[1:]:
            host.limit(up, down)
        server = run.server()
        clients = [run.client(rank) for rank in EVERYBODY]
        assert server.exit_code() == 0, server.output()
        for client in clients:
            assert client.exit_code() == 0, client.output()
            assert "lost the server" not in client.output()
        assert survivors(run) == [EVERYBODY]
        assert run.events("ClientLost") == []
        (completed,) = run.events("RoundCompleted")
        uploaded, seconds = completed["bytes_by_phase"]["uploading"], completed["seconds"]["uploading"]
        assert seconds >= 8 * uploaded / (up * 1e6), "the line was as slow as it was told to be"
        assert seconds > run.settings.comm_args.heartbeat_timeout
        assert uploaded < 1.05 * 3 * LARGE_DIMENSION, "elements of 3 bytes, and none of them sent twice"
        assert_large_model_is_the_mean(run)


def assert_large_model_is_the_mean(run: Run) -> None:
    """Of all clients, after one round; in floating point, as there are too many coordinates for fractions."""
    data = [run.local_data(rank) for rank in EVERYBODY]
    weights = [len(samples) for samples in data]
    wanted = np.average([known_delta(part, LARGE_DIMENSION) for part in data], axis=0, weights=weights)
    step = len(data) * 1000 / (2 * sum(weights) * 2**16)  # as in assert_model_is_the_exact_mean
    np.testing.assert_allclose(run.model()["w"], wanted, rtol=0, atol=step + 1e-6)


def test_without_root_or_tools_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match=r"apt-get install iproute2"), network(1):
        pass
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match=r"sudo .*python.* -m pytest tests/network"), network(1):
        pass
