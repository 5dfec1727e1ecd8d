"""One connection with an MQTT broker on the asyncio loop: dial, subscribe, publish with acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from lightsecagg.comm.frame import MAX_FRAME
from lightsecagg.comm.mqtt_settings import Broker
from lightsecagg.comm.packets import SMALLEST_PACKET
from lightsecagg.comm.tls import why_untrusted

NO_SUBSCRIBERS = 0x10
DENIED = 0x87

_log = logging.getLogger("lightsecagg")

_SECTION = "comm_args.mqtt"
_WAY_OUT = "`lightsecagg mqtt-config` writes an ACL that fits"

_LOGIN_REFUSED = {0x84, 0x86, 0x87, 0x8A, 0x8C}  # of CONNACK; the others may pass
# What brokers answer to a packet that is too large; Mosquitto so that paho finds its answer malformed.
_TOO_LARGE = {0x82, 0x83, 0x95}
_NEVER_TOO_LARGE = 2**16  # bytes: below, such an answer means something else
_DO_NOT_SEND = SubscribeOptions.RETAIN_DO_NOT_SEND

_KEEPALIVE = 15  # seconds; the broker publishes the last will after one and a half
_CLOSE_TIMEOUT = 1.0  # seconds for what was published and the goodbye to leave
_IN_FLIGHT = 8  # publishes without acknowledgement: more is no faster, and each may hold a whole frame
_OVERHEAD = 1024  # bytes of a packet that are not payload: a topic of ours, and a few properties

OnMessage = Callable[[str, bytes], None]
"""Topic and payload."""
Answer = asyncio.Future[list[ReasonCode] | None]
"""To one SUBSCRIBE or PUBLISH; None where the connection ended before."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this connection ends without a goodbye: an empty message."""

    topic: str
    is_retained: bool


class _Socket(ssl.SSLSocket):
    """Closed where the handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class Connection:
    """Used once: `open`, then publish until `close` or the end. Belongs to one event loop.

    paho reads and writes when the loop finds the socket ready; only dialling, which blocks, has a thread.
    """

    def __init__(self, broker: Broker, will: Will, on_message: OnMessage, on_end: Callable[[], None]) -> None:
        """`on_end` is called once, when an open connection is over, whoever ended it."""
        self.broker = broker
        self.over = asyncio.Event()
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._dialling = threading.Lock()
        self._is_dialled = self._is_given_up = False
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        # A dial that fails has said why already.
        self._accepted.add_done_callback(lambda accepted: accepted.cancelled() or accepted.exception())
        self._answers: dict[int, Answer] = {}  # by message id
        self._sizes: dict[int, int] = {}  # of what is in flight, by message id
        self._is_quiet = asyncio.Event()  # nothing is
        self._is_quiet.set()
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT)
        self._has_complained = False
        self._timer: asyncio.TimerHandle | None = None
        self._client = self._make_client(will)

    def _make_client(self, will: Will) -> Client:
        is_v5 = not self.broker.is_embedded
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=secrets.token_hex(8),  # a name that can be guessed could be taken over
            protocol=MQTTv5 if is_v5 else MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages = 0  # ours is the limit; paho would queue beyond its own
        client.will_set(will.topic, b"", qos=1, retain=will.is_retained)
        if self.broker.names_user:
            client.username_pw_set(self.broker.user, self.broker.password)
        if self.broker.tls is not None:
            self.broker.tls.sslsocket_class = _Socket
            client.tls_set_context(self.broker.tls)
        client.on_connect = self._on_connack
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: self._finish(reason)
        client.on_message = self._deliver
        client.on_subscribe = lambda _client, _data, mid, reasons, _properties: self._answer(mid, reasons)
        client.on_publish = lambda _client, _data, mid, reason, _properties: self._on_puback(mid, reason)
        return client

    # Coming up.

    async def open(self) -> None:
        """Dial and log in.

        Raises:
            PermissionError: the broker refuses us, or we do not trust it: trying again is no use.
            OSError: there is no broker at present.
        """
        where = f"the MQTT broker at {self.broker.where}"
        try:
            await self._loop.run_in_executor(None, self._dial)
        except asyncio.CancelledError:
            self._give_up()
            raise
        except ssl.SSLCertVerificationError as error:
            raise PermissionError(why_untrusted(error, _SECTION, self.broker.host)) from error
        except (ssl.SSLError, ConnectionResetError) as error:
            raise ConnectionError(
                f"{where} does not agree on TLS: {error}; does it speak it there?"
            ) from error
        except (OSError, UnicodeError) as error:  # the latter from names that cannot be looked up
            raise ConnectionError(f"cannot reach {where}: {error}") from error
        self._watch()
        try:
            await self._accepted
        except BaseException:
            await self.close()
            raise

    def _dial(self) -> None:
        properties = None
        if not self.broker.is_embedded:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_FRAME + _OVERHEAD
        self._client.connect(self.broker.host, self.broker.port, _KEEPALIVE, properties=properties)
        with self._dialling:
            self._is_dialled = True
            if self._is_given_up:
                self._client.disconnect()

    def _give_up(self) -> None:
        """The thread that dials cannot be stopped: who is later of it and us hangs up."""
        with self._dialling:
            self._is_given_up = True
            if self._is_dialled:
                self._client.disconnect()

    def _watch(self) -> None:
        sock: Any = self._client.socket()  # of the standard library, plain or TLS
        if sock is None:
            self._finish("connection lost")
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.on_socket_register_write = self._on_writing
        self._client.on_socket_unregister_write = self._on_written
        self._client.on_socket_close = self._on_socket_close
        self._loop.add_reader(sock, self._read, sock)
        self._tick()

    def _on_writing(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.add_writer(sock, self._client.loop_write)

    def _on_written(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.remove_writer(sock)

    def _on_socket_close(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)

    def _read(self, sock: Any) -> None:
        try:
            self._client.loop_read()
            # What TLS has decrypted already makes no socket ready.
            while self._client.socket() is not None and isinstance(sock, ssl.SSLSocket) and sock.pending():
                self._client.loop_read()
        except Exception as error:  # whatever paho cannot read it would try to read again for ever
            _log.warning(
                "the MQTT broker at %s sent what cannot be read (%s)",
                self.broker.where,
                type(error).__name__,
            )
            self._drop()

    def _deliver(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload))

    def _tick(self) -> None:
        self._timer = self._loop.call_later(1.0, self._tick)
        self._client.loop_misc()

    def _on_connack(
        self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if self._accepted.done():
            return
        if reason.is_failure:
            text = (
                f"the MQTT broker at {self.broker.where} refuses {self.broker.who}: {reason}; check "
                f"{_SECTION}.credentials, or username and password"
            )
            is_final = reason.value in _LOGIN_REFUSED
            self._accepted.set_exception(PermissionError(text) if is_final else ConnectionError(text))
            return
        largest = getattr(properties, "MaximumPacketSize", MAX_FRAME + _OVERHEAD)
        if largest < SMALLEST_PACKET + _OVERHEAD:
            self._accepted.set_exception(
                PermissionError(
                    f"the MQTT broker at {self.broker.where} takes packets of {largest} bytes: wanted "
                    f"{SMALLEST_PACKET + _OVERHEAD} or more (its max_packet_size)"
                )
            )
            return
        self.broker.limit.announced(largest - _OVERHEAD)
        self._in_flight = asyncio.Semaphore(
            min(_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _IN_FLIGHT))
        )
        self._accepted.set_result(None)

    # What we say.

    async def subscribe(self, topic: str, *, with_retained: bool = False) -> None:
        """Ask for the messages of this topic, those that the broker keeps only `with_retained`.

        Raises:
            PermissionError: the broker refuses.
            ConnectionError: the connection ended.
        """
        if self.broker.is_embedded:
            _, mid = self._client.subscribe(topic, 1)
        else:
            handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if with_retained else _DO_NOT_SEND
            _, mid = self._client.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=handling))
        (reason, *_) = await self._answered(mid)
        if reason.is_failure:
            raise self.denial("read", topic, reason)

    async def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> ReasonCode:
        """Publish, and wait for what the broker says to it; ConnectionError where the connection ended."""
        return (await self._answered(await self._start(topic, payload, is_retained=is_retained)))[0]

    async def send(self, topic: str, payload: bytes) -> None:
        """Publish; waits only while too much is in flight. What the broker refuses is as good as lost."""
        mid = await self._start(topic, payload)
        self._answer_to(mid).add_done_callback(partial(self._look_at, topic))

    def denial(self, right: str, topic: str, reason: object) -> PermissionError:
        """The error for people where the broker keeps us from reading or writing a topic."""
        return PermissionError(
            f"the MQTT broker at {self.broker.where} does not let {self.broker.who} {right} the topic "
            f"{topic} ({reason}): {_WAY_OUT}"
        )

    async def _start(self, topic: str, payload: bytes, *, is_retained: bool = False) -> int:
        await self._in_flight.acquire()
        if self.over.is_set():
            self._in_flight.release()  # for the next who waits
            raise self._lost()
        try:
            mid = self._client.publish(topic, payload, qos=1, retain=is_retained).mid
        except ValueError as error:  # a topic that is none
            self._in_flight.release()
            raise ConnectionError(f"nothing can be published there: {error}") from error
        self._sizes[mid] = len(payload)
        self._is_quiet.clear()
        return mid

    async def _answered(self, mid: int | None) -> list[ReasonCode]:
        reasons = None if mid is None or self.over.is_set() else await self._answer_to(mid)
        if reasons is None:
            raise self._lost()
        return reasons

    def _answer_to(self, mid: int) -> Answer:
        answer: Answer = self._loop.create_future()
        self._answers[mid] = answer
        return answer

    def _lost(self) -> ConnectionError:
        return ConnectionError(f"the connection with the MQTT broker at {self.broker.where} was lost")

    # What the broker says.

    def _on_puback(self, mid: int, reason: ReasonCode) -> None:
        self._in_flight.release()
        size = self._sizes.pop(mid, 0)
        if not self._sizes:
            self._is_quiet.set()
        if reason.value in _TOO_LARGE:
            self.broker.limit.exceeded(size)
        self._answer(mid, [reason])

    def _answer(self, mid: int, reasons: list[ReasonCode]) -> None:
        answer = self._answers.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(reasons)

    def _look_at(self, topic: str, answer: Answer) -> None:
        reasons = None if answer.cancelled() else answer.result()
        if reasons is not None and reasons[0].value == DENIED and not self._has_complained:
            self._has_complained = True
            _log.warning("%s", self.denial("write", topic, reasons[0]))

    # Going down.

    async def close(self) -> None:
        """Leave once the broker has what was published, within bounded time. Safe to call twice."""
        try:
            if self._client.socket() is not None:
                # A socket that is closed before all answers were read may take what it sent with it.
                await self._wait_for(self._is_quiet)
            if not self.over.is_set():  # by another call of this one
                self._client.disconnect()
                self._client.loop_write()
            if self._client.socket() is not None:
                await self._wait_for(self.over)
        finally:
            self._drop()

    @staticmethod
    async def _wait_for(event: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await event.wait()

    def _drop(self) -> None:
        sock: Any = self._client.socket()
        if sock is not None and sock.fileno() >= 0:  # the broker takes nothing any more
            self._client.on_socket_unregister_write = self._client.on_socket_close = None
            self._loop.remove_writer(sock)
            self._loop.remove_reader(sock)
            sock.close()
        self._finish("closed")

    def _finish(self, reason: ReasonCode | str) -> None:
        if self.over.is_set():
            return
        self.over.set()
        self._is_quiet.set()
        largest = max(self._sizes.values(), default=0)
        if largest > _NEVER_TOO_LARGE and isinstance(reason, ReasonCode) and reason.value in _TOO_LARGE:
            self.broker.limit.exceeded(largest)
        if self._timer is not None:
            self._timer.cancel()
        self._in_flight.release()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)
        if not self._accepted.done():
            self._accepted.set_exception(
                ConnectionError(
                    f"what answers at {self.broker.where} ended the connection before it said that it is an "
                    f"MQTT broker ({reason}): check {_SECTION}.host and port, whether it wants TLS "
                    f"({_SECTION}.ca) or a certificate ({_SECTION}.cert), and whether it is full "
                    "(max_connections)"
                )
            )
        elif not self._accepted.cancelled() and self._accepted.exception() is None:
            self._on_end()
