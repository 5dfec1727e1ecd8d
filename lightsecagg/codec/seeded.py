"""Seeded shares: a client chooses U receivers' shares as expansions of seeds and derives its mask from them.

Any U points determine the polynomial, so (mask, shares) has exactly the paper's distribution whichever U
points are chosen freely (DESIGN §5). Only the N − U derived shares travel at full length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightsecagg.codec.lagrange import interpolation_matrix
from lightsecagg.errors import ParameterError
from lightsecagg.field import Elements
from lightsecagg.kernels import modular_matrix, spread
from lightsecagg.randomness import expand_into
from lightsecagg.spans import Spans, no_spans

if TYPE_CHECKING:
    from lightsecagg.codec.mask_codec import MaskCodec


def seeded_receivers(owner: int, cohort: Sequence[int], target_survivors: int) -> tuple[int, ...]:
    """The U clients whose shares of ``owner``'s mask are seeds: itself and the U − 1 that follow it.

    Args:
        owner: whose mask it is; in the cohort.
        cohort: the N clients among whom the mask is shared, ascending.
        target_survivors: U.
    """
    return _from(owner, cohort)[:target_survivors]


def derived_receivers(owner: int, cohort: Sequence[int], target_survivors: int) -> tuple[int, ...]:
    """The N − U clients whose shares of ``owner``'s mask are sent whole, in cyclic order."""
    return _from(owner, cohort)[target_survivors:]


def is_seeded(owner: int, receiver: int, cohort: Sequence[int], target_survivors: int) -> bool:
    """Whether ``receiver``'s share of ``owner``'s mask is a seed."""
    return (cohort.index(receiver) - cohort.index(owner)) % len(cohort) < target_survivors


def _from(owner: int, cohort: Sequence[int]) -> tuple[int, ...]:
    place = cohort.index(owner)
    return (*cohort[place:], *cohort[:place])


class Tile(NamedTuple):
    """Columns [start, stop) of everything that one client's seeds determine; good until the next tile."""

    start: int
    stop: int
    mask: Elements  # (U − T, stop − start): these columns of the mask's rows
    shares: Elements  # (N − U, stop − start): these columns of the derived shares, in the receivers' order

    def __repr__(self) -> str:
        return f"Tile({self.start}, {self.stop}, <secret>)"


class SeededShares:
    """One client's mask and derived shares, computed column tile by column tile.

    Args:
        codec: the codec of the round.
        owner: the client's number.
        cohort: the clients among whom the mask is shared, ascending; at least U, the owner among them.
        seeds: receiver number to 32-byte seed, for exactly the seeded receivers.

    Raises:
        ParameterError: the cohort does not fit, or the seeds are not for the seeded receivers.
    """

    def __init__(
        self, codec: MaskCodec, owner: int, cohort: Sequence[int], seeds: Mapping[int, bytes]
    ) -> None:
        survivors = codec.parameters.target_survivors
        if owner not in cohort:
            raise ParameterError(f"wanted an owner in the cohort {_shown(cohort)}, found {owner}")
        if len(cohort) < survivors or not 1 <= cohort[0] <= cohort[-1] <= codec.capacity:
            raise ParameterError(
                f"wanted a cohort of at least U = {survivors} clients in 1..{codec.capacity}, "
                f"found {_shown(cohort)}"
            )
        receivers = seeded_receivers(owner, cohort, survivors)
        if set(seeds) != set(receivers):
            raise ParameterError(f"wanted seeds for the receivers {receivers}, found {sorted(seeds)}")
        self.receivers = derived_receivers(owner, cohort, survivors)
        """Whom the rows of a tile's shares are for."""
        self._codec = codec
        self._seeds: Sequence[bytes] = [seeds[number] for number in receivers]
        self._mask_rows = len(codec.mask_points)
        wanted = [*codec.mask_points, *self.receivers]
        self._matrix = modular_matrix(codec.field.order, interpolation_matrix(codec.field, receivers, wanted))

    def tiles(self, dimension: int, width: int, spans: Spans = no_spans) -> Iterator[Tile]:
        """The columns in order, ``width`` at a time (the last tile may be narrower).

        One tile's memory serves the next: what is to last must be copied before the next one is asked for.
        """
        length = self._codec.share_length(dimension)
        rows, inputs = self._matrix.shape
        memory = [np.empty(count * min(width, length), dtype=np.uint32) for count in (inputs, rows)]
        for start in range(0, max(length, 1), width):
            stop = min(start + width, length)
            seeded = memory[0][: inputs * (stop - start)].reshape(inputs, stop - start)
            product = memory[1][: rows * (stop - start)].reshape(rows, stop - start)
            with spans("expand"):
                spread(partial(self._expand, start, seeded), inputs, 1)
            with spans("encode"):
                self._matrix.product(seeded, product)
            yield Tile(start, stop, product[: self._mask_rows], product[self._mask_rows :])

    def _expand(self, start: int, seeded: Elements, first: int, last: int) -> None:
        for row, seed in zip(seeded[first:last], self._seeds[first:last], strict=True):
            expand_into(seed, self._codec.field, start, row)

    def whole(self, dimension: int) -> tuple[Elements, dict[int, Elements]]:
        """The mask (d,) and the derived shares, receiver to (m,), at once: for tests and small dimensions."""
        tile = next(self.tiles(dimension, max(1, self._codec.share_length(dimension))))
        return tile.mask.reshape(-1)[:dimension], dict(zip(self.receivers, tile.shares, strict=True))


def _shown(cohort: Sequence[int]) -> str:
    return str(cohort if isinstance(cohort, range) else list(cohort))
