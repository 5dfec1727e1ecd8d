"""Carriers over a medium of messages (MQTT, MPI): connections that share it are lanes, each with a name.

A lane begins with any message under a new name and ends with an empty one. The medium calls `deliver` and
`end` from the event loop; it never waits for a reader, so a lane that is not read drops what goes beyond its
limit, and the link asks for it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import MAX_FRAME, Data
from lightsecagg.comm.link import LinkSettings

_log = logging.getLogger("lightsecagg")

Name = TypeVar("Name", bound=Hashable)
Write = Callable[[bytes], Awaitable[None]]  # waits while the medium is full; ConnectionError where it broke

_REMEMBERED = 4096  # lanes that ended: a frame of theirs that comes late must not open them again
_END_TIMEOUT = 1.0  # seconds for the message that ends a lane


class Lane(Carrier):
    """One connection on a shared medium."""

    def __init__(
        self,
        write: Write,
        on_closed: Callable[[], None],
        settings: LinkSettings,
        authenticated_as: str | None = None,
        *,
        is_reliable: bool = False,
    ) -> None:
        """`on_closed` is called once, from `close`; `is_reliable`: whether the medium is."""
        self.authenticated_as = authenticated_as
        self.is_reliable = is_reliable
        self._write = write
        self._on_closed: Callable[[], None] | None = on_closed
        self._limit = settings.window_bytes + 4 * MAX_FRAME  # the peer's credit, and frames without payload
        self._frames: deque[Data] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._is_ended = False

    def deliver(self, data: Data) -> None:
        """A message of the other end; an empty one ends the lane."""
        if not data:
            self.end()
        elif len(data) <= MAX_FRAME and self._size + len(data) <= self._limit and not self._is_ended:
            self._frames.append(data)
            self._size += len(data)
            self._filled.set()

    def end(self) -> None:
        """The other end left, or the medium broke; what was delivered is still read."""
        self._is_ended = True
        self._filled.set()

    async def read(self) -> Data | None:
        while not self._frames:
            if self._is_ended:
                return None
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self._size -= len(frame)
        return frame

    async def write(self, frame: bytes) -> None:
        if self._is_ended:
            raise ConnectionError("the other end has left")
        await self._write(frame)

    async def close(self) -> None:
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is None:
            return
        was_ended, self._is_ended = self._is_ended, True
        self._filled.set()
        try:
            if not was_ended:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(_END_TIMEOUT):
                        await self._write(b"")
        finally:
            on_closed()


class Lanes(Generic[Name]):
    """A hub's lanes: one for every name under which something comes; who opens no session is let go."""

    def __init__(
        self,
        serve: Callable[[Carrier], Coroutine[Any, Any, None]],
        write: Callable[[Name, bytes], Awaitable[None]],
        authenticated_as: Callable[[Name], str | None],
        settings: LinkSettings,
        *,
        is_reliable: bool = False,
        most_each: int | None = None,
    ) -> None:
        """`serve`: the hub's; `write`: sends to the other end of a lane, as a Lane's own.

        `most_each`: how many lanes may be of one name that the carrier proves.
        """
        self._serve = serve
        self._write = write
        self._authenticated_as = authenticated_as
        self._settings = settings
        self._is_reliable = is_reliable
        self._most_each = most_each
        self._lanes: dict[Name, Lane] = {}
        self._ended: OrderedDict[Name, None] = OrderedDict()
        self._serving: set[asyncio.Task[None]] = set()

    def deliver(self, name: Name, data: Data) -> None:
        """A message for the lane of this name."""
        lane = self._lanes.get(name)
        if lane is None:
            is_full = len(self._lanes) >= 2 * self._settings.max_peers  # a peer may come back on a second one
            is_full |= self._has_enough(name)
            if is_full or name in self._ended or not data:
                return
            lane = self._begin(name)
        lane.deliver(data)

    def _has_enough(self, name: Name) -> bool:
        """Whether whoever is known to be behind this lane has as many as he may have."""
        who = self._authenticated_as(name)
        if who is None or self._most_each is None:
            return False
        return sum(lane.authenticated_as == who for lane in self._lanes.values()) >= self._most_each

    def _begin(self, name: Name) -> Lane:
        write, forget = partial(self._write, name), partial(self._forget, name)
        who = self._authenticated_as(name)
        lane = Lane(write, forget, self._settings, who, is_reliable=self._is_reliable)
        self._lanes[name] = lane
        task = asyncio.create_task(self._serve(lane))
        self._serving.add(task)
        task.add_done_callback(self._served)
        return lane

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("serving a connection failed", exc_info=task.exception())

    def _forget(self, name: Name) -> None:
        del self._lanes[name]
        self._ended[name] = None
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def end(self, which: Callable[[Name], bool] = lambda _name: True) -> None:
        """The medium broke for these lanes."""
        for name, lane in list(self._lanes.items()):
            if which(name):
                lane.end()

    async def close(self) -> None:
        """End all lanes and wait until nobody serves them."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
