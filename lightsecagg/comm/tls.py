"""Encryption that carriers share: certificate files checked before use, and the rule for plaintext."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from lightsecagg.errors import ConfigError

_log = logging.getLogger("lightsecagg")

_LARGEST_FILE = 2**20


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM texts that fit together: whom to trust (`ca`), and the own certificate with its key."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None
    paths: tuple[Path | None, Path | None, Path | None]

    def __repr__(self) -> str:
        return f"TlsFiles{self.paths}"

    def client_context(self) -> ssl.SSLContext:
        """For a client's end: trusts `ca` only, or the system's authorities without one."""
        ca, cert, key = self.paths
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            context.load_cert_chain(cert, key, password="")  # without one OpenSSL would ask the terminal
        return context


def read_files(section: str, settings: Mapping[str, object]) -> TlsFiles | None:
    """What `ca`, `cert` and `key` of a section name, or None where it names none: no TLS.

    Raises:
        ConfigError: a file cannot be read, is no PEM of its kind, or the three do not fit together.
    """
    ca_path, cert_path, key_path = (_path(section, settings, name) for name in ("ca", "cert", "key"))
    if (cert_path is None) != (key_path is None):
        missing, there = ("key", "cert") if key_path is None else ("cert", "key")
        raise ConfigError(f"{section}.{missing}: wanted a file, as {section}.{there} is set; found none")
    if ca_path is None and cert_path is None:
        return None
    files = TlsFiles(
        _read(f"{section}.ca", ca_path),
        _read(f"{section}.cert", cert_path),
        _read(f"{section}.key", key_path),
        (ca_path, cert_path, key_path),
    )
    if ca_path is not None:
        _check_authorities(f"{section}.ca", ca_path)
    if cert_path is not None and files.cert is not None:
        _check_certificate(f"{section}.cert", cert_path, files.cert)
    try:
        files.client_context()
    except ssl.SSLError as error:
        raise ConfigError(
            f"{section}.key: wanted the key of {section}.cert without a passphrase, found {key_path} "
            f"({error.reason or error})"
        ) from None
    return files


def _path(section: str, settings: Mapping[str, object], name: str) -> Path | None:
    value = settings.get(name)
    if value is not None and not isinstance(value, str | Path):
        raise ConfigError(f"{section}.{name}: wanted a path, found {value!r}")
    return Path(value) if value is not None else None


def _read(key: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path.absolute()}: {error.strerror}") from None


def _check_authorities(key: str, path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise _no_certificate(key, path) from None
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    if ends and max(ends) < time.time():  # in a bundle like the system's one or another may have expired
        raise _expired(key, path, datetime.fromtimestamp(max(ends), UTC))


def _check_certificate(key: str, path: Path, text: bytes) -> None:
    try:
        found = x509.load_pem_x509_certificate(text)  # the first: those behind it lead to the authority
    except ValueError:
        raise _no_certificate(key, path) from None
    if found.not_valid_after_utc < datetime.now(UTC):
        raise _expired(key, path, found.not_valid_after_utc)
    if found.not_valid_before_utc > datetime.now(UTC):
        begin = f"{found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(
            f"{key}: wanted a valid certificate, found {path}, which is valid from {begin} on; "
            "is this machine's clock right?"
        )


def _no_certificate(key: str, path: Path) -> ConfigError:
    return ConfigError(f"{key}: wanted certificates in PEM form, found something else in {path}")


def _expired(key: str, path: Path, end: datetime) -> ConfigError:
    return ConfigError(f"{key}: wanted a valid certificate, found {path}, which expired on {end:%Y-%m-%d}")


_EXPIRED, _NOT_YET_VALID = 10, 9  # numbers of OpenSSL's X509_V_ERR_*
_OTHER_NAMES = {62, 64}
_UNKNOWN_AUTHORITY = {18, 19, 20, 21}


def why_untrusted(error: ssl.SSLCertVerificationError, section: str, host: str) -> str:
    """What is wrong with the certificate that a client was shown, and what to change on which side."""
    number = error.verify_code
    if number in _UNKNOWN_AUTHORITY:
        return (
            f"its certificate is not signed by an authority in {section}.ca here ({error.verify_message}): "
            f"set {section}.ca to the file of the authority that signed it, or have it signed by this one"
        )
    if number in _OTHER_NAMES:
        return (
            f"its certificate is not for {host}: set {section}.host here to a name that it is for, or have "
            f"one made for the server with {host} among its subject alternative names"
        )
    if number == _EXPIRED:
        return "its certificate has expired: renew it at the server (or set the clock of this machine)"
    if number == _NOT_YET_VALID:
        return "its certificate is not valid yet: set the clock of this machine, or of the one that made it"
    return f"its certificate is not accepted: {error.verify_message}"


def name_in(pem: bytes) -> str | None:
    """Whom a certificate names: the common name of its subject, or else its only DNS name."""
    try:
        found = x509.load_pem_x509_certificate(pem)
        names = [str(name.value) for name in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if not names:
            extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = extension.value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound):
        return None
    return names[0] if len(names) == 1 else None


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_plaintext(section: str, host: str, settings: Mapping[str, object]) -> None:
    """Without TLS nothing leaves this machine by accident.

    Raises:
        ConfigError: the host is another machine, and `insecure` is not set.
    """
    if is_loopback(host):
        return
    if settings.get("insecure") is not True:
        raise ConfigError(
            f"{section}.host: {host} is not a loopback address, and without TLS everybody on the way could "
            f"read and alter the frames: set {section}.ca (and cert, key). Shares and updates are sealed or "
            "masked above the carrier; if that is enough, or the network is yours (a VPN, an SSH tunnel), "
            f"set {section}.insecure: true"
        )
    _log.warning("what is sent to %s is not encrypted (%s.insecure: true)", host, section)
