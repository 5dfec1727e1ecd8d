"""A small MQTT broker inside the server process, for trying out where none is installed."""

from __future__ import annotations

import logging

from amqtt.broker import Broker
from amqtt.errors import BrokerError

from lightsecagg.errors import CommError


class EmbeddedBroker:
    """amqtt on one address: MQTT 3.1.1, nobody needs a password. Belongs to one event loop."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._broker: Broker | None = None

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            CommError: the address cannot be had.
        """
        for name in ("amqtt", "transitions"):  # what matters of it shows at our ends of its connections
            logging.getLogger(name).setLevel(logging.CRITICAL)
        host = f"[{self._host}]" if ":" in self._host else self._host
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"{host}:{self._port}"}},
                "plugins": {
                    "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
                },
            }
        )
        try:
            await broker.start()
        except BrokerError as error:
            raise CommError(
                f"cannot start the embedded broker on {host}:{self._port}: the port is in use, or the "
                "address is not this machine's; choose another comm_args.mqtt.port, or, where that is a "
                "broker already, remove comm_args.mqtt.embedded_broker"
            ) from error
        self._broker = broker

    async def stop(self) -> None:
        """Close all connections. Does nothing where it did not start."""
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.shutdown()
