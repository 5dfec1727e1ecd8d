"""The link's wire frame: header, checksum and payload, to bytes and back.

A carrier moves whole frames, so a frame holds no length of its own: the checksum covers header and payload,
and a frame that was cut short or altered on the way does not decode. All integers are big-endian::

    magic 2s | version u8 | kind u8 | session 16s | sequence u64 | acknowledged u64 | credit u64 | crc32 u32
    payload

Every version keeps these places and the checksum, so that a peer of another version can be told so.

``acknowledged`` counts the DATA frames that the sender of this frame has received in order, ``credit`` the
frame bytes (headers included, since the session began) that it is ready to take. Every frame carries both.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Any, NamedTuple

try:
    from isal.isal_zlib import crc32  # zlib's checksum, ten times as fast: else a fifth of a link's time
except ImportError:  # no wheel for this machine
    from zlib import crc32

MAX_PAYLOAD = 2**20 + 2**16  # a part of 1 MiB and the protocol's own header
SESSION_SIZE = 16

_MAGIC = b"LS"
_VERSION = 1
_HEAD = struct.Struct("!2sBB16sQQQ")
_CHECKSUM = struct.Struct("!I")
HEADER_SIZE = _HEAD.size + _CHECKSUM.size
MAX_FRAME = HEADER_SIZE + MAX_PAYLOAD

_CODE = re.compile(rb"[a-z0-9_]{1,64}")

Buffer = bytes | memoryview
Data = bytes | bytearray  # a frame as it came; whoever hands it over does not touch it any more


class Kind(IntEnum):
    """What a frame is for."""

    OPEN = 1  # client to server, first on every carrier: this session begins, or carries on
    ACCEPT = 2  # server to client: it does
    REJECT = 3  # server to client: it does not; the payload is a reason code
    DATA = 4  # one payload of the stream; the only kind that needs credit
    ACK = 5  # acknowledgement, credit, heartbeat
    GAP = 6  # an ACK whose sender saw a frame that came too early: send again from `acknowledged`
    BYE = 7  # the session ends; the payload is a reason code


class Frame(NamedTuple):
    """A decoded frame; `payload` is a view into the bytes that were decoded."""

    kind: Kind
    session: bytes
    sequence: int
    acknowledged: int
    credit: int
    payload: memoryview


class OpenRequest(NamedTuple):
    """What a server needs to know of a connection's first frame before it has a link for it."""

    session: bytes
    resumes: bool
    is_our_version: bool = True


_KINDS = {int(kind): kind for kind in Kind}
_RESUMES = {False: b"\x00", True: b"\x01"}


def encode(
    kind: Kind,
    session: bytes,
    *,
    sequence: int = 0,
    acknowledged: int = 0,
    credit: int = 0,
    payload: Buffer = b"",
) -> bytes:
    """The frame as bytes; the payload is copied once, here."""
    head = _HEAD.pack(_MAGIC, _VERSION, kind, session, sequence, acknowledged, credit)
    checksum = _CHECKSUM.pack(crc32(payload, crc32(head)))
    return b"".join((head, checksum, payload))


def decode(data: Data) -> Frame | None:
    """The frame in `data`, or None where `data` is no intact frame of this version."""
    head = _intact_head(data)
    if head is None or head[1] != _VERSION or head[2] not in _KINDS:
        return None
    _, _, number, session, sequence, acknowledged, credit = head
    return Frame(_KINDS[number], session, sequence, acknowledged, credit, memoryview(data)[HEADER_SIZE:])


def is_of_other_version(data: Data, session: bytes | None = None) -> bool:
    """Whether `data` is an intact frame of a version that is not ours (and of this session)."""
    head = _intact_head(data)
    return head is not None and head[1] != _VERSION and session in (None, head[3])


def _intact_head(data: Data) -> tuple[Any, ...] | None:
    if not HEADER_SIZE <= len(data) <= MAX_FRAME:
        return None
    view = memoryview(data)
    head = _HEAD.unpack_from(view)
    checksum = crc32(view[HEADER_SIZE:], crc32(view[: _HEAD.size]))
    return head if head[0] == _MAGIC and _CHECKSUM.unpack_from(view, _HEAD.size)[0] == checksum else None


def encode_resumes(resumes: bool) -> bytes:
    """The payload of an OPEN frame."""
    return _RESUMES[resumes]


def decode_open(data: Data) -> OpenRequest | None:
    """The request in `data`, or None where `data` is no intact OPEN frame.

    What OPEN is in another version we cannot know: any intact frame of one passes for it.
    """
    if is_of_other_version(data):
        return OpenRequest(_HEAD.unpack_from(data)[3], resumes=False, is_our_version=False)
    frame = decode(data)
    if frame is None or frame.kind is not Kind.OPEN or frame.payload not in _RESUMES.values():
        return None
    return OpenRequest(frame.session, frame.payload == _RESUMES[True])


def encode_reject(session: bytes, code: str) -> bytes:
    """The REJECT frame that answers an OPEN of `session`."""
    return encode(Kind.REJECT, session, payload=encode_code(code))


def encode_code(code: str) -> bytes:
    """A reason code as the payload of REJECT or BYE; ValueError where it is none."""
    payload = code.encode()
    if not _CODE.fullmatch(payload):
        raise ValueError(f"a reason code is 1 to 64 of a-z, 0-9 and _, found {code!r}")
    return payload


def decode_code(payload: Buffer) -> str | None:
    """The reason code in the payload of REJECT or BYE, or None where it is none."""
    return bytes(payload).decode() if len(payload) <= 64 and _CODE.fullmatch(payload) else None
