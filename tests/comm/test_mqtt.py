"""What belongs to MQTT only: brokers that restart, refuse and limit; users and their topics."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest
from click.testing import CliRunner

from lightsecagg.cli.main import main
from lightsecagg.comm.base import (
    MAX_PAYLOAD,
    Arrived,
    Away,
    Back,
    Event,
    Hub,
    LinkSettings,
    Payload,
    Transport,
    make_hub,
    make_transport,
)
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import MAX_FRAME, Kind, encode, encode_resumes
from lightsecagg.comm.mqtt import LaneName, MqttHub
from lightsecagg.comm.mqtt_connection import DENIED, Connection, Will
from lightsecagg.comm.mqtt_settings import read_settings
from lightsecagg.comm.packets import PacketLimit, Packets
from lightsecagg.errors import CommError, ConfigError
from tests.brokers import Mosquitto, free_port
from tests.certificates import Authority, self_signed

T = TypeVar("T")

QUICK = LinkSettings(
    heartbeat_interval=0.1, heartbeat_timeout=2.0, reconnect_window=30.0, connect_timeout=20.0
)


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(30):
        return await awaitable


async def expect(end: Hub | Transport, kind: type[T]) -> T:
    """The next event of this kind; others may come between."""
    while True:
        event: Event = await soon(end.receive())
        if isinstance(event, kind):
            return event


async def payloads(end: Hub | Transport, count: int) -> list[bytes]:
    return [bytes((await expect(end, Payload)).data) for _ in range(count)]


Settings = dict[str, object]


def settings_of(broker: Mosquitto, **more: object) -> Settings:
    return {"port": broker.port, "run": uuid4().hex, "rank": 0, **more}


@asynccontextmanager
async def serving(settings: Settings, link: LinkSettings = QUICK) -> AsyncIterator[MqttHub]:
    hub = make_hub("MQTT", settings, link)
    assert isinstance(hub, MqttHub)
    await soon(hub.start())
    try:
        yield hub
    finally:
        await soon(hub.close())


@asynccontextmanager
async def joined(settings: Settings, rank: int = 1, link: LinkSettings = QUICK) -> AsyncIterator[Transport]:
    transport = make_transport("MQTT", {**settings, "rank": rank}, link)
    await soon(transport.connect())
    try:
        yield transport
    finally:
        await soon(transport.close())


@asynccontextmanager
async def raw(settings: Settings, rank: int = 0) -> AsyncIterator[tuple[Connection, asyncio.Queue[str]]]:
    """A connection of somebody who keeps to no rules, and the topics of what it is sent."""
    topics: asyncio.Queue[str] = asyncio.Queue()
    connection = Connection(
        read_settings({**settings, "rank": rank}),
        Will(f"nowhere/{uuid4().hex}", is_retained=False),
        lambda topic, _payload: topics.put_nowait(topic),
        lambda: None,
    )
    await soon(connection.open())
    try:
        yield connection, topics
    finally:
        await connection.close()


Make = Callable[..., Mosquitto]


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Make]:
    """Makes brokers of one test's own."""
    brokers: list[Mosquitto] = []

    def make(*lines: str, allow_anonymous: bool = True) -> Mosquitto:
        folder = tmp_path / f"broker-{len(brokers)}"
        folder.mkdir()
        broker = Mosquitto.write(folder, *lines, allow_anonymous=allow_anonymous)
        brokers.append(broker)
        return broker.start()

    yield make
    for broker in brokers:
        broker.stop()


# Brokers that fail.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_restarted_broker_loses_nothing_of_either_stream(
    make_broker: Make, number: signal.Signals
) -> None:
    broker = make_broker()
    settings = settings_of(broker)
    sent = [b"%d" % index + bytes(100_000) for index in range(120)]
    async with serving(settings) as hub, joined(settings) as client:
        peer = (await expect(hub, Arrived)).peer

        async def send_all(send: Callable[[bytes], Awaitable[None]]) -> None:
            for data in sent:
                await send(data)

        sending = asyncio.gather(
            send_all(client.send), send_all(lambda data: hub.send(peer, data)), return_exceptions=False
        )
        up, down = await payloads(hub, 20), await payloads(client, 20)
        await asyncio.to_thread(broker.restart, number)
        up += await payloads(hub, 100)
        down += await payloads(client, 100)
        await soon(sending)
    assert up == sent
    assert down == sent


async def test_frozen_broker_makes_peers_away_until_it_thaws(make_broker: Make) -> None:
    broker = make_broker()
    settings = settings_of(broker)
    link = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=0.6, reconnect_window=30.0)
    async with serving(settings, link) as hub, joined(settings, link=link) as client:
        peer = (await expect(hub, Arrived)).peer
        broker.freeze()
        await client.send(b"up")
        await hub.send(peer, b"down")
        await expect(hub, Away)
        await expect(client, Away)
        broker.thaw()
        await expect(hub, Back)
        assert await payloads(hub, 1) == [b"up"]
        assert await payloads(client, 1) == [b"down"]


async def test_broker_that_limits_packets_gets_frames_in_pieces(make_broker: Make) -> None:
    settings = settings_of(make_broker("max_packet_size 20000"))
    await assert_long_payloads_pass(settings)


async def test_limit_that_the_broker_does_not_announce_is_found_out(make_broker: Make) -> None:
    broker = make_broker("message_size_limit 300000")
    link = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=2.0, retransmit_timeout=0.1)
    await assert_long_payloads_pass(settings_of(broker), link, at_once=False)


async def assert_long_payloads_pass(
    settings: Settings, link: LinkSettings = QUICK, *, at_once: bool = True
) -> None:
    data = secrets.token_bytes(MAX_PAYLOAD)
    async with serving(settings, link) as hub, joined(settings, link=link) as client:
        peer = (await expect(hub, Arrived)).peer
        await client.send(data)
        await hub.send(peer, data)
        assert await payloads(hub, 1) == [data]
        assert await payloads(client, 1) == [data]
        resent = client.stats.retransmissions + hub.stats(peer).retransmissions
        assert (resent == 0) == at_once


async def test_broker_that_takes_no_packet_of_use_is_named(make_broker: Make) -> None:
    settings = settings_of(make_broker("max_packet_size 1000"))
    with pytest.raises(CommError, match=r"takes packets of 1000 bytes: wanted 2048 or more"):
        await soon(make_hub("MQTT", settings, QUICK).start())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_something_else_on_the_port_is_no_broker(answer: bytes) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    web_server = await asyncio.start_server(serve, "127.0.0.1", 0)
    settings: Settings = {"port": web_server.sockets[0].getsockname()[1], "run": "r", "rank": 0}
    wanted = "ended the connection before it said that it is an MQTT broker.*check comm_args.mqtt.host"
    with pytest.raises(CommError, match=wanted):
        await soon(make_hub("MQTT", settings, QUICK).start())
    link = LinkSettings(connect_timeout=1.0)
    with pytest.raises(CommError, match=f"after 1 s.*{wanted}"):
        await soon(make_transport("MQTT", settings, link).connect())
    web_server.close()


async def test_what_never_answers_is_given_up() -> None:
    link = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings: Settings = {"port": silent.getsockname()[1], "run": "r", "rank": 0}
        with pytest.raises(CommError, match=r"does not answer within 0.3 s"):
            await soon(make_hub("MQTT", settings, link).start())


async def test_unreachable_broker_is_named_with_what_to_start() -> None:
    settings: Settings = {"port": free_port(), "run": "r", "rank": 0}
    with pytest.raises(
        CommError, match=r"cannot reach the MQTT broker at 127.0.0.1:.*mqtt-config.*how to start"
    ):
        await soon(make_hub("MQTT", settings, QUICK).start())
    transport = make_transport("MQTT", settings, LinkSettings(connect_timeout=2.0))
    with pytest.raises(CommError, match=r"after 2 s \(last attempt: cannot reach the MQTT broker"):
        await soon(transport.connect())


async def test_connection_may_be_closed_by_several_at_once(mosquitto: Mosquitto) -> None:
    async with raw(settings_of(mosquitto)) as (connection, _):
        await connection.send("unanswered", bytes(100_000))
        closing = [asyncio.create_task(connection.close()) for _ in range(3)]
        await asyncio.sleep(0)
        closing[0].cancel()
        await soon(asyncio.wait(closing))
        assert closing[0].cancelled()
        assert [task.exception() for task in closing[1:]] == [None, None]
        with pytest.raises(ConnectionError, match="was lost"):
            await connection.send("unanswered", b"")


# Servers that come and go.


async def test_client_says_that_the_broker_is_there_and_the_server_is_not(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    said = asyncio.Event()
    texts: list[str] = []

    def on_waiting(text: str) -> None:
        texts.append(text)
        said.set()

    transport = make_transport("MQTT", settings, QUICK, on_waiting=on_waiting)
    connecting = asyncio.create_task(transport.connect())
    await soon(said.wait())
    assert f"the MQTT broker is there, but no server of run {settings['run']!r}" in texts[0]
    async with serving(settings):
        await soon(connecting)
        await transport.close()


async def test_presence_that_a_killed_server_left_deceives_nobody(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    async with raw(settings) as (stranger, _):
        await stranger.publish(f"lightsecagg/{settings['run']}/server", b"here", is_retained=True)
    transport = make_transport("MQTT", settings, LinkSettings(connect_timeout=1.0))
    with pytest.raises(CommError, match="no server of run"):
        await soon(transport.connect())
    async with serving(settings), joined(settings):
        pass


async def test_last_will_that_comes_late_does_not_hide_the_next_server(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    async with serving(settings) as hub, raw(settings) as (stranger, topics):
        presence = f"lightsecagg/{settings['run']}/server"
        await stranger.publish(presence, b"", is_retained=True)
        await stranger.subscribe(presence, with_retained=True)
        await soon(topics.get())
        async with joined(settings):
            await expect(hub, Arrived)


async def test_client_whose_server_is_lost_is_told_by_its_last_will(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    link = LinkSettings(heartbeat_interval=10.0, heartbeat_timeout=100.0)
    async with serving(settings, link) as hub, joined(settings, link=link) as client:
        assert hub._connection is not None
        hub._connection._drop()  # no goodbye to the broker
        await expect(client, Away)
        await expect(client, Back)


CLIENT = """
import asyncio, sys
from lightsecagg.comm.base import LinkSettings, make_transport

async def main():
    settings = {"port": int(sys.argv[1]), "run": sys.argv[2], "rank": 1}
    transport = make_transport("MQTT", settings, LinkSettings(heartbeat_timeout=100.0))
    await transport.connect()
    await transport.receive()

asyncio.run(main())
"""


async def test_killed_client_process_is_away_at_once(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    async with serving(settings, LinkSettings(heartbeat_timeout=100.0)) as hub:
        command = [sys.executable, "-c", CLIENT, str(mosquitto.port), str(settings["run"])]
        process = subprocess.Popen(command)  # noqa: ASYNC220 (it returns at once)
        await expect(hub, Arrived)
        process.kill()
        process.wait()
        await expect(hub, Away)


# Users: what the generated configuration allows and forbids.


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker with the configuration that `lightsecagg mqtt-config` writes, for two clients."""
    port = free_port()
    out = tmp_path / "mqtt"
    result = CliRunner().invoke(main, ["mqtt-config", "--clients=2", f"--out={out}", f"--port={port}"])
    assert result.exit_code == 0, result.output
    broker = Mosquitto(out / "mosquitto.conf", port).start()
    yield broker
    broker.stop()


def credentials(broker: Mosquitto) -> Settings:
    return {"credentials": str(broker.config.parent / "credentials")}


async def test_generated_configuration_serves_and_proves_users(guarded: Mosquitto) -> None:
    settings = settings_of(guarded, **credentials(guarded))
    data = secrets.token_bytes(MAX_PAYLOAD)
    async with serving(settings) as hub:
        for rank in (2, 1):
            async with joined(settings, rank) as client:
                arrived = await expect(hub, Arrived)
                assert arrived.authenticated_as == f"client-{rank}"
                await client.send(data)
                await hub.send(arrived.peer, data)
                assert await payloads(hub, 1) == [data]
                assert await payloads(client, 1) == [data]
    assert not [line for line in guarded.log if "Warning" in line and "root" not in line]


async def test_client_has_no_part_in_another_clients_topics(guarded: Mosquitto) -> None:
    settings = settings_of(guarded, **credentials(guarded))
    run = settings["run"]
    async with serving(settings) as hub, raw(settings, rank=1) as (thief, topics):
        for topic in (f"{run}/client-2/lane/up", f"{run}/client-1/lane/down", f"{run}/server"):
            assert (await thief.publish(f"lightsecagg/{topic}", b"x")).value == DENIED
        await thief.subscribe("lightsecagg/#", with_retained=True)
        assert await soon(topics.get()) == f"lightsecagg/{run}/server"
        async with joined(settings, rank=2) as client:
            peer = (await expect(hub, Arrived)).peer
            await hub.send(peer, b"for client 2 only")
            assert await payloads(client, 1) == [b"for client 2 only"]
        await hub._send(LaneName("client-1", "lane"), b"for client 1")
        assert await soon(topics.get()) == f"lightsecagg/{run}/client-1/lane/down"


async def test_user_is_proven_by_nothing_where_the_broker_has_no_acl(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto, username="alice{rank}")
    async with serving(settings) as hub, joined(settings):
        assert (await expect(hub, Arrived)).authenticated_as is None


@pytest.mark.parametrize(
    "login",
    [
        {"username": "client-1", "password": "wrong"},
        {"username": "nobody", "password": "wrong"},
        {},
    ],
    ids=["wrong password", "no such user", "anonymous"],
)
async def test_wrong_login_is_refused_at_once(guarded: Mosquitto, login: Settings) -> None:
    settings = settings_of(guarded, **login)
    who = f"user {login['username']!r}" if login else "anonymous users"
    with pytest.raises(CommError, match=f"refuses {who}: Not authorized.*comm_args.mqtt") as error:
        await soon(make_transport("MQTT", settings, QUICK).connect())
    assert "wrong" not in str(error.value)
    with pytest.raises(CommError, match=f"refuses {who}: Not authorized"):
        await soon(make_hub("MQTT", settings, QUICK).start())


def write_acl(path: Path, *lines: str) -> str:
    path.write_text("\n".join([*lines, ""]))
    path.chmod(0o600)
    return f"acl_file {path}"


SERVER_RIGHTS = ("user server", "topic readwrite lightsecagg/#")


async def test_acl_that_silences_the_client_is_named(make_broker: Make, tmp_path: Path) -> None:
    acl = write_acl(tmp_path / "acl", *SERVER_RIGHTS, "user client1", "topic read lightsecagg/#")
    settings = settings_of(make_broker(acl))
    async with serving({**settings, "username": "server"}):
        transport = make_transport("MQTT", {**settings, "username": "client1"}, QUICK)
        with pytest.raises(
            CommError,
            match=r"does not let user 'client1' write the topic lightsecagg/\w+/client1/\w+/up .*mqtt-config",
        ):
            await soon(transport.connect())


async def test_acl_that_hides_the_server_from_a_client_is_suspected(
    make_broker: Make, tmp_path: Path
) -> None:
    acl = write_acl(tmp_path / "acl", *SERVER_RIGHTS, "user client1", "topic write lightsecagg/#")
    settings = settings_of(make_broker(acl))
    async with serving({**settings, "username": "server"}):
        link = LinkSettings(connect_timeout=2.0)
        transport = make_transport("MQTT", {**settings, "username": "client1"}, link)
        with pytest.raises(CommError, match=r"does not let user 'client1' read lightsecagg/\w+/server"):
            await soon(transport.connect())


@pytest.mark.parametrize(
    ("right", "topic"),
    [
        ("topic write lightsecagg/+/server", r"write the topic lightsecagg/\w+/\w+/\w+/down"),
        ("topic write lightsecagg/+/+/+/down", r"write the topic lightsecagg/\w+/server"),
    ],
)
async def test_acl_that_silences_the_server_is_named(
    make_broker: Make, tmp_path: Path, right: str, topic: str
) -> None:
    acl = write_acl(tmp_path / "acl", "user server", right, "topic read lightsecagg/#")
    settings = settings_of(make_broker(acl), username="server")
    with pytest.raises(CommError, match=f"does not let user 'server' {topic}.*mqtt-config"):
        await soon(make_hub("MQTT", settings, QUICK).start())


async def test_acl_that_deafens_the_server_is_named(make_broker: Make, tmp_path: Path) -> None:
    acl = write_acl(tmp_path / "acl", "user server", "topic write lightsecagg/#")
    settings = settings_of(make_broker(acl), username="server")
    with pytest.raises(CommError, match=r"does not let user 'server' read the topic .*/up"):
        await soon(make_hub("MQTT", settings).start())


async def test_flood_of_strangers_costs_bounded_memory(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    link = LinkSettings(max_peers=4, heartbeat_interval=0.1, heartbeat_timeout=2.0)
    async with serving(settings, link) as hub, joined(settings) as client, raw(settings) as (stranger, _):
        await expect(hub, Arrived)
        most = 0
        for number in range(600):
            opening = encode(Kind.OPEN, secrets.token_bytes(16), payload=encode_resumes(False))
            message = opening if number % 2 else secrets.token_bytes(100)
            await stranger.send(f"lightsecagg/{settings['run']}/-/lane{number}/up", message)
            most = max(most, len(hub._lanes._lanes))
        await stranger.publish(f"lightsecagg/{settings['run']}/-/last/up", b"")
        assert 2 < most <= 2 * link.max_peers
        assert len(hub._by_token) <= link.max_peers
        await client.send(b"undisturbed")
        assert await payloads(hub, 1) == [b"undisturbed"]


async def test_names_too_long_for_an_answer_silence_nobody(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto)
    async with serving(settings), raw(settings) as (stranger, _):
        head, tail = f"lightsecagg/{settings['run']}/-/", "/up"
        for number in range(10):
            lane = str(number).ljust(65_535 - len(head) - len(tail), "x")
            await stranger.publish(f"{head}{lane}{tail}", b"?")
        async with joined(settings):
            pass


async def test_what_a_client_left_at_the_broker_does_not_reach_the_next_server(make_broker: Make) -> None:
    """Much of it would fill the server's queue there before it has begun."""
    settings = settings_of(make_broker())
    topics = [f"lightsecagg/{settings['run']}/-/lane{number}/up" for number in range(100)]
    async with raw(settings) as (stranger, _):
        await asyncio.gather(*(stranger.publish(topic, b"?", is_retained=True) for topic in topics))
    async with serving(settings) as hub, joined(settings):
        assert len(hub._lanes._lanes) == 1
        assert not hub._lanes._ended


async def test_user_who_takes_all_lanes_he_can_takes_none_of_the_others(guarded: Mosquitto) -> None:
    settings = settings_of(guarded, **credentials(guarded))
    link = LinkSettings(max_peers=16, heartbeat_interval=0.1, heartbeat_timeout=5.0)
    async with serving(settings, link) as hub, raw(settings, rank=1) as (thief, _):
        for number in range(100):
            await thief.publish(f"lightsecagg/{settings['run']}/client-1/lane{number}/up", b"?")
        assert 0 < len(hub._lanes._lanes) < 2 * link.max_peers
        async with joined(settings, rank=2):
            assert (await expect(hub, Arrived)).authenticated_as == "client-2"


# TLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls_lines(certificate: object) -> tuple[str, str]:
    return f"certfile {certificate.cert}", f"keyfile {certificate.key}"  # type: ignore[attr-defined]


async def test_broker_with_a_trusted_certificate_is_taken(make_broker: Make, authority: Authority) -> None:
    broker = make_broker(*tls_lines(authority.issue("broker")))
    await assert_long_payloads_pass(settings_of(broker, ca=str(authority.ca), host="localhost"))


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("other authority", "not signed by an authority in comm_args.mqtt.ca"),
        ("self-signed", "not signed by an authority in comm_args.mqtt.ca"),
        ("expired", "its certificate has expired"),
        ("other host", "its certificate is not for 127.0.0.1"),
    ],
)
async def test_broker_with_a_wrong_certificate_is_refused_at_once(
    make_broker: Make, authority: Authority, tmp_path: Path, fault: str, text: str
) -> None:
    certificate = {
        "other authority": lambda: Authority(tmp_path, "stranger").issue("broker"),
        "self-signed": lambda: self_signed(tmp_path, "broker"),
        "expired": lambda: authority.issue_expired("broker"),
        "other host": lambda: authority.issue("broker", ["broker.example.org"]),
    }[fault]()
    settings = settings_of(make_broker(*tls_lines(certificate)), ca=str(authority.ca))
    with pytest.raises(CommError, match=text):
        await soon(make_transport("MQTT", settings, QUICK).connect())
    with pytest.raises(CommError, match=text):
        await soon(make_hub("MQTT", settings, QUICK).start())


async def test_certificate_names_the_user_where_the_broker_says_so(
    make_broker: Make, authority: Authority, tmp_path: Path
) -> None:
    acl = write_acl(
        tmp_path / "acl",
        "user the-server",
        *("topic read lightsecagg/+/+/+/up", "topic write lightsecagg/+/+/+/down"),
        *("topic readwrite lightsecagg/+/server", "user hospital-a", "topic read lightsecagg/+/server"),
        *("pattern write lightsecagg/+/%u/+/up", "pattern read lightsecagg/+/%u/+/down"),
    )
    lines = (f"cafile {authority.ca}", "require_certificate true", "use_identity_as_username true", acl)
    broker = make_broker(*tls_lines(authority.issue("broker")), *lines)
    settings = settings_of(broker)
    server = {**settings, **authority.issue("the-server").settings(authority.ca)}
    client = {**settings, **authority.issue("hospital-a").settings(authority.ca)}
    async with serving(server) as hub, joined(client):
        assert (await expect(hub, Arrived)).authenticated_as == "hospital-a"
    with pytest.raises(CommError, match=r"a certificate \(comm_args.mqtt.cert\)"):
        await soon(make_hub("MQTT", {**settings, "ca": str(authority.ca)}, QUICK).start())


async def test_tls_where_the_broker_speaks_none_is_named(mosquitto: Mosquitto, authority: Authority) -> None:
    with pytest.raises(CommError, match="does not agree on TLS"):
        await soon(make_hub("MQTT", settings_of(mosquitto, ca=str(authority.ca)), QUICK).start())


# The embedded broker.


async def test_embedded_broker_carries_a_session() -> None:
    settings: Settings = {"port": free_port(), "run": "r", "rank": 0, "embedded_broker": True}
    await assert_long_payloads_pass(settings)


async def test_embedded_broker_whose_port_is_taken_says_so(mosquitto: Mosquitto) -> None:
    settings = settings_of(mosquitto, embedded_broker=True)
    with pytest.raises(CommError, match=r"cannot start the embedded broker on .*comm_args.mqtt.port"):
        await soon(make_hub("MQTT", settings, QUICK).start())


def test_embedded_broker_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    monkeypatch.delitem(sys.modules, "lightsecagg.comm.broker", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'lightsecagg\[broker\]'"):
        make_hub("MQTT", {"run": "r", "embedded_broker": True})


# Settings.


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"host": 7}, "comm_args.mqtt.host: wanted"),
        ({"port": 0}, "comm_args.mqtt.port: wanted 1 to 65535, found 0"),
        ({"port": "1883"}, "comm_args.mqtt.port: wanted"),
        ({"run": "a/b"}, "wanted a text without / [+] #, found 'a/b'"),
        ({"run": "#"}, "the run's name"),
        ({"username": "a+b"}, "comm_args.mqtt.username: .*found 'a[+]b'"),
        ({"username": "-"}, "comm_args.mqtt.username"),
        ({"password": "x"}, "comm_args.mqtt.password: .*comm_args.mqtt.username with it"),
        ({"credentials": "x", "username": "y"}, "comm_args.mqtt.credentials: wanted no username"),
        ({"credentials": "/nowhere"}, "comm_args.mqtt.credentials: cannot read /nowhere/server.*mqtt-config"),
        ({"host": "10.0.0.5"}, "comm_args.mqtt.host: .*insecure: true"),
        ({"cert": "x.pem"}, "comm_args.mqtt.key: wanted a file"),
        ({"embedded_broker": True, "username": "x"}, "comm_args.mqtt.embedded_broker: .*no username"),
    ],
)
def test_wrong_setting_is_named(wrong: Settings, text: str) -> None:
    for make in (make_hub, make_transport):
        with pytest.raises(ConfigError, match=text):
            make("MQTT", {"run": "r", "rank": 0, **wrong})


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "client-3"
    file.write_text("client-3 secret\n")
    file.chmod(0o640)
    settings: Settings = {"run": "r", "rank": 3, "credentials": str(tmp_path)}
    with pytest.raises(ConfigError, match=f"can be read by others; wanted mode 0600: chmod 600 {file}"):
        make_transport("MQTT", settings)
    file.chmod(0o600)
    broker = read_settings(settings)
    assert (broker.user, broker.password) == ("client-3", "secret")
    assert "secret" not in repr(broker)


def test_rank_stands_in_the_user_name() -> None:
    assert read_settings({"run": "r", "rank": 7, "username": "site-{rank}"}).user == "site-7"


# `lightsecagg mqtt-config`.


def test_generated_files_are_their_owners_and_never_overwritten(tmp_path: Path) -> None:
    arguments = ["mqtt-config", "--clients=3", f"--out={tmp_path / 'mqtt'}"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    files = [path for path in (tmp_path / "mqtt").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        *("acl", "mosquitto.conf", "passwords", "server", "client-1", "client-2", "client-3")
    }
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    before = {path: path.read_bytes() for path in files}
    words = {path.read_text().split()[1] for path in files if path.parent.name == "credentials"}
    assert len(words) == 4
    assert not any(word.encode() in before[tmp_path / "mqtt" / "passwords"] for word in words)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code != 0
    assert "exists; passwords are never overwritten: move it away" in again.output
    assert {path: path.read_bytes() for path in files} == before


def test_listening_beyond_loopback_needs_a_certificate(tmp_path: Path, authority: Authority) -> None:
    arguments = ["mqtt-config", "--clients=1", f"--out={tmp_path / 'mqtt'}", "--host=0.0.0.0"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code != 0
    assert "give --cert and --key" in refused.output
    own = authority.issue("broker")
    with_tls = [*arguments, f"--cert={own.cert}", f"--key={own.key}", f"--ca={authority.ca}"]
    assert CliRunner().invoke(main, with_tls).exit_code == 0
    config = (tmp_path / "mqtt" / "mosquitto.conf").read_text()
    assert "listener 8883 0.0.0.0" in config
    assert f"certfile {own.cert}" in config


# Frames in pieces.


def limit_of(size: int) -> PacketLimit:
    limit = PacketLimit()
    limit.announced(size)
    return limit


class Pipe(Carrier):
    """What is written is read."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    async def read(self) -> bytes | None:
        return self.packets.pop(0) if self.packets else None

    async def write(self, frame: bytes) -> None:
        self.packets.append(frame)

    async def close(self) -> None:
        self.packets.clear()


@pytest.mark.parametrize("frame", [b"", b"\x00", b"\x03abc", b"L", b"LS" + bytes(98), os.urandom(1000)])
@pytest.mark.parametrize("largest", [2, 100, 2000])
async def test_any_frame_survives_being_cut(frame: bytes, largest: int) -> None:
    pipe = Pipe()
    packets = Packets(pipe, limit_of(largest))
    await packets.write(frame)
    assert pipe.packets
    assert all(0 < len(packet) <= largest for packet in pipe.packets)
    assert await packets.read() == frame
    assert await packets.read() is None


async def test_pieces_that_went_astray_spoil_their_own_frame_only() -> None:
    pipe = Pipe()
    packets = Packets(pipe, limit_of(4))
    for frame in (b"abcdef", b"ghijkl", b"whole"):
        await packets.write(frame)
    del pipe.packets[1]  # the end of the first frame
    assert await packets.read() == b"ghijkl"
    assert await packets.read() == b"whole"


async def test_pieces_without_an_end_cost_bounded_memory() -> None:
    pipe = Pipe()
    packets = Packets(pipe, PacketLimit())
    pipe.packets = [b"\x01" + bytes(10), *[b"\x00" + bytes(MAX_FRAME - 1)] * 5, b"\x02end"]
    frame = await packets.read()
    assert frame is not None
    assert MAX_FRAME < len(frame) < 2 * MAX_FRAME + 10
