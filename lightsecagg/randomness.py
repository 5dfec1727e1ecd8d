"""Seeds and their expansion: 32 bytes of the operating system's CSPRNG to uniform field elements.

The expansion is named ``EXPANSION`` and frozen by stored vectors. Element blocks of 2^14 are independent, so
columns can be produced in any order: block b is the key stream of AES-256-CTR (NIST SP 800-38A) whose key is
the seed and whose initial counter is b (8 bytes, big-endian) followed by 8 zero bytes, read as 32-bit
little-endian words, masked to the bits of p − 1, words ≥ p skipped, the first 2^14 that remain.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from lightsecagg.field import Elements, PrimeField
from lightsecagg.kernels import loops

EXPANSION = "aes256-ctr-2^14-le32-reject"
SEED_BYTES = 32
BLOCK_ELEMENTS = 2**14
_CIPHER_SLACK = 15  # bytes that ``update_into`` wants beyond what it writes: a cipher block less one

Entropy = Callable[[int], bytes]
"""A source of secret random bytes: called with a count, returns that many."""

system_entropy: Entropy = secrets.token_bytes

_ZEROS = memoryview(bytes(4 * BLOCK_ELEMENTS))


class _KeyStream:
    """The words of one block's key stream, in order, into buffers that are used again.

    Args:
        seed: 32 bytes.
        block: the block's number, below 2^64.
    """

    def __init__(self, seed: bytes, block: int) -> None:
        self._cipher = Cipher(AES256(seed), CTR(block.to_bytes(8, "big") + bytes(8))).encryptor()

    def words_into(self, buffer: bytearray, count: int) -> npt.NDArray[np.uint32]:
        """The next ``count`` words, as a view of ``buffer``."""
        written = self._cipher.update_into(_ZEROS[: 4 * count], buffer)
        return np.frombuffer(buffer, dtype="<u4", count=written // 4).astype(np.uint32, copy=False)


def _buffer(count: int) -> bytearray:
    return bytearray(4 * count + _CIPHER_SLACK)


def expand(seed: bytes, field: PrimeField, start: int, stop: int) -> Elements:
    """Elements [start, stop) of the seed's expansion: uniform on GF(p) to anyone without the seed.

    Args:
        seed: 32 secret bytes, used for nothing else.
        start, stop: the range wanted; ranges of one seed agree wherever they overlap.
    """
    elements = np.empty(stop - start, dtype=np.uint32)
    expand_into(seed, field, start, elements)
    return elements


def expand_into(seed: bytes, field: PrimeField, start: int, out: Elements) -> None:
    """``expand`` from ``start`` on into ``out``, as many as it holds."""
    position, stop = start, start + len(out)
    buffer = _buffer(min(BLOCK_ELEMENTS, len(out) + start % BLOCK_ELEMENTS))
    while position < stop:
        block, offset = divmod(position, BLOCK_ELEMENTS)
        end = min(BLOCK_ELEMENTS, offset + stop - position)
        piece = out[position - start : position - start + end - offset]
        if offset == 0:
            _fill(seed, field, block, piece, buffer)
        else:
            whole = np.empty(end, dtype=np.uint32)
            _fill(seed, field, block, whole, buffer)
            piece[:] = whole[offset:]
        position += end - offset


def _fill(seed: bytes, field: PrimeField, block: int, out: Elements, buffer: bytearray) -> None:
    """The first elements of a block, as many as ``out`` holds."""
    stream, run = _KeyStream(seed, block), loops(len(out))
    mask, filled = (1 << field.element_bits) - 1, 0
    while filled < len(out):
        words = stream.words_into(buffer, len(out) - filled)
        filled += run.accept(words, mask, field.order, out[filled:])


def stream_words(seed: bytes, start: int, stop: int) -> npt.NDArray[np.uint32]:
    """Words [start, stop) of the seed's stream, none skipped, for stochastic rounding.

    ``start`` is a multiple of 2^14.
    """
    assert start % BLOCK_ELEMENTS == 0
    words = np.empty(stop - start, dtype=np.uint32)
    buffer = _buffer(BLOCK_ELEMENTS)
    for first in range(start, stop, BLOCK_ELEMENTS):
        piece = words[first - start : first - start + BLOCK_ELEMENTS]
        piece[:] = _KeyStream(seed, first // BLOCK_ELEMENTS).words_into(buffer, len(piece))
    return words
