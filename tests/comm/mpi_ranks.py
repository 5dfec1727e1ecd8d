"""What the ranks of test_mpi.py's worlds do: ``mpirun -n 3 python mpi_ranks.py SCENARIO``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sys

from lightsecagg.comm import mpi_world
from lightsecagg.comm.base import (
    MAX_PAYLOAD,
    Arrived,
    Away,
    Back,
    Gone,
    Hub,
    LinkSettings,
    Payload,
    Transport,
    make_hub,
    make_transport,
)
from lightsecagg.comm.frame import HEADER_SIZE, MAX_FRAME
from lightsecagg.comm.mpi_world import up, world
from lightsecagg.errors import CommError

PATIENT = LinkSettings(retransmit_timeout=20, heartbeat_timeout=20)
QUICK = LinkSettings(heartbeat_interval=0.1, heartbeat_timeout=2.0, reconnect_window=1.5, close_timeout=1)
SIZES = (0, 1, HEADER_SIZE, 4096, 65_537, 2**20, MAX_PAYLOAD - 1, MAX_PAYLOAD)
TOO_LONG = 64 * 2**20


def say(*words: object) -> None:
    print("rank", world().rank, *words, flush=True)


def settings(scenario: str) -> LinkSettings:
    return PATIENT if scenario == "fair" else QUICK


def memory() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def serve(hub: Hub, scenario: str) -> None:
    """Echo what comes, and say what happens, until both clients have said goodbye or are gone."""
    names: dict[int, str | None] = {}
    heard: set[int] = set()
    before = 0
    while True:
        match await hub.receive():
            case Arrived(peer, name):
                names[peer] = name
                if len(names) == 2:
                    before = memory()
                    for everybody in names:
                        await hub.send(everybody, b"go")
            case Payload(peer, data):
                heard.add(peer)
                if scenario == "server killed" and len(heard) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                if data == b"flood over":
                    say("grew by", memory() - before)
                await hub.send(peer, data)
            case Away(peer):
                say("away", names[peer])
            case Back(peer):
                say("back", names[peer])
            case Gone(peer, reason):
                say("gone", names.pop(peer), reason)
                if not names:
                    return


async def payload(transport: Transport) -> bytes:
    while True:
        match await transport.receive():
            case Payload(_, data):
                return data
            case Away():
                say("server away")
            case Gone(_, reason):
                say("server gone", reason)
                raise CommError(reason)


async def echoes(transport: Transport, count: int) -> None:
    for number in range(count):
        await transport.send(b"%d" % number)
        assert await payload(transport) == b"%d" % number
    say("echoed", count)


async def exchange_all_sizes(transport: Transport) -> None:
    rng = random.Random(world().rank)
    sent = [rng.randbytes(size) for size in SIZES for _ in range(3)]
    rng.shuffle(sent)

    async def send() -> None:
        for data in sent:
            await transport.send(data)

    sending = asyncio.create_task(send())
    assert [await payload(transport) for _ in sent] == sent
    await sending
    say("exact", len(sent))


def flood() -> None:
    """Messages that are none: on lanes that are nobody's, on the right one, and at the world's own tags."""
    rng, thread = random.Random(1), world().thread
    lane = max(thread.lanes) // 2
    for size in (MAX_FRAME + 1, TOO_LONG):
        thread.post(0, up(lane), bytes(size))
    for _ in range(300):
        tag = rng.choice((0, 1, up(lane), rng.randrange(2, 100)))
        thread.post(0, tag, rng.randbytes(rng.randrange(1, 200)))


async def take_part(scenario: str) -> None:
    transport = make_transport("MPI", {"rank": world().rank}, settings(scenario))
    await transport.connect()
    with contextlib.suppress(CommError):
        await payload(transport)
        is_second = world().rank == 2
        if scenario == "fair":
            await exchange_all_sizes(transport)
            if is_second:
                flood()
            await transport.send(b"flood over")
            assert await payload(transport) == b"flood over"
        elif scenario == "killed" and is_second:
            os.kill(os.getpid(), signal.SIGKILL)
        elif scenario in ("frozen", "frozen at the end") and is_second:
            say("pid", os.getpid())
            os.kill(os.getpid(), signal.SIGSTOP)
        await echoes(transport, 50)
    if scenario == "killed":
        await asyncio.to_thread(world().wait_until, lambda: bool(world().thread.failed))
        await echoes(transport, 50)
    await transport.close()


async def main(scenario: str) -> None:
    if world().rank:
        await take_part(scenario)
        return
    hub = make_hub("MPI", {"rank": 0}, settings(scenario))
    await hub.start()
    await serve(hub, scenario)
    await hub.close()


async def bounded(scenario: str) -> None:
    async with asyncio.timeout(60):
        await main(scenario)


if __name__ == "__main__":
    mpi_world._FAREWELL_TIMEOUT = 2.0
    asyncio.run(bounded(sys.argv[1]))
    world().leave(int(sys.argv[2]) if not world().rank else 0)
