"""The loops in NumPy: for machines without numba, for short vectors, and as what the others must equal.

Vectors are handled in tiles that stay in cache, so that temporaries stay small.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lightsecagg.kernels.interface import Bytes, Elements, Reals

_TILE = 2**16


def center(data: Elements, start: int, order: int, out: Reals) -> None:
    piece = data[:, start : start + out.shape[1]]
    out[:] = piece
    out -= (piece > order // 2) * float(order)


def settle(low: Reals, high: Reals | None, order: int, out: Elements, start: int) -> None:
    if high is not None:
        _reduce(high, order)
        high *= 2.0**16
        low += high
    _reduce(low, order)
    out[:, start : start + low.shape[1]] = low


def _reduce(values: Reals, order: int) -> None:
    """Integers below 2^53 in magnitude modulo ``order``, in place, to [0, order).

    The quotient is off by less than 2/order before it is rounded, so the remainder lies within order/2 + 2
    of 0 and one conditional addition brings it home; each step's operands are integers below 2^53.
    """
    quotient = values * (1.0 / order)
    np.rint(quotient, out=quotient)
    quotient *= order
    values -= quotient
    values += (values < 0) * float(order)


def accept(words: Elements, mask: int, order: int, out: Elements) -> int:
    candidates = words & np.uint32(mask)
    if candidates.size and int(candidates.max()) >= order:
        candidates = candidates[candidates < order]
    taken = min(len(candidates), len(out))
    out[:taken] = candidates[:taken]
    return taken


def add(total: Elements, elements: Elements, order: int) -> None:
    for tile in _tiles(len(total)):
        sums = total[tile].astype(np.uint64) + elements[tile]
        total[tile] = sums % np.uint64(order)


def subtract(total: Elements, elements: Elements, order: int) -> None:
    for tile in _tiles(len(total)):
        sums = total[tile].astype(np.uint64) + (np.uint64(order) - elements[tile].astype(np.uint64))
        total[tile] = sums % np.uint64(order)


def pack3(elements: Elements, out: Bytes) -> None:
    out.reshape(-1, 3)[:] = elements.astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)[:, :3]


def unpack3(data: Bytes, out: Elements) -> int:
    largest = 0
    for tile in _tiles(len(out)):
        words = np.zeros((len(out[tile]), 4), dtype=np.uint8)
        words[:, :3] = data[3 * tile.start : 3 * tile.stop].reshape(-1, 3)
        out[tile] = words.view("<u4").reshape(-1)
        largest = max(largest, int(out[tile].max()))
    return largest


def largest3(data: Bytes) -> int:
    return unpack3(data, np.empty(len(data) // 3, dtype=np.uint32))


def add3(total: Elements, data: Bytes, order: int) -> None:
    elements = np.empty(len(total), dtype=np.uint32)
    unpack3(data, elements)
    add(total, elements, order)


def inspect(update: npt.NDArray[np.floating], clip: float) -> tuple[bool, int]:
    is_finite, beyond = True, 0
    for tile in _tiles(len(update)):
        is_finite = is_finite and bool(np.isfinite(update[tile]).all())
        beyond += int(np.count_nonzero(np.abs(update[tile]) > np.float64(clip)))
    return is_finite, beyond


def add_quantized(
    update: npt.NDArray[np.floating],
    noise: Elements,
    clip: float,
    factor: float,
    order: int,
    total: Elements,
) -> None:
    for tile in _tiles(len(update)):
        reals = np.clip(update[tile].astype(np.float64), -clip, clip)
        reals *= factor
        if noise.size:
            reals += noise[tile] * 2.0**-32
            np.floor(reals, out=reals)
        else:
            np.rint(reals, out=reals)
        reals += (reals < 0) * float(order)
        add(total[tile], reals.astype(np.uint32), order)


def _tiles(length: int) -> Iterator[slice]:
    for start in range(0, length, _TILE):
        yield slice(start, min(start + _TILE, length))
