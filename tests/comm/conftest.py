"""A server and its clients over every carrier, with a hand on the clients' connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from lightsecagg.comm.base import Arrived, Event, LinkSettings, Payload, make_hub, make_transport
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.faults import Faults, FaultyCarrier
from lightsecagg.comm.server import LinkHub

T = TypeVar("T")

BAD_WEATHER = Faults(
    drop=0.05, duplicate=0.05, reorder=0.05, corrupt=0.05, cut=0.01, delay=0.1, longest_delay=0.01
)


async def soon(awaitable: Awaitable[T], seconds: float = 20.0) -> T:
    """What must happen, within a time that only a defect exceeds."""
    async with asyncio.timeout(seconds):
        return await awaitable


class Client:
    """A transport whose present connection can be frozen, cut and kept from coming back."""

    def __init__(self, transport: LinkTransport, faults: Faults, seed: int) -> None:
        self.transport = transport
        self.carrier: FaultyCarrier | None = None
        self.carriers = 0
        self.is_offline = False
        dial, rng = transport._dial, random.Random(seed)

        async def spoiled() -> Carrier:
            if self.is_offline:
                raise ConnectionRefusedError("offline on purpose")
            self.carrier = FaultyCarrier(await dial(), faults, rng)
            self.carriers += 1
            return self.carrier

        transport._dial = spoiled

    async def cut(self, *, stay_offline: bool = False) -> None:
        self.is_offline = stay_offline
        assert self.carrier is not None
        await self.carrier.close()

    async def payload(self) -> bytes:
        """The next payload, past any absence that the weather brings."""
        while True:
            event = await soon(self.transport.receive())
            if isinstance(event, Payload):
                return event.data


class Network:
    """One hub and its clients over one kind of carrier."""

    soon = staticmethod(soon)

    @staticmethod
    async def expect(end: LinkHub | LinkTransport, kind: type[T]) -> T:
        """The next event of this kind; others may come between."""
        while True:
            event: Event = await soon(end.receive())
            if isinstance(event, kind):
                return event

    def __init__(self, kind: str, settings: dict[str, object], *, is_fair: bool) -> None:
        self.backend = kind.upper()
        self.settings = settings
        self.is_fair = is_fair
        self.faults = Faults() if is_fair else BAD_WEATHER
        self.clients: list[Client] = []
        self.hubs: list[LinkHub] = []

    def link(self, **changes: float) -> LinkSettings:
        """Quick times; in bad weather the windows are wide enough to outlast it."""
        values: dict[str, float] = {
            "heartbeat_interval": 0.1,
            "heartbeat_timeout": 5.0 if self.is_fair else 1.0,
            "reconnect_window": 20.0,
            "retransmit_timeout": 0.5 if self.is_fair else 0.05,
            "connect_timeout": 20.0,
            **changes,
        }
        return LinkSettings(**values)  # type: ignore[arg-type]

    async def hub(self, **changes: float) -> LinkHub:
        hub = make_hub(self.backend, self.settings, self.link(**changes))
        assert isinstance(hub, LinkHub)
        await hub.start()
        self.hubs.append(hub)
        if self.backend == "GRPC":
            self.settings["port"] = int(hub.address.rsplit(":", 1)[1])
        return hub

    def client(self, **changes: float) -> Client:
        settings = {**self.settings, "rank": len(self.clients) + 1}
        transport = make_transport(self.backend, settings, self.link(**changes))
        assert isinstance(transport, LinkTransport)
        client = Client(transport, self.faults, seed=len(self.clients))
        self.clients.append(client)
        return client

    async def pair(self, **changes: float) -> tuple[LinkHub, Client, int]:
        """A hub, a connected client, and the client's peer number."""
        hub = await self.hub(**changes)
        client, peer = await self.join(hub, **changes)
        return hub, client, peer

    async def join(self, hub: LinkHub, **changes: float) -> tuple[Client, int]:
        client = self.client(**changes)
        await soon(client.transport.connect())
        return client, (await self.expect(hub, Arrived)).peer

    async def close(self) -> None:
        await asyncio.gather(*(client.transport.close() for client in self.clients))
        await asyncio.gather(*(hub.close() for hub in self.hubs))


KINDS = ("local", "grpc", "mqtt", "mpi")


def settings_for(kind: str, request: pytest.FixtureRequest) -> dict[str, object]:
    """An address that no other test uses."""
    match kind:
        case "local":
            return {"name": uuid4().hex}
        case "grpc":
            return {"host": "127.0.0.1", "port": 0}
        case "mqtt":
            return {"port": request.getfixturevalue("mosquitto").port, "run": uuid4().hex, "rank": 0}
        case _:
            return {"rank": 0}


async def network_of(kind: str, request: pytest.FixtureRequest, *, is_fair: bool) -> AsyncIterator[Network]:
    network = Network(kind, settings_for(kind, request), is_fair=is_fair)
    with pytest.MonkeyPatch.context() as patch:
        if not is_fair:
            patch.setattr(LinkHub, "serve", serve_without_trust)
        yield network
        await soon(network.close())


async def serve_without_trust(hub: LinkHub, carrier: Carrier, serve: Any = LinkHub.serve) -> None:
    """The client's end spoils both directions, so the server's end is not reliable either."""
    await serve(hub, FaultyCarrier(carrier, Faults(), random.Random(0)))


@pytest.fixture(
    params=[(kind, is_fair) for is_fair in (True, False) for kind in KINDS],
    ids=lambda p: f"{p[0]}-{'fair' if p[1] else 'foul'}",
)
async def network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    """For what must hold over every carrier in every weather."""
    async for network in network_of(request.param[0], request, is_fair=request.param[1]):
        yield network


@pytest.fixture(params=KINDS)
async def fair_network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    """For what is exact only while nothing breaks by itself."""
    async for network in network_of(request.param, request, is_fair=True):
        yield network
