"""A client's shares of its own mask, as sealed parts on their way to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lightsecagg.codec import MaskCodec, seeded_receivers
from lightsecagg.errors import LocalProtocolError
from lightsecagg.field import Elements
from lightsecagg.labels import KIND_ELEMENTS, KIND_SEED
from lightsecagg.packing import pack_into
from lightsecagg.protocol.messages import EncodedMask, MaskName, SealedSeeds
from lightsecagg.protocol.wire import part_count, part_elements
from lightsecagg.randomness import BLOCK_ELEMENTS, SEED_BYTES, Entropy
from lightsecagg.sealing import PairKeys, seal
from lightsecagg.spans import Spans, no_spans


class Dealing:
    """One mask, dealt once. It owns its data, so it may be pulled in another thread.

    Args:
        codec: the round's codec.
        name: which mask it is.
        length: coordinates that the mask hides.
        keys: the pair keys with every other client of the cohort, which has at least U clients.
        entropy: source of the seeds.
        spans: is told what takes how long.
    """

    def __init__(
        self,
        codec: MaskCodec,
        name: MaskName,
        length: int,
        keys: Mapping[int, PairKeys],
        entropy: Entropy,
        spans: Spans = no_spans,
    ) -> None:
        self._codec = codec
        self._name = name
        self._length = length
        self._keys = keys
        self._spans = spans
        self._mask: Elements | None = None
        self._cohort = sorted({name.client, *keys})
        receivers = seeded_receivers(name.client, self._cohort, codec.parameters.target_survivors)
        self._seeds = {receiver: entropy(SEED_BYTES) for receiver in receivers}

    @property
    def own_seed(self) -> bytes:
        """The share that the owner keeps for itself."""
        return self._seeds[self._name.client]

    @property
    def has_mask(self) -> bool:
        """Whether the mask is whole and was not taken."""
        return self._mask is not None

    def take_mask(self) -> Elements:
        """Hand the mask over, once: (length,) uint32.

        Raises:
            LocalProtocolError: the shares were not pulled to their end, or the mask was taken before.
        """
        if self._mask is None:
            raise LocalProtocolError("no mask: pull shares() to its end first, and upload once")
        mask, self._mask = self._mask, None
        return mask

    def messages(self, unwanted: Callable[[], bool]) -> Iterator[SealedSeeds | EncodedMask]:
        """Everything that goes out: the seeds at once, then the derived shares part by part.

        Args:
            unwanted: whether the round has moved on, so that what is left need not be sent.
        """
        with self._spans("seal"):
            seeds = b"".join(
                seal(self._keys[receiver].outgoing, 0, True, seed, KIND_SEED, SEED_BYTES)
                for receiver, seed in self._seeds.items()
                if receiver != self._name.client
            )
        yield SealedSeeds(self._name, memoryview(seeds))
        field = self._codec.field
        shares = self._codec.seeded(self._name.client, self._seeds, self._cohort)
        columns = self._codec.share_length(self._length)
        part = part_elements(field)
        mask = np.empty((len(self._codec.mask_points), columns), dtype=np.uint32)
        packed = np.empty((len(shares.receivers), min(part, columns) * field.element_bytes), dtype=np.uint8)
        for tile in shares.tiles(self._length, BLOCK_ELEMENTS, self._spans):
            mask[:, tile.start : tile.stop] = tile.mask
            if unwanted() and shares.receivers:
                return
            place = slice(
                tile.start % part * field.element_bytes,
                (tile.start % part + tile.stop - tile.start) * field.element_bytes,
            )
            for row, target in zip(tile.shares, packed, strict=True):
                pack_into(field, row, target[place])
            if tile.stop % part == 0 or tile.stop == columns:
                yield from self._parts(tile.start // part, columns, packed[:, : place.stop], shares.receivers)
        self._mask = mask.reshape(-1)[: self._length]
        self._seeds.clear()

    def _parts(
        self, index: int, columns: int, packed: npt.NDArray[np.uint8], receivers: Sequence[int]
    ) -> Iterator[EncodedMask]:
        """Part ``index`` of every receiver's share."""
        field = self._codec.field
        is_last = index == part_count(columns, part_elements(field)) - 1
        for receiver, data in zip(receivers, packed, strict=True):
            with self._spans("seal"):
                sealed = seal(
                    self._keys[receiver].outgoing,
                    index,
                    is_last,
                    data.data,
                    KIND_ELEMENTS,
                    columns * field.element_bytes,
                )
            yield EncodedMask(self._name, receiver, index, memoryview(sealed))
