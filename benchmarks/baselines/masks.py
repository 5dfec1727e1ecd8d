"""Masks of SecAgg: seeds expanded by AES-256-CTR and added to a vector modulo 2^32, in place.

Integers modulo 2^32 need no rejection and no reduction: the key stream's words are the mask, and NumPy's
uint32 wraps. So this is the fastest form of these masks, and the sum is exact while it stays below 2^32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

Vector = npt.NDArray[np.uint32]
"""A vector modulo 2^32."""

_TILE = 2**16  # words expanded at once: 256 KiB stay in L2
_SLACK = 4  # words that ``update_into`` may want beyond what it writes: a cipher block
_ZEROS = memoryview(bytes(4 * _TILE))


class MaskAdder:
    """Adds expansions of seeds to vectors. It reuses one buffer, so each thread needs its own."""

    def __init__(self) -> None:
        self._words = np.empty(_TILE + _SLACK, dtype=np.uint32)

    def add(self, total: Vector, seed: bytes, *, negative: bool = False) -> None:
        """Add the expansion of a 32-byte seed to ``total``, or subtract it.

        Each seed serves one mask, so every expansion starts at counter 0.
        """
        combine = np.subtract if negative else np.add
        stream = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
        for start in range(0, len(total), _TILE):
            tile = total[start : start + _TILE]
            stream.update_into(_ZEROS[: tile.nbytes], self._words.data.cast("B"))
            combine(tile, self._words[: len(tile)], out=tile)
