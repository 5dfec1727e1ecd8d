"""N, U and T: what fits together, what it promises, and what the planner makes of rates."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightsecagg.errors import ParameterError
from lightsecagg.parameters import MAX_CLIENTS, Parameters
from tests.core.strategies import MANY


@pytest.mark.parametrize(
    ("n", "u", "t"),
    [(2, 2, 0), (3, 3, 1), (4, 3, 1), (5, 4, 1), (6, 5, 1), (7, 5, 2), (8, 6, 2), (9, 7, 2), (10, 7, 3)],
)
def test_the_planner_chooses_the_table_of_fedml_compat(n: int, u: int, t: int) -> None:
    assert Parameters.from_rates(n, 0.3, 0.3) == Parameters(n, u, t)


@pytest.mark.parametrize(
    ("n", "dropout", "collusion", "d", "t"),
    [
        (100, 0.29, 0.1, 29, 10),  # 0.29 · 100 is 28.999999999999996 in floats
        (100, 0.1, 0.29, 10, 29),
        (100, 0.57, 0.01, 49, 1),  # 2U > N + T ends at D = 49
        (1000, 0.001, 0.001, 1, 1),
        (10, 0.7, 0.2, 3, 2),
        (200, 0.3, 0.5, 49, 100),
        (1024, 0.1, 0.5, 102, 512),
        (10, 0, 0, 0, 1),
        (3, 0.9, 0, 0, 1),
    ],
)
def test_rates_are_read_as_decimals(n: int, dropout: float, collusion: float, d: int, t: int) -> None:
    planned = Parameters.from_rates(n, dropout, collusion)
    assert (planned.dropout_tolerance, planned.privacy_threshold) == (d, t)


percents = st.integers(0, 99)


@given(st.integers(2, MAX_CLIENTS), percents, percents)
@MANY
def test_plans_are_the_largest_that_keep_every_promise(n: int, dropout: int, collusion: int) -> None:
    t = int(Fraction(collusion, 100) * n)
    t = max(t, 1) if n >= 3 else t
    wanted = int(Fraction(dropout, 100) * n)
    fitting = [d for d in range(wanted + 1) if n - d >= t + 2 and 2 * (n - d) > n + t]
    if not fitting:
        with pytest.raises(ParameterError):
            Parameters.from_rates(n, dropout / 100, collusion / 100)
        return
    planned = Parameters.from_rates(n, dropout / 100, collusion / 100)
    assert planned == Parameters(n, n - max(fitting), t)
    assert planned.unique_survivor_set
    assert planned.hides_each_update


@given(st.integers(2, MAX_CLIENTS), st.integers(0, 9999), percents)
@example(12, 9167, 0)
@example(3, 9999, 30)
@example(1024, 9999, 0)
@MANY
def test_a_refused_collusion_rate_comes_with_the_largest_that_does(n: int, rate: int, dropout: int) -> None:
    """The rate that the message names is accepted, and gives the largest T that any rate can."""
    try:
        planned = Parameters.from_rates(n, dropout / 100, rate / 10_000)
    except ParameterError as error:
        refusal = str(error)
    else:
        assert planned.privacy_threshold <= n - 2
        return
    named = re.search(r"= ([0-9.e-]+)$", refusal)
    assert named, refusal
    assert f"{n - 2}/{n}" in refusal
    assert Parameters.from_rates(n, dropout / 100, float(named[1])).privacy_threshold == n - 2


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_rates_out_of_range_are_refused_by_name(rate: float) -> None:
    with pytest.raises(ParameterError, match="dropout_rate must be"):
        Parameters.from_rates(10, rate, 0.3)
    with pytest.raises(ParameterError, match="collusion_rate must be"):
        Parameters.from_rates(10, 0.3, rate)


@pytest.mark.parametrize("n", [-1, 0, 1, 1025, 10**9])
def test_too_few_or_too_many_clients_are_refused(n: int) -> None:
    with pytest.raises(ParameterError, match=rf"2\.\.1024, found {n}"):
        Parameters(n, n, 0)
    with pytest.raises(ParameterError, match=rf"2\.\.1024, found {n}"):
        Parameters.from_rates(n, 0.1, 0.1)


@given(st.integers(2, 12), st.integers(-2, 14), st.integers(-2, 14))
@MANY
def test_n_u_t_are_taken_exactly_where_n_ge_u_gt_t_ge_0(n: int, u: int, t: int) -> None:
    if n >= u > t >= 0:
        taken = Parameters(n, u, t)
        assert taken.dropout_tolerance == n - u
        assert taken.unique_survivor_set == (2 * u > n + t)
        assert taken.hides_each_update == (u >= t + 2)
    else:
        with pytest.raises(ParameterError, match=f"N = {n}.*U = {u}.*T = {t}"):
            Parameters(n, u, t)


def test_the_smallest_and_the_largest_are_taken() -> None:
    assert Parameters(2, 1, 0).dropout_tolerance == 1
    assert Parameters(1024, 1024, 1023).dropout_tolerance == 0


@given(st.integers(1, 50), st.integers(0, 49), st.integers(0, 10_000))
@MANY
def test_the_share_length_is_the_least_that_holds_the_mask(u: int, t: int, d: int) -> None:
    if t < u:
        m = Parameters(60, u, t).share_length(d)
        assert m * (u - t) >= d
        assert m == 0 or (m - 1) * (u - t) < d


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (Parameters(10, 7, 3), []),
        (Parameters(10, 7, 0), ["T = 0"]),
        (Parameters(10, 8, 7), ["U = T + 1 = 8", "2U ≤ N + T (16 ≤ 17)"]),
        (Parameters(10, 6, 2), ["2U ≤ N + T (12 ≤ 12)"]),
        (Parameters(3, 3, 1), ["D = 0"]),
        (Parameters(2, 2, 1), ["U = T + 1 = 2", "D = 0"]),
    ],
)
def test_what_a_choice_does_not_promise_is_said(parameters: Parameters, words: list[str]) -> None:
    found = parameters.warnings()
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))
