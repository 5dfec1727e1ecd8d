"""GF(p) for primes below 2^32: element-wise arithmetic on NumPy uint32 arrays.

Matrix products live in ``kernels``; packing to bytes in ``packing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ParameterError

Elements = npt.NDArray[np.uint32]
"""Field elements: NumPy uint32, every value below the field's order."""

SUPPORTED_ORDERS = (2**16 - 15, 2**24 - 3, 2**31 - 1, 2**32 - 5)
"""The primes that ``auto`` chooses from: the largest below 2, 3 and 4 whole bytes, and 2^31 − 1."""


def is_prime(number: int) -> bool:
    """Deterministic Miller–Rabin; the witnesses 2, 7, 61 decide every number below 4,759,123,141."""
    if number < 2:
        return False
    for prime in (2, 3, 5, 7, 61):
        if number % prime == 0:
            return number == prime
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in (2, 7, 61):
        power = pow(witness, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


@dataclass(frozen=True)
class PrimeField:
    """The integers modulo a prime ``order`` below 2^32.

    Raises:
        ParameterError: ``order`` is composite, below 2 or not below 2^32.
    """

    order: int

    def __post_init__(self) -> None:
        if not 2 <= self.order < 2**32:
            raise ParameterError(f"the field's order must be a prime below 2^32, found {self.order}")
        if not is_prime(self.order):
            raise ParameterError(f"the field's order must be prime, found {self.order}, which is composite")

    @property
    def element_bits(self) -> int:
        """Bits of the largest element, p − 1."""
        return (self.order - 1).bit_length()

    @property
    def element_bytes(self) -> int:
        """Whole bytes that one packed element takes."""
        return -(-self.element_bits // 8)

    def elements(self, values: npt.ArrayLike | Sequence[int]) -> Elements:
        """Integers that 64 bits hold, negative ones too, as field elements."""
        integers = np.asarray(values)
        wide = np.uint64 if integers.dtype == np.uint64 else np.int64
        return np.mod(integers.astype(wide), wide(self.order)).astype(np.uint32)

    def contains(self, values: npt.NDArray[np.unsignedinteger]) -> bool:
        """Whether every value is below the order."""
        return values.size == 0 or int(values.max()) < self.order

    def add(self, a: Elements, b: Elements) -> Elements:
        """a + b; the sum is formed in 64 bits, where 2·(2^32 − 1) cannot wrap."""
        return self.reduce(a.astype(np.uint64) + b)

    def subtract(self, a: Elements, b: Elements) -> Elements:
        """a − b, formed as a + (p − b) in 64 bits."""
        return self.reduce(a.astype(np.uint64) + (np.uint64(self.order) - b.astype(np.uint64)))

    def multiply(self, a: Elements, b: Elements) -> Elements:
        """a · b element by element; (2^32 − 1)^2 < 2^64, so the 64-bit product cannot wrap."""
        return self.reduce(a.astype(np.uint64) * b.astype(np.uint64))

    def reduce(self, values: npt.NDArray[np.uint64]) -> Elements:
        """Unsigned 64-bit integers modulo p."""
        return (values % np.uint64(self.order)).astype(np.uint32)

    def invert(self, a: Elements) -> Elements:
        """1/a element by element, as a^(p−2).

        Raises:
            ZeroDivisionError: an element is 0.
        """
        if not np.all(a):
            raise ZeroDivisionError("0 has no inverse in the field")
        result = np.ones_like(a)
        power, exponent = a, self.order - 2
        while exponent:
            if exponent & 1:
                result = self.multiply(result, power)
            power, exponent = self.multiply(power, power), exponent >> 1
        return result

    def centered(self, a: Elements) -> npt.NDArray[np.int64]:
        """Representatives in [−(p−1)/2, p/2]: the integers that small sums stand for."""
        values = a.astype(np.int64)
        values[values > self.order // 2] -= self.order
        return values
