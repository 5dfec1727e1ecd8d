"""Seeded shares: what a client derives from its seeds lies on one polynomial with their expansions."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.codec import MaskCodec, SeededShares
from lightsecagg.codec.seeded import Tile, derived_receivers, seeded_receivers
from lightsecagg.errors import ParameterError
from lightsecagg.field import PrimeField
from lightsecagg.parameters import Parameters
from lightsecagg.randomness import expand
from tests.core import oracle
from tests.core.strategies import FEW, SOME, choices


def codec_of(n: int, u: int, t: int, p: int, capacity: int | None = None) -> MaskCodec:
    return MaskCodec(PrimeField(p), Parameters(n, u, t), capacity=capacity)


def seeds_of(owner: int, n: int, u: int) -> dict[int, bytes]:
    return {j: oracle.seed_named(f"{owner} to {j}") for j in oracle.seeded_receivers(owner, n, u)}


def all_shares(
    codec: MaskCodec, owner: int, seeds: dict[int, bytes], d: int
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The mask and the shares of all clients, the seeded ones expanded by their receivers."""
    mask, derived = SeededShares(codec, owner, codec.clients, seeds).whole(d)
    m = codec.share_length(d)
    return mask, derived | {j: expand(seed, codec.field, 0, m) for j, seed in seeds.items()}


@given(choices(largest=16), st.integers(1, 30), st.data())
@FEW
def test_mask_and_derived_shares_are_the_oracles(
    choice: tuple[int, int, int, int], d: int, data: st.DataObject
) -> None:
    n, u, t, p = choice
    owner = data.draw(st.integers(1, n))
    seeds = seeds_of(owner, n, u)
    mask, shares = all_shares(codec_of(n, u, t, p), owner, seeds, d)
    expected_mask, expected = oracle.seeded(seeds, d, n, u, t, p, n)
    assert mask.dtype == np.uint32
    assert mask.tolist() == expected_mask
    assert {j: share.tolist() for j, share in shares.items()} == expected


@given(choices(), st.integers(1, 60), st.data())
@FEW
def test_any_u_of_the_shares_decode_to_the_mask_and_sums_to_the_sum(
    choice: tuple[int, int, int, int], d: int, data: st.DataObject
) -> None:
    n, u, t, p = choice
    codec = codec_of(n, u, t, p)
    owners = data.draw(st.lists(st.integers(1, n), min_size=1, max_size=4, unique=True))
    dealt = [all_shares(codec, owner, seeds_of(owner, n, u), d) for owner in owners]
    chosen = data.draw(st.permutations(range(1, n + 1)))[:u]
    total = {j: (sum(shares[j].astype(object) for _, shares in dealt) % p).astype(np.uint32) for j in chosen}
    expected = sum(mask.astype(object) for mask, _ in dealt) % p
    assert codec.decode(total, d).tolist() == expected.tolist()


@pytest.mark.parametrize("p", [13, 2**24 - 3, 2**32 - 5])
@pytest.mark.parametrize("width", [1, 7, 2**14, 20_000, 10**6])
def test_columns_tile_by_tile_are_those_of_the_whole(p: int, width: int) -> None:
    codec = codec_of(5, 3, 1, p)
    d = 70 if width < 100 else 2 * 17_001 + 1  # the last one more than a block, and an odd number of it
    dealer = SeededShares(codec, 4, codec.clients, seeds_of(4, 5, 3))
    mask, derived = dealer.whole(d)
    tiles = [Tile(*map(np.copy, tile)) for tile in dealer.tiles(d, width)]
    m = codec.share_length(d)
    assert [(tile.start, tile.stop) for tile in tiles] == [
        (start, min(start + width, m)) for start in range(0, m, width)
    ]
    joined = np.concatenate([tile.mask for tile in tiles], axis=1).reshape(-1)
    assert joined[:d].tolist() == mask.tolist()
    rows = np.concatenate([tile.shares for tile in tiles], axis=1)
    assert dealer.receivers == (2, 3)
    assert [row.tolist() for row in rows] == [derived[2].tolist(), derived[3].tolist()]


def test_another_seed_makes_another_mask_and_the_same_seeds_the_same() -> None:
    codec = codec_of(5, 3, 1, 2**32 - 5)
    seeds = seeds_of(2, 5, 3)
    mask, _ = SeededShares(codec, 2, codec.clients, seeds).whole(9)
    assert (
        SeededShares(codec, 2, codec.clients, dict(reversed(seeds.items()))).whole(9)[0].tolist()
        == mask.tolist()
    )
    for receiver in seeds:
        other = {**seeds, receiver: oracle.seed_named("other")}
        assert not np.any(SeededShares(codec, 2, codec.clients, other).whole(9)[0] == mask)


def test_a_client_that_tolerates_no_loss_derives_no_shares() -> None:
    codec = codec_of(3, 3, 1, 13)
    mask, shares = SeededShares(codec, 3, codec.clients, seeds_of(3, 3, 3)).whole(5)
    assert shares == {}
    assert len(mask) == 5


@pytest.mark.parametrize("receivers", [(), (2, 3), (2, 3, 5), (1, 2, 3), (2, 3, 4, 5), (3, 4, 5)])
def test_seeds_for_other_than_the_seeded_receivers_are_refused(receivers: tuple[int, ...]) -> None:
    codec = codec_of(5, 3, 1, 13)
    SeededShares(codec, 2, codec.clients, dict.fromkeys((2, 3, 4), bytes(32)))
    secret = oracle.seed_named("secret")
    with pytest.raises(ParameterError, match=r"\(2, 3, 4\)") as error:
        SeededShares(codec, 2, codec.clients, dict.fromkeys(receivers, secret))
    assert repr(secret) not in str(error.value)


@pytest.mark.parametrize("owner", [0, -3, 6, 7])
def test_an_owner_outside_the_cohort_is_refused(owner: int) -> None:
    """Numbers wrap around the cohort, so an owner from outside would pass for another client."""
    codec = codec_of(5, 3, 1, 13)
    seeds = dict.fromkeys(range(1, 4), bytes(32))
    with pytest.raises(ParameterError, match="owner"):
        SeededShares(codec, owner, codec.clients, seeds)


def test_a_mask_of_no_coordinates_is_empty() -> None:
    codec = codec_of(5, 3, 1, 13)
    mask, shares = SeededShares(codec, 2, codec.clients, seeds_of(2, 5, 3)).whole(0)
    assert mask.tolist() == []
    assert {j: share.tolist() for j, share in shares.items()} == {1: [], 5: []}


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    codec = codec_of(3, 2, 1, 13)
    with pytest.raises(ValueError, match=r"[Kk]ey"):
        SeededShares(codec, 1, codec.clients, {1: bytes(32), 2: bytes(length)}).whole(1)


@given(st.integers(1, 60), st.data())
@SOME
def test_receivers_partition_the_cohort_and_the_load_is_even(n: int, data: st.DataObject) -> None:
    u = data.draw(st.integers(1, n))
    load = dict.fromkeys(range(1, n + 1), 0)
    for owner in range(1, n + 1):
        seeded, derived = (
            seeded_receivers(owner, range(1, n + 1), u),
            derived_receivers(owner, range(1, n + 1), u),
        )
        assert list(seeded) == oracle.seeded_receivers(owner, n, u)
        assert seeded[0] == owner
        assert sorted(seeded + derived) == list(range(1, n + 1))
        for receiver in derived:
            load[receiver] += 1
    assert set(load.values()) == {n - u}


@pytest.mark.parametrize("vector", oracle.stored("codec.json"), ids=lambda v: f"p={v['order']}")
def test_seeded_shares_match_the_stored_vectors(vector: dict[str, Any]) -> None:
    stored = vector["seeded"]
    codec = codec_of(
        vector["num_clients"],
        vector["target_survivors"],
        vector["privacy_threshold"],
        vector["order"],
        vector["capacity"],
    )
    seeds = {int(number): bytes.fromhex(seed) for number, seed in stored["seeds"].items()}
    mask, derived = SeededShares(codec, stored["owner"], codec.clients, seeds).whole(vector["dimension"])
    assert mask.tolist() == stored["mask"]
    assert {str(number): share.tolist() for number, share in derived.items()} == stored["derived"]


def test_seeded_form_of_the_codec_decodes_like_the_papers_form() -> None:
    """As an outside user goes about it: seeds out, shares summed by the receivers, any U of them decoded."""
    field, parameters, d = PrimeField(2**31 - 1), Parameters(6, 4, 2), 11
    codec = MaskCodec(field, parameters)
    total = np.zeros(d, np.uint32)
    sums = {number: np.zeros(codec.share_length(d), np.uint32) for number in range(1, 7)}
    for owner in sums:
        seeds = {j: bytes([owner, j]) * 16 for j in seeded_receivers(owner, codec.clients, 4)}
        mask, derived = codec.seeded(owner, seeds).whole(d)
        total = field.add(total, mask)
        assert set(derived) == set(derived_receivers(owner, codec.clients, 4))
        for number, summed in sums.items():
            share = derived[number] if number in derived else codec.share_of(seeds[number], d)
            sums[number] = field.add(summed, share)
    for left_out in combinations(sums, 2):
        answers = {number: share for number, share in sums.items() if number not in left_out}
        assert np.array_equal(codec.decode(answers, d), total)
