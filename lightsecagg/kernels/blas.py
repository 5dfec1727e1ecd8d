"""Exact products of matrices over GF(p) by float64 BLAS, each with the bound that makes it exact.

A float64 sum of integer products is exact while no partial sum reaches 2^53 in magnitude, in whatever order
BLAS adds. Coefficients and data are centred in ±p/2, so a row's partial sums are at most
Σ|W| · p/2. Where that is too much, W = hi · 2^16 + lo halves the coefficients' bits at the price of a second
product, and where even those rows are too long, the columns of W are cut into blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightsecagg.field import Elements, PrimeField

Reals = npt.NDArray[np.float64]

EXACT_LIMIT = 2**53 - 2**50
"""Bound on a product's partial sums. The 2^50 below 2^53 leave room for what is added to them before they
are reduced: a reduced high half times 2^16 (< 2^48) and a reduced sum (< 2^32)."""

_TILE_COLUMNS = 4096  # a (140 × 4096) float64 tile is 4.6 MB: large enough for BLAS, small enough to reuse


class _Block(NamedTuple):
    """Columns [start, stop) of W, as one matrix (``high`` is None) or two halves."""

    start: int
    stop: int
    high: Reals | None
    low: Reals


class ModularMatrix:
    """A fixed (r, k) matrix W over GF(p) that multiplies (k, n) data exactly.

    One object serves many products and threads: it is not changed by them.
    """

    def __init__(self, field: PrimeField, weights: Elements) -> None:
        self.field = field
        self.shape: tuple[int, int] = (weights.shape[0], weights.shape[1])
        self._blocks = _plan(field, field.centered(weights))

    def product(self, data: Elements) -> Elements:
        """W · data.

        Args:
            data: (k, n) uint32.

        Returns:
            (r, n) uint32.
        """
        assert data.shape[0] == self.shape[1], "the data's rows must be the matrix's columns"
        result = np.empty((self.shape[0], data.shape[1]), dtype=np.uint32)
        for start in range(0, data.shape[1], _TILE_COLUMNS):
            tile = _centered_reals(self.field, data[:, start : start + _TILE_COLUMNS])
            result[:, start : start + _TILE_COLUMNS] = self._tile_product(tile)
        return result

    def _tile_product(self, tile: Reals) -> Reals:
        total: Reals | None = None
        for block in self._blocks:
            rows = tile[block.start : block.stop]
            part = block.low @ rows
            if block.high is not None:
                high = block.high @ rows
                _reduce(high, self.field.order)
                high *= 2.0**16
                part += high
            if total is not None:
                part += total
            _reduce(part, self.field.order)
            total = part
        assert total is not None
        return total


def _plan(field: PrimeField, centered: npt.NDArray[np.int64]) -> list[_Block]:
    columns = centered.shape[1]
    largest = field.order // 2
    if int(np.abs(centered).sum(axis=1).max(initial=0)) * largest <= EXACT_LIMIT:
        return [_Block(0, columns, None, centered.astype(np.float64))]
    low = ((centered + 2**15) & 0xFFFF) - 2**15  # in [−2^15, 2^15)
    high = (centered - low) >> 16  # at most 2^15 in magnitude, since |centered| < 2^31
    # Every single term is at most 2^15 · 2^31 = 2^46, so a block always takes at least 2^6 columns.
    blocks, start = [], 0
    while start < columns:
        reach = np.maximum(np.abs(high[:, start:]), np.abs(low[:, start:])).cumsum(axis=1).max(axis=0)
        count = int(np.searchsorted(reach, EXACT_LIMIT // largest, side="right"))
        assert count > 0
        halves = slice(start, start + count)
        blocks.append(
            _Block(
                start,
                min(start + count, columns),
                high[:, halves].astype(np.float64),
                low[:, halves].astype(np.float64),
            )
        )
        start += count
    return blocks


def _centered_reals(field: PrimeField, data: Elements) -> Reals:
    reals = data.astype(np.float64)
    reals -= (data > field.order // 2) * float(field.order)
    return reals


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
