"""The server's end over any carrier that can be accepted: sessions, their peers, and the hub's events."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass, field

from lightsecagg.comm.base import Arrived, Away, Back, Event, Gone, Hub, Payload
from lightsecagg.comm.driver import Carrier, Driver
from lightsecagg.comm.frame import Data, OpenRequest, decode_open, encode_reject
from lightsecagg.comm.link import (
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
from lightsecagg.comm.stream import OnArrival
from lightsecagg.errors import CommError

_FRAMES_BEFORE_OPEN = 16  # a lossy carrier may damage the first few; more is a stranger


@dataclass(eq=False)
class _Session:
    peer: int
    driver: Driver
    authenticated_as: str | None
    carriers: set[asyncio.Future[None]] = field(default_factory=set)  # done when a carrier was let go
    is_closing: bool = False  # by us: the manager wants no more events
    is_over: bool = False  # and the goodbyes are said


class LinkHub(Hub):
    """Accepts carriers from a subclass, which calls `serve` for each and implements `listen` and `unlisten`.

    A session is kept until the manager has taken its Gone, so that `max_peers` bounds the sessions that
    strangers can make the hub hold; connections without a session are the carrier's to bound.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._by_token: dict[bytes, _Session] = {}
        self._by_peer: dict[int, _Session] = {}
        self._last_peer = 0
        self._is_closed = False

    @abstractmethod
    async def listen(self) -> None:
        """Begin to accept carriers; CommError where the address cannot be had."""

    @abstractmethod
    async def unlisten(self) -> None:
        """Accept no more, and end what still runs."""

    async def start(self) -> None:
        await self.listen()

    async def send(
        self, peer: int, data: bytes | bytearray | memoryview, on_arrival: OnArrival | None = None
    ) -> None:
        await self._present(peer).driver.send(data, on_arrival)

    def try_send(self, peer: int, data: bytes | bytearray | memoryview) -> bool:
        driver = self._present(peer).driver
        if driver.is_full:
            return False
        driver.push(data)
        return True

    def queued_bytes(self, peer: int) -> int:
        session = self._by_peer.get(peer)
        return session.driver.link.queued_bytes if session is not None else 0

    def stats(self, peer: int) -> LinkStats:
        session = self._by_peer.get(peer)
        return session.driver.link.stats if session is not None else LinkStats()

    async def receive(self, *, holds_credit: bool = False) -> Event:
        while True:
            event = None if self._is_closed else await self._events.get()
            if event is None:
                self._events.put_nowait(None)  # for whoever calls again
                raise CommError("the hub is closed")
            session = self._by_peer.get(event.peer)
            if session is None or session.is_closing:
                continue
            if isinstance(event, Payload) and not holds_credit:
                session.driver.consumed(len(event.data))
            elif isinstance(event, Gone):
                self._forget(session)
            return event

    def give_credit(self, peer: int, size: int) -> None:
        if (session := self._by_peer.get(peer)) is not None:
            session.driver.consumed(size)

    async def close_peer(self, peer: int, reason: str, patience: float | None = None) -> None:
        session = self._by_peer.get(peer)
        if session is None or session.is_closing:
            return
        session.is_closing = True
        await session.driver.close(reason, patience)
        session.is_over = True  # from here on it cannot come back on another
        if session.carriers:
            await asyncio.wait(session.carriers)
        self._forget(session)

    async def close(self, reason: str = "goodbye") -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._events.put_nowait(None)
        await asyncio.gather(*(self.close_peer(peer, reason) for peer in list(self._by_peer)))
        await self.unlisten()

    # Carriers.

    async def serve(self, carrier: Carrier) -> None:
        """Give the carrier to the session that its first frame names; returns when the carrier is closed."""
        try:
            opening = await self._opening(carrier)
            if opening is not None:
                session, data = opening
                await self._drive(session, carrier, data)
        finally:
            await carrier.close()

    async def _opening(self, carrier: Carrier) -> tuple[_Session, Data] | None:
        try:
            async with asyncio.timeout(self._settings.heartbeat_timeout):
                for _ in range(_FRAMES_BEFORE_OPEN):
                    data = await carrier.read()
                    if data is None:
                        return None
                    request = decode_open(data)
                    if request is None:
                        continue
                    session = self._admit(request, carrier.authenticated_as)
                    if not isinstance(session, str):
                        return session, data
                    await carrier.write(encode_reject(request.session, session))
                    await carrier.finish()
                    return None
        except (TimeoutError, ConnectionError):
            pass
        return None

    async def _drive(self, session: _Session, carrier: Carrier, data: Data) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session.carriers.add(done)
        try:
            await session.driver.run(carrier, data)
        finally:
            session.carriers.discard(done)
            done.set_result(None)

    def _admit(self, request: OpenRequest, authenticated_as: str | None) -> _Session | str:
        """The session that the request is for, or the reason code of a refusal."""
        if not request.is_our_version:
            return WRONG_VERSION
        session = self._by_token.get(request.session)
        if session is not None:
            # A token does not open a session for somebody else than its owner.
            is_owner = session.authenticated_as == authenticated_as
            is_over = session.is_over or session.driver.link.gone is not None
            return session if is_owner and not is_over else "unknown_session"
        if request.resumes:
            return "unknown_session"
        if self._is_closed:
            return SERVER_CLOSING
        if len(self._by_token) >= self._settings.max_peers:
            return SERVER_FULL
        return self._begin(request.session, authenticated_as)

    def _begin(self, token: bytes, authenticated_as: str | None) -> _Session:
        self._last_peer += 1
        peer = self._last_peer

        def on_event(event: LinkEvent) -> None:
            self._events.put_nowait(_translate(event, peer, authenticated_as))

        link = Link(token, self._settings, opens=False)
        session = _Session(peer, Driver(link, self._settings, on_event, redials=False), authenticated_as)
        self._by_token[token] = self._by_peer[peer] = session
        return session

    def _present(self, peer: int) -> _Session:
        session = self._by_peer.get(peer)
        if session is None or session.is_closing or session.driver.link.gone is not None:
            raise CommError(f"peer {peer} is gone")
        return session

    def _forget(self, session: _Session) -> None:
        session.driver.stop()
        self._by_peer.pop(session.peer, None)
        self._by_token.pop(session.driver.link.session, None)


def _translate(event: LinkEvent, peer: int, authenticated_as: str | None) -> Event:
    match event:
        case Opened():
            return Arrived(peer, authenticated_as)
        case Delivered(payload):
            return Payload(peer, payload)
        case PeerAway():
            return Away(peer)
        case PeerBack():
            return Back(peer)
        case PeerGone(reason):
            return Gone(peer, reason)
