"""Whole runs over the carriers as people secure them: certificates, brokers with users, brokers that die."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightsecagg.cli.main import main
from tests.brokers import Mosquitto, free_port
from tests.certificates import Authority
from tests.e2e.processes import Run, assert_model_is_the_exact_mean

EVERYBODY = {"targeted_number_active_clients": 4, "privacy_guarantee": 1}  # U = N: nobody may be lost


def test_certificates_say_who_a_client_is_and_strangers_stay_outside(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "elsewhere")
    names = {rank: authority.issue(f"client-{rank}") for rank in (1, 2, 3)}
    server_files = authority.issue("server").settings(authority.ca)
    comm_args = {"grpc": server_files, "authenticated_as": "client-{rank}"}

    def words(**files: object) -> list[str]:
        return [word for key, path in files.items() for word in ("--set", f"comm_args.grpc.{key}={path}")]

    with Run(tmp_path, workers=3, comm_args=comm_args, secure_aggregation_args={"join_timeout": 12}) as run:
        server = run.server()
        clients = [run.client(rank, *words(**names[rank].settings())) for rank in (1, 2)]
        for client in clients:
            client.expect("joined")
        borrowed = run.client(3, *words(**names[2].settings()))
        assert borrowed.exit_code() == 3, borrowed.output()
        assert "rank 3 must be 'client-3' to the carrier" in borrowed.output()
        foreign = run.client(3, *words(**stranger.issue("client-3").settings()))
        assert foreign.exit_code() == 5, foreign.output()
        assert "comm_args.grpc.cert" in foreign.output()
        deceived = run.client(3, *words(**names[3].settings(), ca=stranger.ca))
        assert deceived.exit_code() == 5, deceived.output()
        assert "comm_args.grpc.ca" in deceived.output()
        clients.append(run.client(3, *words(**names[3].settings())))
        assert server.exit_code() == 0, server.output() + clients[-1].output()
        assert [client.exit_code() for client in clients] == [0] * 3
        assert_model_is_the_exact_mean(run)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker as `lightsecagg mqtt-config` sets it up, for four clients."""
    port, folder = free_port(), tmp_path / "mqtt"
    words = ["mqtt-config", "--clients", "4", "--out", str(folder), "--port", str(port)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    broker = Mosquitto(folder / "mosquitto.conf", port).start()
    yield broker
    broker.stop()


def over(broker: Mosquitto, **more: Any) -> dict[str, Any]:
    """The settings that `lightsecagg mqtt-config` says to set."""
    credentials = str(broker.config.parent / "credentials")
    return {
        "backend": "MQTT",
        "authenticated_as": "client-{rank}",
        "mqtt": {"port": broker.port, "credentials": credentials, **more},
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("event", ["send SealedSeeds", "send MaskedUpdate", "take Certificate"])
def test_broker_may_be_restarted_in_the_middle_of_a_round(
    tmp_path: Path, guarded: Mosquitto, number: signal.Signals, event: str
) -> None:
    with Run(tmp_path, 4, comm_args=over(guarded), secure_aggregation_args=EVERYBODY) as run:
        server = run.server()
        clients = [run.client(rank, halt=f"1:{event}" if rank == 2 else None) for rank in range(1, 5)]
        clients[1].halted()
        guarded.restart(number)
        clients[1].signal(signal.SIGCONT)
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 4
        assert [event["survivors"] for event in run.events("RoundCompleted")] == [[1, 2, 3, 4]] * 2
        assert run.events("RoundAborted") == []
        assert_model_is_the_exact_mean(run)


def test_broker_keeps_everybody_to_his_own_name(tmp_path: Path, guarded: Mosquitto) -> None:
    with Run(tmp_path, 3, comm_args=over(guarded)) as run:
        server = run.server()
        clients = [run.client(rank) for rank in (1, 2)]
        for client in clients:
            client.expect("joined")
        credentials = guarded.config.parent / "credentials"
        genuine = (credentials / "client-3").read_text()
        (credentials / "client-3").write_text((credentials / "client-2").read_text())
        borrowed = run.client(3)
        assert borrowed.exit_code() == 3, borrowed.output()
        assert "rank 3 must be 'client-3' to the carrier" in borrowed.output()
        (credentials / "client-3").write_text("client-3 guessed\n")
        stranger = run.client(3)
        assert stranger.exit_code() == 5, stranger.output()
        assert "guessed" not in stranger.output()
        (credentials / "client-3").write_text(genuine)
        clients.append(run.client(3))
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 3
        assert_model_is_the_exact_mean(run)


def test_fedml_file_for_mqtt_and_s3_runs_over_the_broker_that_it_names(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    (tmp_path / "mqtt_config.yaml").write_text(f"BROKER_HOST: 127.0.0.1\nBROKER_PORT: {mosquitto.port}\n")
    comm_args = {"backend": "MQTT_S3", "mqtt_config_path": "mqtt_config.yaml", "s3_config_path": "s3.yaml"}
    with Run(tmp_path, 3, comm_args=comm_args) as run:
        server = run.server()
        clients = [run.client(rank) for rank in (1, 2, 3)]
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 3
        assert "MQTT_S3 means MQTT with the models in the messages" in server.output()
        assert_model_is_the_exact_mean(run)


def test_server_can_be_its_own_broker(tmp_path: Path) -> None:
    comm_args = {"backend": "MQTT", "mqtt": {"port": free_port(), "embedded_broker": True}}
    with Run(tmp_path, 3, comm_args=comm_args) as run:
        server = run.server()
        clients = [run.client(rank) for rank in (1, 2, 3)]
        assert server.exit_code() == 0, server.output()
        assert [client.exit_code() for client in clients] == [0] * 3
        assert "trying out" in server.output()
        assert_model_is_the_exact_mean(run)


def test_broker_that_is_not_there_is_told_with_what_to_start(tmp_path: Path) -> None:
    comm_args = {"backend": "MQTT", "mqtt": {"port": free_port()}, "connect_timeout": 1}
    with Run(tmp_path, 3, comm_args=comm_args) as run:
        told = {"`lightsecagg mqtt-config`": run.server(), "Connection refused": run.client(1)}
        for said, process in told.items():
            assert process.exit_code() == 5, process.output()
            assert said in process.output()
