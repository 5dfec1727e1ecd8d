"""FedML's own connection files, laid under our keys: ``grpc_ipconfig_path`` and ``mqtt_config_path``."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightsecagg.errors import ConfigError
from lightsecagg.settings.source import read

_MQTT_KEYS = {
    "BROKER_HOST": "host",
    "BROKER_PORT": "port",
    "MQTT_USER": "username",
    "MQTT_PWD": "password",
    "MQTT_KEEPALIVE": None,  # the link has a heartbeat of its own
}
_MORE_MQTT_KEYS = ("ca", "cert", "key")  # ours, for what FedML's file has no words for

_Found = tuple[dict[str, Any], list[str]]  # keys of the section, and lines about what is not known
_ReadFile = Callable[[Path], _Found]


def lay_under(raw: dict[Any, Any], beside: Path) -> list[str]:
    """Fill ``comm_args.grpc`` and ``comm_args.mqtt`` of ``raw`` from the files that it names for its backend.

    What ``raw`` itself says stands. A relative path is looked for in the present folder, then in ``beside``.

    Returns:
        Lines about a file that is not there, and about keys that are not known.

    Raises:
        ConfigError: a file cannot be read, or does not say where the server or the broker is.
    """
    comm = raw.get("comm_args")
    if not isinstance(comm, dict):
        return []
    match comm.get("backend", "GRPC"):
        case "GRPC":
            return _lay(comm, "grpc", "grpc_ipconfig_path", beside, _server)
        case "MQTT" | "MQTT_S3":
            return _lay(comm, "mqtt", "mqtt_config_path", beside, _broker)
        case _:
            return []


def _lay(comm: dict[Any, Any], section: str, key: str, beside: Path, read_file: _ReadFile) -> list[str]:
    named, given = comm.get(key), comm.get(section) or {}
    if not isinstance(named, str) or not isinstance(given, dict):
        return []  # nothing is named, or the schema will say what is wrong
    path = Path(named).expanduser()
    path = next((p for p in (path, beside / path) if p.exists()), path)
    if not path.exists():
        return [
            f"comm_args.{key}: {path} is not there; what comm_args.{section} says, or its defaults, stand"
        ]
    found, lines = read_file(path)
    comm[section] = {**found, **given}
    return lines


def _server(path: Path) -> _Found:
    """The address of receiver 0, which is the server."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if (row.get("receiver_id") or "").strip() == "0" and (host := (row.get("ip") or "").strip()):
                    return {"host": host}, []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"comm_args.grpc_ipconfig_path: cannot read {path}: {error}") from None
    raise ConfigError(
        "comm_args.grpc_ipconfig_path: wanted the columns receiver_id,ip and a row for receiver 0, the "
        f"server; found none in {path}"
    )


def _broker(path: Path) -> _Found:
    found: dict[str, Any] = {}
    lines: list[str] = []
    for key, value in read(path).items():
        ours = _MQTT_KEYS.get(key, key if key in _MORE_MQTT_KEYS else "")
        if ours == "":
            lines.append(f"{path}: {key}: unknown key, ignored; known are {', '.join(_MQTT_KEYS)}")
        elif ours is not None and value not in (None, ""):  # FedML writes "" for nobody
            found[ours] = value
    if "host" not in found:
        raise ConfigError(f"comm_args.mqtt_config_path: wanted BROKER_HOST in {path}, found none")
    return found, lines
