"""What is held of a mask, and weighted sums of it: opened or spoilt, and exact against Python's integers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightsecagg.codec import MaskCodec
from lightsecagg.errors import LocalProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.labels import KIND_ELEMENTS, KIND_SEED
from lightsecagg.packing import pack
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.holding import Share, ShareForm, sum_parts
from lightsecagg.protocol.wire import part_length
from lightsecagg.sealing import PairKeys, RoundKey, seal
from lightsecagg.simulation.schedule import short_parts
from tests.core import oracle
from tests.core.strategies import MANY, orders

RECEIVER, SENDER = 2, 1


def pair() -> tuple[PairKeys, PairKeys]:
    """The keys of receiver and sender."""
    ours, theirs = (RoundKey(lambda count, name=name: oracle.seed_named(name)[:count]) for name in "ab")
    return (
        ours.agree(theirs.public, bytes(32), 1, RECEIVER, SENDER),
        theirs.agree(ours.public, bytes(32), 1, SENDER, RECEIVER),
    )


OURS, THEIRS = pair()


def form_of(p: int, columns: int) -> ShareForm:
    """Shares of ``columns`` elements: U − T = 2."""
    return ShareForm(MaskCodec(PrimeField(p), Parameters(4, 3, 1)), 2 * columns)


def sealed_seed(seed: bytes) -> memoryview:
    return memoryview(seal(THEIRS.outgoing, 0, True, seed, KIND_SEED, 32))


def sealed_parts(form: ShareForm, elements: list[int]) -> list[memoryview]:
    """The sealed parts of a derived share, values of the field or not."""
    field = form.codec.field
    total = form.columns * field.element_bytes
    sealed = []
    for index in range(form.parts):
        count = part_length(form.columns, form.part, index)
        piece = np.array(elements[index * form.part : index * form.part + count], dtype=np.uint32)
        is_last = index == form.parts - 1
        data = pack(field, piece)
        sealed.append(memoryview(seal(THEIRS.outgoing, index, is_last, data, KIND_ELEMENTS, total)))
    return sealed


def derived(form: ShareForm, elements: list[int]) -> Share:
    share = Share(form, OURS, seeded=False)
    for index, part in enumerate(sealed_parts(form, elements)):
        assert not share.is_whole
        share.take_part(index, part)
    assert share.is_whole
    return share


def seeded(form: ShareForm, seed: bytes) -> Share:
    share = Share(form, OURS, seeded=True)
    share.take_seed(sealed_seed(seed))
    assert share.is_whole
    return share


weights = st.integers(1, 9) | st.sampled_from([16, 31, 100, 255, 2**16])


@given(
    orders,
    st.integers(1, 20),
    st.lists(st.tuples(st.booleans(), weights), max_size=6),
    st.integers(0, 2**32),
)
@example(2**32 - 5, 9, [(True, 2**16), (False, 2**16)], 0)
@example(13, 5, [], 0)
@MANY
def test_weighted_sums_of_shares_are_pythons(
    p: int, columns: int, chosen: list[tuple[bool, int]], number: int
) -> None:
    source = random.Random(number)
    with short_parts(4), pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "BLOCK", 4)
        form = form_of(p, columns)
        weighted, expected = [], [0] * columns
        for place, (is_seeded, weight) in enumerate(chosen):
            if is_seeded:
                seed = oracle.seed_named(f"holding {place}")
                share, elements = seeded(form, seed), oracle.expand(seed, p, 0, columns)
            else:
                elements = [source.choice((p - 1, source.randrange(p))) for _ in range(columns)]
                share = derived(form, elements)
            weighted.append((share, weight))
            expected = [(s + weight * e) % p for s, e in zip(expected, elements, strict=True)]
        parts = [bytes(part) for part in sum_parts(form, weighted)]
        assert len(parts) == form.parts
    assert b"".join(parts) == oracle.pack(expected, p)


def test_the_sum_owns_what_it_needs() -> None:
    form = form_of(2**24 - 3, 6)
    share, own = derived(form, [1, 2, 3, 4, 5, 6]), Share(form, None, seeded=True)
    own.keep(oracle.seed_named("holding own"))
    weighted = [(share, 3), (own, 1)]
    (whole,) = sum_parts(form, weighted)
    lazy = sum_parts(form, weighted)
    share.take_part(0, memoryview(b""))  # spoils it
    weighted.clear()
    assert bytes(next(lazy)) == bytes(whole)


def test_a_sum_over_a_share_that_is_not_whole_is_refused_at_once() -> None:
    form = form_of(2**24 - 3, 6)
    whole = derived(form, [0] * 6)
    sum_parts(form, [(whole, 2)])
    spoilt = derived(form, [0] * 6)
    spoilt.take_part(1, memoryview(b""))
    for lacking in (Share(form, OURS, seeded=True), Share(form, OURS, seeded=False), spoilt):
        with pytest.raises(LocalProtocolError, match="not held"):
            sum_parts(form, [(whole, 2), (lacking, 1)])


# Opening.


def test_a_seed_is_taken_once_and_only_as_what_was_to_come() -> None:
    form, seed = form_of(13, 6), oracle.seed_named("seed")
    twice = seeded(form, seed)
    twice.take_seed(sealed_seed(seed))
    as_parts, part_as_seed, short = (Share(form, OURS, seeded=kind) for kind in (False, True, True))
    as_parts.take_seed(sealed_seed(seed))
    part_as_seed.take_part(0, sealed_seed(seed))
    short.take_seed(memoryview(seal(THEIRS.outgoing, 0, True, seed[:31], KIND_SEED, 32)))
    other_way = Share(form, THEIRS, seeded=True)
    other_way.take_seed(sealed_seed(seed))
    for share in (twice, as_parts, part_as_seed, short, other_way):
        assert (share.is_spoilt, share.is_whole) == (True, False)
        share.take_seed(sealed_seed(seed))  # for good
        assert share.is_spoilt
    assert (seeded(form, seed).is_spoilt, seeded(form, seed).content) == (False, seed)


@pytest.mark.parametrize(
    ("order", "indices"),
    [
        ([0, 1, 2], None),
        ([1, 0, 2], None),
        ([0, 0, 1], None),
        ([0, 2], None),
        ([0, 1, 2, 2], None),
        ([0, 2, 1], [0, 1, 2]),
        ([2, 1, 0], [0, 1, 2]),
    ],
)
def test_parts_are_taken_in_order_once_and_at_their_places(
    order: list[int], indices: list[int] | None
) -> None:
    """``order`` is which parts come, ``indices`` under which numbers, where these are not their own."""
    with short_parts(4):
        form = form_of(2**24 - 3, 10)
        sealed = sealed_parts(form, list(range(10)))
        assert len(sealed) == 3
        share = Share(form, OURS, seeded=False)
        for index, place in zip(indices or order, order, strict=True):
            share.take_part(index, sealed[place])
        assert share.is_whole == (order == [0, 1, 2])
        assert share.is_spoilt == (order != [0, 1, 2])


def test_parts_that_hold_no_elements_or_were_cut_or_extended_spoil_the_share() -> None:
    with short_parts(4):
        form = form_of(2**24 - 3, 4)
        (right,) = sealed_parts(form, [1, 2, 3, 2**24 - 4])
        (beyond,) = sealed_parts(form, [1, 2, 3, 2**24 - 3])
        total = 4 * 3
        longer = seal(THEIRS.outgoing, 0, True, bytes(15), KIND_ELEMENTS, total)
        unflagged = seal(THEIRS.outgoing, 0, False, bytes(12), KIND_ELEMENTS, total)
        other_total = seal(THEIRS.outgoing, 0, True, bytes(12), KIND_ELEMENTS, 15)
        for sealed in (beyond, longer, unflagged, other_total, right[:-1], b""):
            share = Share(form, OURS, seeded=False)
            share.take_part(0, memoryview(sealed))
            assert share.is_spoilt
        assert derived(form, [1, 2, 3, 2**24 - 4]).is_whole


def test_a_share_prints_without_its_content() -> None:
    form, seed = form_of(13, 6), oracle.seed_named("seed")
    for share in (seeded(form, seed), derived(form, [1, 2, 3, 4, 5, 6])):
        assert repr(share) == str(share) == "Share(<secret>)"
    with pytest.raises(LocalProtocolError) as caught:
        _ = Share(form, OURS, seeded=True).content
    assert "held" in str(caught.value)
