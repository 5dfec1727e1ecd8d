"""A small certificate authority for tests: PEM files, good ones and ones with exactly one thing wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_DAY = timedelta(days=1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of a certificate and its key, as settings take them."""

    cert: Path
    key: Path

    def settings(self, ca: Path | None = None) -> dict[str, object]:
        """The settings `cert`, `key` and, where one is given, `ca`."""
        own: dict[str, object] = {"cert": str(self.cert), "key": str(self.key)}
        return own if ca is None else {**own, "ca": str(ca)}


class Authority:
    """Signs certificates with a key of its own; `ca` is the file that makes others trust it."""

    def __init__(self, folder: Path, name: str = "consortium", *, days: tuple[int, int] = (-1, 365)) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        basics = x509.BasicConstraints(ca=True, path_length=0)
        builder = _builder(name, name, self._key, basics, days=days)
        own = builder.add_extension(_SIGNS_CERTIFICATES, critical=True).sign(self._key, hashes.SHA256())
        self.ca = _write(folder / f"{name}-ca.pem", own.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = LOOPBACK,
        *,
        days: tuple[int, int] = (-1, 30),
        key: Key | None = None,
    ) -> Certificate:
        """A certificate for this common name and these hosts, valid from day to day, counted from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        basics = x509.BasicConstraints(ca=False, path_length=None)
        builder = _builder(name, self._name, key, basics, days=days)
        vouching = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _for_hosts(builder.add_extension(vouching, critical=False), hosts)
        return _write_pair(
            self._folder / f"{self._name}-{name}", builder.sign(self._key, hashes.SHA256()), key
        )

    def issue_expired(self, name: str, hosts: Sequence[str] = LOOPBACK) -> Certificate:
        """One that was good until yesterday."""
        return self.issue(name, hosts, days=(-30, -1))


def self_signed(folder: Path, name: str, hosts: Sequence[str] = LOOPBACK) -> Certificate:
    """A certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    basics = x509.BasicConstraints(ca=False, path_length=None)
    builder = _for_hosts(_builder(name, name, key, basics, days=(-1, 30)), hosts)
    return _write_pair(folder / f"self-signed-{name}", builder.sign(key, hashes.SHA256()), key)


def _builder(
    subject: str,
    issuer: str,
    key: Key,
    basics: x509.BasicConstraints,
    *,
    days: tuple[int, int],
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(subject))
        .issuer_name(_common_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
        .add_extension(basics, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


def _for_hosts(builder: x509.CertificateBuilder, hosts: Sequence[str]) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return builder.add_extension(names, critical=False) if hosts else builder


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_pair(stem: Path, cert: x509.Certificate, key: Key) -> Certificate:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(encoding, form, serialization.NoEncryption())
    return Certificate(
        _write(stem.with_name(stem.name + ".pem"), cert.public_bytes(encoding)),
        _write(stem.with_name(stem.name + ".key"), secret),
    )


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
