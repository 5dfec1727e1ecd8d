"""``MaskCodec``: the paper's encoding and one-shot decoding, against interpolation in Python integers."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.codec import MaskCodec
from lightsecagg.codec.lagrange import interpolation_matrix
from lightsecagg.errors import ParameterError
from lightsecagg.field import PrimeField
from lightsecagg.parameters import Parameters
from tests.core import oracle
from tests.core.strategies import FEW, SOME, choices, elements


def array(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def codec_of(n: int, u: int, t: int, p: int, capacity: int | None = None) -> MaskCodec:
    return MaskCodec(PrimeField(p), Parameters(n, u, t), capacity=capacity)


def random_inputs(codec: MaskCodec, d: int, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    p, t = codec.field.order, codec.parameters.privacy_threshold
    mask = source.integers(0, p, d, dtype=np.uint32)
    return mask, source.integers(0, p, (t, codec.share_length(d)), dtype=np.uint32)


def encode(codec: MaskCodec, d: int, seed: int = 0) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """A random mask and its shares by client number."""
    mask, noise = random_inputs(codec, d, np.random.default_rng(seed))
    return mask, dict(enumerate(codec.encode(mask, noise), start=1))


@given(st.data())
@FEW
def test_shares_are_the_polynomials_values_at_the_clients_points(data: st.DataObject) -> None:
    n, u, t, p = data.draw(choices())
    capacity = data.draw(st.integers(n, min(n + 9, p - u - 1)) | st.just(n))
    d = data.draw(st.integers(0, 12))
    mask = data.draw(elements(p, d))
    m = oracle.share_length(d, u, t)
    noise = [data.draw(elements(p, m)) for _ in range(t)]
    codec = codec_of(n, u, t, p, capacity)
    shares = codec.encode(array(mask), array(noise).reshape(t, m))
    assert codec.share_length(d) == m
    assert shares.dtype == np.uint32
    assert shares.shape == (n, m)
    assert shares.tolist() == oracle.encode(mask, noise, n, u, t, p, capacity)


@given(st.data())
@SOME
def test_any_u_of_n_shares_decode(data: st.DataObject) -> None:
    n, u, t, p = data.draw(choices())
    d = data.draw(st.integers(1, 40))
    codec = codec_of(n, u, t, p)
    mask, shares = encode(codec, d, data.draw(st.integers(0, 2**32)))
    chosen = data.draw(st.permutations(range(1, n + 1)))[: data.draw(st.integers(u, n))]
    found = codec.decode({number: shares[number] for number in chosen}, d)
    assert found.dtype == np.uint32
    assert found.tolist() == mask.tolist()


def test_every_set_of_u_clients_decodes_and_agrees_with_the_oracle() -> None:
    n, u, t, p, d = 6, 4, 2, 13, 5
    codec = codec_of(n, u, t, p)
    mask, shares = encode(codec, d)
    for chosen in combinations(range(1, n + 1), u):
        some = {number: shares[number] for number in chosen}
        assert codec.decode(some, d).tolist() == mask.tolist()
        rows = {number: share.tolist() for number, share in some.items()}
        assert oracle.decode(rows, d, u, t, p, n) == mask.tolist()


@given(choices(largest=20), st.integers(2, 8), st.integers(1, 20), st.integers(0, 2**32))
@FEW
def test_summed_shares_decode_to_the_sum_of_the_masks(
    choice: tuple[int, int, int, int], clients: int, d: int, seed: int
) -> None:
    n, u, t, p = choice
    codec = codec_of(n, u, t, p)
    dealt = [encode(codec, d, seed + i) for i in range(clients)]
    total = {j: array([sum(x) % p for x in zip(*(s[j].tolist() for _, s in dealt), strict=True)])
             for j in range(n - u + 1, n + 1)}  # fmt: skip
    expected = [sum(x) % p for x in zip(*(mask.tolist() for mask, _ in dealt), strict=True)]
    assert codec.decode(total, d).tolist() == expected


@pytest.mark.parametrize(("u", "t", "d"), [(5, 2, 7), (5, 2, 8), (5, 2, 2), (5, 0, 1), (5, 1, 3), (3, 1, 1)])
def test_a_dimension_that_the_rows_do_not_divide_is_padded(u: int, t: int, d: int) -> None:
    codec = codec_of(6, u, t, 2**31 - 1)
    mask, shares = encode(codec, d)
    assert len(shares[1]) == -(-d // (u - t))
    assert codec.decode(shares, d).tolist() == mask.tolist()
    # What is padded is zero, whatever the mask: one more coordinate decodes to 0 where there is room.
    if codec.share_length(d + 1) == codec.share_length(d):
        assert codec.decode(shares, d + 1).tolist() == [*mask.tolist(), 0]


def test_a_spoilt_share_spoils_the_sum_so_decoding_reads_all_u() -> None:
    codec = codec_of(5, 4, 1, 32749)
    mask, shares = encode(codec, 9)
    for number in (1, 2, 3, 4):
        spoilt = {k: v.copy() for k, v in shares.items() if k != 5}
        spoilt[number][0] = (spoilt[number][0] + 1) % 32749
        assert codec.decode(spoilt, 9).tolist() != mask.tolist()


def test_u_minus_one_shares_are_refused_and_u_are_enough() -> None:
    codec = codec_of(6, 4, 1, 32749)
    mask, shares = encode(codec, 8)
    assert codec.decode({k: shares[k] for k in (2, 3, 5, 6)}, 8).tolist() == mask.tolist()
    with pytest.raises(ParameterError, match="at least U = 4 clients, found 3"):
        codec.decode({k: shares[k] for k in (2, 3, 5)}, 8)
    with pytest.raises(ParameterError, match="found 0"):
        codec.decode({}, 8)


@pytest.mark.parametrize("stranger", [0, -1, 7, 2**32 - 5])
def test_an_unknown_client_number_is_refused(stranger: int) -> None:
    codec = codec_of(6, 4, 1, 2**32 - 5)
    _, shares = encode(codec, 8)
    for others in ((1, 2, 3), (1, 2, 3, 4)):
        with pytest.raises(ParameterError, match=r"1\.\.6"):
            codec.decode({**{k: shares[k] for k in others}, stranger: shares[5]}, 8)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (array([1, 2]), "shape"),
        (array([1, 2, 3, 4]), "shape"),
        (array([[1, 2, 3]]), "shape"),
        (array([1, 2, 32749]), "below 32749"),
        (array([1, 2, 2**32 - 1]), "below 32749"),
        (np.array([1, 2, 3], dtype=np.int64), "uint32"),
        (np.array([1, 2, 3], dtype=np.float64), "uint32"),
    ],
)
def test_a_share_that_does_not_fit_is_refused(share: np.ndarray, words: str) -> None:
    codec = codec_of(5, 4, 1, 32749)
    _, shares = encode(codec, 8)
    with pytest.raises(ParameterError, match=words):
        codec.decode({**shares, 2: share}, 8)
    with pytest.raises(ParameterError):
        codec.decode(shares, 8 + 3)


def test_a_mask_and_noise_that_do_not_fit_are_refused() -> None:
    codec = codec_of(5, 4, 1, 32749)
    mask, noise = random_inputs(codec, 8, np.random.default_rng(1))
    assert codec.encode(mask, noise).shape == (5, 3)
    for bad_mask, bad_noise, words in (
        (mask, noise[:, :2], "shape"),
        (mask, np.concatenate([noise, noise]), "shape"),
        (mask, noise[0], "shape"),
        (mask[:3], noise, "shape"),
        (mask.reshape(2, 4), noise[:, :1], "shape"),
        (array([*mask[:-1], 32749]), noise, "below 32749"),
        (mask, array([[0, 32749, 0]]), "below 32749"),
        (mask.astype(np.int64), noise, "uint32"),
        (mask, noise.astype(np.float64), "uint32"),
    ):
        with pytest.raises(ParameterError, match=words):
            codec.encode(bad_mask, bad_noise)


def test_the_arguments_are_not_changed() -> None:
    codec = codec_of(5, 4, 1, 32749)
    mask, noise = random_inputs(codec, 8, np.random.default_rng(1))
    before = mask.copy(), noise.copy()
    shares = dict(enumerate(codec.encode(mask, noise), start=1))
    copies = {k: v.copy() for k, v in shares.items()}
    codec.decode(shares, 8)
    assert np.array_equal(mask, before[0])
    assert np.array_equal(noise, before[1])
    assert all(np.array_equal(shares[k], copies[k]) for k in shares)


@pytest.mark.parametrize(
    ("n", "u", "p", "capacity"), [(2, 2, 5, None), (6, 6, 13, None), (4, 3, 13, 9), (3, 3, 7, 3)]
)
def test_a_field_with_one_point_to_spare_does(n: int, u: int, p: int, capacity: int | None) -> None:
    codec = codec_of(n, u, 1, p, capacity)
    mask, shares = encode(codec, 3)
    assert codec.decode(shares, 3).tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("n", "u", "p", "capacity"), [(2, 2, 3, None), (7, 6, 13, None), (4, 3, 13, 10), (4, 3, 13, 99)]
)
def test_a_field_with_too_few_points_is_refused(n: int, u: int, p: int, capacity: int | None) -> None:
    with pytest.raises(ParameterError, match=f"wanted a prime above {(capacity or n) + u}"):
        codec_of(n, u, 1, p, capacity)


def test_a_capacity_below_n_is_refused_and_n_itself_is_the_default() -> None:
    with pytest.raises(ParameterError, match="capacity must be at least N = 5"):
        codec_of(5, 4, 1, 32749, 4)
    assert codec_of(5, 4, 1, 32749).capacity == codec_of(5, 4, 1, 32749, 5).capacity == 5


def test_points_lie_where_the_design_puts_them() -> None:
    codec = codec_of(5, 4, 1, 32749, 8)
    assert list(codec.data_points) == [9, 10, 11, 12]
    assert list(codec.mask_points) == [9, 10, 11]
    assert list(codec_of(5, 4, 1, 32749).data_points) == [6, 7, 8, 9]


def test_within_a_capacity_higher_numbers_answer_too() -> None:
    """Beyond N and up to C a client's point is its number, so late joiners' shares decode as well."""
    p, n, u, t, capacity, d = 32749, 4, 3, 1, 6, 4
    codec = codec_of(n, u, t, p, capacity)
    mask, noise = random_inputs(codec, d, np.random.default_rng(2))
    rows = oracle.encode(mask.tolist(), noise.tolist(), capacity, u, t, p, capacity)
    shares = {number: array(rows[number - 1]) for number in (2, 5, 6)}
    assert codec.decode(shares, d).tolist() == mask.tolist()
    with pytest.raises(ParameterError, match=r"1\.\.6"):
        codec.decode({**shares, 7: shares[2]}, d)


@given(st.sampled_from(oracle.PRIMES[1:]), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32))
@FEW
def test_the_interpolation_matrix_is_the_oracles(p: int, known: int, wanted: int, seed: int) -> None:
    points = [int(x) for x in np.random.default_rng(seed).choice(p - 1, known + wanted, replace=False)]
    matrix = interpolation_matrix(PrimeField(p), points[:known], points[known:])
    expected = [list(oracle.lagrange_weights(tuple(points[:known]), point, p)) for point in points[known:]]
    assert matrix.tolist() == expected


def test_the_largest_cohort_decodes() -> None:
    codec = codec_of(1024, 1024, 511, 2**32 - 5)
    mask, shares = encode(codec, 1026)
    assert codec.decode(shares, 1026).tolist() == mask.tolist()


@pytest.mark.parametrize("vector", oracle.stored("codec.json"), ids=lambda v: f"p={v['order']}")
def test_shares_match_the_stored_vectors(vector: dict[str, Any]) -> None:
    paper = vector["paper"]
    codec = codec_of(
        vector["num_clients"],
        vector["target_survivors"],
        vector["privacy_threshold"],
        vector["order"],
        vector["capacity"],
    )
    noise = array(paper["noise"]).reshape(len(paper["noise"]), codec.share_length(vector["dimension"]))
    shares = codec.encode(array(paper["mask"]), noise)
    assert shares.tolist() == paper["shares"]
    last = {number: shares[number - 1] for number in range(len(shares), 0, -1)}
    assert codec.decode(last, vector["dimension"]).tolist() == paper["mask"]


def test_the_stored_vectors_are_what_the_oracle_makes() -> None:
    assert oracle.stored("codec.json") == oracle.codec_vectors()
