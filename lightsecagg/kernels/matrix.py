"""Exact products of matrices over GF(p) by float64 BLAS, each with the bound that makes it exact.

A float64 sum of integer products is exact while no partial sum reaches 2^53 in magnitude, in whatever order
BLAS adds. Coefficients and data are centred in ±p/2, so a row's partial sums are at most
Σ|W| · p/2. Where that is too much, W = hi · 2^16 + lo halves the coefficients' bits at the price of a second
product, and where even those rows are too long, the columns of W are cut into blocks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lightsecagg.kernels.interface import Elements, Loops, Reals, loops
from lightsecagg.kernels.workers import spread

EXACT_LIMIT = 2**53 - 2**50
"""Bound on a product's partial sums. The 2^50 below 2^53 leave room for what is added to them before they
are reduced: a reduced high half times 2^16 (< 2^48)."""

# A tile of columns stays in a core's L2 cache and is, where it can be, a product of so few multiply-adds that
# OpenBLAS's AVX-512 kernels take it as it lies, a quarter faster. It is an odd multiple of 64 columns wide:
# rows that are a power of two apart would share their places in the cache.
_SMALL_PRODUCT = 10**6
_LEAST_COLUMNS, _MOST_COLUMNS = 9 * 64, 129 * 64
_THREAD_COLUMNS = 1024  # fewer are not worth a thread of their own


class Product(Protocol):
    """A fixed (r, k) matrix W over GF(p) that multiplies (k, n) data exactly."""

    shape: tuple[int, int]

    def product(self, data: Elements, out: Elements | None = None, at: int = 0) -> Elements:
        """As ``ModularMatrix.product``."""


_device: str | None = None


def use_device(name: str | None) -> None:
    """Let the products of this process run on a device of torch's from now on; None: on the CPU's BLAS."""
    global _device  # noqa: PLW0603 - the process has one codec
    _device = name


def modular_matrix(order: int, weights: Elements) -> Product:
    """W on the device that is in use."""
    if _device is None:
        return ModularMatrix(order, weights)
    from lightsecagg.kernels.device import DeviceMatrix  # noqa: PLC0415 - loads torch

    return DeviceMatrix(order, weights, _device)


class Block(NamedTuple):
    """Columns [start, stop) of W, as one matrix (``high`` is None) or two halves."""

    start: int
    stop: int
    high: Reals | None
    low: Reals


class ModularMatrix:
    """A fixed (r, k) matrix W over GF(p) that multiplies (k, n) data exactly.

    One object serves many products and threads: it is not changed by them.

    Args:
        order: p, a prime below 2^32.
        weights: (r, k) uint32 below p.
    """

    def __init__(self, order: int, weights: Elements) -> None:
        self.order = order
        self.shape: tuple[int, int] = (weights.shape[0], weights.shape[1])
        self.blocks = plan(order, weights)
        columns = min(max(_SMALL_PRODUCT // max(weights.size, 1), _LEAST_COLUMNS), _MOST_COLUMNS)
        self._tile = ((columns // 64 - 1) | 1) * 64

    def product(self, data: Elements, out: Elements | None = None, at: int = 0) -> Elements:
        """W · data.

        Args:
            data: (k, n) uint32.
            out: (r, ≥ at + n) uint32 that takes the result; a new array if None.
            at: where in ``out`` the result's columns begin.

        Returns:
            (r, n) uint32, or ``out``.
        """
        assert data.shape[0] == self.shape[1], "the data's rows must be the matrix's columns"
        columns = data.shape[1]
        result = np.empty((self.shape[0], columns), dtype=np.uint32) if out is None else out
        # Compiled loops check no bounds.
        assert len(result) == self.shape[0], "the result's rows must be the matrix's"
        assert at + columns <= result.shape[1], "the result must hold the columns"
        data = np.ascontiguousarray(data)
        spread(lambda start, stop: self._columns(data, start, stop, result, at), columns, _THREAD_COLUMNS)
        return result

    def _columns(self, data: Elements, start: int, stop: int, result: Elements, at: int) -> None:
        rows, inputs = self.shape
        width = min(self._tile, stop - start)
        run = loops(data.shape[1])
        reals = np.empty((inputs + 2 * rows) * width)
        for first in range(start, stop, width or 1):
            columns = min(width, stop - first)
            tile = reals[: (inputs + 2 * rows) * columns].reshape(-1, columns)
            centered, low, high = tile[:inputs], tile[inputs : inputs + rows], tile[inputs + rows :]
            run.center(data, first, self.order, centered)
            self._multiply(run, centered, (low, high), result, at + first)

    def _multiply(
        self, run: Loops, centered: Reals, scratch: tuple[Reals, Reals], result: Elements, first: int
    ) -> None:
        columns = centered.shape[1]
        for block in self.blocks:
            rows = centered[block.start : block.stop]
            low = np.matmul(block.low, rows, out=scratch[0])
            high = None if block.high is None else np.matmul(block.high, rows, out=scratch[1])
            if block.start == 0:
                run.settle(low, high, self.order, result, first)
                continue
            part = np.empty((self.shape[0], columns), dtype=np.uint32)
            run.settle(low, high, self.order, part, 0)
            for total, addend in zip(result, part, strict=True):
                run.add(total[first : first + columns], addend, self.order)


def plan(order: int, weights: Elements) -> list[Block]:
    """How W is cut so that every product is exact."""
    centered: npt.NDArray[np.int64] = weights.astype(np.int64)
    centered[centered > order // 2] -= order
    columns, largest = centered.shape[1], order // 2
    if int(np.abs(centered).sum(axis=1).max(initial=0)) * largest <= EXACT_LIMIT:
        return [Block(0, columns, None, centered.astype(np.float64))]
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
            Block(
                start,
                min(start + count, columns),
                high[:, halves].astype(np.float64),
                low[:, halves].astype(np.float64),
            )
        )
        start += count
    return blocks
