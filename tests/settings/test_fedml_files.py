"""FedML's connection files: where the server and the broker are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.settings import load


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("comm_args: {grpc_ipconfig_path: ip.csv, mqtt_config_path: mqtt.yaml}\n")
    return path


def test_server_is_receiver_0_of_the_csv(config: Path) -> None:
    (config.parent / "ip.csv").write_text("receiver_id,ip\n1,10.0.0.2\n0, 10.0.0.1 \n")
    settings, notices = load(config)
    assert (settings.comm_args.grpc.host, settings.comm_args.grpc.port) == ("10.0.0.1", 8890)
    assert notices == []


def test_what_the_configuration_itself_says_stands(config: Path) -> None:
    (config.parent / "ip.csv").write_text("receiver_id,ip\n0,10.0.0.1\n")
    settings, _ = load(config, ["comm_args.grpc.host=10.0.0.9", "comm_args.grpc.port=5"])
    assert (settings.comm_args.grpc.host, settings.comm_args.grpc.port) == ("10.0.0.9", 5)


@pytest.mark.parametrize("text", ["", "receiver_id,ip\n1,10.0.0.2\n", "0,10.0.0.1\n", "receiver_id,ip\n0,\n"])
def test_csv_without_a_server_is_refused(config: Path, text: str) -> None:
    (config.parent / "ip.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"wanted the columns receiver_id,ip .* found none in .*ip\.csv"):
        load(config)


def test_csv_that_cannot_be_read_is_refused(config: Path) -> None:
    (config.parent / "ip.csv").write_bytes(b"receiver_id,ip\n\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        load(config)


@pytest.mark.parametrize("backend", ["MQTT", "MQTT_S3"])
def test_broker_comes_from_the_yaml(config: Path, backend: str) -> None:
    (config.parent / "mqtt.yaml").write_text(
        "BROKER_HOST: 10.0.0.1\nBROKER_PORT: 1999\nMQTT_USER: u\nMQTT_PWD: hush\n"
        "MQTT_KEEPALIVE: 180\nca: c.pem\nX: 1\n"
    )
    settings, notices = load(config, [f"comm_args.backend={backend}"])
    broker = settings.comm_args.mqtt
    assert (broker.host, broker.port, broker.username, broker.ca) == ("10.0.0.1", 1999, "u", Path("c.pem"))
    assert broker.password is not None
    assert broker.password.get_secret_value() == "hush"
    assert [line for line in notices if "mqtt.yaml" in line] == [
        f"{config.parent}/mqtt.yaml: X: unknown key, ignored; known are BROKER_HOST, BROKER_PORT, MQTT_USER, "
        "MQTT_PWD, MQTT_KEEPALIVE"
    ]
    assert not any("hush" in line for line in notices)


def test_empty_user_and_password_are_nobodys(config: Path) -> None:
    (config.parent / "mqtt.yaml").write_text('BROKER_HOST: b\nMQTT_USER: ""\nMQTT_PWD: ""\n')
    broker = load(config, ["comm_args.backend=MQTT"])[0].comm_args.mqtt
    assert (broker.username, broker.password) == (None, None)


def test_yaml_without_a_broker_is_refused(config: Path) -> None:
    (config.parent / "mqtt.yaml").write_text("BROKER_PORT: 1999\n")
    with pytest.raises(ConfigError, match="wanted BROKER_HOST"):
        load(config, ["comm_args.backend=MQTT"])


def test_wrong_password_value_is_refused_unseen(config: Path) -> None:
    (config.parent / "mqtt.yaml").write_text("BROKER_HOST: b\nMQTT_PWD: 1234567\n")
    with pytest.raises(ConfigError, match=r"comm_args\.mqtt\.password: wanted text .*<secret>") as caught:
        load(config, ["comm_args.backend=MQTT"])
    assert "1234567" not in str(caught.value)


def test_files_of_other_backends_are_not_read(config: Path) -> None:
    (config.parent / "ip.csv").write_text("nonsense")
    load(config, ["comm_args.backend=LOCAL"])


@pytest.mark.parametrize(("name", "is_right"), [("client-{rank}", True), ("client-1", False), (7, False)])
def test_name_that_the_carrier_must_know_holds_the_rank(config: Path, name: object, is_right: bool) -> None:
    override = [f"comm_args.authenticated_as={name}", "comm_args.backend=LOCAL"]
    if is_right:
        assert load(config, override)[0].comm_args.authenticated_as == name
    else:
        with pytest.raises(ConfigError, match=r"a name that holds \{rank\}"):
            load(config, override)
