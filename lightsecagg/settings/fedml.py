"""What a file asks for, FedML's or ours, and is not served: one line for each, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightsecagg.settings.schema import Settings

_ASYNCHRONOUS = (
    "buffer_size",
    "staleness",
    "staleness_values",
    "max_staleness",
    "strict_weights",
    "min_buffer_clients",
)
"""Keys of ``secure_aggregation_args`` that say how an asynchronous run goes."""


def notices(settings: Settings) -> list[str]:
    """The lines to show once, in the order of the sections; empty where everything asked for is served."""
    return [*_run(settings), *_protection(settings), *_mode(settings), *_carrier(settings)]


def _run(settings: Settings) -> list[str]:
    common, lines = settings.common_args, []
    if common.training_type != "cross_silo":
        lines.append(
            f"common_args.training_type: {common.training_type!r} is not served; runs as 'cross_silo'"
        )
    if common.scenario != "horizontal":
        lines.append(f"common_args.scenario: {common.scenario!r} is not served; runs as 'horizontal'")
    if common.using_mlops:
        lines.append("common_args.using_mlops: not served; nothing is sent to FedML's platform")
    if settings.environment_args.bootstrap is not None:
        lines.append(f"environment_args.bootstrap: not run: {settings.environment_args.bootstrap!r}")
    if settings.train_args.client_id_list is not None:
        lines.append("train_args.client_id_list: not served; the clients are the ranks 1 to worker_num")
    return lines


def _protection(settings: Settings) -> list[str]:
    secure = settings.secure_aggregation_args
    if not settings.secure:
        optimizer = settings.train_args.federated_optimizer
        key = "train_args.federated_optimizer: FedAvg" if optimizer == "FedAvg" else "enable_sa: false"
        key = key if optimizer == "FedAvg" else f"secure_aggregation_args.{key}"
        return [f"{key}: updates are sent without masks, and the server sees each one"]
    if secure.require_unique_survivor_set and secure.roster is None:
        return [
            "secure_aggregation_args.require_unique_survivor_set: without a roster the server can invent "
            "clients, so only the inequality is checked"
        ]
    return []


def _mode(settings: Settings) -> list[str]:
    secure = settings.secure_aggregation_args
    if settings.asynchronous:
        return []
    return [
        f"secure_aggregation_args.{key}: has no effect without mode: async"
        for key in _ASYNCHRONOUS
        if getattr(secure, key) != type(secure).model_fields[key].default
    ]


def _carrier(settings: Settings) -> list[str]:
    comm, lines = settings.comm_args, []
    if comm.backend == "MQTT_S3":
        lines.append("comm_args.backend: MQTT_S3 means MQTT with the models in the messages, not in S3")
        if comm.s3_config_path is not None:
            lines.append("comm_args.s3_config_path: not served; nothing is stored in S3")
    if comm.backend in ("MQTT", "MQTT_S3") and comm.mqtt.embedded_broker:
        lines.append(
            "comm_args.mqtt.embedded_broker: for trying out: it asks nobody who he is, and is slower than a "
            "broker of its own (`lightsecagg mqtt-config` sets one up)"
        )
    return lines
