"""Seeds and their expansion: 32 bytes of the operating system's CSPRNG to uniform field elements.

The expansion is named ``EXPANSION`` and frozen by stored vectors. Element blocks of 2^14 are independent, so
columns can be produced in any order: block b is the key stream of AES-256-CTR (NIST SP 800-38A) whose key is
the seed and whose initial counter is b (8 bytes, big-endian) followed by 8 zero bytes, read as 32-bit
little-endian words, masked to the bits of p − 1, words ≥ p skipped, the first 2^14 that remain.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from lightsecagg.field import Elements, PrimeField

EXPANSION = "aes256-ctr-2^14-le32-reject"
SEED_BYTES = 32
BLOCK_ELEMENTS = 2**14

Entropy = Callable[[int], bytes]
"""A source of secret random bytes: called with a count, returns that many."""

system_entropy: Entropy = secrets.token_bytes

_ZEROS = bytes(4 * BLOCK_ELEMENTS)


def key_stream(seed: bytes, block: int) -> Iterator[npt.NDArray[np.uint32]]:
    """The words of one block's key stream, 2^14 at a time, without end.

    Args:
        seed: 32 bytes.
        block: the block's number, below 2^64.
    """
    cipher = Cipher(AES256(seed), CTR(block.to_bytes(8, "big") + bytes(8))).encryptor()
    while True:
        yield np.frombuffer(cipher.update(_ZEROS), dtype="<u4").astype(np.uint32, copy=False)


def expand_block(seed: bytes, field: PrimeField, block: int) -> Elements:
    """Elements [block · 2^14, (block + 1) · 2^14) of the seed's expansion."""
    mask = np.uint32((1 << field.element_bits) - 1)
    accepted: list[Elements] = []
    count = 0
    for words in key_stream(seed, block):
        candidates = words & mask
        if int(candidates.max()) >= field.order:
            candidates = candidates[candidates < field.order]
        accepted.append(candidates)
        count += len(candidates)
        if count >= BLOCK_ELEMENTS:
            break
    return accepted[0] if len(accepted) == 1 else np.concatenate(accepted)[:BLOCK_ELEMENTS]


def expand(seed: bytes, field: PrimeField, start: int, stop: int) -> Elements:
    """Elements [start, stop) of the seed's expansion: uniform on GF(p) to anyone without the seed.

    Args:
        seed: 32 secret bytes, used for nothing else.
        start, stop: the range wanted; ranges of one seed agree wherever they overlap.
    """
    elements = np.empty(stop - start, dtype=np.uint32)
    position = start
    while position < stop:
        block, offset = divmod(position, BLOCK_ELEMENTS)
        count = min(BLOCK_ELEMENTS - offset, stop - position)
        piece = expand_block(seed, field, block)[offset : offset + count]
        elements[position - start : position - start + count] = piece
        position += count
    return elements


def uniform_reals(seed: bytes, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Multiples of 2^-32 in [0, 1), positions [start, stop) of the seed's stream, for stochastic rounding.

    ``start`` is a multiple of 2^14.
    """
    assert start % BLOCK_ELEMENTS == 0
    blocks = range(start // BLOCK_ELEMENTS, -(-stop // BLOCK_ELEMENTS))
    words = np.concatenate([next(key_stream(seed, block)) for block in blocks] or [np.empty(0, np.uint32)])
    return np.asarray(words[: stop - start] * 2.0**-32, dtype=np.float64)
