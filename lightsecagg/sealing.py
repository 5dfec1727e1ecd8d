"""Shares under lock: X25519 agreement, one HKDF key for each sender and receiver, AES-256-GCM in parts.

Sources: RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38D (GCM); the parts follow the STREAM construction
of Hoang, Reyhanitabar, Rogaway and Vizár (CRYPTO 2015): the nonce holds the part's index and a last flag.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lightsecagg.identity import statement
from lightsecagg.labels import SHARE_KEY
from lightsecagg.randomness import Entropy, system_entropy

TAG_BYTES = 16
ROUND_KEY_BYTES = 32


def is_round_key(public: bytes) -> bool:
    """Whether ``public`` is a key that an agreement can be made with: 32 bytes, no point of small order."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


class RoundKey:
    """A client's X25519 key pair for one round. Prints without its secret."""

    def __init__(self, entropy: Entropy = system_entropy) -> None:
        self._key = X25519PrivateKey.from_private_bytes(entropy(32))
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "RoundKey(<secret>)"

    def agree(self, peer: bytes, digest: bytes, round_number: int, own: int, other: int) -> PairKeys:
        """Keys for the shares that clients ``own`` and ``other`` send each other.

        Raises:
            ValueError: ``peer`` is no key that an agreement can be made with.
        """
        return PairKeys(
            self._key.exchange(X25519PublicKey.from_public_bytes(peer)), digest, round_number, own, other
        )


class PairKeys:
    """What two clients of a round seal their shares for each other with; one key each way.

    A client has one for every other, so it keeps the bare keys: a cipher takes 2.4 kB, and making one a
    microsecond.
    """

    __slots__ = ("_incoming", "_outgoing")

    def __init__(self, secret: bytes, digest: bytes, round_number: int, own: int, other: int) -> None:
        self._outgoing = _share_key(secret, digest, round_number, own, other)
        self._incoming = _share_key(secret, digest, round_number, other, own)

    def __repr__(self) -> str:
        return "PairKeys(<secret>)"

    @property
    def outgoing(self) -> AESGCM:
        """A cipher for what this client seals."""
        return AESGCM(self._outgoing)

    @property
    def incoming(self) -> AESGCM:
        """A cipher for what the other client sealed."""
        return AESGCM(self._incoming)


def _share_key(secret: bytes, digest: bytes, round_number: int, sender: int, receiver: int) -> bytes:
    info = SHARE_KEY + statement("", round_number, sender, receiver)
    return HKDF(SHA256(), 32, salt=digest, info=info).derive(secret)


def seal(key: AESGCM, index: int, last: bool, data: bytes, kind: str, total: int) -> bytes:
    """One part of a share, ``TAG_BYTES`` longer than ``data``.

    A key seals one share, each index once.

    Args:
        index: the part's place in the share, from 0.
        last: whether it is the share's last part.
        kind, total: what the share is and its length in bytes, as the receiver will expect them.
    """
    return key.encrypt(_nonce(index, last), data, _associated(kind, total))


def unseal(
    key: AESGCM, index: int, last: bool, sealed: bytes | memoryview, kind: str, total: int
) -> bytes | None:
    """The data of a part, or None where it is not this part of this share under this key."""
    try:
        return key.decrypt(_nonce(index, last), sealed, _associated(kind, total))
    except (InvalidTag, ValueError):
        return None


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])


def _associated(kind: str, total: int) -> bytes:
    return statement(kind, total)
