"""Fixed point: exact rational means, no wrap, no bias."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.errors import ParameterError, UpdateError
from lightsecagg.field import PrimeField
from lightsecagg.quantize import FixedPoint, SumOutOfRangeError
from tests.core import oracle
from tests.core.strategies import FEW, SOME

DUST = Fraction(1, 2**20)  # float64's own error, far below a step


def fixed_entropy(count: int) -> bytes:
    assert count == 32
    return oracle.seed_named("rounding")


def no_entropy(count: int) -> bytes:
    raise AssertionError("rounding to nearest needs no randomness")


def total(field: PrimeField, vectors: list[np.ndarray]) -> np.ndarray:
    """The sum in the field, by Python integers."""
    return np.array(
        [sum(c) % field.order for c in zip(*map(np.ndarray.tolist, vectors), strict=True)], np.uint32
    )


quantizers = st.builds(
    FixedPoint,
    st.sampled_from([0.01, 0.5, 1.0, 8.0, 12.3, 100.0]),
    st.integers(0, 16),
    st.sampled_from([1, 7, 1000, 4096]),
    st.sampled_from(["nearest", "stochastic"]),
)
values = st.floats(-20, 20) | st.sampled_from([0.0, -0.0, 1e300, -1e300, 5e-324])


@given(quantizers, st.integers(1, 5), st.integers(0, 6), st.data())
@SOME
def test_the_mean_of_a_decoded_sum_is_the_exact_one_within_a_step(
    quantizer: FixedPoint, clients: int, d: int, data: st.DataObject
) -> None:
    updates = [data.draw(st.lists(values, min_size=d, max_size=d)) for _ in range(clients)]
    weights = data.draw(
        st.lists(st.integers(0, 2 * quantizer.max_weight), min_size=clients, max_size=clients)
    )
    field = quantizer.smallest_field(clients)
    vectors = [
        quantizer.quantize(field, np.array(x, dtype=np.float64), n, fixed_entropy)
        for x, n in zip(updates, weights, strict=True)
    ]
    mean, total_weight = quantizer.dequantize(field, total(field, vectors), clients)
    assert total_weight == sum(min(n, quantizer.max_weight) for n in weights)
    expected = oracle.weighted_mean(updates, weights, quantizer.clip, quantizer.max_weight)
    each = Fraction(1, 2) if quantizer.rounding == "nearest" else Fraction(1)
    step = Fraction(quantizer.max_weight, (total_weight or 1) * 2**quantizer.fraction_bits)
    assert mean.shape == (d,)
    assert mean.dtype == np.float64
    for found, exact in zip(mean.tolist(), expected, strict=True):
        assert abs(Fraction(found) - exact) <= clients * each * step + DUST * step


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=20), st.integers(0, 20))
@SOME
def test_unweighted_coordinates_are_rounded_to_nearest_ties_to_even(update: list[float], bits: int) -> None:
    quantizer, field = FixedPoint(8.0, bits, 1), PrimeField(2**32 - 5)
    found = quantizer.quantize(field, np.array(update), 1, no_entropy)
    assert found.dtype == np.uint32
    assert found.tolist() == [
        *(round(oracle.clipped(x, 8.0) * 2**bits) % field.order for x in update),
        1,
    ]


def test_ties_go_to_even() -> None:
    found = FixedPoint(8.0, 1, 1).quantize(PrimeField(32749), np.array([0.25, 0.75, 1.25, -0.25, -0.75]), 1)
    assert found.tolist() == [0, 2, 2, 0, 32749 - 2, 1]


@given(st.integers(0, 3000), st.lists(st.floats(-9, 9), min_size=1, max_size=8))
@SOME
def test_weighted_coordinates_are_within_half_a_step(weight: int, update: list[float]) -> None:
    quantizer, field = FixedPoint(8.0, 12, 1000), PrimeField(2**32 - 5)
    found = quantizer.quantize(field, np.array(update), weight)
    counted = min(weight, 1000)
    for value, x in zip(field.centered(found[:-1]).tolist(), update, strict=True):
        exact = oracle.clipped(x, 8.0) * counted / 1000 * 2**12
        assert abs(value - exact) <= Fraction(1, 2) + DUST
    assert found[-1] == counted


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_values_beyond_the_clip_count_as_the_clip(rounding: str) -> None:
    quantizer = FixedPoint(2.0, 4, 10, rounding)  # type: ignore[arg-type]
    field = PrimeField(32749)
    found = quantizer.quantize(field, np.array([2.0, 2.01, 1e300, -2.0, -3, -1e300]), 10)
    assert found.tolist() == [32, 32, 32, field.order - 32, field.order - 32, field.order - 32, 10]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nan_and_infinity_are_refused_wherever_they_stand(bad: float, place: int, dtype: type) -> None:
    update = np.zeros(70_001, dtype=dtype)
    quantizer, field = FixedPoint(8.0, 16, 1), PrimeField(2**24 - 3)
    assert len(quantizer.quantize(field, update, 1)) == 70_002
    update[place] = bad
    with pytest.raises(UpdateError, match="NaN or infinity"):
        quantizer.quantize(field, update, 1)


def test_an_update_of_another_shape_and_a_negative_weight_are_refused() -> None:
    quantizer, field = FixedPoint(8.0, 16, 1), PrimeField(2**24 - 3)
    for update in (np.zeros((2, 2)), np.zeros(()), np.zeros((3, 1))):
        with pytest.raises(UpdateError, match="shape"):
            quantizer.quantize(field, update, 1)
    with pytest.raises(UpdateError, match="weight"):
        quantizer.quantize(field, np.zeros(3), -1)
    assert quantizer.quantize(field, np.zeros(0), 1).tolist() == [1]


@pytest.mark.parametrize("weight", [2.5, math.nan])
def test_a_weight_that_is_no_integer_is_refused(weight: float) -> None:
    """Otherwise the coordinates would be weighted by 2.5 and counted as 2."""
    with pytest.raises((UpdateError, TypeError)):
        FixedPoint(8.0, 8, 10).quantize(PrimeField(2**24 - 3), np.ones(2), weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_updates_are_left_alone_and_may_have_any_real_type(dtype: type) -> None:
    update = np.array([100, -1, 2], dtype=dtype)
    update.setflags(write=False)
    found = FixedPoint(8.0, 4, 2).quantize(PrimeField(32749), update, 1)
    assert found.tolist() == [64, 32749 - 8, 16, 1]
    assert update.tolist() == [100, -1, 2]


def test_a_weight_above_the_maximum_counts_as_that() -> None:
    quantizer, field = FixedPoint(8.0, 8, 1000), PrimeField(2**24 - 3)
    update = np.array([1.0, -3.5])
    at = quantizer.quantize(field, update, 1000)
    assert quantizer.quantize(field, update, 10**12).tolist() == at.tolist() == [256, field.order - 896, 1000]
    assert quantizer.quantize(field, update, 999).tolist() != at.tolist()


# Stochastic rounding.


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.25, 0.5, 0.9, -0.25, -0.9])
def test_stochastic_rounding_is_unbiased(fraction: float) -> None:
    """The mean of 200,000 is within 5 standard deviations, wrong for one seed in 1.7 million."""
    count = 200_000
    quantizer, field = FixedPoint(8.0, 0, 1, "stochastic"), PrimeField(32749)
    rounded = field.centered(quantizer.quantize(field, np.full(count, 3 + fraction), 1, fixed_entropy)[:-1])
    assert set(rounded.tolist()) <= {math.floor(3 + fraction), math.ceil(3 + fraction)}
    up = fraction % 1
    deviation = math.sqrt(up * (1 - up) / count)
    assert abs(rounded.mean() - (3 + fraction)) <= 5 * deviation
    if deviation:
        nearest = FixedPoint(8.0, 0, 1).quantize(field, np.full(count, 3 + fraction), 1)
        assert abs(field.centered(nearest[:-1]).mean() - (3 + fraction)) > 5 * deviation or fraction == 0.001


def hoeffding(count: int, ranges: float, error: float) -> float:
    """What the mean of ``count`` sums stays within of its expectation, but with probability ``error``.

    Each sum is of independent values whose squared ranges sum up to ``ranges`` (Hoeffding, 1963, theorem 2).
    """
    return math.sqrt(math.log(2 / error) * ranges / (2 * count))


ALMOST_NEVER = 1e-9
"""How often an unbiased quantizer would fail each of these tests, were the entropy drawn anew."""


@pytest.mark.parametrize("weight", [1, 3, 7, 10])
@pytest.mark.parametrize("value", [0.3, 1.5, -0.2, -2.45, 7.99])
def test_what_is_added_under_a_mask_is_right_on_average_and_rounded_to_nearest_it_is_not(
    value: float, weight: int
) -> None:
    """200,000 coordinates of one update, each rounded for itself."""
    count, field = 200_000, PrimeField(2**31 - 1)
    mask = field.elements([field.order - 4] * (count + 1))
    exact = Fraction(value) * weight / 10
    off = {}
    for rounding in ("stochastic", "nearest"):
        total = mask.copy()
        quantizer = FixedPoint(8.0, 0, 10, rounding)  # type: ignore[arg-type]
        quantizer.add_to(field, total, np.full(count, value), weight, fixed_entropy)
        added = field.centered(field.subtract(total, mask))
        assert set(added[:-1].tolist()) <= {math.floor(exact), math.ceil(exact)}
        assert added[-1] == weight
        off[rounding] = abs(float(added[:-1].mean()) - float(exact))
    bound = hoeffding(count, 1.0, ALMOST_NEVER)
    assert off["stochastic"] <= bound
    assert off["nearest"] > bound


def test_a_sum_weighted_by_staleness_is_right_on_average_and_rounded_to_nearest_it_is_not() -> None:
    """Σ s·x of five clients, 50,000 coordinates each; every client rounds with a seed of its own."""
    count, field = 50_000, PrimeField(2**31 - 1)
    clients = [(0.3, 9, 4), (-1.27, 10, 2), (2.2, 7, 2), (0.049, 10, 1), (-0.31, 3, 4)]
    exact = sum(Fraction(value) * weight / 10 * often for value, weight, often in clients)
    off = {}
    for rounding in ("stochastic", "nearest"):
        total = [0] * count
        for place, (value, weight, often) in enumerate(clients):
            seed = oracle.seed_named(f"client {place}")
            quantizer = FixedPoint(8.0, 0, 10, rounding)  # type: ignore[arg-type]
            vector = quantizer.quantize(field, np.full(count, value), weight, lambda _, seed=seed: seed)
            values = field.centered(vector[:-1]).tolist()
            total = [found + often * each for found, each in zip(total, values, strict=True)]
        off[rounding] = abs(Fraction(sum(total), count) - exact)
    bound = hoeffding(count, sum(often**2 for _, _, often in clients), ALMOST_NEVER)
    assert off["stochastic"] <= bound
    assert off["nearest"] > bound


def test_stochastic_rounding_adds_the_streams_reals_before_it_floors() -> None:
    quantizer, field = FixedPoint(8.0, 3, 4, "stochastic"), PrimeField(2**24 - 3)
    update = np.linspace(-9, 9, 70_000)
    found = field.centered(quantizer.quantize(field, update, 3, fixed_entropy)).tolist()
    seed = fixed_entropy(32)
    for position in (0, 1, 16_383, 16_384, 65_535, 65_536, 69_999):
        block, offset = divmod(position, oracle.BLOCK)
        word = oracle.key_stream_words(seed, block, offset // 4 * 4, 4)[offset % 4]
        exact = oracle.clipped(update[position], 8.0) * 3 / 4 * 2**3
        assert found[position] == math.floor(exact + Fraction(word, 2**32))


def test_stochastic_rounding_draws_fresh_randomness_each_time_and_nearest_none() -> None:
    field, update = PrimeField(2**24 - 3), np.full(200, 0.5)
    stochastic = FixedPoint(8.0, 0, 1, "stochastic")
    assert stochastic.quantize(field, update, 1).tolist() != stochastic.quantize(field, update, 1).tolist()
    FixedPoint(8.0, 0, 1).quantize(field, update, 1, no_entropy)
    with pytest.raises(AssertionError, match="needs no randomness"):
        stochastic.quantize(field, update, 1, no_entropy)


# The field holds the sum.


def test_a_field_that_is_too_small_is_refused_and_the_smallest_that_works_is_named() -> None:
    quantizer = FixedPoint(8.0, 16, 1000)
    with pytest.raises(ParameterError) as error:
        quantizer.check(PrimeField(1997), 10)
    assert str(error.value) == (
        "1997 cannot hold the sum of 10 clients at clip 8.0 and 16 fraction bits; the smallest supported "
        "prime that can is 16777213"
    )
    quantizer.check(PrimeField(16777213), 10)
    assert quantizer.smallest_field(10) == PrimeField(16777213)


@given(quantizers, st.integers(2, 1024))
@SOME
def test_the_smallest_field_fits_and_no_smaller_supported_one_does(quantizer: FixedPoint, n: int) -> None:
    needed = 2 * n * max(Fraction(quantizer.clip) * 2**quantizer.fraction_bits, quantizer.max_weight - 1)
    supported = (2**16 - 15, 2**24 - 3, 2**31 - 1, 2**32 - 5)
    if needed >= supported[-1]:
        with pytest.raises(ParameterError, match="no supported prime"):
            quantizer.smallest_field(n)
        return
    order = quantizer.smallest_field(n).order
    assert order > needed
    for p in supported[: supported.index(order)]:
        assert p <= needed + 2 * n
        with pytest.raises(ParameterError, match=f"is {order}"):
            quantizer.check(PrimeField(p), n)


@pytest.mark.parametrize(
    ("n", "clip", "bits", "max_weight", "prime"),
    [(2, 2.0, 0, 1, 13), (2, 1.0, 0, 3, 13), (3, 1.0, 0, 2, 13), (3, 2.5, 0, 3, 19), (2, 0.7, 2, 1, 13)],
)
def test_the_bound_is_exact_and_nothing_wraps_there(
    n: int, clip: float, bits: int, max_weight: int, prime: int
) -> None:
    """The prime is 2 · N · L + 1, the least that the bound allows; the prime before it is refused."""
    quantizer, field = FixedPoint(clip, bits, max_weight), PrimeField(prime)
    assert prime == 2 * n * quantizer.largest_coordinate + 1
    quantizer.check(field, n)
    with pytest.raises(ParameterError):
        quantizer.check(PrimeField(oracle.previous_prime(prime)), n)
    with pytest.raises(ParameterError):
        quantizer.check(field, n + 1)
    vector = quantizer.quantize(field, np.array([clip, -clip, 0.0]), max_weight)
    mean, weight = quantizer.dequantize(field, total(field, [vector] * n), n)
    assert weight == n * max_weight
    at_clip = round(Fraction(clip) * 2**bits) / 2**bits
    assert mean.tolist() == pytest.approx([at_clip, -at_clip, 0.0], abs=1e-12)


@given(
    st.integers(2, 1024),
    st.floats(0.01, 50),
    st.integers(0, 12),
    st.integers(1, 5000),
    st.sampled_from(["nearest", "stochastic"]),
)
@FEW
def test_nothing_wraps_when_all_clients_are_at_the_clip_and_the_field_is_the_smallest_prime_that_fits(
    n: int, clip: float, bits: int, max_weight: int, rounding: str
) -> None:
    quantizer = FixedPoint(clip, bits, max_weight, rounding)  # type: ignore[arg-type]
    field = PrimeField(oracle.next_prime(2 * n * quantizer.largest_coordinate))
    quantizer.check(field, n)
    vector = quantizer.quantize(field, np.array([1e9, -1e9]), max_weight, fixed_entropy)
    assert all(abs(x) <= quantizer.largest_coordinate for x in field.centered(vector).tolist())
    mean, weight = quantizer.dequantize(field, total(field, [vector] * n), n)
    assert weight == n * max_weight
    assert np.abs(mean - [clip, -clip]).max() <= 2.0**-bits * (1 + 1e-6)


# What comes back.


def sum_of(field: PrimeField, *integers: int) -> np.ndarray:
    return field.elements(list(integers))


def test_a_coordinate_beyond_what_honest_clients_can_sum_to_is_refused() -> None:
    quantizer, field = FixedPoint(2.0, 3, 10), PrimeField(32749)
    limit = 3 * (2 * 8 + 1)
    for edge in (limit, -limit):
        mean, weight = quantizer.dequantize(field, sum_of(field, 0, edge, 30), 3)
        assert weight == 30
        assert mean[1] == pytest.approx(edge / 3 / 8)
    for beyond in (limit + 1, -limit - 1, field.order // 2, -(field.order // 2)):
        for place in (0, 1):
            coordinates = [0, 0]
            coordinates[place] = beyond
            with pytest.raises(SumOutOfRangeError, match="coordinate"):
                quantizer.dequantize(field, sum_of(field, *coordinates, 30), 3)


def test_a_weight_that_honest_clients_cannot_sum_to_is_refused() -> None:
    quantizer, field = FixedPoint(2.0, 3, 10), PrimeField(32749)
    assert quantizer.dequantize(field, sum_of(field, 5, 30), 3)[1] == 30
    for weight in (31, -1, field.order // 2, -(field.order // 2)):
        with pytest.raises(SumOutOfRangeError, match="weight"):
            quantizer.dequantize(field, sum_of(field, 5, weight), 3)
    with pytest.raises(SumOutOfRangeError, match="weight"):
        quantizer.dequantize(field, sum_of(field, 0, 21), 2)


def test_a_total_weight_of_zero_gives_zeros() -> None:
    quantizer, field = FixedPoint(2.0, 3, 10, "stochastic"), PrimeField(32749)
    vectors = [quantizer.quantize(field, np.array([1.5, -2.0]), 0) for _ in range(3)]
    assert all(vector.tolist() == [0, 0, 0] for vector in vectors)
    mean, weight = quantizer.dequantize(field, total(field, vectors), 3)
    assert (mean.tolist(), weight) == ([0.0, 0.0], 0)
    # Even where coordinates are not zero, nothing is divided by it.
    assert quantizer.dequantize(field, sum_of(field, 4, 0), 3)[0].tolist() == [0.0]


def test_a_sum_of_nothing_but_the_weight_has_an_empty_mean() -> None:
    quantizer, field = FixedPoint(2.0, 3, 10), PrimeField(32749)
    mean, weight = quantizer.dequantize(field, sum_of(field, 7), 1)
    assert (mean.tolist(), weight) == ([], 7)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0, 4, 1), "clip"),
        ((-1.0, 4, 1), "clip"),
        ((math.nan, 4, 1), "clip"),
        ((math.inf, 4, 1), "clip"),
        ((1.0, -1, 1), "fraction_bits"),
        ((1.0, 31, 1), "fraction_bits"),
        ((1.0, 4, 0), "max_weight"),
        ((1.0, 4, -5), "max_weight"),
        ((1.0, 4, 1, "up"), "rounding"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(arguments: tuple[object, ...], name: str) -> None:
    FixedPoint(1.0, 0, 1)
    FixedPoint(1.0, 30, 1)
    with pytest.raises(ParameterError, match=f"^{name} must be"):
        FixedPoint(*arguments)  # type: ignore[arg-type]


def test_a_clip_for_which_no_field_is_large_enough_is_refused_whatever_its_size() -> None:
    for clip in (1e6, 1e300, 1e308):
        with pytest.raises(ParameterError, match="no supported prime"):
            FixedPoint(clip, 30, 1).smallest_field(2)
