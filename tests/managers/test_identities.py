"""Who may take part, over every carrier: strangers, impostors, replayed registrations, men in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from lightsecagg.comm import base as comm
from lightsecagg.comm import frame as frames
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.driver import Carrier
from lightsecagg.errors import RemoteProtocolError
from lightsecagg.identity import Identity, encode_key
from lightsecagg.managers.carrier import carrier_settings, link_settings
from lightsecagg.managers.client import Client
from lightsecagg.managers.participation import RefusedError
from lightsecagg.managers.scheme import entries_of
from lightsecagg.protocol import messages as m
from lightsecagg.protocol import wire
from lightsecagg.protocol.joining import ClientJoining
from lightsecagg.sealing import RoundKey
from lightsecagg.settings import Settings
from lightsecagg.tracking import events
from tests.e2e.processes import free_port
from tests.managers.test_runs import PATIENCE, Stage, make_settings

RANKS = (1, 2, 3, 4)


@dataclass
class Scene:
    """A run with a roster, over one carrier."""

    stage: Stage
    known: dict[int, Identity]

    @property
    def settings(self) -> Settings:
        return self.stage.settings

    def joining(self, identity: Identity, rank: int) -> ClientJoining:
        context = self.stage.client(rank, identity)._context
        agreed = {**self.settings.agreed(), **context.scheme.agreed()}
        return ClientJoining(
            identity, rank, self.stage.folder.run_id, agreed, entries_of(context.workload.layout)
        )

    async def knock(self, rank: int, answer: Callable[[bytes], bytes]) -> m.Refused:
        """Come as somebody who answers the challenge with these bytes; how the server refuses."""
        settings = carrier_settings(self.settings, self.stage.folder.run_id, rank)
        backend = self.settings.comm_args.backend
        transport = comm.make_transport(backend, settings, link_settings(self.settings))
        await transport.connect()
        try:
            challenge = await transport.receive()
            assert isinstance(challenge, comm.Payload)
            await transport.send(answer(bytes(challenge.data)))
            reply = await transport.receive()
            assert isinstance(reply, comm.Payload)
            refused = wire.from_server(reply.data)
            assert isinstance(refused, m.Refused)
            return refused
        finally:
            await transport.close()

    def clients(self) -> list[Client]:
        return [self.stage.client(rank, identity) for rank, identity in self.known.items()]

    def refusals(self) -> list[str]:
        return [event.reason for event in self.stage.recorder.of(events.ClientRefused)]

    def survivors(self) -> list[tuple[int, ...]]:
        return [event.survivors for event in self.stage.recorder.of(events.RoundCompleted)]


@pytest.fixture(params=["LOCAL", "GRPC", "MQTT", "MPI"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    known = {rank: Identity.generate() for rank in RANKS}
    roster = tmp_path / "roster"
    roster.write_text("".join(f"{rank} {encode_key(i.public)}\n" for rank, i in known.items()))
    settings = make_settings(len(RANKS), roster=str(roster), key_timeout=3.0)
    addresses: dict[str, dict[str, Any]] = {"grpc": {"port": free_port()}}
    if request.param == "MQTT":
        addresses["mqtt"] = {"port": request.getfixturevalue("mosquitto").port}
    values = {**settings.model_dump(), "comm_args": {"backend": request.param, **addresses}}
    return Scene(Stage(tmp_path, Settings.model_validate(values), f"r{uuid4().hex[:8]}"), known)


async def test_strangers_impostors_doubles_and_replayed_registrations_are_refused(scene: Scene) -> None:
    manager = scene.stage.server()
    server = asyncio.create_task(manager.run())
    async with asyncio.timeout(PATIENCE):
        stranger = await scene.knock(1, scene.joining(Identity.generate(), 1).receive)  # type: ignore[arg-type]
        assert stranger.reason == "unknown_identity"
        other_rank = await scene.knock(1, scene.joining(scene.known[2], 1).receive)  # type: ignore[arg-type]
        assert other_rank.reason == "unknown_identity"

        def claims_to_be_known(challenge: bytes) -> bytes:
            hello = wire.from_client(scene.joining(Identity.generate(), 1).receive(challenge))  # type: ignore[arg-type]
            return wire.encode(msgspec.structs.replace(hello, identity=scene.known[1].public))

        impostor = await scene.knock(1, claims_to_be_known)
        assert impostor.reason == "bad_signature"

        registrations: asyncio.Queue[bytes] = asyncio.Queue()
        clients = scene.clients()
        clients[0]._transport = spied(clients[0], registrations)  # type: ignore[method-assign]
        running = [asyncio.create_task(clients[0].run())]
        registration = await registrations.get()
        replayed = await scene.knock(1, lambda _challenge: registration)
        assert replayed.reason == "bad_signature"

        await manager._session.until(lambda: 1 in manager._session.clients, PATIENCE)
        second = await scene.knock(1, scene.joining(scene.known[1], 1).receive)  # type: ignore[arg-type]
        assert second.reason == "rank_taken"

        running += [asyncio.create_task(client.run()) for client in clients[1:]]
        assert await asyncio.gather(server, *running) == [None] * 5
    assert scene.refusals() == ["unknown_identity"] * 2 + ["bad_signature"] * 2 + ["rank_taken"]
    assert scene.survivors() == [RANKS, RANKS]


async def test_key_swapped_on_the_way_to_the_server_is_refused(scene: Scene) -> None:
    """The man in the middle cannot put a key of his own into a client's mouth; the others go on."""

    def swap(message: Any) -> Any:
        if isinstance(message, m.RoundKeyMessage) and message.sequence == second:
            return msgspec.structs.replace(message, key=RoundKey().public)
        return message

    second = 2  # of the client's keys: the first round has it still
    clients = scene.clients()
    clients[0]._transport = tampered(clients[0], up=swap)  # type: ignore[method-assign]
    results = await everybody(scene, clients)
    assert isinstance(results[1], RefusedError)
    assert "bad_signature" in str(results[1])
    assert scene.survivors() == [RANKS, (2, 3, 4)]


async def test_key_swapped_on_the_way_to_a_client_makes_it_leave(scene: Scene) -> None:
    """Client 1 is shown a key of the man in the middle for client 2, and deals it no share."""

    def swap(message: Any) -> Any:
        if isinstance(message, m.RoundStart):
            cohort = [
                msgspec.structs.replace(member, key=RoundKey().public) if member.rank == 2 else member
                for member in message.cohort
            ]
            return msgspec.structs.replace(message, cohort=tuple(cohort))
        return message

    clients = scene.clients()
    clients[0]._transport = tampered(clients[0], down=swap)  # type: ignore[method-assign]
    seen: list[str] = []
    clients[0]._context.observe = seen.append
    assert await everybody(scene, clients) == [None] * 5
    left = [(event.rank, event.reason) for event in scene.stage.recorder.of(events.ClientLost)]
    assert left == [(1, "bad_signature")] * 2
    assert "take RoundStart" in seen
    assert not {"send SealedSeeds", "send MaskedUpdate"} & set(seen)
    assert scene.survivors() == [(2, 3, 4)] * 2


async def everybody(scene: Scene, clients: list[Client]) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        runs = [scene.stage.server().run(), *(client.run() for client in clients)]
        results = await asyncio.gather(*runs, return_exceptions=True)
    assert results[0] is None, results
    return results


Change = Callable[[Any], Any]


class Tampering(Carrier):
    """A man in the middle: sees every frame of one client, and alters messages as he likes."""

    def __init__(self, carrier: Carrier, up: Change, down: Change) -> None:
        self.authenticated_as = carrier.authenticated_as
        self._carrier = carrier
        self._up = up
        self._down = down

    async def read(self) -> bytes | None:
        data = await self._carrier.read()
        return data and altered(data, wire.from_server, self._down)

    async def write(self, frame: bytes) -> None:
        await self._carrier.write(altered(frame, wire.from_client, self._up))

    async def finish(self) -> None:
        await self._carrier.finish()

    async def close(self) -> None:
        await self._carrier.close()


def altered(data: bytes, decode: Callable[[Any], Any], change: Change) -> bytes:
    """The frame with its message changed."""
    frame = frames.decode(data)
    if frame is None or frame.kind is not frames.Kind.DATA:
        return data
    try:
        message = decode(frame.payload)
    except RemoteProtocolError:
        return data
    changed = change(message)
    if changed is message:
        return data
    return frames.encode(
        frame.kind,
        frame.session,
        sequence=frame.sequence,
        acknowledged=frame.acknowledged,
        credit=frame.credit,
        payload=wire.encode(changed),
    )


def tampered(
    client: Client, up: Change = lambda x: x, down: Change = lambda x: x
) -> Callable[[], comm.Transport]:
    """The client's own transport, with somebody in the middle."""
    make = client._transport

    def transport() -> comm.Transport:
        made = make()
        assert isinstance(made, LinkTransport)
        dial = made._dial

        async def through() -> Carrier:
            return Tampering(await dial(), up, down)

        made._dial = through
        return made

    return transport


def spied(client: Client, registrations: asyncio.Queue[bytes]) -> Callable[[], comm.Transport]:
    """The client's own transport, with somebody who writes its Hello down."""

    def note(message: Any) -> Any:
        if isinstance(message, m.Hello):
            registrations.put_nowait(wire.encode(message))
        return message

    return tampered(client, up=note)
