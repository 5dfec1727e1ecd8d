"""Shamir's secret sharing of 32-byte secrets, vectorised: many secrets, many holders, many dealers at once.

A secret is cut into limbs of 30 bits, each an element of GF(2^31 − 1) and shared by a polynomial of its own
(Shamir, CACM 1979). The constant terms are the secrets; holder j's share is the values at j.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightsecagg.field import Elements, PrimeField
from lightsecagg.randomness import Entropy, expand, system_entropy

FIELD = PrimeField(2**31 - 1)
LIMB_BITS = 30
SECRET_BYTES = 32
LIMBS = -(-8 * SECRET_BYTES // LIMB_BITS)
SHARE_BYTES = 4 * LIMBS
"""Bytes of one share of one secret."""


def share(
    secrets: Sequence[bytes], holders: Sequence[int], threshold: int, entropy: Entropy = system_entropy
) -> Elements:
    """Shares of which any ``threshold`` give the secrets back, and fewer tell nothing.

    Args:
        secrets: 32 bytes each.
        holders: distinct points, 1 or above.

    Returns:
        (holders, secrets, limbs) uint32.
    """
    constants = np.array([_limbs(secret) for secret in secrets], dtype=np.uint32)
    count = (threshold - 1) * constants.size
    drawn = expand(entropy(32), FIELD, 0, count).reshape(threshold - 1, *constants.shape)
    points = np.array(holders, dtype=np.uint64)[:, None, None]
    order = np.uint64(FIELD.order)
    values = np.zeros((len(holders), *constants.shape), dtype=np.uint64)
    for coefficients in (*drawn, constants):
        # Horner: the product stays below 2^62, so the sum cannot wrap.
        values *= points
        values += coefficients
        values %= order
    return values.astype(np.uint32)


def recover(holders: npt.NDArray[np.integer], shares: Elements) -> list[bytes]:
    """The secrets of several dealers, each from as many shares as the threshold.

    Args:
        holders: (dealers, threshold) distinct points a row.
        shares: (dealers, threshold, limbs) uint32, what these holders hold.

    Returns:
        One secret of 32 bytes a dealer.

    Raises:
        ValueError: what comes out is no secret: the shares do not belong together.
    """
    weights = _weights_at_zero(FIELD.elements(holders))
    # At most 1024 reduced terms below 2^31: the 64-bit sum stays below 2^41.
    terms = FIELD.multiply(weights[:, :, None], shares)
    limbs = FIELD.reduce(terms.sum(axis=1, dtype=np.uint64))
    return [_secret(row) for row in limbs.tolist()]


def _weights_at_zero(points: Elements) -> Elements:
    """Lagrange's weights at 0, row by row: w_k = ∏ x_l / (x_k · ∏_{l≠k} (x_l − x_k))."""
    whole = np.ones((len(points), 1), dtype=np.uint32)
    divisors = points.copy()
    for column in range(points.shape[1]):
        other = points[:, column : column + 1]
        whole = FIELD.multiply(whole, other)
        differences = FIELD.subtract(other, points)
        differences[:, column] = 1
        divisors = FIELD.multiply(divisors, differences)
    return FIELD.multiply(whole, FIELD.invert(divisors))


def _limbs(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> LIMB_BITS * place & (1 << LIMB_BITS) - 1 for place in range(LIMBS)]


def _secret(limbs: Sequence[int]) -> bytes:
    number = sum(limb << LIMB_BITS * place for place, limb in enumerate(limbs))
    if max(limbs) >> LIMB_BITS or number >> 8 * SECRET_BYTES:
        raise ValueError("the shares do not belong to one 32-byte secret")
    return number.to_bytes(SECRET_BYTES, "little")
