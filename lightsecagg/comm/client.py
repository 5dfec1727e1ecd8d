"""A client's end over any carrier that can be dialled: looks for the server, keeps the session connected."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable

from lightsecagg.comm.base import SERVER, Away, Back, Event, Gone, OnWaiting, Payload, Transport
from lightsecagg.comm.driver import Carrier, Driver
from lightsecagg.comm.frame import SESSION_SIZE
from lightsecagg.comm.link import (
    LINK_LOST,
    SERVER_CLOSING,
    SERVER_FULL,
    WRONG_VERSION,
    Delivered,
    Link,
    LinkEvent,
    LinkSettings,
    LinkStats,
    Opened,
    PeerAway,
    PeerBack,
    PeerGone,
)
from lightsecagg.errors import CommError

Dial = Callable[[], Awaitable[Carrier]]
"""Raises OSError with a text for people; PermissionError where trying again is no use: a wrong password."""

_log = logging.getLogger("lightsecagg")

_REFUSALS = {  # what people can do about it
    WRONG_VERSION: "it runs another version of lightsecagg (wrong_version): install the same on both sides",
    SERVER_FULL: "it has as many sessions as it keeps (server_full)",
    SERVER_CLOSING: "it is ending (server_closing)",
}

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 3.0


class LinkTransport(Transport):
    """A session with the server; every carrier that `dial` brings carries it on."""

    def __init__(
        self, dial: Dial, where: str, settings: LinkSettings, on_waiting: OnWaiting, rng: random.Random
    ) -> None:
        """`where`: the server's address as people write it."""
        self._dial = dial
        self._where = where
        self._settings = settings
        self._on_waiting: OnWaiting | None = on_waiting
        self._rng = rng
        self._link = Link(secrets.token_bytes(SESSION_SIZE), settings, opens=True)
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._driver: Driver | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()  # set by Opened, and by the end of a session that never opened
        self._last_error = "no answer"
        self._is_barred = False
        self._is_closed = False

    async def connect(self) -> None:
        if self._driver is not None:
            raise CommError("connect() was called before: a transport is used once, make another one")
        self._driver = Driver(self._link, self._settings, self._on_event, redials=True)
        self._keeper = asyncio.create_task(self._keep_connected(self._driver))
        self._keeper.add_done_callback(self._on_keeper_done)
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await self._opened.wait()
        except TimeoutError:
            raise CommError(
                f"no server at {self._where} after {self._settings.connect_timeout:g} s (last attempt: "
                f"{self._last_error}); check that the server runs, that its address is the one under "
                "comm_args, and that no firewall is between"
            ) from None
        finally:
            if not self._link.is_established:
                await self._stop()
        if self._is_barred:
            raise CommError(f"cannot reach the server at {self._where}: {self._last_error}")
        if not self._link.is_established:
            raise CommError(f"the server at {self._where} refused the session: {self._refusal()}")

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await self._active().send(data)

    async def receive(self) -> Event:
        event = None if self._is_closed else await self._events.get()
        if event is None:
            self._events.put_nowait(None)  # for whoever calls again
            raise CommError(f"the session with {self._where} is over ({self._link.gone or 'closed'})")
        if isinstance(event, Payload):
            self._active().consumed(len(event.data))
        return event

    async def close(self, reason: str = "goodbye") -> None:
        if self._driver is not None and not self._is_closed:
            self._is_closed = True
            await self._driver.close(reason)
            await self._stop()

    @property
    def queued_bytes(self) -> int:
        return self._link.queued_bytes

    @property
    def stats(self) -> LinkStats:
        return self._link.stats

    def _active(self) -> Driver:
        if self._driver is None:
            raise CommError(f"connect() to {self._where} first")
        return self._driver

    async def _stop(self) -> None:
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._driver is not None:
            self._driver.stop()
        self._events.put_nowait(None)

    def _on_event(self, event: LinkEvent) -> None:
        match event:
            case Opened():
                self._opened.set()
                self._on_waiting = None
            case Delivered(payload):
                self._events.put_nowait(Payload(SERVER, payload))
            case PeerAway():
                self._events.put_nowait(Away(SERVER))
            case PeerBack():
                self._events.put_nowait(Back(SERVER))
            case PeerGone(reason):
                self._opened.set()
                self._events.put_nowait(Gone(SERVER, reason))
                self._events.put_nowait(None)

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and keeper.exception() is not None:
            _log.error("the link to %s broke on an error of ours", self._where, exc_info=keeper.exception())
            self._on_event(PeerGone(LINK_LOST))

    async def _keep_connected(self, driver: Driver) -> None:
        failures = 0
        while self._link.gone is None:
            carrier = await self._try_to_dial()
            if carrier is not None:
                opened = await driver.run(carrier)
                if self._link.gone is not None:
                    return
                failures = 0 if opened else failures
                if not self._link.is_established:
                    rejected = self._link.rejected is not None
                    self._failed(self._refusal() if rejected else "it takes connections but does not answer")
            await self._pause(driver, failures)
            failures += 1

    async def _try_to_dial(self) -> Carrier | None:
        try:
            async with asyncio.timeout(self._settings.heartbeat_timeout):
                return await self._dial()
        except TimeoutError:
            self._failed(f"no answer within {self._settings.heartbeat_timeout:g} s")
        except PermissionError as error:
            self._last_error = str(error)
            if not self._link.is_established:  # later it may be the server's restart with half of its files
                self._is_barred = True
                self._opened.set()
        except OSError as error:
            self._failed(str(error))
        return None

    def _failed(self, why: str) -> None:
        self._last_error = why
        if self._on_waiting is not None:
            self._on_waiting(f"waiting for the server at {self._where} ({why})")
            self._on_waiting = None

    def _refusal(self) -> str:
        code = self._link.rejected or self._link.gone or LINK_LOST
        return _REFUSALS.get(code, code)

    async def _pause(self, driver: Driver, failures: int) -> None:
        """Full jitter: many clients that lost one server do not come back in step."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 10))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.uniform(0, longest)):
                await driver.over.wait()
