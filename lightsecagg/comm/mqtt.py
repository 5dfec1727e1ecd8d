"""The MQTT carrier: server and clients meet at a broker, each connection a lane with two topics of its own.

Topics, QoS 1 (USER: whom the broker takes the client for, LANE: a random name per connection)::

    lightsecagg/RUN/USER/LANE/up    to the server; an empty message, the last will too, ends the lane
    lightsecagg/RUN/USER/LANE/down  to the client; an empty message ends the lane
    lightsecagg/RUN/server          retained, names the server's present connection; its last will clears it

The broker need keep nothing: what it loses, the link sends again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from lightsecagg.comm.base import Backend, OnWaiting
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import SESSION_SIZE, Kind, encode, encode_resumes
from lightsecagg.comm.lanes import Lane, Lanes
from lightsecagg.comm.link import LinkSettings
from lightsecagg.comm.mqtt_connection import DENIED, NO_SUBSCRIBERS, Connection, Will
from lightsecagg.comm.mqtt_settings import ANONYMOUS, Broker, read_settings
from lightsecagg.comm.packets import Packets
from lightsecagg.comm.server import LinkHub
from lightsecagg.errors import CommError, ConfigError

if TYPE_CHECKING:
    from lightsecagg.comm.broker import EmbeddedBroker

_log = logging.getLogger("lightsecagg")

_PATIENCE = 1.0  # seconds for a message that the broker has, or another server sends at once
_LONG_PATIENCE = 3.0  # the same, where its absence is an error
_LANES_EACH = 8  # of one user: a client has one, and old ones may not have ended yet
_LONGEST_NAME = 512  # characters of a user and a lane
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 3.0


class LaneName(NamedTuple):
    """What the topics of a lane say."""

    user: str
    lane: str


def _lane_topic(run: str, name: LaneName, direction: str) -> str:
    return f"lightsecagg/{run}/{name.user}/{name.lane}/{direction}"


def _presence_topic(run: str) -> str:
    return f"lightsecagg/{run}/server"


# The client's end.


class _ClientLane(Lane):
    """A lane with a connection of its own, which ends with it."""

    def __init__(self, broker: Broker, settings: LinkSettings) -> None:
        super().__init__(self._send, lambda: None, settings)
        name = LaneName(broker.user, secrets.token_hex(8))
        self._up, self._down = (_lane_topic(broker.run, name, direction) for direction in ("up", "down"))
        self._presence = _presence_topic(broker.run)
        self._server: bytes | None = None  # what its presence said first
        self._server_is_there = asyncio.Event()
        will = Will(self._up, is_retained=False)
        self.connection = Connection(broker, will, self._on_message, self.end)

    async def open(self) -> None:
        """Connect, see that the server is there, and that the broker lets us speak to it."""
        await self.connection.open()
        await self.connection.subscribe(self._presence, with_retained=True)
        await self.connection.subscribe(self._down)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._server_is_there.wait()
        # The end of a lane that has not begun: it means nothing, but the broker has to judge it.
        reason = await self.connection.publish(self._up, b"")
        if reason.is_failure:
            raise self.connection.denial("write", self._up, reason)
        if self._server is None or reason.value == NO_SUBSCRIBERS:
            broker = self.connection.broker
            raise ConnectionError(
                f"the MQTT broker is there, but no server of run {broker.run!r} (if one runs, the broker "
                f"does not let {broker.who} read {self._presence})"
            )

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == self._down:
            self.deliver(payload)
        elif self._server is None and payload:
            self._server = payload
            self._server_is_there.set()
        elif payload != (self._server or b""):
            self.end()  # the server left, or another one came

    async def _send(self, packet: bytes) -> None:
        await self.connection.send(self._up, packet)

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await self.connection.close()


async def dial(broker: Broker, settings: LinkSettings) -> Carrier:
    """Connect to the broker, and open a lane to the server of the run.

    Raises:
        PermissionError: the broker refuses us, or we do not trust it.
        ConnectionError: there is no broker, or no server.
    """
    lane = _ClientLane(broker, settings)
    try:
        await lane.open()
    except BaseException:
        await lane.connection.close()
        raise
    return Packets(lane, broker.limit)


# The server's end.


class MqttHub(LinkHub):
    """Serves one run over one connection with the broker, which it takes up again when it is lost."""

    def __init__(self, broker: Broker, settings: LinkSettings) -> None:
        super().__init__(settings)
        self._broker = broker
        self._embedded = _embedded(broker) if broker.is_embedded else None
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._users_are_held_apart = False
        self._own = LaneName(broker.user, secrets.token_hex(8))  # a lane for questions, to us and to others
        self._is_answered = asyncio.Event()
        self._hears_itself = asyncio.Event()
        self._presence = _presence_topic(broker.run)
        self._is_present = False
        self._announcing: asyncio.Task[None] | None = None
        self._lanes: Lanes[LaneName] = Lanes(
            self._serve_lane, self._send, self._authenticated, settings, most_each=_LANES_EACH
        )

    @property
    def address(self) -> str:
        return f"{self._broker.where} (MQTT, run {self._broker.run})"

    @property
    def why_nameless(self) -> str | None:
        if self._users_are_held_apart:
            return None
        return (
            "this broker does not hold its users to their own topics: `lightsecagg mqtt-config` sets one up "
            "that does"
        )

    async def listen(self) -> None:
        if self._embedded is not None:
            await self._embedded.start()
        try:
            async with asyncio.timeout(self._settings.heartbeat_timeout):
                self._connection = await self._connect()
        except TimeoutError:
            await self._stop_embedded()
            raise CommError(
                f"the MQTT broker at {self._broker.where} does not answer within "
                f"{self._settings.heartbeat_timeout:g} s: check comm_args.mqtt.host and port"
            ) from None
        except OSError as error:
            await self._stop_embedded()
            raise CommError(f"{error}{self._hint(error)}") from error
        self._keeper = asyncio.create_task(self._keep_connected(self._connection))
        self._keeper.add_done_callback(self._on_keeper_done)

    @staticmethod
    def _hint(error: OSError) -> str:
        """How to get a broker, where there may be none."""
        if isinstance(error, PermissionError):
            return ""
        return (
            "; MQTT needs a broker: `lightsecagg mqtt-config` writes a configuration for Mosquitto and says "
            "how to start it, and comm_args.mqtt.embedded_broker: true is enough for trying out"
        )

    async def unlisten(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._is_present = False
        self._lanes.end()
        await self._lanes.close()
        if self._connection is not None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._connection.publish(self._presence, b"", is_retained=True)
            await self._connection.close()
        await self._stop_embedded()

    async def _stop_embedded(self) -> None:
        if self._embedded is not None:
            await self._embedded.stop()

    # The connection.

    async def _connect(self) -> Connection:
        will = Will(self._presence, is_retained=True)
        connection = Connection(self._broker, will, self._on_message, self._lanes.end)
        await connection.open()
        try:
            await self._refuse_to_be_the_second(connection)
            self._users_are_held_apart = await self._is_kept_from_others(connection)
            run = self._broker.run
            await connection.subscribe(_lane_topic(run, LaneName("+", "+"), "up"))
            await connection.subscribe(self._presence)
            await self._hear_itself(connection)
            somebody = LaneName(secrets.token_hex(8), secrets.token_hex(8))
            await self._write(connection, _lane_topic(run, somebody, "down"), b"")
            await self._announce(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _announce(self, connection: Connection) -> None:
        self._is_present = True
        await self._write(connection, self._presence, secrets.token_bytes(8), is_retained=True)

    @staticmethod
    async def _write(
        connection: Connection, topic: str, payload: bytes, *, is_retained: bool = False
    ) -> None:
        reason = await connection.publish(topic, payload, is_retained=is_retained)
        if reason.is_failure:
            raise connection.denial("write", topic, reason)

    async def _announce_again(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            await self._announce(connection)

    async def _refuse_to_be_the_second(self, connection: Connection) -> None:
        """Ask as a client would whether a server answers: one that was killed does not, whatever it left."""
        if self._embedded is not None:
            return  # nobody was here before the broker
        up, down = (_lane_topic(self._broker.run, self._own, direction) for direction in ("up", "down"))
        self._is_answered.clear()
        await connection.subscribe(down)
        question = encode(Kind.OPEN, secrets.token_bytes(SESSION_SIZE), payload=encode_resumes(True))
        reason = await connection.publish(up, question)
        if reason.is_failure or reason.value == NO_SUBSCRIBERS:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._is_answered.wait()
        except TimeoutError:
            return
        raise CommError(
            f"a server of run {self._broker.run!r} is at the MQTT broker at {self._broker.where} already "
            "(comm_args.mqtt): close it, or choose another run id"
        )

    async def _hear_itself(self, connection: Connection) -> None:
        """See that we are sent what we subscribed to: Mosquitto agrees to any subscription."""
        up = _lane_topic(self._broker.run, self._own, "up")
        self._hears_itself.clear()
        if (await connection.publish(up, b"")).is_failure:
            return  # we may not play the client, so we cannot know
        try:
            async with asyncio.timeout(_LONG_PATIENCE):
                await self._hears_itself.wait()
        except TimeoutError:
            raise connection.denial("read", up, "it is not delivered") from None

    async def _is_kept_from_others(self, connection: Connection) -> bool:
        """Whether the broker holds users to their own topics: only then does a topic prove who publishes."""
        foreign = LaneName(secrets.token_hex(8), secrets.token_hex(8))
        reason = await connection.publish(_lane_topic(self._broker.run, foreign, "up"), b"")
        return bool(reason.value == DENIED)

    async def _keep_connected(self, connection: Connection) -> None:
        failures, rng = 0, random.Random()
        while True:
            await connection.over.wait()
            await asyncio.sleep(rng.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 10))))
            try:
                async with asyncio.timeout(self._settings.heartbeat_timeout):
                    connection = self._connection = await self._connect()
                if failures > 0:
                    _log.warning("the MQTT broker is back")
                failures = 0
            except (OSError, CommError) as error:
                if failures == 0:
                    _log.warning("the MQTT broker is lost, and with it all clients: %s", error or "no answer")
                failures += 1

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and keeper.exception() is not None:
            _log.error(
                "the connection with the broker broke on an error of ours", exc_info=keeper.exception()
            )

    # The lanes.

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == self._presence:
            if not payload and self._is_present and self._connection is not None:
                # The last will of a server before us, or of our lost connection, came late: we are here.
                self._announcing = asyncio.create_task(self._announce_again(self._connection))
            return
        _, _, user, lane, direction = topic.split("/")
        name = LaneName(user, lane)
        if name == self._own:
            (self._hears_itself if direction == "up" else self._is_answered).set()
        elif direction == "up" and len(user) + len(lane) <= _LONGEST_NAME:  # so that ours fits a topic too
            self._lanes.deliver(name, payload)

    def _authenticated(self, name: LaneName) -> str | None:
        return name.user if self._users_are_held_apart and name.user != ANONYMOUS else None

    async def _serve_lane(self, lane: Carrier) -> None:
        await self.serve(Packets(lane, self._broker.limit))

    async def _send(self, name: LaneName, packet: bytes) -> None:
        if self._connection is None:
            raise ConnectionError("there is no connection with the MQTT broker")
        await self._connection.send(_lane_topic(self._broker.run, name, "down"), packet)


def _embedded(broker: Broker) -> EmbeddedBroker:
    try:
        module = import_module("lightsecagg.comm.broker")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"comm_args.mqtt.embedded_broker: needs the package {error.name}, which is not installed; run: "
            "pip install 'lightsecagg[broker]'"
        ) from error
    embedded: EmbeddedBroker = module.EmbeddedBroker(broker.host, broker.port)
    return embedded


def _make_hub(settings: Mapping[str, object], link: LinkSettings) -> MqttHub:
    return MqttHub(read_settings(settings), link)


def _make_transport(
    settings: Mapping[str, object], link: LinkSettings, on_waiting: OnWaiting, rng: random.Random
) -> LinkTransport:
    broker = read_settings(settings)

    async def connect() -> Carrier:
        return await dial(broker, link)

    return LinkTransport(connect, f"{broker.where} (MQTT, run {broker.run})", link, on_waiting, rng)


BACKEND = Backend(_make_hub, _make_transport)
