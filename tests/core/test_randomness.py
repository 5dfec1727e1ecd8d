"""The expansion of seeds, against AES-256 with every counter block written out."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from lightsecagg import randomness
from lightsecagg.field import PrimeField
from lightsecagg.packing import pack
from lightsecagg.randomness import BLOCK_ELEMENTS, expand, expand_into, stream_words
from tests.core import oracle
from tests.core.strategies import FEW, SOME, orders, seeds

SEED = oracle.seed_named("randomness")


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    """The probability that true shares give counts at least as far off."""
    expected = shares / shares.sum() * counts.sum()
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


@pytest.mark.parametrize("vector", oracle.stored("expansion.json"), ids=lambda v: f"p={v['order']}")
def test_expansions_match_the_stored_vectors(vector: dict[str, Any]) -> None:
    seed, field = bytes.fromhex(vector["seed"]), PrimeField(vector["order"])
    for stored in vector["ranges"]:
        start, elements = stored["start"], stored["elements"]
        found = expand(seed, field, start, start + len(elements))
        assert found.dtype == np.uint32
        assert found.tolist() == elements
    packed = pack(field, expand(seed, field, 0, 40_000))
    assert hashlib.sha256(packed).hexdigest() == vector["sha256_of_first_40000_packed"]


def test_the_stored_vectors_are_what_the_oracle_makes_and_the_algorithm_has_its_name() -> None:
    assert oracle.stored("expansion.json") == oracle.expansion_vectors()
    assert {vector["order"] for vector in oracle.stored("expansion.json")} == set(oracle.PRIMES)
    assert randomness.EXPANSION == "aes256-ctr-2^14-le32-reject"
    assert BLOCK_ELEMENTS == oracle.BLOCK


@given(seeds, st.sampled_from([0, 1, 255, 2**32, 2**50 - 1]))
@FEW
def test_a_blocks_words_are_aes_of_its_counter_blocks(seed: bytes, block: int) -> None:
    start = block * BLOCK_ELEMENTS
    words = stream_words(seed, start, start + BLOCK_ELEMENTS)
    assert words.dtype == np.uint32
    for first in (0, 4, BLOCK_ELEMENTS - 8):
        assert words[first : first + 8].tolist() == oracle.key_stream_words(seed, block, first, 8)


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_an_expansion_fills_what_it_is_given_and_nothing_beside_it(p: int) -> None:
    room = np.full(3 * BLOCK_ELEMENTS, 7, dtype=np.uint32)
    start, stop = 100, BLOCK_ELEMENTS + 4321
    expand_into(SEED, PrimeField(p), start, room[10 : 10 + stop - start])
    assert room[10 : 10 + stop - start].tolist() == oracle.expand(SEED, p, start, stop)
    assert set(room[:10].tolist()) | set(room[10 + stop - start :].tolist()) == {7}


@given(orders, st.integers(0, 3 * oracle.BLOCK), st.integers(0, 200))
@SOME
def test_any_range_is_the_oracles(p: int, start: int, count: int) -> None:
    assert expand(SEED, PrimeField(p), start, start + count).tolist() == oracle.expand(
        SEED, p, start, start + count
    )


@given(seeds, orders, st.lists(st.integers(0, 40_000), min_size=4, max_size=4).map(sorted))
@FEW
def test_ranges_agree_wherever_they_overlap(seed: bytes, p: int, cuts: list[int]) -> None:
    a, b, c, d = cuts
    field = PrimeField(p)
    left, right = expand(seed, field, a, c), expand(seed, field, b, d)
    assert len(left) == c - a
    assert len(right) == d - b
    assert np.array_equal(left[b - a :], right[: c - b])


@pytest.mark.parametrize("p", [13, 2**31 - 1, 2**32 - 5])
def test_blocks_join_at_their_boundaries(p: int) -> None:
    field = PrimeField(p)
    edge = BLOCK_ELEMENTS
    joined = np.concatenate([expand(SEED, field, b * edge, (b + 1) * edge) for b in range(3)])
    for start, stop in ((0, edge), (0, edge + 1), (edge - 1, edge + 1), (edge, 2 * edge), (5, 3 * edge)):
        assert np.array_equal(expand(SEED, field, start, stop), joined[start:stop])
    assert expand(SEED, field, edge, edge).shape == (0,)


def test_words_that_are_not_below_the_order_are_skipped_not_folded() -> None:
    """For p = 13 the words 13, 14 and 15 go: folding would make 0, 1 and 2 twice as likely."""
    words = oracle.key_stream_words(SEED, 0, 0, 4000)
    kept = [word & 15 for word in words if word & 15 < 13]
    assert len(kept) < 4000
    assert expand(SEED, PrimeField(13), 0, len(kept)).tolist() == kept
    # Nearly half the words go for p = 2^k + 1-like primes, so a block takes more than one draw.
    p = 4099
    assert expand(SEED, PrimeField(p), 0, BLOCK_ELEMENTS).tolist() == oracle.expand(
        SEED, p, 0, BLOCK_ELEMENTS
    )


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_elements_are_uniform(p: int) -> None:
    """At a level of 1 in 10,000, with fixed seeds; each chance is a sum over buckets of equal breadth."""
    buckets = min(p, 61)
    sizes = np.array([len(range(b * p // buckets, (b + 1) * p // buckets)) for b in range(buckets)])
    elements = expand(oracle.seed_named("chi"), PrimeField(p), 0, 200_000).astype(np.int64)
    assert elements.max() < p
    starts = [b * p // buckets for b in range(buckets)]
    counts = np.bincount(np.searchsorted(starts, elements, side="right") - 1, minlength=buckets)
    assert chi_square(counts, sizes) > 1e-4
    assert (
        chi_square(np.bincount(elements & 7, minlength=8), np.bincount(np.arange(13 if p == 13 else 8) & 7))
        > 1e-4
    )


def test_the_uniformity_test_finds_folded_words_out() -> None:
    folded = np.array(oracle.key_stream_words(SEED, 0, 0, 20_000)) % 16 % 13
    assert chi_square(np.bincount(folded, minlength=13), np.ones(13)) < 1e-12


def test_seeds_and_blocks_have_nothing_in_common() -> None:
    field = PrimeField(2**32 - 5)
    streams = [expand(oracle.seed_named(name), field, 0, 3 * BLOCK_ELEMENTS) for name in "ab"]
    values = np.concatenate(streams)
    # 98,304 draws from 2^32 meet about once by chance; a repeated block would meet 2^14 times.
    assert len(values) - len(np.unique(values)) < 20


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"[Kk]ey"):
        expand(bytes(length), PrimeField(13), 0, 1)


@given(seeds, st.integers(0, 2), st.integers(0, 2 * oracle.BLOCK))
@FEW
def test_a_streams_words_are_the_blocks_in_order_with_none_skipped(
    seed: bytes, block: int, count: int
) -> None:
    start = block * BLOCK_ELEMENTS
    words = stream_words(seed, start, start + count)
    assert len(words) == count
    for position in {0, count // 2, count - 1} & set(range(count)):
        b, offset = divmod(start + position, BLOCK_ELEMENTS)
        assert words[position] == oracle.key_stream_words(seed, b, offset // 4 * 4, 4)[offset % 4]


def test_a_streams_words_are_uniform_and_begin_at_whole_blocks_only() -> None:
    words = stream_words(oracle.seed_named("reals"), 0, 200_000)
    assert chi_square(np.bincount(words >> 26, minlength=64), np.ones(64)) > 1e-4
    with pytest.raises(AssertionError):
        stream_words(SEED, 1, 5)
