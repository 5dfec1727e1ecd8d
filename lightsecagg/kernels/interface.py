"""The loops over long vectors of field elements: what each does, and which implementation runs it.

Two modules implement them: ``portable`` in NumPy, ``compiled`` in numba. The first long vector loads the
compiler, so that a process that handles short ones only never does.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]
Elements = npt.NDArray[np.uint32]
Reals = npt.NDArray[np.float64]

_COMPILED = "lightsecagg.kernels.compiled"
_LONG = 2**14  # elements: NumPy takes some 0.05 ms for a pass over so many


class Loops(Protocol):
    """One pass over contiguous arrays each; ``order`` is the field's prime p < 2^32."""

    def center(self, data: Elements, start: int, order: int, out: Reals) -> None:
        """Columns [start, start + w) of ``data`` (k, n), centred in ±p/2, into ``out`` (k, w)."""

    def settle(self, low: Reals, high: Reals | None, order: int, out: Elements, start: int) -> None:
        """low + 2^16 · high modulo p into columns [start, start + w) of ``out`` (r, n).

        Args:
            low, high: (r, w) integers, |low| and |high| ≤ ``EXACT_LIMIT``; they may be overwritten.
        """

    def accept(self, words: Elements, mask: int, order: int, out: Elements) -> int:
        """The words that are below p once masked, in their order, into ``out``; how many it took."""

    def add(self, total: Elements, elements: Elements, order: int) -> None:
        """total += elements modulo p, in place."""

    def subtract(self, total: Elements, elements: Elements, order: int) -> None:
        """total −= elements modulo p, in place."""

    def pack3(self, elements: Elements, out: Bytes) -> None:
        """Elements below 2^24 as three little-endian bytes each."""

    def unpack3(self, data: Bytes, out: Elements) -> int:
        """The inverse; returns the largest element."""

    def largest3(self, data: Bytes) -> int:
        """The largest of the elements packed in ``data``, 0 where there is none."""

    def add3(self, total: Elements, data: Bytes, order: int) -> None:
        """total += the elements packed in ``data``, in place; every one is below p."""

    def inspect(self, update: npt.NDArray[np.floating], clip: float) -> tuple[bool, int]:
        """Whether every coordinate is finite, and how many are beyond ±clip."""

    def add_quantized(
        self,
        update: npt.NDArray[np.floating],
        noise: Elements,
        clip: float,
        factor: float,
        order: int,
        total: Elements,
    ) -> None:
        """total += round(clipped update · factor) modulo p, in place.

        Args:
            update: (d,) float32 or float64, finite.
            noise: empty to round to nearest (ties to even); or d words: rounds up where the fraction plus
                word · 2^-32 reaches 1.
            factor: clip · factor is below p/2.
        """


@cache
def _compiled() -> Loops | None:
    try:
        return cast(Loops, import_module(_COMPILED))
    except ImportError as error:  # the extra "fast" is not installed, or not for this NumPy
        if not isinstance(error, ModuleNotFoundError):
            log.warning("numba cannot be used (%s); NumPy's loops run instead", error)
        return None


@cache
def _portable() -> Loops:
    return cast(Loops, import_module("lightsecagg.kernels.portable"))


def loops(length: int) -> Loops:
    """The implementation for vectors of ``length``: NumPy's for short ones while no compiler is loaded."""
    wants_compiled = length >= _LONG or _COMPILED in sys.modules
    return (_compiled() if wants_compiled else None) or _portable()
