"""The loops compiled by numba, without the GIL; the machine code is kept on disk for the next process.

Rows are sliced before they are walked: an index that may be negative keeps LLVM from using vectors. Integers
are uint64 where numba would promote them anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.core.types import Array

from lightsecagg.kernels.interface import Bytes, Elements, Reals

_Loop = TypeVar("_Loop", bound=Callable[..., Any])

_words = types.uint32[::1]
_words_in = Array(types.uint32, 1, "C", readonly=True)
_bytes_in = Array(types.uint8, 1, "C", readonly=True)
_rows_in = Array(types.uint32, 2, "C", readonly=True)
_reals = types.float64[:, ::1]
_updates_in = [Array(real, 1, "C", readonly=True) for real in (types.float32, types.float64)]
_int = types.int64
_checked = types.Tuple((types.boolean, types.int64))  # type: ignore[no-untyped-call]
_real = types.float64


def _compile(*signatures: Any) -> Callable[[_Loop], _Loop]:
    def compile_loop(loop: _Loop) -> _Loop:
        try:
            return compile_once(loop, cache=True)
        except RuntimeError:  # neither the package's folder nor the user's can be written
            return compile_once(loop, cache=False)

    def compile_once(loop: _Loop, *, cache: bool) -> _Loop:
        return cast(_Loop, njit(list(signatures), nogil=True, cache=cache, error_model="numpy")(loop))

    return compile_loop


_inline = cast(Callable[[_Loop], _Loop], njit(inline="always"))


@_compile(types.void(_rows_in, _int, _int, _reals))
def center(data: Elements, start: int, order: int, out: Reals) -> None:
    half, p = np.uint32(order // 2), np.float64(order)
    for i in range(out.shape[0]):
        row, target = data[i, start : start + out.shape[1]], out[i]
        for j in range(target.size):
            target[j] = np.float64(row[j]) - (p if row[j] > half else 0.0)


@_compile(
    types.void(_reals, types.none, _int, types.uint32[:, ::1], _int),
    types.void(_reals, _reals, _int, types.uint32[:, ::1], _int),
)
def settle(low: Reals, high: Reals | None, order: int, out: Elements, start: int) -> None:
    # The bounds are those of ``portable._reduce``; a fused multiply-add only spares a rounding of integers
    # that need none.
    p = np.float64(order)
    inverse = 1.0 / p
    for i in range(low.shape[0]):
        row, target = low[i], out[i, start : start + low.shape[1]]
        for j in range(row.size):
            value = row[j]
            if high is not None:
                upper = high[i, :][j]
                value += (upper - np.rint(upper * inverse) * p) * 65536.0
            value -= np.rint(value * inverse) * p
            value += p if value < 0.0 else 0.0
            target[j] = np.uint32(np.int64(value))


@_compile(_int(_words_in, _int, _int, _words))
def accept(words: Elements, mask: int, order: int, out: Elements) -> int:
    bits, room = np.uint32(mask), min(words.size, out.size)
    largest = np.uint32(0)
    for i in range(room):
        word = np.uint32(words[i] & bits)
        out[i] = word
        largest = max(largest, word)
    if largest < order and room == words.size:
        return room
    taken = 0
    for i in range(words.size):
        word = np.uint32(words[i] & bits)
        if taken == out.size:
            break
        out[taken] = word
        taken += int(word < order)
    return taken


@_compile(types.void(_words, _words_in, _int))
def add(total: Elements, elements: Elements, order: int) -> None:
    for i in range(total.size):
        gap = np.uint32(order - elements[i])
        total[i] = total[i] - gap if total[i] >= gap else total[i] + elements[i]


@_compile(types.void(_words, _words_in, _int))
def subtract(total: Elements, elements: Elements, order: int) -> None:
    for i in range(total.size):
        gap = np.uint32(order - elements[i])
        total[i] = total[i] - elements[i] if total[i] >= elements[i] else total[i] + gap


@_compile(types.void(_words_in, types.uint8[::1]))
def pack3(elements: Elements, out: Bytes) -> None:
    # Four elements are three words; bytes one by one take half as long again.
    whole = elements.size // 4
    words = out[: 12 * whole].view(np.uint32)
    for i in range(whole):
        a, b, c, d = elements[4 * i], elements[4 * i + 1], elements[4 * i + 2], elements[4 * i + 3]
        words[3 * i] = a | (b << 24)
        words[3 * i + 1] = (b >> 8) | (c << 16)
        words[3 * i + 2] = (c >> 16) | (d << 8)
    for i in range(4 * whole, elements.size):
        for k in range(3):
            out[3 * i + k] = (elements[i] >> (8 * k)) & 255


@_inline
def _first(words: Elements, i: int) -> Any:
    return words[3 * i] & 0xFFFFFF


@_inline
def _second(words: Elements, i: int) -> Any:
    return (words[3 * i] >> 24) | ((words[3 * i + 1] & 0xFFFF) << 8)


@_inline
def _third(words: Elements, i: int) -> Any:
    return (words[3 * i + 1] >> 16) | ((words[3 * i + 2] & 0xFF) << 16)


@_inline
def _fourth(words: Elements, i: int) -> Any:
    return words[3 * i + 2] >> 8


@_inline
def _one(data: Bytes, i: int) -> Any:
    return np.uint32(data[3 * i]) | (np.uint32(data[3 * i + 1]) << 8) | (np.uint32(data[3 * i + 2]) << 16)


@_compile(_int(_bytes_in, _words))
def unpack3(data: Bytes, out: Elements) -> int:
    whole = out.size // 4
    words, largest = data[: 12 * whole].view(np.uint32), np.uint32(0)
    for i in range(whole):
        a, b = np.uint32(_first(words, i)), np.uint32(_second(words, i))
        c, d = np.uint32(_third(words, i)), np.uint32(_fourth(words, i))
        out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = a, b, c, d
        largest = max(a, b, c, d, largest)
    for i in range(4 * whole, out.size):
        out[i] = _one(data, i)
        largest = max(largest, out[i])
    return largest  # type: ignore[return-value]


@_compile(_int(_bytes_in))
def largest3(data: Bytes) -> int:
    whole = data.size // 12
    words, largest = data[: 12 * whole].view(np.uint32), np.uint32(0)
    for i in range(whole):
        a, b = np.uint32(_first(words, i)), np.uint32(_second(words, i))
        c, d = np.uint32(_third(words, i)), np.uint32(_fourth(words, i))
        largest = max(a, b, c, d, largest)
    for i in range(4 * whole, data.size // 3):
        largest = max(largest, np.uint32(_one(data, i)))
    return largest  # type: ignore[return-value]


@_inline
def _sum(total: Any, element: Any, order: int) -> Any:
    gap = np.uint32(order - element)
    return total - gap if total >= gap else total + element


@_compile(types.void(_words, _bytes_in, _int))
def add3(total: Elements, data: Bytes, order: int) -> None:
    whole = total.size // 4
    words = data[: 12 * whole].view(np.uint32)
    for i in range(whole):
        a, b, c, d = _first(words, i), _second(words, i), _third(words, i), _fourth(words, i)
        total[4 * i] = _sum(total[4 * i], a, order)
        total[4 * i + 1] = _sum(total[4 * i + 1], b, order)
        total[4 * i + 2] = _sum(total[4 * i + 2], c, order)
        total[4 * i + 3] = _sum(total[4 * i + 3], d, order)
    for i in range(4 * whole, total.size):
        total[i] = _sum(total[i], _one(data, i), order)


@_compile(*(_checked(update, _real) for update in _updates_in))
def inspect(update: Reals, clip: float) -> tuple[bool, int]:
    infinite = beyond = 0
    for i in range(update.size):
        magnitude = abs(update[i])
        infinite += not magnitude < np.inf
        beyond += magnitude > clip
    return infinite == 0, beyond


@_compile(*(types.void(update, _words_in, _real, _real, _int, _words) for update in _updates_in))
def add_quantized(
    update: Reals, noise: Elements, clip: float, factor: float, order: int, total: Elements
) -> None:
    p = np.float64(order)
    for i in range(update.size):
        real = min(max(np.float64(update[i]), -clip), clip) * factor
        rounded = np.floor(real + noise[i] * 2.0**-32) if noise.size else np.rint(real)
        rounded += p if rounded < 0.0 else 0.0
        element = np.uint32(np.int64(rounded))
        gap = np.uint32(order - element)
        total[i] = total[i] - gap if total[i] >= gap else total[i] + element
