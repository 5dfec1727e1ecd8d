"""Our link's ends: what the program itself uses, with its settings."""

from __future__ import annotations

import asyncio

from benchmarks.ends.scenario import Buffer, OnMessage, ServerEnd, Spec, Worker
from lightsecagg.comm.base import Payload, make_hub, make_transport


class Server(ServerEnd):
    """A hub."""

    def __init__(self, spec: Spec) -> None:
        self._hub = make_hub(spec.carrier, {**spec.settings, "rank": 0})
        self._receiving: asyncio.Task[None] | None = None

    async def listen(self, on_message: OnMessage) -> None:
        await self._hub.start()
        self._receiving = asyncio.create_task(self._receive(on_message))

    async def _receive(self, on_message: OnMessage) -> None:
        while True:
            match await self._hub.receive():
                case Payload(peer, data):
                    on_message(peer, data)

    async def send(self, peer: int, data: Buffer) -> None:
        await self._hub.send(peer, data)


def work(spec: Spec) -> None:
    """Be a client until the process is ended."""
    asyncio.run(_work(spec))


async def _work(spec: Spec) -> None:
    worker, transport = Worker(), make_transport(spec.carrier, {**spec.settings, "rank": spec.rank})
    await transport.connect()
    await transport.send(worker.hello)
    while True:
        match await transport.receive():
            case Payload(_, data):
                for answer in worker.answers(data):
                    await transport.send(answer)
