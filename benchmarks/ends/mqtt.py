"""paho's own ends: publishes of QoS 1 through the same broker, each process one client and paho's loop."""

from __future__ import annotations

import socket
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.ends.scenario import Buffer, OnMessage, ServerEnd, Spec, Worker

_IN_FLIGHT = 20  # paho's default, and the broker's
_UP, _DOWN = "bench/up", "bench/down"


def _connected(spec: Spec, topic: str) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.max_inflight_messages_set(_IN_FLIGHT)
    client.on_socket_open = _do_not_wait
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    client.connect("127.0.0.1", spec.settings["port"])
    return client


def _do_not_wait(_client: Client, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Server(ServerEnd):
    """paho publishes and receives in a thread of its own."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._client: Client | None = None

    async def listen(self, on_message: OnMessage) -> None:
        def take(_client: Client, _data: Any, message: MQTTMessage) -> None:
            on_message(int(message.topic.rsplit("/", 1)[1]), message.payload)

        self._client = _connected(self._spec, f"{_UP}/+")
        self._client.on_message = take
        self._client.loop_start()

    async def send(self, peer: int, data: Buffer) -> None:
        assert self._client is not None
        self._client.publish(f"{_DOWN}/{peer}", bytes(data), qos=1)


def work(spec: Spec) -> None:
    """Be a client until the process is ended."""
    worker, rank = Worker(), spec.rank

    def take(client: Client, _data: Any, message: MQTTMessage) -> None:
        for answer in worker.answers(message.payload):
            client.publish(f"{_UP}/{rank}", bytes(answer), qos=1)

    client = _connected(spec, f"{_DOWN}/{rank}")
    client.on_message = take
    client.on_subscribe = lambda client, *_: client.publish(f"{_UP}/{rank}", worker.hello, qos=1)
    client.loop_forever()
