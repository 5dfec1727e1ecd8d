"""One peer's outgoing messages: short ones in order and first, long outputs pulled as there is room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor

from lightsecagg.protocol.actions import Send

OnArrival = Callable[[], None]
Deliver = Callable[[bytes | memoryview, OnArrival | None], Awaitable[None]]


class Outbox:
    """Sends what it is given, one message after another; pulling a stream waits for the carrier's room.

    Belongs to one event loop. ``run`` ends with the error that ``deliver`` raises.

    Args:
        deliver: hands one message to the carrier, waiting while that is full, with what wants to know of
            its arrival.
        executor: where long outputs are computed; None for the event loop itself (cheap ones).
    """

    def __init__(self, deliver: Deliver, executor: Executor | None = None) -> None:
        self._deliver = deliver
        self._executor = executor
        self._messages: deque[tuple[bytes | memoryview, OnArrival | None]] = deque()
        self._streams: deque[tuple[Iterator[Send], Callable[[], None], OnArrival | None]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, message: bytes | memoryview, on_arrival: OnArrival | None = None) -> None:
        """Send a short message, after those before it; ``on_arrival`` is called once it has arrived."""
        self._messages.append((message, on_arrival))
        self._stir()

    def stream(
        self,
        sends: Iterator[Send],
        done: Callable[[], None] = lambda: None,
        on_arrival: OnArrival | None = None,
        *,
        is_urgent: bool = False,
    ) -> None:
        """Send a long output while there is nothing short to send.

        Args:
            done: called when all of it was handed to the carrier.
            on_arrival: called whenever a message of it has arrived.
            is_urgent: it goes before those that wait or are under way.
        """
        entry = (sends, done, on_arrival)
        if is_urgent:
            self._streams.appendleft(entry)
        else:
            self._streams.append(entry)
        self._stir()

    def drop_streams(self) -> None:
        """Forget long outputs that were not sent; their ``done`` is not called."""
        self._streams.clear()

    def drop_forwarded(self) -> None:
        """Forget short messages whose arrival somebody waits for; he waits no more."""
        waiting = [on_arrival for _, on_arrival in self._messages if on_arrival is not None]
        self._messages = deque(entry for entry in self._messages if entry[1] is None)
        for on_arrival in waiting:
            on_arrival()

    async def drained(self) -> None:
        """Wait until everything was handed to the carrier."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            if self._messages:
                await self._deliver(*self._messages.popleft())
            elif self._streams:
                await self._pull()
            else:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()

    async def _pull(self) -> None:
        entry = self._streams[0]
        sends, done, on_arrival = entry
        if self._executor is None:
            send = next(sends, None)
        else:
            send = await asyncio.get_running_loop().run_in_executor(self._executor, next, sends, None)
        if send is not None:
            await self._deliver(send.message, on_arrival)
        elif self._streams and self._streams[0] is entry:
            self._streams.popleft()
            done()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()
