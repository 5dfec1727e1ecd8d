"""Drives one Link over the asyncio carrier of the moment: reader, writer, timer, back-pressure."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable

from lightsecagg.comm.frame import Buffer, Data
from lightsecagg.comm.link import LINK_LOST, Link, LinkEvent, LinkSettings
from lightsecagg.comm.stream import OnArrival
from lightsecagg.errors import CommError

_LINGER = 1.0  # seconds for goodbyes and their answers
_OVERSLEPT = 0.25  # seconds by which a timer of a loop that runs freely is never late


class Carrier(ABC):
    """One connection that moves whole frames, perhaps badly, until it breaks; one reader, one writer."""

    authenticated_as: str | None = None
    is_reliable: bool = False
    """Whether everything written arrives, and in order, for as long as the connection stands."""

    @abstractmethod
    async def read(self) -> Data | None:
        """The next frame, or None once the connection has ended in whatever way."""

    @abstractmethod
    async def write(self, frame: bytes) -> None:
        """Hand over a frame; waits while the connection takes no more. ConnectionError where it has ended."""

    async def finish(self) -> None:  # noqa: B027 (most carriers have nothing to do here)
        """Nothing more will be written: see to it that what was written is not lost by `close`."""

    @abstractmethod
    async def close(self) -> None:
        """Break the connection. Never raises; safe to call twice."""


class Driver:
    """One link and its carriers, one after the other. Belongs to one event loop.

    The reader only feeds the link and never waits for the writer: acknowledgements and heartbeats are always
    taken in, and back-pressure is the link's credit.
    """

    def __init__(
        self, link: Link, settings: LinkSettings, on_event: Callable[[LinkEvent], None], *, redials: bool
    ) -> None:
        """`redials`: whether somebody brings a new carrier when this one is let go of for its silence."""
        self.link = link
        self._settings = settings
        self._redials = redials
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tick_from = 0.0  # no tick before
        self._put_off = False  # the next tick was, and is not again
        self._carrier: Carrier | None = None
        self._release: asyncio.Future[None] | None = None  # set to let go of the present carrier
        self._is_writing = False
        self._is_closing = False
        self._next: bytes | None = None  # a frame for the writer
        self._wake = asyncio.Event()  # set unless the writer waits for a frame
        self._room = asyncio.Event()  # less than the relay buffer is queued
        self._drained = asyncio.Event()  # nothing is queued
        self.over = asyncio.Event()  # the session is over
        self._advance([])

    async def run(self, carrier: Carrier, first: Data | None = None) -> bool:
        """Drive the link over the carrier until that ends, is replaced by another, or the session is over.

        Args:
            first: a frame that was already read from the carrier.

        Returns:
            Whether the session was open on this carrier at the end.
        """
        release = self._replace(carrier)
        if first is not None:
            self._advance(self.link.receive(first, self._loop.time()))
        reader = asyncio.create_task(self._read(carrier))
        writer = asyncio.create_task(self._write(carrier))
        try:
            await asyncio.wait({reader, writer, release}, return_when=asyncio.FIRST_COMPLETED)
            if self.link.is_finished and self._carrier is carrier:
                await carrier.finish()
        finally:
            was_open = self._carrier is carrier and self.link.is_open
            reader.cancel()
            writer.cancel()
            try:
                results = await asyncio.gather(reader, writer, return_exceptions=True)
            finally:  # whoever runs this may be cancelled while it winds up
                await carrier.close()
                if self._carrier is carrier:
                    self._carrier = self._release = None
                    self._advance(self.link.carrier_down(self._loop.time()))
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result
        return was_open

    def _replace(self, carrier: Carrier) -> asyncio.Future[None]:
        if self._release is not None and not self._release.done():
            self._release.set_result(None)
        self._carrier = carrier
        self._release = self._loop.create_future()
        self._is_writing = False
        self._next = None
        self._wake.set()
        self.link.carrier_up(self._loop.time(), is_reliable=carrier.is_reliable)
        self._advance([])
        return self._release

    def release(self) -> None:
        """Let go of the present carrier, if there is one."""
        if self._release is not None and not self._release.done():
            self._release.set_result(None)

    async def _read(self, carrier: Carrier) -> None:
        while (data := await carrier.read()) is not None:
            if self._carrier is not carrier:
                return
            self._advance(self.link.receive(data, self._loop.time()))

    async def _write(self, carrier: Carrier) -> None:
        while self._carrier is carrier:
            frame, self._next = self._next or self.link.next_frame(self._loop.time()), None
            if frame is not None:
                self._is_writing = True
                await carrier.write(frame)
                if self._carrier is carrier:
                    self._is_writing = False
            elif self.link.is_finished:
                return
            else:
                self._wake.clear()
                self._arm()
                await self._wake.wait()

    def _poke(self) -> None:
        """The link may have a frame to send, or another time to be woken at."""
        if not self._wake.is_set():  # what gives no frame does not cost a turn of the writer's
            self._next = self.link.next_frame(self._loop.time())
            if self._next is not None or self.link.is_finished:
                self._wake.set()
        self._arm()

    # Time and what follows from a change.

    def _advance(self, events: list[LinkEvent]) -> None:
        for event in events:
            self._on_event(event)
        is_over = self.link.gone is not None
        if is_over and not self.over.is_set():
            self.over.set()
            # An answer to a goodbye may be on its way; a peer that takes none is not waited for.
            self._loop.call_later(0 if self.link.gone == LINK_LOST else _LINGER, self.release)
        if is_over or self.link.queued_bytes <= self._settings.relay_buffer:
            self._room.set()
        if is_over or self.link.queued_bytes == 0:
            self._drained.set()
        self._poke()

    def _arm(self) -> None:
        due = self.link.next_wakeup(may_send=self._carrier is not None and not self._is_writing)
        if due is None:
            return
        due = max(due, self._tick_from)
        if self._timer is not None and self._timer.when() <= due:
            return  # a timer that fires early arms the next one
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        self._timer = None
        now = self._loop.time()
        if now > due + _OVERSLEPT and not self._put_off:
            # This process was stopped, or its loop was held up: speak and hear first, or our sleep would pass
            # for the peer's silence. Once only, so that a loop that is always late keeps time nevertheless.
            self._put_off = True
            self._tick_from = now + _OVERSLEPT
            self._poke()
            return
        self._put_off = False
        self._advance(self.link.tick(now))
        if self._redials and self.link.is_silent:
            self.release()

    # What the owner does.

    @property
    def is_full(self) -> bool:
        """Whether `send` would wait."""
        return self.link.queued_bytes > self._settings.relay_buffer

    def push(self, data: Buffer | bytearray, on_arrival: OnArrival | None = None) -> None:
        """Queue a payload, whatever is queued already; CommError once the session is over or closing."""
        if self._is_closing:
            raise CommError("the session is being closed")
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B") if len(data) else b""
        self.link.send(data, on_arrival)
        self._drained.clear()
        self._poke()

    async def send(self, data: Buffer | bytearray, on_arrival: OnArrival | None = None) -> None:
        """Queue a payload once less than the relay buffer is queued; errors as in `push`."""
        while self.is_full and not self._is_closing:
            self._room.clear()
            await self._room.wait()
        self.push(data, on_arrival)

    def consumed(self, size: int) -> None:
        """The application took a payload of `size` bytes."""
        self.link.consumed(size, self._loop.time())
        self._poke()

    async def close(self, reason: str, patience: float | None = None) -> None:
        """Wait until everything queued has arrived, say goodbye and wait for the answer; all in bounded time.

        A peer without a carrier gets a moment to come back; if it does not, its window will tell it.

        Args:
            patience: seconds for what is queued; None for `close_timeout`.
        """
        self._is_closing = True
        self._room.set()
        longest = self._settings.close_timeout if patience is None else patience
        with contextlib.suppress(TimeoutError):
            wait = longest if self._carrier is not None else min(longest, _LINGER)
            async with asyncio.timeout(wait):
                await self._drained.wait()
        if self.link.is_open:
            self.link.say_bye(reason, self._loop.time())
            self._advance([])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(longest, _LINGER)):
                    await self.over.wait()
        self.release()

    def stop(self) -> None:
        """Forget the timer: nobody waits for this link any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
