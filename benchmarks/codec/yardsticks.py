"""What the kernels are measured against: NumPy's forms of the same arithmetic, and the machine's own rates.

A modular product in 64-bit integers has three forms here. Each is exact: its result is compared with ours.

- ``term_by_term`` reduces every product before it is added, and every sum: what holds for any prime of up to
  31 bits without a thought about bounds. The goals are set against it.
- ``published`` is how FedML does it (``LCC_encoding_with_points`` in its ``lightsecagg.py``): one integer
  ``np.dot`` a share over the whole length, reduced once. At 31 bits its sums would wrap, so it stands at 24.
- ``fewest_reductions`` is the fastest in plain NumPy that we know: as many products are summed as 64 bits
  hold, over few columns at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lightsecagg.kernels import spread

try:
    from numba import njit
except ModuleNotFoundError as missing:
    raise SystemExit(
        "the codec's benchmark measures compiled loops: pip install 'lightsecagg[fast]'"
    ) from missing

Integers = npt.NDArray[np.int64]
Unsigned = npt.NDArray[np.uint64]
Form = Callable[[Any, Any, int], npt.NDArray[np.integer]]
"""(r, k) weights, (k, n) data and the prime to their product."""


def term_by_term(weights: Integers, data: Integers, order: int) -> Integers:
    """(r, k) · (k, n) modulo ``order`` ≤ 2^31, row by row."""
    rows = []
    for coefficients in weights:
        total = np.zeros(data.shape[1], dtype=np.int64)
        for coefficient, row in zip(coefficients, data, strict=True):
            total = np.mod(total + np.mod(coefficient * row, order), order)
        rows.append(total)
    return np.stack(rows)


def published(weights: Integers, data: Integers, order: int) -> Integers:
    """The same where k · order^2 < 2^63."""
    assert weights.shape[1] * (order - 1) ** 2 < 2**63, "the sum would wrap"
    rows = [np.dot(coefficients[np.newaxis], data)[0] for coefficients in weights]
    shares: Integers = np.mod(np.stack(rows), order)
    return shares


def fewest_reductions(weights: Unsigned, data: Unsigned, order: int) -> Unsigned:
    """The same for order ≤ 2^32, in unsigned integers."""
    group = (2**64 - 1) // (order - 1) ** 2
    modulus = np.uint64(order)
    total = np.zeros((weights.shape[0], data.shape[1]), dtype=np.uint64)
    for first in range(0, weights.shape[1], group):
        total += weights[:, first : first + group] @ data[first : first + group] % modulus
    return total % modulus


def quantize_and_mask(
    update: npt.NDArray[np.float32], clip: float, factor: float, order: int, mask: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """Clip, scale, round, to the field, plus the mask; in the update's own precision, which is fastest."""
    rounded = np.rint(np.clip(update, -clip, clip) * np.float32(factor)).astype(np.int64)
    masked: Integers = np.mod(np.mod(rounded, order) + mask, order)
    return masked.astype(np.uint32)


class Memory:
    """Reads an array far larger than any cache, on the codec's threads.

    Attributes:
        size: bytes that one ``read`` takes from memory.
    """

    size = 2**29

    def __init__(self) -> None:
        self._words = np.ones(self.size // 8, dtype=np.uint64)
        self._sink = 0

    def read(self) -> None:
        """Every word once."""
        spread(self._read, len(self._words), 2**12)

    def _read(self, start: int, stop: int) -> None:
        self._sink ^= int(_fold(self._words[start:stop]))


@njit(nogil=True)
def _fold(words: Unsigned) -> np.uint64:
    folded = np.uint64(0)
    for word in words:
        folded ^= word
    return folded
