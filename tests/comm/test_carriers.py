"""What belongs to one carrier only: names and settings, refusals, faults."""

from __future__ import annotations

import asyncio
import random
import sys
from importlib.metadata import EntryPoint

import pytest

from lightsecagg.comm import base
from lightsecagg.comm.base import Arrived, Away, Gone, LinkSettings, make_hub, make_transport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.faults import Faults, FaultyCarrier
from lightsecagg.comm.frame import Kind, decode, encode, encode_resumes
from lightsecagg.comm.local import LocalHub
from lightsecagg.errors import ConfigError

QUICK = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=1.0, reconnect_window=10.0)


async def soon(hub: base.Hub, kind: type[base.Event]) -> base.Event:
    """The next event, which must be of this kind."""
    async with asyncio.timeout(20):
        event = await hub.receive()
    assert isinstance(event, kind), event
    return event


# The registry.


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"wanted one of GRPC, LOCAL, MPI, MQTT, MQTT_S3, found 'CARRIER_PIGEON'"
    ):
        make_hub("CARRIER_PIGEON", {})


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("GRPC", "grpc", "grpc"), ("MQTT", "paho.mqtt", "mqtt"), ("MPI", "mpi4py", "mpi")],
)
def test_missing_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    for loaded in list(sys.modules):
        if loaded.startswith((f"{package}.", f"lightsecagg.comm.{name.lower()}")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'lightsecagg\[{extra}\]'"):
        make_hub(name, {})


def test_others_can_add_a_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("pigeon", "lightsecagg.comm.local:BACKEND", base.ENTRY_POINTS),
        EntryPoint("WRONG", "lightsecagg.comm.local:dial", base.ENTRY_POINTS),
    ]
    monkeypatch.setattr(base, "entry_points", lambda group: points if group == base.ENTRY_POINTS else [])
    assert base.known_backends() == ["GRPC", "LOCAL", "MPI", "MQTT", "MQTT_S3", "PIGEON", "WRONG"]
    assert isinstance(make_hub("Pigeon", {"name": "loft"}), LocalHub)
    with pytest.raises(ConfigError, match="entry point of WRONG"):
        make_hub("WRONG", {})


def test_backend_names_have_no_case() -> None:
    assert isinstance(make_hub("local", {}), LocalHub)


@pytest.mark.parametrize(
    ("backend", "settings", "key"),
    [
        ("LOCAL", {"name": ""}, "comm_args.local.name"),
    ],
)
def test_wrong_setting_is_named(backend: str, settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: wanted .* found"):
        make_hub(backend, settings)
    with pytest.raises(ConfigError, match=f"{key}: wanted .* found"):
        make_transport(backend, settings)


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


async def test_session_that_is_closed_is_not_taken_up_again_on_a_carrier_that_nobody_ends() -> None:
    class Slow(Wire):
        async def close(self) -> None:
            await super().close()
            back = asyncio.create_task(hub.serve(again))  # at the worst moment
            await asyncio.wait({back}, timeout=0.1)
            returned.append(back)

    hub, token, returned = LocalHub("closing", QUICK), bytes(range(16)), []
    first, again = Slow(None), Wire(None)
    first.inbox.put_nowait(encode(Kind.OPEN, token, payload=encode_resumes(False)))
    again.inbox.put_nowait(encode(Kind.OPEN, token, payload=encode_resumes(True)))
    serving = asyncio.create_task(hub.serve(first))
    await soon(hub, Arrived)
    await hub.close_peer(1, "rank_taken", 0.1)
    async with asyncio.timeout(10):
        await asyncio.gather(serving, *returned)
    assert await again.answer() is Kind.REJECT
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
