"""What a client holds of the others' masks: it opens shares, answers once, and erases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from lightsecagg.codec import MaskCodec
from lightsecagg.codec.seeded import is_seeded
from lightsecagg.errors import LocalProtocolError, RemoteProtocolError
from lightsecagg.field import Elements, PrimeField
from lightsecagg.kernels import loops, spread
from lightsecagg.labels import KIND_ELEMENTS, KIND_SEED
from lightsecagg.packing import add_packed, check_packed, pack
from lightsecagg.protocol.wire import part_count, part_elements, part_length
from lightsecagg.randomness import BLOCK_ELEMENTS, SEED_BYTES, expand_into
from lightsecagg.sealing import PairKeys, unseal
from lightsecagg.spans import Spans, no_spans


class Holding:
    """The shares that one client holds in one round.

    What does not open, or does not follow from the cohort, makes its sender's share "not held" and blames
    nobody.

    Args:
        codec: the round's codec.
        own: the client's number.
        length: coordinates that each mask hides.
        keys: the pair keys with every other client of the cohort.
    """

    def __init__(self, codec: MaskCodec, own: int, length: int, keys: Mapping[int, PairKeys]) -> None:
        self._codec = codec
        self._own = own
        self._keys = keys
        self._columns = codec.share_length(length)
        self._part = part_elements(codec.field)
        self._seeds: dict[int, bytes] = {}
        self._shares: dict[int, list[bytes]] = {}
        self._spoilt: set[int] = set()

    def __repr__(self) -> str:
        return f"Holding(own={self._own}, <secret>)"

    @property
    def held(self) -> frozenset[int]:
        """Whose shares are here, whole and opened."""
        parts = part_count(self._columns, self._part)
        whole = {sender for sender, share in self._shares.items() if len(share) == parts}
        return frozenset((self._seeds.keys() | whole) - self._spoilt)

    def keep_own(self, seed: bytes) -> None:
        """The client's share of its own mask."""
        self._seeds[self._own] = seed

    def take_seed(self, sender: int, sealed: memoryview) -> None:
        """A sealed seed that came as ``sender``'s."""
        seed = None
        if self._expects(sender, seeded=True) and sender not in self._seeds:
            seed = unseal(self._keys[sender].incoming, 0, True, sealed, KIND_SEED, SEED_BYTES)
        if seed is None or len(seed) != SEED_BYTES:
            self._spoilt.add(sender)
        else:
            self._seeds[sender] = seed

    def take_part(self, sender: int, index: int, sealed: memoryview) -> None:
        """One sealed part of a derived share that came as ``sender``'s."""
        share = self._shares.setdefault(sender, [])
        data = self._open(sender, index, sealed) if index == len(share) else None
        if data is None or sender in self._spoilt:
            self._spoilt.add(sender)
            self._shares[sender] = []
        else:
            share.append(data)

    def _open(self, sender: int, index: int, sealed: memoryview) -> bytes | None:
        count = part_count(self._columns, self._part)
        if not self._expects(sender, seeded=False) or index >= count:
            return None
        total = self._columns * self._codec.field.element_bytes
        key = self._keys[sender].incoming
        data = unseal(key, index, index == count - 1, sealed, KIND_ELEMENTS, total)
        if data is not None:
            try:
                check_packed(self._codec.field, data, part_length(self._columns, self._part, index))
            except RemoteProtocolError:
                return None
        return data

    def _expects(self, sender: int, *, seeded: bool) -> bool:
        parameters = self._codec.parameters
        numbers = (parameters.num_clients, parameters.target_survivors)
        return (
            sender != self._own and sender in self._keys and is_seeded(sender, self._own, *numbers) is seeded
        )

    def answer(self, survivors: frozenset[int], spans: Spans = no_spans) -> Iterator[memoryview]:
        """Σ_{i∈survivors} [z_i]_own as packed parts; the iterator gets everything, nothing stays here.

        Raises:
            LocalProtocolError: a survivor's share is not held.
        """
        if not survivors <= self.held:
            raise LocalProtocolError("an answer was asked for over shares that are not held")
        seeds = [self._seeds[i] for i in survivors if i in self._seeds]
        shares = [self._shares[i] for i in survivors if i not in self._seeds]
        self.erase()
        return _sum_parts(self._codec, self._columns, self._part, seeds, shares, spans)

    def erase(self) -> None:
        """Forget every share (best effort: Python frees, it does not overwrite)."""
        self._seeds = {}
        self._shares = {}


def _sum_parts(
    codec: MaskCodec,
    columns: int,
    part: int,
    seeds: Sequence[bytes],
    shares: Sequence[Sequence[bytes]],
    spans: Spans,
) -> Iterator[memoryview]:
    for index in range(part_count(columns, part)):
        with spans("sum"):
            total = np.zeros(part_length(columns, part, index), dtype=np.uint32)
            for share in shares:
                add_packed(codec.field, total, np.frombuffer(share[index], dtype=np.uint8))
            spread(partial(_add_seeds, codec.field, seeds, index * part, total), len(total), BLOCK_ELEMENTS)
            data = pack(codec.field, total)
        yield data


def _add_seeds(
    field: PrimeField, seeds: Sequence[bytes], first: int, total: Elements, start: int, stop: int
) -> None:
    """Add columns [start, stop) of the shares that seeds stand for; ``total`` begins at column ``first``."""
    buffer = np.empty(min(BLOCK_ELEMENTS, stop - start), dtype=np.uint32)
    run = loops(len(total))
    for begin in range(start, stop, BLOCK_ELEMENTS):
        tile = total[begin : min(begin + BLOCK_ELEMENTS, stop)]
        share = buffer[: len(tile)]
        for seed in seeds:
            expand_into(seed, field, first + begin, share)
            run.add(tile, share, field.order)
