"""The LOCAL carrier: hub and transports of one process and one event loop meet by name, over queues."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Mapping

from lightsecagg.comm.base import Backend, OnWaiting
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.link import LinkSettings
from lightsecagg.comm.server import LinkHub
from lightsecagg.errors import CommError, ConfigError

_FRAMES_IN_PIPE = 4

_hubs: dict[str, LocalHub] = {}


class _Pipe:
    """One direction: at most a few frames, then the writer waits."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self.is_closed = False

    async def put(self, frame: bytes) -> None:
        while len(self._frames) >= _FRAMES_IN_PIPE and not self.is_closed:
            self._writable.clear()
            await self._writable.wait()
        if self.is_closed:
            raise ConnectionError("the other end has closed")
        self._frames.append(frame)
        self._readable.set()

    async def get(self) -> bytes | None:
        while not self._frames:
            if self.is_closed:
                return None
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self._frames.popleft()

    def close(self) -> None:
        self.is_closed = True
        self._readable.set()
        self._writable.set()


class LocalCarrier(Carrier):
    """One end of a pair of pipes. What was written before the end is still read."""

    is_reliable = True

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def read(self) -> bytes | None:
        return await self._incoming.get()

    async def write(self, frame: bytes) -> None:
        await self._outgoing.put(frame)

    async def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()


class LocalHub(LinkHub):
    """Listens under a name in this process."""

    def __init__(self, name: str, settings: LinkSettings) -> None:
        super().__init__(settings)
        self._name = name
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return self._name

    async def listen(self) -> None:
        if self._name in _hubs:
            raise CommError(
                f"a server listens as {self._name!r} in this process already; close it, or choose another "
                "comm_args.local.name"
            )
        _hubs[self._name] = self

    async def unlisten(self) -> None:
        if _hubs.get(self._name) is self:
            del _hubs[self._name]
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def accept(self) -> LocalCarrier:
        """A new connection to this hub: the client's end of it."""
        there, back = _Pipe(), _Pipe()
        task = asyncio.create_task(self.serve(LocalCarrier(there, back)))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return LocalCarrier(back, there)


async def dial(name: str) -> LocalCarrier:
    """Connect to the hub that listens under this name; ConnectionError where none does."""
    hub = _hubs.get(name)
    if hub is None:
        raise ConnectionRefusedError(f"no server listens as {name!r} in this process")
    return hub.accept()


def _name(settings: Mapping[str, object]) -> str:
    name = settings.get("name", "lightsecagg")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"comm_args.local.name: wanted a text, found {name!r}")
    return name


def _make_hub(settings: Mapping[str, object], link: LinkSettings) -> LocalHub:
    return LocalHub(_name(settings), link)


def _make_transport(
    settings: Mapping[str, object], link: LinkSettings, on_waiting: OnWaiting, rng: random.Random
) -> LinkTransport:
    name = _name(settings)

    async def connect() -> Carrier:
        return await dial(name)

    return LinkTransport(connect, f"{name!r} in this process", link, on_waiting, rng)


BACKEND = Backend(_make_hub, _make_transport)
