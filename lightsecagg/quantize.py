"""Reals to field elements and sums back: clip, weight, scale, round, with the field sized so that no honest
sum can wrap (DESIGN §6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from operator import index
from typing import Literal

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import NotFiniteError, ParameterError, UpdateError
from lightsecagg.field import SUPPORTED_ORDERS, Elements, PrimeField
from lightsecagg.kernels import loops
from lightsecagg.randomness import BLOCK_ELEMENTS, SEED_BYTES, Entropy, stream_words, system_entropy

Rounding = Literal["nearest", "stochastic"]

_TILE = 4 * BLOCK_ELEMENTS  # coordinates handled at once, so that nothing of the vector's length is copied


class SumOutOfRangeError(Exception):
    """A decoded coordinate or weight lies where no sum of honest updates can."""


@dataclass(frozen=True)
class WeightedUpdate:
    """One client's update, (d,) floats, and its weight; it prints without them."""

    values: npt.NDArray[np.floating]
    weight: int

    def __repr__(self) -> str:
        return "WeightedUpdate(<secret>)"


@dataclass(frozen=True)
class FixedPoint:
    """Fixed-point numbers of ``fraction_bits`` for weighted updates clipped to ±``clip``.

    A client's vector is w · x with w = n / max_weight ∈ [0, 1], and one more coordinate that carries the
    integer n itself, so that the server learns Σ n·x and Σ n and no single n.

    Args:
        clip: largest magnitude of a coordinate of the update, > 0.
        fraction_bits: bits after the binary point, 0..30.
        max_weight: weight (sample count) that counts as 1; a larger n counts as this.
        rounding: ``nearest`` (ties to even) or ``stochastic`` (unbiased, from a CSPRNG stream of its own).

    Raises:
        ParameterError: a number is out of its range.
    """

    clip: float
    fraction_bits: int
    max_weight: int
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ParameterError(f"clip must be a finite number above 0, found {self.clip}")
        if not 0 <= self.fraction_bits <= 30:
            raise ParameterError(f"fraction_bits must be in 0..30, found {self.fraction_bits}")
        if self.max_weight < 1:
            raise ParameterError(f"max_weight must be at least 1, found {self.max_weight}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ParameterError(f"rounding must be 'nearest' or 'stochastic', found {self.rounding!r}")

    @property
    def largest_coordinate(self) -> int:
        """No coordinate of one client's field vector, weight included, has a larger magnitude."""
        return max(math.floor(Fraction(self.clip) * (1 << self.fraction_bits)) + 1, self.max_weight)

    def fits(self, field: PrimeField, num_clients: int) -> bool:
        """Whether the field holds any sum of ``num_clients`` updates: p > 2 · N · largest coordinate."""
        return field.order > 2 * num_clients * self.largest_coordinate

    def smallest_field(self, num_clients: int) -> PrimeField:
        """The smallest supported field that holds the sum of ``num_clients`` updates.

        Raises:
            ParameterError: none does.
        """
        for order in SUPPORTED_ORDERS:
            if self.fits(field := PrimeField(order), num_clients):
                return field
        raise ParameterError(
            f"no supported prime holds the sum of {num_clients} clients at clip {self.clip}, "
            f"{self.fraction_bits} fraction bits and max_weight {self.max_weight}; lower one of them"
        )

    def check(self, field: PrimeField, num_clients: int) -> None:
        """Refuse a field in which the sum of ``num_clients`` updates could wrap.

        Raises:
            ParameterError: names the smallest supported prime that works.
        """
        if not self.fits(field, num_clients):
            raise ParameterError(
                f"{field.order} cannot hold the sum of {num_clients} clients at clip {self.clip} and "
                f"{self.fraction_bits} fraction bits; the smallest supported prime that can is "
                f"{self.smallest_field(num_clients).order}"
            )

    def quantize(
        self,
        field: PrimeField,
        update: npt.NDArray[np.floating],
        weight: int,
        entropy: Entropy = system_entropy,
    ) -> Elements:
        """One client's weighted update as field elements.

        Args:
            update: (d,) floats.
            weight: n ≥ 0, the client's sample count; above ``max_weight`` it counts as that.
            entropy: source of the stochastic rounding's seed.

        Returns:
            (d + 1,) uint32; the last one is the weight.

        Raises:
            UpdateError: the update is not one-dimensional or not finite (``NotFiniteError``), or the
                weight is negative.
        """
        quantized = np.zeros(update.size + 1, dtype=np.uint32)
        self.add_to(field, quantized, update, weight, entropy)
        return quantized

    def add_to(
        self,
        field: PrimeField,
        total: Elements,
        update: npt.NDArray[np.floating],
        weight: int,
        entropy: Entropy = system_entropy,
    ) -> None:
        """``quantize``, added to ``total`` in place and in one pass: so an update goes under its mask.

        Args:
            total: (d + 1,) uint32.
            update, weight, entropy: as for ``quantize``.

        Raises:
            UpdateError: as ``quantize``; ``total`` is unchanged then.
        """
        weight = self.check_update(update, weight)
        noise = np.empty(0, dtype=np.uint32)
        seed = entropy(SEED_BYTES) if self.rounding == "stochastic" else None
        factor = weight * 2.0**self.fraction_bits / self.max_weight
        run = loops(len(update))
        for start in range(0, len(update), _TILE):
            tile = _reals(update[start : start + _TILE])
            if seed is not None:
                noise = stream_words(seed, start, start + len(tile))
            run.add_quantized(tile, noise, self.clip, factor, field.order, total[start : start + len(tile)])
        run.add(total[-1:], np.array([weight], dtype=np.uint32), field.order)

    def check_update(self, update: npt.NDArray[np.floating], weight: int) -> int:
        """The weight as it counts, of an update that can be quantized.

        Raises:
            UpdateError: the update is not one-dimensional or not finite (``NotFiniteError``), or the
                weight is negative.
        """
        if update.ndim != 1:
            raise UpdateError(f"wanted an update of shape (d,), found {update.shape}")
        if weight < 0:
            raise UpdateError("a weight must be an integer ≥ 0")
        if not self.inspect(update)[0]:
            raise NotFiniteError("the update holds NaN or infinity")
        return min(index(weight), self.max_weight)

    def inspect(self, update: npt.NDArray[np.floating]) -> tuple[bool, int]:
        """Whether every coordinate is finite, and how many will be clipped."""
        return loops(len(update)).inspect(_reals(update), self.clip)

    def dequantize(
        self, field: PrimeField, total: Elements, num_survivors: int
    ) -> tuple[npt.NDArray[np.float64], int]:
        """The weighted mean out of the sum of ``num_survivors`` quantized updates.

        Returns:
            (d,) float64 mean, zeros where the total weight is 0; and the total weight Σ n.

        Raises:
            SumOutOfRangeError: a coordinate or the weight lies where no honest sum can.
        """
        total_weight = int(field.centered(total[-1:])[0])
        if not 0 <= total_weight <= num_survivors * self.max_weight:
            raise SumOutOfRangeError("the total weight is outside [0, |S| · max_weight]")
        limit = num_survivors * (self.clip * 2**self.fraction_bits + 1)
        scale = self.max_weight / total_weight / 2**self.fraction_bits if total_weight else 0.0
        mean = np.empty(len(total) - 1)
        for start in range(0, len(mean), _TILE):
            values = field.centered(total[start : min(start + _TILE, len(mean))])
            if max(-int(values.min()), int(values.max())) > limit:
                raise SumOutOfRangeError("a coordinate of the sum is beyond |S| · (clip · 2^bits + 1)")
            np.multiply(values, scale, out=mean[start : start + len(values)])
        return mean, total_weight


def _reals(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The values as what the loops take: float32 and float64 as they are."""
    is_plain = values.dtype in (np.float32, np.float64)
    return np.ascontiguousarray(values, dtype=None if is_plain else np.float64)
