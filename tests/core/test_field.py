"""GF(p) against Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.errors import ParameterError
from lightsecagg.field import SUPPORTED_ORDERS, PrimeField, is_prime
from tests.core import oracle
from tests.core.strategies import SOME, elements, orders


def pairs(p: int) -> st.SearchStrategy[tuple[int, list[int], list[int]]]:
    return st.integers(0, 12).flatmap(
        lambda size: st.tuples(st.just(p), elements(p, size), elements(p, size))
    )


def array(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


@given(orders.flatmap(pairs))
@SOME
def test_arithmetic_is_that_of_integers_modulo_p(case: tuple[int, list[int], list[int]]) -> None:
    p, a, b = case
    field = PrimeField(p)
    for operation, expected in (
        (field.add, [(x + y) % p for x, y in zip(a, b, strict=True)]),
        (field.subtract, [(x - y) % p for x, y in zip(a, b, strict=True)]),
        (field.multiply, [(x * y) % p for x, y in zip(a, b, strict=True)]),
    ):
        result = operation(array(a), array(b))
        assert result.dtype == np.uint32
        assert result.tolist() == expected


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_the_extremes_do_not_wrap(p: int) -> None:
    field = PrimeField(p)
    top, zero, one = array([p - 1]), array([0]), array([1])
    assert field.add(top, top).tolist() == [p - 2]
    assert field.add(top, one).tolist() == [0]
    assert field.subtract(zero, top).tolist() == [1]
    assert field.subtract(zero, zero).tolist() == [0]
    assert field.multiply(top, top).tolist() == [1]


def test_operations_broadcast_and_leave_their_arguments_alone() -> None:
    field = PrimeField(13)
    column, row = array([3, 12])[:, None], array([0, 7, 12])[None, :]
    assert field.subtract(column, row).tolist() == [[3, 9, 4], [12, 5, 0]]
    assert column.ravel().tolist() == [3, 12]
    assert row.ravel().tolist() == [0, 7, 12]


@given(orders.flatmap(lambda p: st.tuples(st.just(p), elements(p, 6))))
@SOME
def test_an_inverse_times_its_element_is_one(case: tuple[int, list[int]]) -> None:
    p, a = case
    values = [x or 1 for x in a]
    assert PrimeField(p).invert(array(values)).tolist() == [pow(x, -1, p) for x in values]


@pytest.mark.parametrize("p", [2, *oracle.PRIMES])
def test_zero_has_no_inverse_and_one_is_its_own(p: int) -> None:
    field = PrimeField(p)
    assert field.invert(array([1])).tolist() == [1]
    with pytest.raises(ZeroDivisionError):
        field.invert(array([1, 0]))


@given(orders.flatmap(lambda p: st.tuples(st.just(p), elements(p, 6))))
@SOME
def test_centered_values_stand_for_the_same_elements_around_zero(case: tuple[int, list[int]]) -> None:
    p, a = case
    centered = PrimeField(p).centered(array(a)).tolist()
    assert [value % p for value in centered] == a
    assert all(-(p - 1) // 2 <= value <= p // 2 for value in centered)


@given(orders, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6))
@SOME
def test_any_integers_become_elements_negative_ones_too(p: int, values: list[int]) -> None:
    field = PrimeField(p)
    found = field.elements(values)
    assert found.dtype == np.uint32
    assert found.tolist() == [value % p for value in values]
    assert field.contains(found)


@pytest.mark.parametrize("p", [13, 2**16 - 15, 2**24 - 3, 2**32 - 5])
def test_contains_draws_the_line_at_the_order(p: int) -> None:
    field = PrimeField(p)
    assert field.contains(array([0, p - 1]))
    assert field.contains(array([]))
    assert not field.contains(array([0, p]))
    assert not field.contains(array([2**32 - 1, 0]))


def test_sizes_of_elements() -> None:
    sizes = {p: (PrimeField(p).element_bits, PrimeField(p).element_bytes) for p in oracle.PRIMES}
    assert sizes == {
        13: (4, 1),
        32749: (15, 2),
        2**16 - 15: (16, 2),
        2**24 - 3: (24, 3),
        2**31 - 1: (31, 4),
        2**32 - 5: (32, 4),
    }
    # p − 1 decides, not p: 257 has elements up to 256, 2 has 0 and 1.
    assert (PrimeField(257).element_bits, PrimeField(257).element_bytes) == (9, 2)
    assert (PrimeField(251).element_bits, PrimeField(251).element_bytes) == (8, 1)
    assert (PrimeField(2).element_bits, PrimeField(2).element_bytes) == (1, 1)


def test_supported_orders_are_the_largest_primes_of_their_sizes() -> None:
    largest = [oracle.previous_prime(2**bits) for bits in (16, 24, 31, 32)]
    assert list(SUPPORTED_ORDERS) == largest


def test_is_prime_agrees_with_trial_division_on_small_numbers() -> None:
    assert [number for number in range(-3, 20_000) if is_prime(number)] == [
        number for number in range(-3, 20_000) if oracle.is_prime(number)
    ]


@given(st.integers(2**31, 2**32 - 1))
@SOME
def test_is_prime_agrees_with_trial_division_on_large_numbers(number: int) -> None:
    assert is_prime(number) == oracle.is_prime(number)


@pytest.mark.parametrize(
    "number",
    # strong pseudoprimes to base 2; to 2 and 7; Carmichael numbers; squares of primes
    [2047, 3215031751, 314821, 2269093, 561, 41041, 825265, 65521**2 - 1, 65521**2, 61**2, 49, 25],
)
def test_what_fools_weak_tests_is_composite(number: int) -> None:
    assert not oracle.is_prime(number)
    assert not is_prime(number)


@pytest.mark.parametrize("order", [4, 2047, 2**16, 2**31, 2**32 - 1, 65521 * 65519])
def test_a_composite_order_is_refused(order: int) -> None:
    with pytest.raises(ParameterError, match=f"{order}.*composite"):
        PrimeField(order)


@pytest.mark.parametrize("order", [-7, 0, 1, 2**32, 2**32 + 15, 2**61 - 1])
def test_an_order_out_of_range_is_refused(order: int) -> None:
    with pytest.raises(ParameterError, match=r"below 2\^32, found"):
        PrimeField(order)
