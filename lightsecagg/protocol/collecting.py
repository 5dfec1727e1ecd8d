"""The server's tallies: whose shares went through, who answered, and the decoding of the sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lightsecagg.codec import MaskCodec
from lightsecagg.codec.seeded import derived_receivers, seeded_receivers
from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import Elements
from lightsecagg.kernels import Product, loops, spread
from lightsecagg.packing import Bytes, check_packed, unpack_into
from lightsecagg.protocol.actions import Send
from lightsecagg.protocol.messages import EncodedMask, MaskName, SealedSeed, SealedSeeds
from lightsecagg.protocol.wire import encode, part_count, part_elements, part_length
from lightsecagg.quantize import FixedPoint
from lightsecagg.randomness import BLOCK_ELEMENTS, SEED_BYTES
from lightsecagg.sealing import TAG_BYTES


@dataclass(frozen=True)
class RoundResult:
    """What a round yields.

    Attributes:
        mean: (d,) float64, the weighted mean of the survivors' updates; zeros where ``total_weight`` is 0.
        total_weight: Σ n_i over the survivors.
        survivors: S, ascending client numbers.
    """

    mean: npt.NDArray[np.float64]
    total_weight: int
    survivors: tuple[int, ...]


class ShareTally:
    """Which shares of one mask passed through the server; it relays them and cannot read them.

    Args:
        codec: the codec.
        name: which mask it is.
        cohort: the clients among whom it is shared, ascending.
        length: coordinates that it hides.
    """

    def __init__(self, codec: MaskCodec, name: MaskName, cohort: Sequence[int], length: int) -> None:
        self._name = name
        self._cohort = cohort
        self._survivors = codec.parameters.target_survivors
        self._width = codec.field.element_bytes
        self._columns = codec.share_length(length)
        self._part = part_elements(codec.field)
        self._has_seeds = False
        self._passed: dict[int, int] = {}
        self._left = 0

    @property
    def is_all(self) -> bool:
        """Whether every share went through."""
        return self._has_seeds and self._left == 0

    def has_all(self, receiver: int) -> bool:
        """Whether all of ``receiver``'s share went through."""
        return self._has_seeds and self._passed.get(receiver, self._parts) == self._parts

    def relay_seeds(self, message: SealedSeeds) -> list[Send]:
        """Split the seeds by receiver.

        Raises:
            RemoteProtocolError: another mask's name, a wrong length, or seeds that came before.
        """
        self._check_name(message.mask)
        if self._has_seeds:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "seeds came twice")
        place = (self._name.client, self._cohort, self._survivors)
        receivers = seeded_receivers(*place)[1:]
        size = SEED_BYTES + TAG_BYTES
        if len(message.data) != size * len(receivers):
            raise RemoteProtocolError(Reason.BAD_LENGTH, "sealed seeds of a wrong length")
        self._has_seeds = True
        self._passed = dict.fromkeys(derived_receivers(*place), 0)
        self._left = len(self._passed) * self._parts
        return [
            Send(receiver, encode(SealedSeed(message.mask, message.data[place * size : (place + 1) * size])))
            for place, receiver in enumerate(receivers)
        ]

    def relay_part(self, message: EncodedMask, raw: bytes | memoryview) -> Send:
        """Pass one sealed part on, as the bytes that came.

        Raises:
            RemoteProtocolError: another mask's name, an unexpected receiver, or a part out of order or of a
                wrong length.
        """
        self._check_name(message.mask)
        index = self._passed.get(message.receiver)
        if index is None or message.index != index or index >= self._parts:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share's part that does not come next")
        wanted = part_length(self._columns, self._part, index) * self._width + TAG_BYTES
        if len(message.data) != wanted:
            raise RemoteProtocolError(Reason.BAD_LENGTH, "a share's part of a wrong length")
        self._passed[message.receiver] += 1
        self._left -= 1
        return Send(message.receiver, raw)

    @property
    def _parts(self) -> int:
        return part_count(self._columns, self._part)

    def _check_name(self, name: MaskName) -> None:
        if name != self._name:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share under another mask's name")


class Answers:
    """Aggregate encoded masks as they come in, and what they decode to.

    Args:
        codec: the round's codec.
        length: coordinates of the masks.
    """

    def __init__(self, codec: MaskCodec, length: int) -> None:
        self._codec = codec
        self._length = length
        self._columns = codec.share_length(length)
        self._part = part_elements(codec.field)
        self._parts: dict[int, list[Bytes]] = {}

    @property
    def whole(self) -> frozenset[int]:
        """Whose answers are here, every part of them."""
        count = part_count(self._columns, self._part)
        return frozenset(number for number, parts in self._parts.items() if len(parts) == count)

    def take(self, number: int, index: int, data: memoryview) -> None:
        """The next part of a client's answer.

        Raises:
            RemoteProtocolError: it does not come next, or its length or range is wrong.
        """
        parts = self._parts.setdefault(number, [])
        if index != len(parts) or index >= part_count(self._columns, self._part):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a part of an answer out of order")
        parts.append(check_packed(self._codec.field, data, part_length(self._columns, self._part, index)))

    def forget(self, number: int) -> None:
        """Drop what came of an answer that will not be whole."""
        if number not in self.whole:
            self._parts.pop(number, None)

    def decode(self) -> Elements:
        """Σ_{i∈S} z_i, (length,) uint32, from U whole answers; once, for they are let go of."""
        numbers = sorted(self.whole)[: self._codec.parameters.target_survivors]
        decoder = self._codec.decoder(numbers)
        mask = np.empty((decoder.shape[0], self._columns), dtype=np.uint32)
        answers = [self._parts[number] for number in numbers]
        self._parts = {}
        spread(partial(self._decode_columns, decoder, answers, mask), self._columns, BLOCK_ELEMENTS)
        return mask.reshape(-1)[: self._length]

    def _decode_columns(
        self,
        decoder: Product,
        answers: Sequence[Sequence[Bytes]],
        mask: Elements,
        start: int,
        stop: int,
    ) -> None:
        """Columns [start, stop), a few at a time: the answers stay packed."""
        field = self._codec.field
        for first in range(start, stop, BLOCK_ELEMENTS):
            columns = min(BLOCK_ELEMENTS, stop - first)
            rows = np.empty((len(answers), columns), dtype=np.uint32)
            index, offset = divmod(first, self._part)
            place = slice(offset * field.element_bytes, (offset + columns) * field.element_bytes)
            for parts, row in zip(answers, rows, strict=True):
                unpack_into(field, parts[index][place].data, row)
            decoder.product(rows, mask, first)


def unmask(
    codec: MaskCodec,
    quantizer: FixedPoint,
    masked_sum: Elements,
    mask_sum: Elements,
    summands: int,
) -> tuple[npt.NDArray[np.float64], int]:
    """The weighted mean out of the sum of masked updates, which is changed, and the sum of their masks.

    Args:
        codec, quantizer: of the updates.
        masked_sum, mask_sum: (d + 1,) uint32.
        summands: updates in the sum, each as often as its weight there.

    Returns:
        (d,) float64 mean, zeros where the total weight is 0; and the total weight.

    Raises:
        SumOutOfRangeError: what comes out cannot be a sum of honest updates.
    """
    loops(len(masked_sum)).subtract(masked_sum, mask_sum, codec.field.order)
    return quantizer.dequantize(codec.field, masked_sum, summands)
