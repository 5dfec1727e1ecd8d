"""What a client holds of the others' masks: it opens shares, sums them, and erases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ShareForm:
    """What the shares of masks of one length look like.

    Args:
        codec: the codec.
        length: coordinates that each mask hides.
    """

    codec: MaskCodec
    length: int

    @property
    def columns(self) -> int:
        """Elements of a share."""
        return self.codec.share_length(self.length)

    @property
    def part(self) -> int:
        """Elements in every part of it but the last."""
        return part_elements(self.codec.field)

    @property
    def parts(self) -> int:
        """Parts of a share that is sent whole."""
        return part_count(self.columns, self.part)


class Share:
    """A client's share of one mask of another, as it comes: a seed, or parts.

    What does not open, or is not what was to come, spoils it for good and blames nobody.

    Args:
        form: what it looks like.
        keys: the pair keys with its sender; None for the client's own, which ``keep`` gives.
        seeded: whether it is a seed.
    """

    __slots__ = ("_content", "_form", "_keys", "_seeded")

    def __init__(self, form: ShareForm, keys: PairKeys | None, *, seeded: bool) -> None:
        self._form = form
        self._keys = keys
        self._seeded = seeded
        self._content: bytes | list[bytes] | None = None if seeded else []

    def __repr__(self) -> str:
        return "Share(<secret>)"

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here and opened."""
        match self._content:
            case bytes():
                return True
            case list() as parts:
                return len(parts) == self._form.parts
            case _:
                return False

    @property
    def is_spoilt(self) -> bool:
        """Whether it will never be whole."""
        return self._content is None and self._keys is None

    @property
    def content(self) -> bytes | list[bytes]:
        """The seed, or the packed parts.

        Raises:
            LocalProtocolError: it is not whole.
        """
        if self._content is None or not self.is_whole:
            raise LocalProtocolError("a sum was asked for over shares that are not held")
        return self._content

    def keep(self, seed: bytes) -> None:
        """The client's share of its own mask."""
        self._content = seed

    def take_seed(self, sealed: memoryview) -> None:
        """A sealed seed that came as this share."""
        seed = None
        if self._seeded and self._content is None and self._keys is not None:
            seed = unseal(self._keys.incoming, 0, True, sealed, KIND_SEED, SEED_BYTES)
        if seed is None or len(seed) != SEED_BYTES:
            self._spoil()
        else:
            self._content = seed

    def take_part(self, index: int, sealed: memoryview) -> None:
        """One sealed part that came as this share's."""
        parts = self._content
        data = None
        if isinstance(parts, list) and self._keys is not None and index == len(parts) < self._form.parts:
            data = _open(self._form, self._keys, index, sealed)
        if data is None:
            self._spoil()
        else:
            assert isinstance(parts, list)
            parts.append(data)

    def _spoil(self) -> None:
        self._content = self._keys = None


def _open(form: ShareForm, keys: PairKeys, index: int, sealed: memoryview) -> bytes | None:
    field = form.codec.field
    total = form.columns * field.element_bytes
    data = unseal(keys.incoming, index, index == form.parts - 1, sealed, KIND_ELEMENTS, total)
    if data is not None:
        try:
            check_packed(field, data, part_length(form.columns, form.part, index))
        except RemoteProtocolError:
            return None
    return data


def sum_parts(
    form: ShareForm, weighted: Sequence[tuple[Share, int]], spans: Spans = no_spans
) -> Iterator[memoryview]:
    """Σ weight · share as packed parts; weights are integers ≥ 1. The iterator owns what it needs.

    Raises:
        LocalProtocolError: a share is not whole.
    """
    return _sums(form, _by_bits([(share.content, weight) for share, weight in weighted]), spans)


@dataclass
class _Level:
    """What is added between two doublings of the sum."""

    seeds: list[bytes]
    shares: list[list[bytes]]


def _by_bits(weighted: Sequence[tuple[bytes | list[bytes], int]]) -> list[_Level]:
    """By Horner's rule: the highest bit of the weights first, so a share costs one addition a bit."""
    highest = max((weight.bit_length() for _, weight in weighted), default=1)
    levels = []
    for bit in reversed(range(highest)):
        chosen = [content for content, weight in weighted if weight >> bit & 1]
        levels.append(
            _Level(
                [content for content in chosen if isinstance(content, bytes)],
                [content for content in chosen if isinstance(content, list)],
            )
        )
    return levels


def _sums(form: ShareForm, levels: Sequence[_Level], spans: Spans) -> Iterator[memoryview]:
    field, part = form.codec.field, form.part
    for index in range(form.parts):
        with spans("sum"):
            total = np.zeros(part_length(form.columns, part, index), dtype=np.uint32)
            for place, level in enumerate(levels):
                if place:
                    loops(len(total)).add(total, total, field.order)
                for share in level.shares:
                    add_packed(field, total, np.frombuffer(share[index], dtype=np.uint8))
                add = partial(_add_seeds, field, level.seeds, index * part, total)
                spread(add, len(total), BLOCK_ELEMENTS)
            data = pack(field, total)
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


class Holding:
    """The shares that one client holds in one synchronous round.

    What does not open, or does not follow from the cohort, makes its sender's share "not held" and blames
    nobody.

    Args:
        codec: the round's codec.
        own: the client's number.
        length: coordinates that each mask hides.
        keys: the pair keys with every other client of the cohort.
    """

    def __init__(self, codec: MaskCodec, own: int, length: int, keys: Mapping[int, PairKeys]) -> None:
        self._own = own
        self._keys = keys
        self._form = ShareForm(codec, length)
        self._shares: dict[int, Share] = {}

    def __repr__(self) -> str:
        return f"Holding(own={self._own}, <secret>)"

    @property
    def held(self) -> frozenset[int]:
        """Whose shares are here, whole and opened."""
        return frozenset(sender for sender, share in self._shares.items() if share.is_whole)

    def keep_own(self, seed: bytes) -> None:
        """The client's share of its own mask."""
        self._shares[self._own] = share = Share(self._form, None, seeded=True)
        share.keep(seed)

    def take_seed(self, sender: int, sealed: memoryview) -> None:
        """A sealed seed that came as ``sender``'s."""
        if (share := self._share(sender)) is not None:
            share.take_seed(sealed)

    def take_part(self, sender: int, index: int, sealed: memoryview) -> None:
        """One sealed part of a derived share that came as ``sender``'s."""
        if (share := self._share(sender)) is not None:
            share.take_part(index, sealed)

    def answer(self, survivors: frozenset[int], spans: Spans = no_spans) -> Iterator[memoryview]:
        """Σ_{i∈survivors} [z_i]_own as packed parts; the iterator gets everything, nothing stays here.

        Raises:
            LocalProtocolError: a survivor's share is not held.
        """
        if not survivors <= self.held:
            raise LocalProtocolError("an answer was asked for over shares that are not held")
        chosen = [(self._shares[i], 1) for i in survivors]
        self.erase()
        return sum_parts(self._form, chosen, spans)

    def erase(self) -> None:
        """Forget every share (best effort: Python frees, it does not overwrite)."""
        self._shares = {}

    def _share(self, sender: int) -> Share | None:
        """The share that ``sender`` deals this client, or None where there is none."""
        if sender == self._own or sender not in self._keys:
            return None
        if sender not in self._shares:
            codec = self._form.codec
            seeded = is_seeded(sender, self._own, codec.clients, codec.parameters.target_survivors)
            self._shares[sender] = Share(self._form, self._keys[sender], seeded=seeded)
        return self._shares[sender]
