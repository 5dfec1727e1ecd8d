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
    """Which shares passed through the server; it relays them and cannot read them.

    Args:
        codec: the round's codec.
        version: the round's number.
        length: coordinates that each mask hides.
    """

    def __init__(self, codec: MaskCodec, version: int, length: int) -> None:
        self._parameters = codec.parameters
        self._version = version
        self._width = codec.field.element_bytes
        self._columns = codec.share_length(length)
        self._part = part_elements(codec.field)
        self._seeded: set[int] = set()
        self._passed: dict[int, dict[int, int]] = {}
        self._left: dict[int, int] = {}

    def is_all(self, sender: int) -> bool:
        """Whether every share of ``sender`` went through."""
        return sender in self._seeded and self._left.get(sender, 0) == 0

    def relay_seeds(self, sender: int, message: SealedSeeds) -> list[Send]:
        """Split ``sender``'s seeds by receiver.

        Raises:
            RemoteProtocolError: another's name, a wrong length, or seeds that came before.
        """
        self._check_name(sender, message.mask)
        if sender in self._seeded:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "seeds came twice")
        numbers = (sender, self._parameters.num_clients, self._parameters.target_survivors)
        receivers = seeded_receivers(*numbers)[1:]
        size = SEED_BYTES + TAG_BYTES
        if len(message.data) != size * len(receivers):
            raise RemoteProtocolError(Reason.BAD_LENGTH, "sealed seeds of a wrong length")
        self._seeded.add(sender)
        others = derived_receivers(*numbers)
        self._passed[sender] = dict.fromkeys(others, 0)
        self._left[sender] = len(others) * part_count(self._columns, self._part)
        return [
            Send(receiver, encode(SealedSeed(message.mask, message.data[place * size : (place + 1) * size])))
            for place, receiver in enumerate(receivers)
        ]

    def relay_part(self, sender: int, message: EncodedMask, raw: bytes | memoryview) -> Send:
        """Pass one sealed part on, as the bytes that came.

        Raises:
            RemoteProtocolError: another's name, an unexpected receiver, or a part out of order or of a wrong
                length.
        """
        self._check_name(sender, message.mask)
        index = self._passed.get(sender, {}).get(message.receiver)
        if index is None or message.index != index or index >= part_count(self._columns, self._part):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share's part that does not come next")
        wanted = part_length(self._columns, self._part, index) * self._width + TAG_BYTES
        if len(message.data) != wanted:
            raise RemoteProtocolError(Reason.BAD_LENGTH, "a share's part of a wrong length")
        self._passed[sender][message.receiver] += 1
        self._left[sender] -= 1
        return Send(message.receiver, raw)

    def _check_name(self, sender: int, name: MaskName) -> None:
        if name != MaskName(sender, self._version, 0):
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
    survivors: frozenset[int],
) -> RoundResult:
    """The weighted mean out of the sum of masked updates, which is changed, and the sum of their masks.

    Raises:
        SumOutOfRangeError: what comes out cannot be a sum of honest updates.
    """
    loops(len(masked_sum)).subtract(masked_sum, mask_sum, codec.field.order)
    mean, total_weight = quantizer.dequantize(codec.field, masked_sum, len(survivors))
    return RoundResult(mean, total_weight, tuple(sorted(survivors)))
