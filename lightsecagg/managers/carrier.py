"""What server and clients need alike to meet: the carrier and its link, and what is given there."""

from __future__ import annotations

from lightsecagg.comm import base as comm
from lightsecagg.settings import Settings

GIVEN = "train_args"
"""The settings that the server sends at joining: how to train."""


_CLIENT_QUEUE = 8 * 2**20  # bytes that keep a client's line busy while it computes the next ones


def link_settings(settings: Settings, *, serves: bool = False) -> comm.LinkSettings:
    """The link's times and sizes out of ``comm_args``.

    A server lets each client send as much as keeps all of them together within half its relay buffer, one
    frame at least; a client computes what it sends, so it need not queue much of it.
    """
    given = settings.comm_args
    window = comm.LinkSettings().window_bytes
    if serves:
        window = min(window, max(comm.MAX_FRAME, given.relay_buffer // 2 // settings.device_args.worker_num))
    return comm.LinkSettings(
        window_bytes=window,
        heartbeat_interval=given.heartbeat_interval,
        heartbeat_timeout=given.heartbeat_timeout,
        reconnect_window=given.reconnect_window,
        relay_buffer=given.relay_buffer if serves else min(given.relay_buffer, _CLIENT_QUEUE),
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
