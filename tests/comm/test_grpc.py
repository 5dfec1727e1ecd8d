"""What belongs to gRPC alone: addresses, TLS and its refusals, processes, health, strangers on the port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import resource
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from lightsecagg.comm.base import (
    Arrived,
    Away,
    Back,
    Event,
    Gone,
    Hub,
    LinkSettings,
    Payload,
    Transport,
    make_hub,
    make_transport,
)
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.frame import MAX_FRAME, Kind, encode, encode_code, encode_resumes
from lightsecagg.comm.grpc import Address, GrpcHub, dial
from lightsecagg.comm.tls import TlsFiles
from lightsecagg.errors import CommError, ConfigError
from tests.certificates import Authority, Certificate, self_signed

T = TypeVar("T")

QUICK = LinkSettings(
    heartbeat_interval=0.1, heartbeat_timeout=2.0, reconnect_window=20.0, connect_timeout=20.0
)
SILENCE = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=0.5, reconnect_window=20.0)
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


async def soon(awaitable: Awaitable[T]) -> T:
    """What must happen, within a time that only a defect exceeds."""
    async with asyncio.timeout(20):
        return await awaitable


async def expect(end: Hub | Transport, kind: type[T]) -> T:
    """The next event, which must be of this kind."""
    event: Event = await soon(end.receive())
    assert isinstance(event, kind), event
    return event


def port_of(hub: Hub) -> int:
    return int(hub.address.rsplit(":", 1)[1])


@asynccontextmanager
async def serving(
    settings: dict[str, object] | None = None, link: LinkSettings = QUICK
) -> AsyncIterator[Hub]:
    hub = make_hub("GRPC", {"port": 0, **(settings or {})}, link)
    await hub.start()
    try:
        yield hub
    finally:
        await soon(hub.close())


@asynccontextmanager
async def joined(
    hub: Hub, settings: dict[str, object] | None = None
) -> AsyncIterator[tuple[Transport, Arrived]]:
    """A client of the hub, and what the hub says of it."""
    transport = make_transport("GRPC", {"port": port_of(hub), **(settings or {})}, QUICK)
    await soon(transport.connect())
    try:
        yield transport, await expect(hub, Arrived)
    finally:
        await soon(transport.close())


async def is_undisturbed(hub: Hub, transport: Transport, peer: int) -> bool:
    """Whether payloads still pass both ways."""
    await transport.send(b"up")
    await hub.send(peer, b"down")
    up, down = await expect(hub, Payload), await expect(transport, Payload)
    return (up.data, down.data) == (b"up", b"down")


# Addresses and settings.


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"host": ""}, "comm_args.grpc.host"),
        ({"host": 7}, "comm_args.grpc.host"),
        ({"port": 65536}, "comm_args.grpc.port"),
        ({"port": "8890"}, "comm_args.grpc.port"),
        ({"port": True}, "comm_args.grpc.port"),
    ],
)
def test_wrong_setting_is_named(settings: dict[str, object], key: str) -> None:
    for make in (make_hub, make_transport):
        with pytest.raises(ConfigError, match=f"{key}: wanted .* found"):
            make("GRPC", settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "server.example.org", "::"])
def test_plaintext_beyond_loopback_is_refused(host: str, files: Files) -> None:
    for make in (make_hub, make_transport):
        with pytest.raises(ConfigError, match=r"not a loopback address.*insecure: true"):
            make("GRPC", {"host": host})
        make("GRPC", {"host": host, **files.server.settings(files.ca)})


def test_plaintext_that_is_asked_for_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lightsecagg"):
        make_transport("GRPC", {"host": "10.0.0.5", "insecure": True})
    assert "not encrypted" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_plaintext_on_loopback_is_quiet(host: str, caplog: pytest.LogCaptureFixture) -> None:
    make_transport("GRPC", {"host": host})
    assert caplog.text == ""


# Encryption.


@dataclass(frozen=True)
class Files:
    """Certificates of one consortium, and of somebody else."""

    folder: Path
    authority: Authority
    other: Authority
    server: Certificate
    client: Certificate

    @property
    def ca(self) -> Path:
        return self.authority.ca


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    return Files(tmp_path, authority, other, authority.issue("server"), authority.issue("client-1", hosts=()))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_client_that_trusts_the_server_gets_in_without_a_name(files: Files, host: str) -> None:
    async with (
        serving(files.server.settings()) as hub,
        joined(hub, {"host": host, "ca": files.ca}) as (client, it),
    ):
        assert it == Arrived(1, None)
        assert await is_undisturbed(hub, client, 1)
    async with (
        serving(files.server.settings()) as hub,
        joined(hub, files.client.settings(files.ca)) as (_, it),
    ):
        assert it == Arrived(1, None), "the server did not ask, so it proves nothing"


async def test_client_certificate_names_the_peer(files: Files) -> None:
    async with (
        serving(files.server.settings(files.ca)) as hub,
        joined(hub, files.client.settings(files.ca)) as (client, first),
        joined(hub, files.authority.issue("client-2").settings(files.ca)) as (_, second),
    ):
        assert (first, second) == (Arrived(1, "client-1"), Arrived(2, "client-2"))
        assert await is_undisturbed(hub, client, 1)


async def test_session_is_no_use_to_the_bearer_of_another_certificate(files: Files) -> None:
    thief = files.authority.issue("thief").settings(files.ca)
    async with (
        serving(files.server.settings(files.ca)) as hub,
        joined(hub, files.client.settings(files.ca)) as (client, _),
    ):
        other = make_transport("GRPC", {"port": port_of(hub), **thief}, QUICK)
        other._link.session = client._link.session  # type: ignore[attr-defined]
        with pytest.raises(CommError, match="unknown_session"):
            await soon(other.connect())
        assert await is_undisturbed(hub, client, 1)


OWN = "comm_args.grpc.cert and comm_args.grpc.key"
REFUSALS = {
    "server of another authority": "not signed by an authority in comm_args.grpc.ca here",
    "self-signed server": "not signed by an authority in comm_args.grpc.ca here (self-signed certificate)",
    "expired server": "its certificate has expired: renew it at the server",
    "server of another host": "its certificate is not for 127.0.0.1: set comm_args.grpc.host here",
    "client without a certificate": f"asks for a certificate, and this client has none: set {OWN} here",
    "client of another authority": "refuses this client's certificate (of client-1): comm_args.grpc.cert",
    "self-signed client": "signed by an authority in the server's comm_args.grpc.ca",
    "expired client": "comm_args.grpc.cert must be valid",
    "server without TLS": f"speaks no TLS: set {OWN} at the server",
    "client without TLS": "speaks TLS and this client does not: set comm_args.grpc.ca",
}


def unchecked(certificate: Certificate | None, ca: Path | None) -> TlsFiles:
    """What `read_files` may refuse: a certificate can also expire later."""
    cert, key = (certificate.cert, certificate.key) if certificate is not None else (None, None)
    paths = (ca, cert, key)
    texts = [None if path is None else path.read_bytes() for path in paths]
    return TlsFiles(*texts, paths)


@pytest.mark.parametrize("what", REFUSALS)
async def test_refused_client_is_told_at_once_why_and_the_way_out(files: Files, what: str) -> None:
    own, folder = files.authority, files.folder
    server: TlsFiles | None = unchecked(files.server, files.ca)
    client: TlsFiles | None = unchecked(files.client, files.ca)
    match what:
        case "server of another authority":
            server = unchecked(files.other.issue("server"), files.ca)
        case "self-signed server":
            server = unchecked(self_signed(folder, "server"), None)
        case "expired server":
            server = unchecked(own.issue_expired("old"), None)
        case "server of another host":
            server = unchecked(own.issue("elsewhere", hosts=("example.org",)), None)
        case "client without a certificate":
            client = unchecked(None, files.ca)
        case "client of another authority":
            client = unchecked(files.other.issue("client-1"), files.ca)
        case "self-signed client":
            client = unchecked(self_signed(folder, "client-1"), files.ca)
        case "expired client":
            client = unchecked(own.issue_expired("client-1"), files.ca)
        case "server without TLS":
            server = None
        case "client without TLS":
            client = None
    hub = GrpcHub(Address("127.0.0.1", 0, server), QUICK)
    await hub.start()
    try:
        assert REFUSALS[what] in await refusal(Address("127.0.0.1", port_of(hub), client))
    finally:
        await hub.close()


async def refusal(server: Address) -> str:
    """What a client says that gives up at its first attempt."""
    said: list[str] = []
    client = LinkTransport(partial(dial, server), str(server), QUICK, said.append, random.Random(1))
    with pytest.raises(CommError, match="cannot reach the server at ") as caught:
        await soon(client.connect())
    assert not said, "it was not told to wait"
    return str(caught.value)


async def test_server_that_asks_for_names_proves_its_own(files: Files) -> None:
    with pytest.raises(ConfigError, match=r"grpc\.cert: wanted the server's own certificate .* found none"):
        make_hub("GRPC", {"ca": files.ca})
    make_transport("GRPC", {"ca": files.ca})


async def test_client_that_shows_its_name_says_whom_it_trusts(files: Files) -> None:
    with pytest.raises(ConfigError, match=r"grpc\.ca: wanted the authority .* found none"):
        make_transport("GRPC", files.client.settings())
    make_hub("GRPC", files.client.settings())


async def test_own_certificate_that_expired_is_refused_at_start(files: Files) -> None:
    old = files.authority.issue_expired("old").settings(files.ca)
    for make in (make_hub, make_transport):
        with pytest.raises(ConfigError, match=r"grpc\.cert: wanted a valid certificate, found .* expired on"):
            make("GRPC", old)


def test_key_of_a_kind_that_grpc_cannot_use_is_refused_at_start(files: Files) -> None:
    kind = files.authority.issue("modern", key=ed25519.Ed25519PrivateKey.generate())
    for make in (make_hub, make_transport):
        with pytest.raises(ConfigError, match=r"grpc\.cert: wanted .* RSA or ECDSA key.* found .*Ed25519"):
            make("GRPC", kind.settings(files.ca))


async def test_tls_before_1_2_is_refused(files: Files) -> None:
    context = ssl.create_default_context(cafile=files.ca)
    context.set_alpn_protocols(["h2"])
    async with serving(files.server.settings()) as hub:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await soon(asyncio.open_connection("127.0.0.1", port_of(hub), ssl=context))
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.transport.abort()
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.deprecated_call():
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await soon(asyncio.open_connection("127.0.0.1", port_of(hub), ssl=context))


# Other servers on the port.


@asynccontextmanager
async def answering(answer: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """A server that is not ours: it says this to whoever speaks."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0, ssl=context)
    yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_web_server_on_the_port_is_named(files: Files, encrypted: bool) -> None:
    client = unchecked(None, files.ca) if encrypted else None
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web:
        text = await refusal(replace(web, files=client))
    assert "a web server answers there, no LightSecAgg server: check comm_args.grpc.host" in text


async def test_encrypted_web_server_on_the_port_is_named(files: Files) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.server.cert, files.server.key)
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n", context) as web:
        text = await refusal(replace(web, files=unchecked(None, files.ca)))
        assert "speaks TLS but no HTTP/2, so it is no LightSecAgg server" in text
        assert "speaks TLS and this client does not" in await refusal(web)


async def test_anything_else_on_the_port_is_quoted() -> None:
    async with answering(b"SSH-2.0-OpenSSH_9.6\r\n") as other:
        assert "something that begins with b'SSH-2.0-O' answers there" in await refusal(other)


async def test_grpc_server_of_another_kind_is_named() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert "a gRPC server of another kind answers there" in await refusal(Address("127.0.0.1", port))
    await server.stop(None)


async def test_server_that_closes_without_a_word_is_waited_for(files: Files) -> None:
    async with answering(b"") as silent:
        for client in (None, unchecked(None, files.ca)):
            with pytest.raises(ConnectionError):
                await soon(dial(replace(silent, files=client)))


# Strangers on the server's port.


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header of HTTP/2, spelled out."""
    return b"".join((b"\0", bytes((len(name),)), name, bytes((len(value),)), value))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
CALL = frame(
    1,
    4,  # the headers are complete
    1,
    header(b":method", b"POST")
    + header(b":scheme", b"http")
    + header(b":path", b"/lightsecagg.Link/Carry")
    + header(b":authority", b"localhost")
    + header(b"te", b"trailers")
    + header(b"content-type", b"application/grpc"),
)
GARBAGE = random.Random(7).randbytes(100_000)
HELLO = bytes.fromhex("16030100f1010000ed0303") + bytes(232)  # begins like TLS
SPEECHES = {
    "garbage": GARBAGE,
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS or HTTP/2, whichever it is not": HELLO + PREFACE,
    "garbage within HTTP/2": PREFACE + CALL + GARBAGE,
    "a message of 4 GiB": PREFACE + CALL + frame(0, 0, 1, b"\0\xff\xff\xff\xff" + bytes(1000)),
    "a compressed message": PREFACE + CALL + frame(0, 0, 1, b"\1\0\0\0\4" + bytes(4)),
    "a call without an end": PREFACE + CALL,
    "HTTP/2 without a call": PREFACE,
    "half of HTTP/2": PREFACE[:10],
    "nothing": b"",
}


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("speech", SPEECHES)
async def test_stranger_is_let_go_and_disturbs_nobody(files: Files, speech: str, encrypted: bool) -> None:
    server, client = (files.server.settings(), {"ca": files.ca}) if encrypted else ({}, {})
    async with serving(server, SILENCE) as hub, joined(hub, client) as (transport, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(hub))
        with contextlib.suppress(ConnectionError):
            writer.write(SPEECHES[speech])
            while await soon(reader.read(2**16)):
                assert await is_undisturbed(hub, transport, 1)
        writer.close()
        assert await is_undisturbed(hub, transport, 1)
        assert hub._last_peer == 1  # type: ignore[attr-defined]


async def test_claim_of_4_gib_ends_the_call_before_it_is_kept() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with serving() as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(hub))
        writer.write(SPEECHES["a message of 4 GiB"])
        assert await soon(end_of_call(reader)) == 8, "RESOURCE_EXHAUSTED"
        writer.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16, "KiB"


async def end_of_call(reader: asyncio.StreamReader) -> int:
    """The status in the last headers of stream 1."""
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        is_last = head[3] == 1 and head[4] & 1
        if is_last:
            return int(payload.split(b"grpc-status")[1][1:2])


async def test_slow_talker_is_let_go() -> None:
    async with serving({}, SILENCE) as hub, joined(hub) as (transport, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(hub))
        closed = asyncio.create_task(reader.read())
        for byte in PREFACE:
            writer.write(bytes((byte,)))
            await asyncio.wait({closed}, timeout=0.1)
            if closed.done():
                break
        assert closed.done(), "it was not given as long as it takes"
        writer.close()
        assert await is_undisturbed(hub, transport, 1)


async def test_flood_of_silent_connections_passes() -> None:
    async with serving({}, SILENCE) as hub, joined(hub) as (transport, _):
        flood = [await asyncio.open_connection("127.0.0.1", port_of(hub)) for _ in range(300)]
        assert await is_undisturbed(hub, transport, 1)
        async with joined(hub) as (late, it):
            assert await is_undisturbed(hub, late, it.peer)
            await soon(asyncio.gather(*(reader.read() for reader, _ in flood)))
        for _, writer in flood:
            writer.close()


async def test_crowd_of_connections_leaves_this_process_files_to_work_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightsecagg.comm.grpc.getrlimit", lambda _which: (40, 40))
    async with serving({}, replace(QUICK, heartbeat_timeout=100.0)) as hub:
        before = len(os.listdir("/proc/self/fd"))
        crowd = [await asyncio.open_connection("127.0.0.1", port_of(hub)) for _ in range(100)]
        refused = {asyncio.create_task(reader.read()) for reader, _ in crowd}
        while len(refused) > 20:  # at once: the patience with those who are silent is long
            done, refused = await soon(asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED))
            assert done
        ours = len(crowd)  # their ends of the sockets are this process's too
        assert len(os.listdir("/proc/self/fd")) - before - ours <= 40
        for _, writer in crowd:
            writer.close()
        async with joined(hub) as (late, it):
            assert await is_undisturbed(hub, late, it.peer)


async def test_call_of_an_unknown_method_is_refused() -> None:
    async with (
        serving() as hub,
        joined(hub) as (transport, _),
        grpc.aio.insecure_channel(hub.address) as channel,
    ):
        for path in ("/lightsecagg.Link/Steal", "/other.Service/Carry"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await soon(channel.unary_unary(path)(b""))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await is_undisturbed(hub, transport, 1)


async def test_frame_over_the_limit_ends_the_stream_unread() -> None:
    async with serving() as hub:
        server = Address("127.0.0.1", port_of(hub))
        carrier = await dial(server, [("grpc.max_send_message_length", -1)])
        await carrier.write(encode(Kind.OPEN, bytes(16), payload=encode_resumes(False)))
        await expect(hub, Arrived)
        assert await carrier.read() is not None  # ACCEPT
        await carrier.write(bytes(MAX_FRAME + 1))
        await expect(hub, Away)
        assert hub.stats(1).bytes_received < 100
        await carrier.close()


# Health.


async def health(channel: grpc.aio.Channel, service: str = "") -> HealthCheckResponse.ServingStatus:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await soon(stub.Check(HealthCheckRequest(service=service)))).status


async def test_health_is_told_while_the_hub_listens_and_closes() -> None:
    async with serving() as hub, grpc.aio.insecure_channel(hub.address) as channel:
        assert await health(channel) == await health(channel, "lightsecagg.Link") == SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await health(channel, "other.Service")
        carrier = await dial(Address("127.0.0.1", port_of(hub)))
        await carrier.write(encode(Kind.OPEN, bytes(16), payload=encode_resumes(False)))
        await expect(hub, Arrived)
        await hub.send(1, b"closing waits until this is acknowledged")
        closing = asyncio.create_task(hub.close())
        while await health(channel) == SERVING:
            pass
        assert await health(channel, "lightsecagg.Link") == NOT_SERVING
        assert not closing.done()
        await carrier.write(encode(Kind.BYE, bytes(16), payload=encode_code("goodbye")))
        await soon(closing)
        await carrier.close()


async def test_health_is_told_over_tls_to_those_who_may_connect(files: Files) -> None:
    ca, key, cert = (path.read_bytes() for path in (files.ca, files.client.key, files.client.cert))
    async with serving(files.server.settings(files.ca)) as hub:
        async with grpc.aio.secure_channel(
            hub.address, grpc.ssl_channel_credentials(ca, key, cert)
        ) as channel:
            assert await health(channel) == SERVING
        async with grpc.aio.secure_channel(hub.address, grpc.ssl_channel_credentials(ca)) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await health(channel)


async def test_health_has_room_beside_all_clients_and_cannot_be_watched() -> None:
    async with serving(link=replace(QUICK, max_peers=1)) as hub, joined(hub):
        other = await dial(Address("127.0.0.1", port_of(hub)))
        async with grpc.aio.insecure_channel(hub.address) as channel:
            assert await health(channel) == SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="ask with Check"):
                await soon(health_pb2_grpc.HealthStub(channel).Watch(HealthCheckRequest()).read())
        await other.close()


# Processes.

SERVER = """
import asyncio, json, sys
from lightsecagg.comm.base import LinkSettings, make_hub

async def main():
    link = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=2.0)
    hub = make_hub("GRPC", json.loads(sys.argv[1]), link)
    await hub.start()
    print(hub.address, flush=True)
    while True:
        await hub.receive()

asyncio.run(main())
"""

CLIENT = """
import asyncio, json, sys
from lightsecagg.comm.base import LinkSettings, Payload, make_transport

async def main():
    link = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=1.0, reconnect_window=10.0)
    transport = make_transport("GRPC", json.loads(sys.argv[1]), link)
    await transport.connect()
    while True:
        event = await transport.receive()
        if isinstance(event, Payload):
            await transport.send(event.data)

asyncio.run(main())
"""


@contextmanager
def process(code: str, settings: dict[str, object]) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, killed at the end."""
    started = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(settings, default=str)], stdout=subprocess.PIPE, text=True
    )
    with started:
        yield started
        started.kill()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_client_survives_the_restart_of_a_killed_server(files: Files, encrypted: bool) -> None:
    server = files.server.settings(files.ca) if encrypted else {}
    client = files.client.settings(files.ca) if encrypted else {}

    async def port_printed(running: subprocess.Popen[str]) -> int:
        assert running.stdout is not None
        line = await soon(asyncio.to_thread(running.stdout.readline))
        return int(line.rsplit(":", 1)[1])

    with process(SERVER, {"port": 0, **server}) as first:
        port = await port_printed(first)
        transport = make_transport("GRPC", {"port": port, **client}, QUICK)
        await soon(transport.connect())
        first.kill()
        await expect(transport, Away)
    with process(SERVER, {"port": port, **server}) as second:
        await port_printed(second)
        while isinstance(event := await soon(transport.receive()), Away | Back):
            pass
        assert event == Gone(0, "unknown_session")
        again = make_transport("GRPC", {"port": port, **client}, QUICK)
        await soon(again.connect())
        await again.close()
    await transport.close()


async def test_killed_process_is_away_at_once() -> None:
    async with serving() as hub:
        with process(CLIENT, {"port": port_of(hub)}) as client:
            await expect(hub, Arrived)
            await hub.send(1, b"hello")
            assert await expect(hub, Payload) == Payload(1, b"hello")
            client.send_signal(signal.SIGKILL)
            await expect(hub, Away)


async def test_stopped_process_is_away_and_carries_on() -> None:
    async with serving() as hub:
        with process(CLIENT, {"port": port_of(hub)}) as client:
            await expect(hub, Arrived)
            os.kill(client.pid, signal.SIGSTOP)
            await expect(hub, Away)
            await hub.send(1, b"sleeping?")
            os.kill(client.pid, signal.SIGCONT)
            await expect(hub, Back)
            while (event := await soon(hub.receive())) in (Away(1), Back(1)):
                pass  # it may take the server for absent, having slept itself, and connect anew
            assert event == Payload(1, b"sleeping?")
