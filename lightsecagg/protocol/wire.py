"""Messages to bytes and back: MessagePack, each side reading only what the other may send.

Limits come first: a message longer than ``MAX_MESSAGE`` is refused before it is read, and no field can claim
more than the bytes that are there. Nothing is ever unpickled.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.protocol.messages import FromClient, FromServer, Message
from lightsecagg.randomness import BLOCK_ELEMENTS

PART_BYTES = 2**20
"""Contents of one part of a long vector, at most."""

MAX_MESSAGE = PART_BYTES + 2**12
"""Longest message: a part, its tag, and a header."""

Buffer = bytes | bytearray | memoryview
_M = TypeVar("_M")

_encoder = msgspec.msgpack.Encoder()
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)
_from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)


def encode(message: Message) -> bytes:
    """The message's bytes.

    Raises:
        ValueError: it is longer than ``MAX_MESSAGE``: a caller's mistake, since long vectors go in parts.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message may have {MAX_MESSAGE} bytes, {type(message).__name__} has {len(data)}")
    return data


def from_server(data: Buffer) -> FromServer:
    """Read what a server sent; parts are views of ``data``.

    Raises:
        RemoteProtocolError: the bytes are no message of a server (``malformed``).
    """
    return _decode(_from_server, data)


def from_client(data: Buffer) -> FromClient:
    """Read what a client sent; parts are views of ``data``.

    Raises:
        RemoteProtocolError: the bytes are no message of a client (``malformed``).
    """
    return _decode(_from_client, data)


def _decode(decoder: msgspec.msgpack.Decoder[_M], data: Buffer) -> _M:
    if len(data) > MAX_MESSAGE:
        raise RemoteProtocolError(
            Reason.MALFORMED, f"a message of {len(data)} bytes; {MAX_MESSAGE} are allowed"
        )
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        # The library's words may quote the message: they stay out of the error.
        raise RemoteProtocolError(Reason.MALFORMED, "the bytes are no message of this protocol") from None


def part_elements(field: PrimeField) -> int:
    """Elements in every part but the last: as many whole expansion blocks as fit in ``PART_BYTES``."""
    return PART_BYTES // field.element_bytes // BLOCK_ELEMENTS * BLOCK_ELEMENTS


def part_count(length: int, part: int) -> int:
    """Parts of ``part`` units that a vector of ``length`` takes."""
    return -(-length // part)


def part_length(length: int, part: int, index: int) -> int:
    """Units in part ``index``."""
    return min(part, length - index * part)
