"""What belongs to one carrier only: names and settings, gRPC's addresses and processes, refusals, faults."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint

import pytest

from lightsecagg.comm import base
from lightsecagg.comm.base import Arrived, Away, Back, Gone, LinkSettings, Payload, make_hub, make_transport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.faults import Faults, FaultyCarrier
from lightsecagg.comm.frame import MAX_FRAME, Kind, decode, encode, encode_resumes
from lightsecagg.comm.local import LocalHub
from lightsecagg.errors import CommError, ConfigError

QUICK = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=1.0, reconnect_window=10.0)


async def soon(hub: base.Hub, kind: type[base.Event]) -> base.Event:
    """The next event, which must be of this kind."""
    async with asyncio.timeout(20):
        event = await hub.receive()
    assert isinstance(event, kind), event
    return event


# The registry.


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"wanted one of GRPC, LOCAL, found 'CARRIER_PIGEON'"):
        make_hub("CARRIER_PIGEON", {})


@pytest.mark.parametrize("name", ["MQTT", "MQTT_S3", "MPI"])
def test_later_backends_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not in this version; wanted one of GRPC, LOCAL"):
        make_transport(name, {})


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "lightsecagg.comm.grpc", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'lightsecagg\[grpc\]'"):
        make_hub("GRPC", {})


def test_others_can_add_a_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("pigeon", "lightsecagg.comm.local:BACKEND", base.ENTRY_POINTS),
        EntryPoint("WRONG", "lightsecagg.comm.local:dial", base.ENTRY_POINTS),
    ]
    monkeypatch.setattr(base, "entry_points", lambda group: points if group == base.ENTRY_POINTS else [])
    assert base.known_backends() == ["GRPC", "LOCAL", "PIGEON", "WRONG"]
    assert isinstance(make_hub("Pigeon", {"name": "loft"}), LocalHub)
    with pytest.raises(ConfigError, match="entry point of WRONG"):
        make_hub("WRONG", {})


def test_backend_names_have_no_case() -> None:
    assert isinstance(make_hub("local", {}), LocalHub)


@pytest.mark.parametrize(
    ("backend", "settings", "key"),
    [
        ("LOCAL", {"name": ""}, "comm_args.local.name"),
        ("GRPC", {"host": ""}, "comm_args.grpc.host"),
        ("GRPC", {"host": 7}, "comm_args.grpc.host"),
        ("GRPC", {"port": 65536}, "comm_args.grpc.port"),
        ("GRPC", {"port": "8890"}, "comm_args.grpc.port"),
        ("GRPC", {"port": True}, "comm_args.grpc.port"),
    ],
)
def test_wrong_setting_is_named(backend: str, settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: wanted .* found"):
        make_hub(backend, settings)
    with pytest.raises(ConfigError, match=f"{key}: wanted .* found"):
        make_transport(backend, settings)


# gRPC without encryption.


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "server.example.org", "::"])
def test_plaintext_beyond_loopback_is_refused(host: str) -> None:
    for make in (make_hub, make_transport):
        with pytest.raises(ConfigError, match=r"not a loopback address.*insecure: true"):
            make("GRPC", {"host": host})


def test_plaintext_that_is_asked_for_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lightsecagg"):
        make_transport("GRPC", {"host": "10.0.0.5", "insecure": True})
    assert "not encrypted" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_plaintext_on_loopback_is_quiet(host: str, caplog: pytest.LogCaptureFixture) -> None:
    make_transport("GRPC", {"host": host})
    assert caplog.text == ""


# gRPC between processes.

CLIENT = """
import asyncio, sys
from lightsecagg.comm.base import LinkSettings, Payload, make_transport

async def main():
    link = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=1.0, reconnect_window=10.0)
    transport = make_transport("GRPC", {"host": "127.0.0.1", "port": int(sys.argv[1])}, link)
    await transport.connect()
    while True:
        event = await transport.receive()
        if isinstance(event, Payload):
            await transport.send(event.data)

asyncio.run(main())
"""


@pytest.fixture
async def grpc_hub() -> AsyncIterator[base.Hub]:
    hub = make_hub("GRPC", {"port": 0}, QUICK)
    await hub.start()
    yield hub
    await hub.close()


@pytest.fixture
async def client_process(grpc_hub: base.Hub) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A client in a process of its own, which echoes."""
    port = grpc_hub.address.rsplit(":", 1)[1]
    process = subprocess.Popen([sys.executable, "-c", CLIENT, port])  # noqa: ASYNC220 (it returns at once)
    await soon(grpc_hub, Arrived)
    yield process
    process.kill()
    process.wait()


async def test_killed_process_is_away_at_once(
    grpc_hub: base.Hub, client_process: subprocess.Popen[bytes]
) -> None:
    await grpc_hub.send(1, b"hello")
    assert await soon(grpc_hub, Payload) == Payload(1, b"hello")
    client_process.send_signal(signal.SIGKILL)
    await soon(grpc_hub, Away)


async def test_stopped_process_is_away_and_carries_on(
    grpc_hub: base.Hub, client_process: subprocess.Popen[bytes]
) -> None:
    os.kill(client_process.pid, signal.SIGSTOP)
    await soon(grpc_hub, Away)
    await grpc_hub.send(1, b"sleeping?")
    os.kill(client_process.pid, signal.SIGCONT)
    await soon(grpc_hub, Back)
    while (event := await grpc_hub.receive()) in (Away(1), Back(1)):
        pass  # it may take the server for absent, having slept itself, and connect anew
    assert event == Payload(1, b"sleeping?")


async def test_frame_over_the_limit_ends_the_stream_unread(grpc_hub: base.Hub) -> None:
    from lightsecagg.comm.grpc import dial

    carrier = await dial(grpc_hub.address, [("grpc.max_send_message_length", -1)])
    await carrier.write(encode(Kind.OPEN, bytes(16), payload=encode_resumes(False)))
    await soon(grpc_hub, Arrived)
    assert await carrier.read() is not None  # ACCEPT
    await carrier.write(bytes(MAX_FRAME + 1))
    await soon(grpc_hub, Away)
    assert grpc_hub.stats(1).bytes_received < 100
    await carrier.close()


async def test_something_else_on_the_port_is_waited_out_with_a_reason() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    web_server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = web_server.sockets[0].getsockname()[1]
    link = LinkSettings(connect_timeout=0.5)
    said: list[str] = []
    transport = make_transport("GRPC", {"port": port}, link, on_waiting=said.append)
    with pytest.raises(CommError, match="check that"):
        await transport.connect()
    web_server.close()
    assert len(said) == 1


# Sessions and their owners.


class Wire(Carrier):
    """A carrier whose other end is the test."""

    def __init__(self, authenticated_as: str | None) -> None:
        self.authenticated_as = authenticated_as
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.written: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes | None:
        return await self.inbox.get()

    async def write(self, frame: bytes) -> None:
        self.written.put_nowait(frame)

    async def close(self) -> None:
        self.inbox.put_nowait(None)

    async def answer(self) -> Kind:
        """The kind of the next frame from the hub."""
        async with asyncio.timeout(10):
            frame = decode(await self.written.get())
        assert frame is not None
        return frame.kind


async def test_session_opens_for_its_owner_only() -> None:
    hub = LocalHub("owners", QUICK)
    token = bytes(range(16))

    def opening(wire: Wire, *, resumes: bool) -> asyncio.Task[None]:
        wire.inbox.put_nowait(encode(Kind.OPEN, token, payload=encode_resumes(resumes)))
        return asyncio.create_task(hub.serve(wire))

    owner, thief, again = Wire("alice"), Wire("mallory"), Wire("alice")
    first = opening(owner, resumes=False)
    assert await soon(hub, Arrived) == Arrived(1, "alice")
    assert await owner.answer() is Kind.ACCEPT
    await opening(thief, resumes=True)
    assert await thief.answer() is Kind.REJECT
    second = opening(again, resumes=True)
    assert await again.answer() is Kind.ACCEPT
    await first
    await again.close()
    await second
    assert await soon(hub, Away) == Away(1)
    await hub.close()


async def test_stranger_that_says_nothing_is_let_go() -> None:
    hub = LocalHub("silence", LinkSettings(heartbeat_interval=0.05, heartbeat_timeout=0.1))
    async with asyncio.timeout(10):
        await hub.serve(Wire(None))
    await hub.close()


async def test_session_over_is_not_resumed_before_its_end_was_read() -> None:
    hub = make_hub("LOCAL", {"name": "over"}, QUICK)
    await hub.start()
    transport = make_transport("LOCAL", {"name": "over"}, QUICK)
    await transport.connect()
    await transport.close()
    assert isinstance(hub, LocalHub)
    late = Wire(None)
    token = transport._link.session  # type: ignore[attr-defined]
    late.inbox.put_nowait(encode(Kind.OPEN, token, payload=encode_resumes(False)))
    await hub.serve(late)
    assert await late.answer() is Kind.REJECT
    await soon(hub, Arrived)
    await soon(hub, Gone)
    await hub.close()


# The faulty carrier does what it says: else the contract's bad weather would prove nothing.


async def through(faults: Faults, count: int = 400) -> list[bytes]:
    """What arrives of numbered frames."""
    wire = Wire(None)
    carrier = FaultyCarrier(wire, faults, random.Random(5))
    for number in range(count):
        await carrier.write(b"%d" % number)
    return [wire.written.get_nowait() for _ in range(wire.written.qsize())]


async def test_each_fault_happens_and_only_it() -> None:
    sent = [b"%d" % number for number in range(400)]
    assert await through(Faults()) == sent
    dropped = await through(Faults(drop=0.2))
    assert 200 < len(dropped) < 400 and set(dropped) < set(sent)
    doubled = await through(Faults(duplicate=0.2))
    assert len(doubled) > 420 and list(dict.fromkeys(doubled)) == sent
    reordered = await through(Faults(reorder=0.2))
    assert reordered != sorted(reordered, key=int) and set(reordered) <= set(sent)
    altered = await through(Faults(corrupt=0.2))
    assert 20 < sum(one != other for one, other in zip(altered, sent, strict=True)) < 200
    assert await through(Faults(drop=0.2)) == dropped, "the seed decides"
    with pytest.raises(ConnectionResetError):
        await through(Faults(cut=0.05))
