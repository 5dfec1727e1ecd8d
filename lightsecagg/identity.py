"""Ed25519 identities, what they sign, and rosters of who may take part.

Source: RFC 8032. A signature covers the MessagePack encoding of a label and the signed fields, so no two
statements share their bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lightsecagg.errors import ConfigError
from lightsecagg.randomness import Entropy, system_entropy

Field = bytes | int | str


class Verifier(Protocol):
    """Tells whether ``signature`` is ``public``'s over the label and fields, as ``verify`` does."""

    def __call__(self, public: bytes, signature: bytes, label: str, *fields: Field) -> bool: ...


PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
_LARGEST_FILE = 1 << 20

_P = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8})
"""y of the points whose order divides 8, non-canonical encodings included: anyone can sign for these keys."""


def _is_public_key(public: bytes) -> bool:
    y = int.from_bytes(public, "little") & (2**255 - 1)
    return len(public) == PUBLIC_BYTES and y not in _SMALL_ORDER


def statement(label: str, *fields: Field) -> bytes:
    """The bytes that stand for a label and fields, in an encoding with exactly one reading."""
    return msgspec.msgpack.encode([label, *fields])


def verify(public: bytes, signature: bytes, label: str, *fields: Field) -> bool:
    """Whether ``signature`` is ``public``'s over the label and fields."""
    if not _is_public_key(public):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement(label, *fields))
    except (InvalidSignature, ValueError):
        return False
    return True


class Identity:
    """A client's long-term Ed25519 key pair. Thread-safe: it never changes. Prints without its secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({encode_key(self.public)}, <secret>)"

    @classmethod
    def generate(cls, entropy: Entropy = system_entropy) -> Identity:
        """A fresh identity from 32 bytes of ``entropy``."""
        return cls(entropy(32))

    def sign(self, label: str, *fields: Field) -> bytes:
        """64 bytes that ``verify`` accepts for the same label and fields."""
        return self._key.sign(statement(label, *fields))

    def save(self, path: Path) -> None:
        """Write the secret key to a new file that only its owner can read.

        Raises:
            ConfigError: the file exists, or cannot be written.
        """
        text = f"lightsecagg-identity {base64.b64encode(self._key.private_bytes_raw()).decode()}\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Readable by its owner only, and linked into place whole: nobody ever sees half an identity.
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.link(file.name, path)
        except FileExistsError:
            raise ConfigError(
                f"{path} exists; an identity is never overwritten: move it away first"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write the identity {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read an identity that ``save`` wrote.

        Raises:
            ConfigError: the file is missing, readable by others, or no identity.
        """
        try:
            mode = path.stat().st_mode
            words = path.read_text()[:_LARGEST_FILE].split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the identity {path}: {error}") from None
        if mode & 0o077:
            raise ConfigError(
                f"the identity {path} can be read by others; wanted mode 0600: chmod 600 {path}"
            )
        try:
            if len(words) != 2 or words[0] != "lightsecagg-identity":
                raise ValueError
            return cls(base64.b64decode(words[1], validate=True))
        except ValueError:
            raise ConfigError(f"{path} is no identity; `lightsecagg keygen --out FILE` makes one") from None


def encode_key(public: bytes) -> str:
    """A public key as people see it in rosters and messages."""
    return base64.b64encode(public).decode()


def decode_key(text: str) -> bytes:
    """The inverse of ``encode_key``.

    Raises:
        ConfigError: the text is no Ed25519 public key.
    """
    try:
        public = base64.b64decode(text, validate=True)
        if not _is_public_key(public):
            raise ValueError
    except (binascii.Error, ValueError):
        raise ConfigError(f"wanted an Ed25519 public key in base64 (44 characters), found {text!r}") from None
    return public


@dataclass(frozen=True)
class Roster:
    """Who may take part: rank to Ed25519 public key. One line a client: ``RANK KEY [comment]``."""

    keys: Mapping[int, bytes]

    def admits(self, rank: int, public: bytes) -> bool:
        """Whether this identity may take part as this rank."""
        return self.keys.get(rank) == public

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Read a roster file; empty lines and lines that begin with ``#`` are passed over.

        Raises:
            ConfigError: the file is missing, or a line is no entry or repeats a rank or key.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the roster {path}: {error}") from None
        keys: dict[int, bytes] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            where = f"{path}:{number}"
            if len(words) < 2 or not words[0].isdecimal() or len(words[0]) > 10 or int(words[0]) < 1:
                raise ConfigError(f"{where}: wanted `RANK KEY [comment]`")
            try:
                rank, public = int(words[0]), decode_key(words[1])
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
            if rank in keys or public in keys.values():
                raise ConfigError(f"{where}: rank {rank} or its key stands in the roster twice")
            keys[rank] = public
        return cls(keys)
