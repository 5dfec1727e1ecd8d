"""The loops over long vectors, each implementation against Python's integers."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.kernels import Loops, compiled, loops, portable
from lightsecagg.kernels.interface import _LONG
from lightsecagg.kernels.matrix import EXACT_LIMIT
from tests.core import oracle
from tests.core.strategies import SOME_OF_EACH, elements, orders

NONE = np.empty(0, np.uint32)

vectors = orders.flatmap(
    lambda p: st.integers(0, 40).flatmap(
        lambda n: st.tuples(st.just(p), st.lists(elements(p, n), min_size=2, max_size=2))
    )
)
three_bytes = st.lists(
    st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 2**24 - 1]) | st.integers(0, 2**24 - 1)
)


@pytest.fixture(params=[portable, compiled], ids=["portable", "compiled"])
def run(request: pytest.FixtureRequest) -> Loops:
    return cast(Loops, request.param)


def words(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def packed(values: list[int], offset: int = 0) -> np.ndarray:
    """Three bytes each, read-only and at any address."""
    data = bytes(offset) + b"".join(value.to_bytes(3, "little") for value in values)
    return np.frombuffer(data, np.uint8)[offset:]


def test_short_vectors_load_no_compiler_and_take_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loops(_LONG) is cast(Loops, compiled)
    assert loops(1) is cast(Loops, compiled)
    monkeypatch.delitem(sys.modules, compiled.__name__)
    assert loops(_LONG - 1) is cast(Loops, portable)
    assert compiled.__name__ not in sys.modules


@given(vectors)
@SOME_OF_EACH
def test_sums_and_differences_are_those_of_integers(run: Loops, case: tuple[int, list[list[int]]]) -> None:
    p, (a, b) = case
    total = words(a)
    run.add(total, words(b), p)
    assert total.tolist() == [(x + y) % p for x, y in zip(a, b, strict=True)]
    total = words(a)
    run.subtract(total, words(b), p)
    assert total.tolist() == [(x - y) % p for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_sums_do_not_wrap_at_the_top_of_the_field(run: Loops, p: int) -> None:
    tops = [0, 1, p - 1, p - 1, 0, p // 2, p // 2 + 1]
    others = [p - 1, p - 1, p - 1, 0, 0, p // 2, p // 2]
    total = words(tops)
    run.add(total, words(others), p)
    assert total.tolist() == [(x + y) % p for x, y in zip(tops, others, strict=True)]
    run.subtract(total, words(others), p)
    assert total.tolist() == [x % p for x in tops]


@given(three_bytes, st.integers(0, 3))
@SOME_OF_EACH
def test_three_bytes_an_element_go_there_and_back(run: Loops, values: list[int], offset: int) -> None:
    room = np.full(3 * len(values) + offset, 9, dtype=np.uint8)
    run.pack3(words(values), room[offset:])
    assert room[offset:].tolist() == packed(values).tolist()
    assert room[:offset].tolist() == [9] * offset
    found = np.empty(len(values), np.uint32)
    assert run.unpack3(packed(values, offset), found) == max(values, default=0)
    assert found.tolist() == values
    assert run.largest3(packed(values, offset)) == max(values, default=0)


@given(st.lists(st.tuples(*[st.integers(0, 2**24 - 4)] * 2)), st.integers(0, 3))
@SOME_OF_EACH
def test_packed_elements_are_added_like_others(run: Loops, pairs: list[tuple[int, int]], offset: int) -> None:
    p = 2**24 - 3
    total = words([x for x, _ in pairs])
    run.add3(total, packed([y for _, y in pairs], offset), p)
    assert total.tolist() == [(x + y) % p for x, y in pairs]


@given(orders, st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(0, 60))
@SOME_OF_EACH
def test_words_below_the_order_are_accepted_in_their_order(
    run: Loops, p: int, drawn: list[int], room: int
) -> None:
    mask = (1 << (p - 1).bit_length()) - 1
    out = np.empty(room, np.uint32)
    wanted = [word & mask for word in drawn if word & mask < p][:room]
    assert run.accept(words(drawn), mask, p, out) == len(wanted)
    assert out[: len(wanted)].tolist() == wanted


@pytest.mark.parametrize("p", [2, 3, *oracle.PRIMES])
def test_settling_is_right_up_to_the_largest_partial_sums(run: Loops, p: int) -> None:
    near = [EXACT_LIMIT - d for d in range(20)] + [EXACT_LIMIT // p * p + d for d in (-1, 0)]
    values = [sign * value for value in [*near, 0, 1, p // 2, p] for sign in (1, -1)]
    low, high = (np.array([values, values[::-1]], dtype=np.float64) for _ in range(2))
    out = np.full((2, len(values) + 2), 7, dtype=np.uint32)
    run.settle(low.copy(), None, p, out, 1)
    assert out[:, 1:-1].tolist() == [[v % p for v in values], [v % p for v in values[::-1]]]
    assert set(out[:, 0].tolist() + out[:, -1].tolist()) == {7}
    run.settle(low.copy(), high[::-1].copy(), p, out, 0)
    assert out[0, :-2].tolist() == [(v + 2**16 * w) % p for v, w in zip(values, values[::-1], strict=True)]


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_centred_columns_are_the_representatives_nearest_to_zero(run: Loops, p: int) -> None:
    values = [0, 1, p // 2, p // 2 + 1, p - 1]
    out = np.empty((2, 3))
    run.center(words(values * 2).reshape(2, 5), 1, p, out)
    wanted = [value - p if value > p // 2 else value for value in values[1:4]]
    assert out.tolist() == [wanted, wanted]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_infinities_and_clipped_coordinates_are_counted(run: Loops, kind: type[np.floating]) -> None:
    fine = np.array([0, -8, 8, 8.5, -9, 1e30], dtype=kind)
    assert run.inspect(fine, 8.0) == (True, 3)
    for odd in (np.nan, np.inf, -np.inf):
        assert run.inspect(np.append(fine, kind(odd)), 8.0)[0] is False
    assert run.inspect(fine[:0], 8.0) == (True, 0)


@given(
    st.sampled_from([2**16 - 15, 2**24 - 3, 2**32 - 5]),
    st.lists(st.tuples(st.floats(-20, 20, width=32), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 16))),
    st.booleans(),
    st.booleans(),
)
@SOME_OF_EACH
def test_updates_are_clipped_scaled_rounded_and_added(
    run: Loops, p: int, rows: list[tuple[float, int, int]], is_wide: bool, is_random: bool
) -> None:
    update = np.array([real for real, _, _ in rows], dtype=np.float64 if is_wide else np.float32)
    noise = words([word for _, word, _ in rows]) if is_random else NONE
    total = words([mask for _, _, mask in rows])
    run.add_quantized(update, noise, 8.0, 1024.0, p, total)

    def exact(real: float, word: int) -> int:
        scaled = Fraction(max(-8.0, min(8.0, real))) * 1024
        # What float64 makes of scaled + word / 2^32 is rounded once, before the floor.
        return math.floor(float(scaled) + word / 2**32) if is_random else round(scaled)

    wanted = [(exact(float(x), word) + mask) % p for x, (_, word, mask) in zip(update, rows, strict=True)]
    assert total.tolist() == wanted
