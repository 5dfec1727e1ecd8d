"""The contract of every carrier: Transport (a client's end), Hub (the server's), events, the registry."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points

from lightsecagg.comm.frame import MAX_FRAME, MAX_PAYLOAD
from lightsecagg.comm.link import SERVER_FULL, LinkSettings, LinkStats
from lightsecagg.comm.stream import OnArrival
from lightsecagg.errors import ConfigError

__all__ = [
    "MAX_FRAME",
    "MAX_PAYLOAD",
    "SERVER",
    "SERVER_FULL",
    "Arrived",
    "Away",
    "Back",
    "Backend",
    "Event",
    "Gone",
    "Hub",
    "LinkSettings",
    "LinkStats",
    "Payload",
    "Transport",
    "known_backends",
    "make_hub",
    "make_transport",
]

SERVER = 0  # the only peer of a client


@dataclass(frozen=True, slots=True)
class Payload:
    """The next payload of a peer's stream: in order, once."""

    peer: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Arrived:
    """A hub's peer opened a session. `authenticated_as`: who the carrier proved it to be, if it does."""

    peer: int
    authenticated_as: str | None


@dataclass(frozen=True, slots=True)
class Away:
    """The link to the peer broke or fell silent; it may come back within the reconnect window."""

    peer: int


@dataclass(frozen=True, slots=True)
class Back:
    """The peer is heard again; nothing that was sent either way is lost."""

    peer: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The peer's session is over: the last event of this peer.

    Attributes:
        reason: the peer's own code if it said goodbye, or 'link_lost' (away for the whole reconnect window),
            'unknown_session' (the server no longer knows this client's session).
    """

    peer: int
    reason: str


Event = Payload | Arrived | Away | Back | Gone


class Transport(ABC):
    """A client's end: one session with one server, used once. Belongs to one event loop."""

    @abstractmethod
    async def connect(self) -> None:
        """Look for the server, with growing jittered pauses, until it accepts the session.

        Raises:
            CommError: `connect_timeout` is over, or the server refused the session.
        """

    @abstractmethod
    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a payload of at most MAX_PAYLOAD bytes; its buffer must not change afterwards.

        Waits while more than `relay_buffer` bytes are queued.

        Raises:
            ValueError: it is too long.
            CommError: the session is over.
        """

    @abstractmethod
    async def receive(self) -> Event:
        """The next Payload, Away, Back or Gone. Taking a Payload gives its credit back to the server.

        Raises:
            CommError: Gone was received before, or `close` was called.
        """

    @abstractmethod
    async def close(self, reason: str = "goodbye") -> None:
        """Send what is queued, for at most `close_timeout`, and say goodbye. Safe to call twice."""

    @property
    @abstractmethod
    def queued_bytes(self) -> int:
        """Bytes that the server has not acknowledged."""

    @property
    @abstractmethod
    def stats(self) -> LinkStats:
        """What went over the wire so far."""


class Hub(ABC):
    """The server's end: many sessions, each a peer with a number that is never used again. One event loop."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to listen.

        Raises:
            CommError: the address cannot be had.
        """

    @property
    @abstractmethod
    def address(self) -> str:
        """Where clients find this hub, once it has started."""

    @property
    def why_nameless(self) -> str | None:
        """Once it has started: why the carrier cannot prove who a peer is, for people; None where it can."""
        return "this carrier does not know who its clients are"

    @abstractmethod
    async def send(
        self, peer: int, data: bytes | bytearray | memoryview, on_arrival: OnArrival | None = None
    ) -> None:
        """Queue a payload for a peer; its buffer must not change afterwards.

        Waits while more than `relay_buffer` bytes are queued for this peer.

        Args:
            on_arrival: called once the peer has acknowledged it; never, where the peer is gone before.

        Raises:
            ValueError: it is too long.
            CommError: the peer is gone.
        """

    @abstractmethod
    def try_send(self, peer: int, data: bytes | bytearray | memoryview) -> bool:
        """Like `send`, but where that would wait, False, and nothing is queued."""

    @abstractmethod
    def queued_bytes(self, peer: int) -> int:
        """Bytes that the peer has not acknowledged; 0 for one that is gone."""

    @abstractmethod
    async def receive(self, *, holds_credit: bool = False) -> Event:
        """The next event of any peer. Taking a Payload gives its credit back to the peer.

        Args:
            holds_credit: it does not; `give_credit` does, once the payload is done with.

        Raises:
            CommError: `close` was called.
        """

    @abstractmethod
    def give_credit(self, peer: int, size: int) -> None:
        """Let the peer send as much again as a payload of `size` bytes cost. Nothing for one that is gone."""

    @abstractmethod
    async def close_peer(self, peer: int, reason: str, patience: float | None = None) -> None:
        """Send what is queued for the peer, for `patience` seconds, say goodbye, and forget it.

        Without `patience` that is at most `close_timeout`.
        No further event of this peer is received, Gone included. Does nothing for a peer that is gone.
        """

    @abstractmethod
    async def close(self, reason: str = "goodbye") -> None:
        """Close all peers at once, and stop listening. Safe to call twice."""

    @abstractmethod
    def stats(self, peer: int) -> LinkStats:
        """What went over the peer's wire so far; zeros for one that is forgotten."""


OnWaiting = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Backend:
    """A carrier, as the registry knows it. `settings` is its own section of the configuration."""

    make_hub: Callable[[Mapping[str, object], LinkSettings], Hub]
    make_transport: Callable[[Mapping[str, object], LinkSettings, OnWaiting, random.Random], Transport]


ENTRY_POINTS = "lightsecagg.carriers"

_BUILT_IN = {  # module, extra that installs what it needs
    "LOCAL": ("lightsecagg.comm.local", None),
    "GRPC": ("lightsecagg.comm.grpc", "grpc"),
    "MQTT": ("lightsecagg.comm.mqtt", "mqtt"),
    "MQTT_S3": ("lightsecagg.comm.mqtt", "mqtt"),  # FedML's name; the payloads stay in band
    "MPI": ("lightsecagg.comm.mpi", "mpi"),
}


def known_backends() -> list[str]:
    """The names that `make_hub` and `make_transport` take."""
    return sorted({*_BUILT_IN, *(point.name.upper() for point in entry_points(group=ENTRY_POINTS))})


def make_hub(backend: str, settings: Mapping[str, object], link: LinkSettings | None = None) -> Hub:
    """The server's end of the named carrier.

    Raises:
        ConfigError: the name or a setting is wrong, or the carrier's extra is not installed.
    """
    return _load(backend).make_hub(settings, link or LinkSettings())


def make_transport(
    backend: str,
    settings: Mapping[str, object],
    link: LinkSettings | None = None,
    *,
    on_waiting: OnWaiting | None = None,
    rng: random.Random | None = None,
) -> Transport:
    """A client's end of the named carrier.

    Args:
        on_waiting: called once, with a line for people, when the first attempt to connect has failed.
        rng: draws the pauses between attempts.

    Raises:
        ConfigError: the name or a setting is wrong, or the carrier's extra is not installed.
    """
    rng = rng or random.Random()
    return _load(backend).make_transport(settings, link or LinkSettings(), on_waiting or _say_nothing, rng)


def _say_nothing(_text: str) -> None:
    """For a caller that does not ask."""


def _load(name: str) -> Backend:
    wanted = name.upper()
    if wanted in _BUILT_IN:
        module, extra = _BUILT_IN[wanted]
        try:
            found = import_module(module).BACKEND
        except ModuleNotFoundError as error:
            if extra is None or error.name is None or error.name.startswith("lightsecagg"):
                raise
            raise ConfigError(
                f"comm_args.backend: {wanted} needs the package {error.name}, which is not installed; "
                f"run: pip install 'lightsecagg[{extra}]'"
            ) from error
    elif points := [point for point in entry_points(group=ENTRY_POINTS) if point.name.upper() == wanted]:
        found = points[0].load()
    else:
        raise ConfigError(f"comm_args.backend: wanted one of {', '.join(known_backends())}, found {name!r}")
    if not isinstance(found, Backend):
        raise ConfigError(
            f"comm_args.backend: the entry point of {wanted} names no lightsecagg.comm.base.Backend"
        )
    return found
