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


def carrier_settings(settings: Settings, run_id: str) -> dict[str, object]:
    """The carrier's own section of ``comm_args``."""
    given = settings.comm_args
    return {"name": run_id} if given.backend == "LOCAL" else given.grpc.model_dump()
