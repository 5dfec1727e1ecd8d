"""Matrix products over GF(p), exact to the last unit at the edge of float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.field import PrimeField
from lightsecagg.kernels import ModularMatrix, blas
from tests.core import oracle
from tests.core.strategies import SOME, elements, orders


def exact(weights: np.ndarray, data: np.ndarray, p: int) -> list[list[int]]:
    """The product in Python integers."""
    rows, columns = weights.tolist(), data.T.tolist()
    return [[sum(w * x for w, x in zip(row, column, strict=True)) % p for column in columns] for row in rows]


def plan_of(field: PrimeField, weights: np.ndarray) -> str:
    """Which way the product goes."""
    blocks = ModularMatrix(field, weights)._blocks
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == weights.shape[1]
    if len(blocks) > 1:
        return "blocked"
    return "single" if blocks[0].high is None else "split"


def worst_rows(p: int, columns: int) -> np.ndarray:
    """Coefficients of largest magnitude: all p//2, all p//2 + 1 (that is −(p//2)), and the two in turn."""
    high, low = p // 2, p // 2 + 1
    turns = [high if k % 2 else low for k in range(columns)]
    return np.array([[high] * columns, [low] * columns, turns], dtype=np.uint32)


@given(
    orders.flatmap(
        lambda p: st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(0, 4)).flatmap(
            lambda s: st.tuples(st.just((p, *s)), elements(p, s[0] * s[1]), elements(p, s[1] * s[2]))
        )
    )
)
@SOME
def test_products_are_those_of_integers(case: tuple[tuple[int, int, int, int], list[int], list[int]]) -> None:
    (p, r, k, n), left, right = case
    weights = np.array(left, dtype=np.uint32).reshape(r, k)
    data = np.array(right, dtype=np.uint32).reshape(k, n)
    found = ModularMatrix(PrimeField(p), weights).product(data)
    assert found.dtype == np.uint32
    assert found.shape == (r, n)
    assert found.tolist() == (exact(weights, data, p) if n else [[] for _ in range(r)])


@pytest.mark.parametrize("p", oracle.PRIMES)
@pytest.mark.parametrize("columns", [1, 64, 112, 113, 224, 225, 448, 1023, 1024])
def test_worst_coefficients_meet_worst_data_exactly(p: int, columns: int) -> None:
    weights = worst_rows(p, columns)
    # Every partial sum of some row against some column is as large as it can be, of either sign.
    data = np.concatenate([worst_rows(p, columns), np.full((1, columns), p - 1, np.uint32)]).T
    found = ModularMatrix(PrimeField(p), weights).product(data)
    assert found.tolist() == exact(weights, data, p)


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_random_matrices_of_1024_columns_are_exact(p: int) -> None:
    random = np.random.default_rng(p)
    weights = random.integers(0, p, (3, 1024), dtype=np.uint32)
    data = random.integers(0, p, (1024, 3), dtype=np.uint32)
    assert ModularMatrix(PrimeField(p), weights).product(data).tolist() == exact(weights, data, p)


@pytest.mark.parametrize(
    ("p", "columns", "plan"),
    [
        (13, 1024, "single"),
        (32749, 1024, "single"),
        (2**16 - 15, 1024, "single"),
        (2**24 - 3, 112, "single"),
        (2**24 - 3, 113, "split"),
        (2**24 - 3, 1024, "split"),
        (2**31 - 1, 1, "split"),
        (2**31 - 1, 224, "split"),
        (2**31 - 1, 1024, "blocked"),
        (2**32 - 5, 1, "split"),
        (2**32 - 5, 111, "split"),
        (2**32 - 5, 1024, "blocked"),
    ],
)
def test_every_plan_is_reached(p: int, columns: int, plan: str) -> None:
    assert plan_of(PrimeField(p), worst_rows(p, columns)) == plan


@pytest.mark.parametrize("p", [2**24 - 3, 2**31 - 1, 2**32 - 5])
def test_a_row_exactly_at_the_limit_takes_one_product_and_one_unit_more_takes_two(p: int) -> None:
    field, largest = PrimeField(p), p // 2
    room = blas.EXACT_LIMIT // largest  # what Σ|W| may be
    whole, rest = divmod(room, largest)
    row = [largest] * whole + [rest] if rest else [largest] * whole
    at = np.array([[*row, 0]], dtype=np.uint32)
    beyond = np.array([[*row, 1]], dtype=np.uint32)
    assert plan_of(field, at) == "single"
    assert plan_of(field, beyond) != "single"
    assert room * largest <= blas.EXACT_LIMIT < (room + 1) * largest
    for weights in (at, beyond, field.subtract(np.zeros_like(at), at)):
        data = np.full((weights.shape[1], 2), largest, dtype=np.uint32)
        data[:, 1] = p - largest  # −largest
        assert ModularMatrix(field, weights).product(data).tolist() == exact(weights, data, p)


@pytest.mark.parametrize("p", [2**31 - 1, 2**32 - 5])
def test_split_rows_exactly_at_the_limit_stay_one_block_and_one_unit_more_is_cut(p: int) -> None:
    field, largest = PrimeField(p), p // 2
    room = blas.EXACT_LIMIT // largest
    # 0x8000 is 1 · 2^16 − 2^15: the largest magnitude that a half can have.
    whole, rest = divmod(room, 2**15)
    full = [0x8000] * whole + [rest]
    at = np.array([[*full, 0], [largest, *[0] * len(full)]], dtype=np.uint32)  # row 2 forces two halves
    beyond = np.array([[*full, 1], [largest, *[0] * len(full)]], dtype=np.uint32)
    assert plan_of(field, at) == "split"
    assert plan_of(field, beyond) == "blocked"
    for weights in (at, beyond):
        data = np.full((weights.shape[1], 2), largest, dtype=np.uint32)
        data[:, 1] = p - largest  # −largest
        assert ModularMatrix(field, weights).product(data).tolist() == exact(weights, data, p)


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_halves_and_bounds_of_every_plan_keep_partial_sums_below_2_to_the_53(p: int) -> None:
    field = PrimeField(p)
    for block in ModularMatrix(field, worst_rows(p, 1024))._blocks:
        for half in (block.high, block.low):
            if half is not None:
                assert np.abs(half).sum(axis=1).max() * (p // 2) <= blas.EXACT_LIMIT
    assert blas.EXACT_LIMIT + 2**48 + 2**32 < 2**53


@pytest.mark.parametrize("order", [2, 3, 5, 13, 2**16 - 15, 2**31 - 1, 2**32 - 5])
def test_reduction_is_right_up_to_the_largest_partial_sum(order: int) -> None:
    # A sum can be as large as 1024 products of centred values, or the limit, whichever comes first.
    top = min(blas.EXACT_LIMIT + 2**48 + 2**32, 1024 * (order // 2 + 1) ** 2)
    near = [top - d for d in range(20)] + [top // order * order + d for d in (-1, 0)] + [0, 1, order // 2]
    values = [sign * v for v in near for sign in (1, -1)]
    reals = np.array(values, dtype=np.float64)
    assert reals.astype(np.int64).tolist() == values
    blas._reduce(reals, order)
    assert reals.tolist() == [value % order for value in values]


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_no_columns_of_data_give_no_columns(p: int) -> None:
    found = ModularMatrix(PrimeField(p), worst_rows(p, 5)).product(np.empty((5, 0), np.uint32))
    assert found.shape == (3, 0)
    assert found.dtype == np.uint32


def test_no_rows_give_no_rows() -> None:
    found = ModularMatrix(PrimeField(2**32 - 5), np.empty((0, 4), np.uint32)).product(
        np.ones((4, 3), np.uint32)
    )
    assert found.shape == (0, 3)


@pytest.mark.parametrize("n", [4095, 4096, 4097, 8193])
def test_tiles_of_columns_join_without_a_seam(n: int) -> None:
    p = 2**32 - 5
    random = np.random.default_rng(n)
    weights = random.integers(0, p, (2, 3), dtype=np.uint32)
    data = random.integers(0, p, (3, n), dtype=np.uint32)
    untouched = data.copy()
    assert ModularMatrix(PrimeField(p), weights).product(data).tolist() == exact(weights, data, p)
    assert np.array_equal(data, untouched)


def test_data_that_is_not_contiguous_is_multiplied_alike() -> None:
    p = 2**31 - 1
    data = np.random.default_rng(5).integers(0, p, (6, 8), dtype=np.uint32)
    weights = np.random.default_rng(6).integers(0, p, (2, 4), dtype=np.uint32)
    matrix = ModularMatrix(PrimeField(p), weights)
    view = data.T[::2]
    assert matrix.product(view).tolist() == exact(weights, view, p)


def test_data_of_other_rows_is_refused() -> None:
    matrix = ModularMatrix(PrimeField(13), np.ones((2, 3), np.uint32))
    with pytest.raises(AssertionError, match="rows"):
        matrix.product(np.ones((2, 3), np.uint32))
