"""Field elements to bytes and back: little-endian, ``field.element_bytes`` whole bytes an element."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import Elements, PrimeField
from lightsecagg.kernels import loops

Bytes = npt.NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview

_WORDS = {1: "u1", 2: "<u2", 4: "<u4"}  # what NumPy casts to; three bytes have loops of their own


def pack(field: PrimeField, elements: Elements) -> memoryview:
    """The elements, one after another; ``len(elements) * field.element_bytes`` bytes."""
    out = np.empty(len(elements) * field.element_bytes, dtype=np.uint8)
    pack_into(field, elements, out)
    return out.data


def pack_into(field: PrimeField, elements: Elements, out: Bytes) -> None:
    """``pack`` into ``out``, which is as long as that."""
    assert len(out) == len(elements) * field.element_bytes, "the packed elements must fit exactly"
    if field.element_bytes == 3:
        loops(len(elements)).pack3(np.ascontiguousarray(elements), out)
    else:
        out.view(_WORDS[field.element_bytes])[:] = elements


def check_packed(field: PrimeField, data: Buffer, count: int) -> Bytes:
    """Bytes that came from outside, as a view, once they are known to be ``count`` elements of the field.

    Raises:
        RemoteProtocolError: ``data`` is not ``count`` elements long (``bad_length``), or holds a value that
            is not below the order (``bad_element``).
    """
    packed = _of_length(field, data, count)
    if field.element_bytes == 3:
        largest = loops(count).largest3(packed)
    else:
        largest = int(_words(field, packed).max(initial=0))
    _check_range(field, largest)
    return packed


def unpack(field: PrimeField, data: Buffer, count: int) -> Elements:
    """The inverse of ``pack``; bytes come from outside, so length and range are checked first.

    Raises:
        RemoteProtocolError: as ``check_packed``.
    """
    elements = np.empty(count, dtype=np.uint32)
    unpack_into(field, data, elements)
    return elements


def unpack_into(field: PrimeField, data: Buffer, out: Elements) -> None:
    """``unpack`` into ``out``, which is as long as the elements are many, in one pass.

    Raises:
        RemoteProtocolError: as ``check_packed``; ``out`` holds what nobody should use then.
    """
    packed = _of_length(field, data, len(out))
    if field.element_bytes == 3:
        largest = loops(len(out)).unpack3(packed, out)
    else:
        out[:] = _words(field, packed)
        largest = int(out.max(initial=0))
    _check_range(field, largest)


def add_packed(field: PrimeField, total: Elements, packed: Bytes) -> None:
    """total += the elements that ``check_packed`` let through, in place."""
    assert len(packed) == len(total) * field.element_bytes, "as many elements as the total has"
    run = loops(len(total))
    if field.element_bytes == 3:
        run.add3(total, packed, field.order)
    else:
        run.add(total, _words(field, packed).astype(np.uint32), field.order)


def _of_length(field: PrimeField, data: Buffer, count: int) -> Bytes:
    width = field.element_bytes
    if len(data) != count * width:
        raise RemoteProtocolError(
            Reason.BAD_LENGTH, f"wanted {count} elements of {width} bytes, found {len(data)} bytes"
        )
    return np.frombuffer(data, dtype=np.uint8)


def _check_range(field: PrimeField, largest: int) -> None:
    if largest >= field.order:
        raise RemoteProtocolError(Reason.BAD_ELEMENT, f"an element is not below the order {field.order}")


def _words(field: PrimeField, packed: Bytes) -> npt.NDArray[np.unsignedinteger]:
    return packed.view(_WORDS[field.element_bytes])
