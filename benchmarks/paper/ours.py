"""LightSecAgg's work in a round, measured on the library's own parts: one client's, and the server's."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np

from benchmarks.paper.clock import Watch
from benchmarks.paper.costs import Work
from benchmarks.paper.settings import QUANTIZER
from lightsecagg.codec import MaskCodec, seeded_receivers
from lightsecagg.field import Elements, PrimeField
from lightsecagg.kernels import loops
from lightsecagg.labels import KIND_ELEMENTS, KIND_SEED
from lightsecagg.packing import add_packed, check_packed, pack
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.collecting import Answers
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.holding import Holding
from lightsecagg.protocol.messages import MaskName
from lightsecagg.protocol.wire import part_count, part_elements, part_length
from lightsecagg.randomness import SEED_BYTES, expand, system_entropy
from lightsecagg.sealing import PairKeys, RoundKey, seal

_OWN = 1
_DISTINCT = 8  # answers that stand for all survivors': each may be as long as the update
_DIGEST = bytes(32)


class LightSecAgg:
    """One round's numbers, and what everybody in it would send to the client and the server measured here.

    Args:
        parameters: N, U, T; N − U clients drop out before they upload.
        length: coordinates of an update.
    """

    def __init__(self, parameters: Parameters, length: int) -> None:
        self._parameters = parameters
        self._length = length
        self.field: PrimeField = QUANTIZER.smallest_field(parameters.num_clients)
        self._codec = MaskCodec(self.field, parameters)
        self._part = part_elements(self.field)
        self._loops = loops(length)  # loads the compiled ones before anything is timed
        others = range(2, parameters.num_clients + 1)
        self._publics = {number: RoundKey().public for number in others}
        chosen = Random(1).sample(others, parameters.target_survivors - 1)
        self._survivors = frozenset([_OWN, *chosen])

    def run(self) -> Work:
        """One client's round and the server's, once."""
        offline, masking, answering, adding, decoding = (Watch() for _ in range(5))
        with offline.running():
            own = RoundKey()
            keys = {
                number: own.agree(public, _DIGEST, 1, _OWN, number)
                for number, public in self._publics.items()
            }
            dealing = Dealing(self._codec, MaskName(_OWN, 1, 0), self._length, keys, system_entropy)
            for _ in dealing.messages(lambda: False):
                pass
            mask = dealing.take_mask()
        holding = Holding(self._codec, _OWN, self._length, keys)
        holding.keep_own(bytes(SEED_BYTES))
        self._fill(holding, keys, offline)
        with answering.running():
            for _ in holding.answer(self._survivors):
                pass
        del holding
        update = self._vector(self._length)
        with masking.running():
            self._loops.add(update, mask, self.field.order)
            parts = self._packed(update)
        total = np.zeros(self._length, dtype=np.uint32)
        with adding.running():
            for _ in self._survivors:
                for (start, stop), data in zip(self._ranges(self._length), parts, strict=True):
                    add_packed(self.field, total[start:stop], check_packed(self.field, data, stop - start))
        sent = self._answers()
        with decoding.running():
            answers = Answers(self._codec, self._length)
            for number, parts in sent.items():
                for index, data in enumerate(parts):
                    answers.take(number, index, data)
            self._loops.subtract(total, answers.decode(), self.field.order)
        return Work(offline.seconds, masking.seconds, adding.seconds, answering.seconds, decoding.seconds)

    def _fill(self, holding: Holding, keys: dict[int, PairKeys], watch: Watch) -> None:
        """Give the client what all others send it; sealing that is their work and not counted."""
        survivors = self._parameters.target_survivors
        columns = self._codec.share_length(self._length)
        parts = [bytes(part) for part in self._packed(self._vector(columns))]
        for sender, pair in keys.items():
            if _OWN in seeded_receivers(sender, self._codec.clients, survivors):
                sealed = seal(pair.incoming, 0, True, bytes(SEED_BYTES), KIND_SEED, SEED_BYTES)
                with watch.running():
                    holding.take_seed(sender, memoryview(sealed))
                continue
            total = columns * self.field.element_bytes
            for index, data in enumerate(parts):
                last = index == len(parts) - 1
                sealed = seal(pair.incoming, index, last, data, KIND_ELEMENTS, total)
                with watch.running():
                    holding.take_part(sender, index, memoryview(sealed))

    def _answers(self) -> dict[int, list[memoryview]]:
        columns = self._codec.share_length(self._length)
        distinct = [self._packed(self._vector(columns)) for _ in range(_DISTINCT)]
        return {number: distinct[number % _DISTINCT] for number in self._survivors}

    def _packed(self, vector: Elements) -> list[memoryview]:
        return [pack(self.field, vector[start:stop]) for start, stop in self._ranges(len(vector))]

    def _vector(self, length: int) -> Elements:
        return expand(system_entropy(SEED_BYTES), self.field, 0, length)

    def _ranges(self, length: int) -> Iterator[tuple[int, int]]:
        for index in range(part_count(length, self._part)):
            start = index * self._part
            yield start, start + part_length(length, self._part, index)
