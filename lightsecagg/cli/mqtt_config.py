"""``lightsecagg mqtt-config``: write a safe Mosquitto configuration, and who may log in to it."""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import secrets
from pathlib import Path

import click

from lightsecagg.cli.common import EXIT_CONFIG, fail
from lightsecagg.comm.frame import MAX_FRAME
from lightsecagg.comm.link import LinkSettings
from lightsecagg.comm.tls import is_loopback, read_files
from lightsecagg.errors import ConfigError

_PACKET = MAX_FRAME + 1024  # a frame, its topic and MQTT's own header
_SAVE_EVERY = 10_000  # changes; the broker stands still while it saves, and has little that is worth it
_ITERATIONS = 101  # Mosquitto's own; the passwords have 256 random bits, which no iteration betters

_ACL = """\
# Written by `lightsecagg mqtt-config`.
user server
topic read lightsecagg/+/+/+/up
topic write lightsecagg/+/+/+/down
topic readwrite lightsecagg/+/server

# Everybody has topics of its own (%u: the user's name).
pattern write lightsecagg/+/%u/+/up
pattern read lightsecagg/+/%u/+/down
"""
_SEES_THE_SERVER = """
user {user}
topic read lightsecagg/+/server
"""


@click.command("mqtt-config")
@click.option("--clients", type=click.IntRange(1, 9999), required=True, help="How many clients may log in.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mqtt"),
    show_default=True,
    help="Folder to make; never overwritten.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: 1883, with TLS 8883]")
@click.option("--cert", type=click.Path(path_type=Path), help="The broker's certificate: it then speaks TLS.")
@click.option("--key", type=click.Path(path_type=Path), help="The certificate's private key.")
@click.option("--ca", type=click.Path(path_type=Path), help="Who signed the certificate, for the next steps.")
def mqtt_config(
    clients: int,
    out: Path,
    host: str,
    port: int | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
) -> None:
    """Write mosquitto.conf, its passwords and access rules, and a password file for each who logs in."""
    has_tls = cert is not None
    port = port or (8883 if has_tls else 1883)
    try:
        read_files("mqtt-config", {"ca": ca, "cert": cert, "key": key})
        if not has_tls and not is_loopback(host):
            raise ConfigError(
                f"--host: {host} is not a loopback address, and without TLS everybody on the way could read "
                "the passwords: give --cert and --key"
            )
        _write_all(out.absolute(), clients, host, port, cert, key)
    except ConfigError as error:
        fail(error, EXIT_CONFIG)
    except OSError as error:
        fail(ConfigError(f"cannot write {error.filename or out}: {error.strerror}"), EXIT_CONFIG)
    click.echo(_next_steps(out, clients, host, port, ca, has_tls=has_tls))


def _write_all(folder: Path, clients: int, host: str, port: int, cert: Path | None, key: Path | None) -> None:
    users = ["server", *(f"client-{rank}" for rank in range(1, clients + 1))]
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise ConfigError(
            f"{folder} exists; passwords are never overwritten: move it away first, or choose another --out"
        ) from None
    (folder / "credentials").mkdir(mode=0o700)
    (folder / "data").mkdir(mode=0o700)
    passwords = {user: secrets.token_urlsafe(32) for user in users}
    for user, password in passwords.items():
        _write(folder / "credentials" / user, f"{user} {password}\n")
    _write(folder / "passwords", "".join(f"{user}:{hashed(word)}\n" for user, word in passwords.items()))
    _write(folder / "acl", _ACL + "".join(_SEES_THE_SERVER.format(user=user) for user in users[1:]))
    _write(folder / "mosquitto.conf", _config(folder, clients, host, port, cert, key))


def _write(path: Path, text: str) -> None:
    """A new file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def hashed(password: str) -> str:
    """The password as Mosquitto keeps it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _config(folder: Path, clients: int, host: str, port: int, cert: Path | None, key: Path | None) -> str:
    tls = f"certfile {cert.absolute()}\nkeyfile {key.absolute()}\n" if cert and key else ""
    in_flight = clients * (LinkSettings().window_bytes + MAX_FRAME)
    return f"""\
# Written by `lightsecagg mqtt-config`. Start: mosquitto -c {folder / "mosquitto.conf"}
listener {port} {host}
{tls}max_connections {4 * clients + 1024}

# Started by root it becomes this user, who alone can read the files.
user {pwd.getpwuid(os.geteuid()).pw_name}
allow_anonymous false
password_file {folder / "passwords"}
acl_file {folder / "acl"}

# A packet holds one frame. What is dropped beyond these limits, the link sends again.
max_packet_size {_PACKET}
max_inflight_messages 20
max_queued_messages {1000 + 100 * clients}
max_queued_bytes {in_flight}
memory_limit {2**30 + 2 * in_flight}
set_tcp_nodelay true

# Nothing is lost with the broker: server and clients say again what it forgot.
persistent_client_expiration 1d
persistence true
persistence_location {folder / "data"}/
autosave_on_changes true
autosave_interval {_SAVE_EVERY}
log_dest stderr
"""


def _next_steps(out: Path, clients: int, host: str, port: int, ca: Path | None, *, has_tls: bool) -> str:
    trust = f"\n    ca: {ca or 'FILE'}  # who signed the broker's certificate" if has_tls else ""
    return f"""\
{out}: a broker's configuration for a server and {clients} clients

Start the broker:  mosquitto -c {out / "mosquitto.conf"}

Set in the server's file and the clients':

comm_args:
  backend: MQTT
  authenticated_as: client-{{rank}}
  mqtt:
    host: {host}
    port: {port}
    credentials: {out / "credentials"}{trust}

Give each client its own file of {out / "credentials"} only (client-RANK, mode 0600), and keep the others."""
