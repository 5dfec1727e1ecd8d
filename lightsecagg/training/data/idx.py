"""IDX files, the format that MNIST was published in (LeCun, Cortes and Burges)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError

UNSIGNED_BYTE = 0x08  # the one element type that MNIST uses


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or, if its name ends in ``.gz``, compressed.

    The format: two zero bytes, the element type, the number of axes, each axis' length as a big-endian
    32-bit integer, then the elements in C order.

    Raises:
        ConfigError: the file is broken, truncated, too long, or has not this many axes.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    wanted_magic = bytes([0, 0, UNSIGNED_BYTE, axes])
    if data[:4] != wanted_magic:
        raise ConfigError(
            f"{path}: no IDX file of unsigned bytes with {axes} axes: "
            f"wanted the first bytes {wanted_magic.hex()}, found {data[:4].hex() or 'an empty file'}"
        )
    header = 4 + 4 * axes
    if len(data) < header:
        raise ConfigError(f"{path}: truncated: wanted a header of {header} bytes, found {len(data)} bytes")
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", axes, offset=4))
    wanted = header + math.prod(shape)
    if len(data) != wanted:
        problem = "truncated" if len(data) < wanted else "too long"
        raise ConfigError(f"{path}: {problem}: shape {shape} takes {wanted} bytes, found {len(data)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
