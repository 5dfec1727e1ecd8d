"""What server and clients need alike to meet: the carrier and its link, and what is given there."""

from __future__ import annotations

from lightsecagg.comm import base as comm
from lightsecagg.settings import Settings

GIVEN = "train_args"
"""The settings that the server sends at joining: how to train."""


def link_settings(settings: Settings) -> comm.LinkSettings:
    """The link's times and sizes out of ``comm_args``."""
    given = settings.comm_args
    return comm.LinkSettings(
        heartbeat_interval=given.heartbeat_interval,
        heartbeat_timeout=given.heartbeat_timeout,
        reconnect_window=given.reconnect_window,
        relay_buffer=given.relay_buffer,
        connect_timeout=given.connect_timeout,
    )


def carrier_settings(settings: Settings, run_id: str, rank: int) -> dict[str, object]:
    """The carrier's own section of ``comm_args``, and what of the run it needs; the server's rank is 0."""
    given = settings.comm_args
    match given.backend:
        case "LOCAL":
            return {"name": run_id}
        case "MPI":
            return {"rank": rank}
        case "MQTT" | "MQTT_S3":
            password = given.mqtt.password
            secret = password.get_secret_value() if password is not None else None
            return {**given.mqtt.model_dump(), "password": secret, "run": run_id, "rank": rank}
        case _:
            return given.grpc.model_dump()


def server_address(settings: Settings) -> str:
    """Where a client looks for the server, as people write it."""
    given = settings.comm_args
    match given.backend:
        case "MPI":
            return "MPI rank 0"
        case "MQTT" | "MQTT_S3":
            return f"the broker {given.mqtt.host}:{given.mqtt.port}"
        case "GRPC":
            return f"{given.grpc.host}:{given.grpc.port}"
        case _:
            return "this process"
