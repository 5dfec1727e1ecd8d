"""The section ``comm_args.mqtt``, checked: which broker, which run, and as whom."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightsecagg.comm.packets import PacketLimit
from lightsecagg.comm.tls import TlsFiles, check_plaintext, name_in, read_files
from lightsecagg.errors import ConfigError

ANONYMOUS = "-"  # stands for the user in topics where the broker knows none

_SECTION = "comm_args.mqtt"
_LONGEST_NAME = 256  # characters: topics have to stay far below MQTT's 65,535 bytes
_LONGEST_LINE = 4096


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, and who this process is to it."""

    host: str
    port: int
    run: str
    user: str  # as the broker calls us
    password: str | None = field(repr=False)
    names_user: bool  # False: our certificate does that, or nobody needs to
    tls: ssl.SSLContext | None
    is_embedded: bool
    limit: PacketLimit = field(default_factory=PacketLimit)

    @property
    def where(self) -> str:
        """The address as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def who(self) -> str:
        """Us, in messages for people."""
        return "anonymous users" if self.user == ANONYMOUS else f"user {self.user!r}"


def read_settings(settings: Mapping[str, object]) -> Broker:
    """The section and the run's `run` and `rank` (0: the server).

    Raises:
        ConfigError: a value is wrong, or a file that it names.
    """
    host, port = settings.get("host", "127.0.0.1"), settings.get("port", 1883)
    if not isinstance(host, str) or not host:
        raise ConfigError(f"{_SECTION}.host: wanted a name or an address, found {host!r}")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 2**16:
        raise ConfigError(f"{_SECTION}.port: wanted 1 to 65535, found {port!r}")
    run = settings.get("run")
    if not isinstance(run, str) or not is_level(run):
        raise ConfigError(
            f"the run's name is part of MQTT topics: wanted a text without / + #, found {run!r}"
        )
    files = read_files(_SECTION, settings)
    if files is None:
        check_plaintext(_SECTION, host, settings)
    is_embedded = settings.get("embedded_broker") is True
    login = _login(settings)
    if is_embedded and (login is not None or files is not None):
        raise ConfigError(
            f"{_SECTION}.embedded_broker: it is for trying out and knows neither passwords nor certificates: "
            "wanted no username, credentials, ca, cert or key beside it, or a broker of its own"
        )
    user, password = login or (_certified_name(files), None)
    return Broker(
        host=host,
        port=port,
        run=run,
        user=user,
        password=password,
        names_user=login is not None,
        tls=files.client_context() if files is not None else None,
        is_embedded=is_embedded,
    )


def is_level(text: str) -> bool:
    """Whether the text can be one level of a topic."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and not set(text) & set("/+#$")


def _login(settings: Mapping[str, object]) -> tuple[str, str | None] | None:
    """User name and password, or None where the settings give none."""
    name, password, folder = (settings.get(key) for key in ("username", "password", "credentials"))
    rank = settings.get("rank", 0)
    if folder is not None:
        if name is not None or password is not None:
            raise ConfigError(f"{_SECTION}.credentials: wanted no username and password beside it")
        if not isinstance(folder, str | Path):
            raise ConfigError(f"{_SECTION}.credentials: wanted a folder, found {folder!r}")
        return _read_credentials(Path(folder) / (f"client-{rank}" if rank else "server"))
    if password is not None and (name is None or not isinstance(password, str)):
        raise ConfigError(f"{_SECTION}.password: wanted a text, and {_SECTION}.username with it")
    if name is None:
        return None
    if not isinstance(name, str):
        raise ConfigError(f"{_SECTION}.username: wanted a text, found {name!r}")
    return _checked(name.replace("{rank}", str(rank)), f"{_SECTION}.username"), password


def _certified_name(files: TlsFiles | None) -> str:
    """Whom brokers with use_identity_as_username take us for."""
    name = name_in(files.cert) if files is not None and files.cert is not None else None
    return ANONYMOUS if name is None else _checked(name, f"{_SECTION}.cert")


def _checked(user: str, key: str) -> str:
    if not is_level(user) or user == ANONYMOUS:
        raise ConfigError(
            f"{key}: the user's name is part of MQTT topics: wanted a text without / + # $, found {user!r}"
        )
    return user


def _read_credentials(path: Path) -> tuple[str, str]:
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            words = file.read(_LONGEST_LINE).split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{_SECTION}.credentials: cannot read {path}: {error}; `lightsecagg mqtt-config` writes it"
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"{_SECTION}.credentials: {path} can be read by others; wanted mode 0600: chmod 600 {path}"
        )
    if len(words) != 2:
        raise ConfigError(f"{_SECTION}.credentials: wanted the line `USERNAME PASSWORD` in {path}")
    return _checked(words[0], f"{_SECTION}.credentials"), words[1]
