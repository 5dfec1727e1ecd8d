"""Field elements to bytes and back: little-endian, ``field.element_bytes`` whole bytes an element."""

from __future__ import annotations

import numpy as np

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import Elements, PrimeField


def pack(field: PrimeField, elements: Elements) -> bytes:
    """The elements, one after another; ``len(elements) * field.element_bytes`` bytes."""
    words = np.ascontiguousarray(elements, dtype="<u4")
    if field.element_bytes == 4:
        return words.tobytes()
    return words.view(np.uint8).reshape(-1, 4)[:, : field.element_bytes].tobytes()


def unpack(field: PrimeField, data: bytes | memoryview, count: int) -> Elements:
    """The inverse of ``pack``; bytes come from outside, so length and range are checked first.

    Raises:
        RemoteProtocolError: ``data`` is not ``count`` elements long (``bad_length``), or holds a value that
            is not below the order (``bad_element``).
    """
    width = field.element_bytes
    if len(data) != count * width:
        raise RemoteProtocolError(
            Reason.BAD_LENGTH, f"wanted {count} elements of {width} bytes, found {len(data)} bytes"
        )
    if width == 4:
        elements = np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
    else:
        words = np.zeros((count, 4), dtype=np.uint8)
        words[:, :width] = np.frombuffer(data, dtype=np.uint8).reshape(count, width)
        elements = words.view("<u4").reshape(count).astype(np.uint32, copy=False)
    if not field.contains(elements):
        raise RemoteProtocolError(Reason.BAD_ELEMENT, f"an element is not below the order {field.order}")
    return elements
