"""Matrix products over GF(p), exact to the last unit at the edge of float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.kernels import ModularMatrix, interface, matrix, modular_matrix, portable, set_threads
from lightsecagg.kernels.interface import Elements
from tests.core import oracle
from tests.core.strategies import SOME_OF_EACH, elements, orders

Multiply = Callable[[int, Elements, Elements], Elements]


@pytest.fixture(params=["portable", "compiled", "device", "two threads"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Multiply]:
    """W · data by each way there is."""
    monkeypatch.setattr(interface, "_LONG", 0)
    if request.param == "portable":
        monkeypatch.setattr(interface, "_compiled", lambda: None)
    if request.param == "device":
        monkeypatch.setattr(matrix, "_device", "cpu")
    if request.param == "two threads":
        set_threads(2)
    yield lambda p, weights, data: modular_matrix(p, weights).product(data)
    set_threads(1)


def exact(weights: np.ndarray, data: np.ndarray, p: int) -> list[list[int]]:
    """The product in Python integers."""
    rows, columns = weights.tolist(), data.T.tolist()
    return [[sum(w * x for w, x in zip(row, column, strict=True)) % p for column in columns] for row in rows]


def plan_of(p: int, weights: np.ndarray) -> str:
    """Which way the product goes."""
    blocks = ModularMatrix(p, weights).blocks
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
@SOME_OF_EACH
def test_products_are_those_of_integers(
    product: Multiply, case: tuple[tuple[int, int, int, int], list[int], list[int]]
) -> None:
    (p, r, k, n), left, right = case
    weights = np.array(left, dtype=np.uint32).reshape(r, k)
    data = np.array(right, dtype=np.uint32).reshape(k, n)
    found = product(p, weights, data)
    assert found.dtype == np.uint32
    assert found.shape == (r, n)
    assert found.tolist() == (exact(weights, data, p) if n else [[] for _ in range(r)])


@pytest.mark.parametrize("p", oracle.PRIMES)
@pytest.mark.parametrize("columns", [1, 64, 112, 113, 224, 225, 448, 1023, 1024])
def test_worst_coefficients_meet_worst_data_exactly(product: Multiply, p: int, columns: int) -> None:
    weights = worst_rows(p, columns)
    # Every partial sum of some row against some column is as large as it can be, of either sign.
    data = np.concatenate([worst_rows(p, columns), np.full((1, columns), p - 1, np.uint32)]).T
    found = product(p, weights, data)
    assert found.tolist() == exact(weights, data, p)


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_random_matrices_of_1024_columns_are_exact(product: Multiply, p: int) -> None:
    random = np.random.default_rng(p)
    weights = random.integers(0, p, (3, 1024), dtype=np.uint32)
    data = random.integers(0, p, (1024, 3), dtype=np.uint32)
    assert product(p, weights, data).tolist() == exact(weights, data, p)


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
    assert plan_of(p, worst_rows(p, columns)) == plan


@pytest.mark.parametrize("p", [2**24 - 3, 2**31 - 1, 2**32 - 5])
def test_a_row_exactly_at_the_limit_takes_one_product_and_one_unit_more_takes_two(
    product: Multiply, p: int
) -> None:
    largest = p // 2
    room = matrix.EXACT_LIMIT // largest  # what Σ|W| may be
    whole, rest = divmod(room, largest)
    row = [largest] * whole + [rest] if rest else [largest] * whole
    at = np.array([[*row, 0]], dtype=np.uint32)
    beyond = np.array([[*row, 1]], dtype=np.uint32)
    assert plan_of(p, at) == "single"
    assert plan_of(p, beyond) != "single"
    assert room * largest <= matrix.EXACT_LIMIT < (room + 1) * largest
    for weights in (at, beyond, (p - at) % p):
        data = np.full((weights.shape[1], 2), largest, dtype=np.uint32)
        data[:, 1] = p - largest  # −largest
        assert product(p, weights, data).tolist() == exact(weights, data, p)


@pytest.mark.parametrize("p", [2**31 - 1, 2**32 - 5])
def test_split_rows_exactly_at_the_limit_stay_one_block_and_one_unit_more_is_cut(
    product: Multiply, p: int
) -> None:
    largest = p // 2
    room = matrix.EXACT_LIMIT // largest
    # 0x8000 is 1 · 2^16 − 2^15: the largest magnitude that a half can have.
    whole, rest = divmod(room, 2**15)
    full = [0x8000] * whole + [rest]
    at = np.array([[*full, 0], [largest, *[0] * len(full)]], dtype=np.uint32)  # row 2 forces two halves
    beyond = np.array([[*full, 1], [largest, *[0] * len(full)]], dtype=np.uint32)
    assert plan_of(p, at) == "split"
    assert plan_of(p, beyond) == "blocked"
    for weights in (at, beyond):
        data = np.full((weights.shape[1], 2), largest, dtype=np.uint32)
        data[:, 1] = p - largest  # −largest
        assert product(p, weights, data).tolist() == exact(weights, data, p)


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_halves_and_bounds_of_every_plan_keep_partial_sums_below_2_to_the_53(p: int) -> None:
    for block in ModularMatrix(p, worst_rows(p, 1024)).blocks:
        for half in (block.high, block.low):
            if half is not None:
                assert np.abs(half).sum(axis=1).max() * (p // 2) <= matrix.EXACT_LIMIT
    assert matrix.EXACT_LIMIT + 2**48 + 2**32 < 2**53


@pytest.mark.parametrize("order", [2, 3, 5, 13, 2**16 - 15, 2**31 - 1, 2**32 - 5])
def test_reduction_is_right_up_to_the_largest_partial_sum(order: int) -> None:
    # A sum can be as large as 1024 products of centred values, or the limit, whichever comes first.
    top = min(matrix.EXACT_LIMIT + 2**48 + 2**32, 1024 * (order // 2 + 1) ** 2)
    near = [top - d for d in range(20)] + [top // order * order + d for d in (-1, 0)] + [0, 1, order // 2]
    values = [sign * v for v in near for sign in (1, -1)]
    reals = np.array(values, dtype=np.float64)
    assert reals.astype(np.int64).tolist() == values
    portable._reduce(reals, order)
    assert reals.tolist() == [value % order for value in values]


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_no_columns_of_data_give_no_columns(product: Multiply, p: int) -> None:
    found = product(p, worst_rows(p, 5), np.empty((5, 0), np.uint32))
    assert found.shape == (3, 0)
    assert found.dtype == np.uint32


def test_no_rows_give_no_rows(product: Multiply) -> None:
    found = ModularMatrix(2**32 - 5, np.empty((0, 4), np.uint32)).product(np.ones((4, 3), np.uint32))
    assert found.shape == (0, 3)


@pytest.mark.parametrize("n", [4095, 4096, 4097, 8193])
def test_tiles_of_columns_join_without_a_seam(product: Multiply, n: int) -> None:
    p = 2**32 - 5
    random = np.random.default_rng(n)
    weights = random.integers(0, p, (2, 3), dtype=np.uint32)
    data = random.integers(0, p, (3, n), dtype=np.uint32)
    untouched = data.copy()
    assert product(p, weights, data).tolist() == exact(weights, data, p)
    assert np.array_equal(data, untouched)


def test_data_that_is_not_contiguous_is_multiplied_alike(product: Multiply) -> None:
    p = 2**31 - 1
    data = np.random.default_rng(5).integers(0, p, (6, 8), dtype=np.uint32)
    weights = np.random.default_rng(6).integers(0, p, (2, 4), dtype=np.uint32)
    view = data.T[::2]
    assert product(p, weights, view).tolist() == exact(weights, view, p)


def test_data_of_other_rows_is_refused() -> None:
    square = ModularMatrix(13, np.ones((2, 3), np.uint32))
    with pytest.raises(AssertionError, match="rows"):
        square.product(np.ones((2, 3), np.uint32))
