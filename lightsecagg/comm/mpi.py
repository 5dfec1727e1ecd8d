"""The MPI carrier: lanes between rank 0, where the hub is, and the other ranks of one MPI world."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from lightsecagg.comm.base import Backend, OnWaiting
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import Data
from lightsecagg.comm.lanes import Lane, Lanes
from lightsecagg.comm.link import LinkSettings
from lightsecagg.comm.mpi_thread import Inbox
from lightsecagg.comm.mpi_world import SERVER_RANK, World, down, up, world
from lightsecagg.comm.server import LinkHub
from lightsecagg.errors import CommError

_Name = tuple[int, int]  # rank and lane


async def _enter() -> World:
    return await asyncio.to_thread(world)  # MPI takes a second to initialize


class MpiHub(LinkHub):
    """Listens at rank 0. A peer is known as client-RANK, which `mpirun` vouches for."""

    def __init__(self, settings: LinkSettings) -> None:
        super().__init__(settings)
        self._lanes: Lanes[_Name] = Lanes(
            self.serve, self._write, lambda name: f"client-{name[0]}", settings, is_reliable=True
        )
        self._inbox: Inbox | None = None

    @property
    def address(self) -> str:
        return f"rank {SERVER_RANK} of {world().size} in the MPI world"

    @property
    def why_nameless(self) -> str | None:
        return None

    async def listen(self) -> None:
        here = await _enter()
        if here.rank != SERVER_RANK:
            raise CommError(
                f"comm_args.backend: MPI has its server at rank {SERVER_RANK}, and this is rank {here.rank}"
            )
        if here.thread.hub is not None:
            raise CommError(
                "comm_args.backend: MPI carries one run in a world at a time, and this process serves one "
                "already; close that first"
            )
        here.thread.hub = self._inbox = Inbox(self._deliver)
        here.announce(serves=True)

    async def unlisten(self) -> None:
        if self._inbox is None:
            return
        self._inbox = world().thread.hub = None
        world().announce(serves=False)
        await self._lanes.close()

    def _deliver(self, rank: int, tag: int, data: Data | None) -> None:
        if data is None:
            self._lanes.end(lambda name: name[0] == rank)
        else:
            self._lanes.deliver((rank, tag // 2), data)

    async def _write(self, name: _Name, data: bytes) -> None:
        rank, lane = name
        await world().thread.send(rank, down(lane), data)


async def dial(settings: LinkSettings) -> Carrier:
    """Begin a lane to the hub; OSError as in `Dial`."""
    here = await _enter()
    if here.server_died:
        raise PermissionError(f"rank {SERVER_RANK}, the server, has died")
    if here.server_ends:
        raise PermissionError(f"rank {SERVER_RANK}, the server, has ended")
    if not here.server_serves:
        raise ConnectionRefusedError(f"rank {SERVER_RANK} of the MPI world does not serve yet")
    thread, lane = here.thread, here.next_lane()

    async def write(data: bytes) -> None:
        await thread.send(SERVER_RANK, up(lane), data)

    def deliver(source: int, _tag: int, data: Data | None) -> None:
        if source == SERVER_RANK:
            carrier.deliver(data or b"")

    def forget() -> None:
        del thread.lanes[down(lane)]

    carrier = Lane(write, forget, settings, is_reliable=True)
    thread.lanes[down(lane)] = Inbox(deliver)
    return carrier


def _make_hub(_settings: Mapping[str, object], link: LinkSettings) -> MpiHub:
    return MpiHub(link)


def _make_transport(
    _settings: Mapping[str, object], link: LinkSettings, on_waiting: OnWaiting, rng: random.Random
) -> LinkTransport:
    async def connect() -> Carrier:
        return await dial(link)

    return LinkTransport(connect, f"rank {SERVER_RANK} of the MPI world", link, on_waiting, rng)


BACKEND = Backend(_make_hub, _make_transport)
