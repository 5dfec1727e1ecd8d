"""How much late updates weigh, and what their weights show of one of them."""

from __future__ import annotations

import math
import re
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightsecagg.errors import ParameterError
from lightsecagg.staleness import (
    MAX_STALENESS,
    MAX_STALENESS_WEIGHT,
    Constant,
    Hinge,
    Polynomial,
    Staleness,
    parse_staleness,
    reveals,
    weight_table,
)
from tests.core.strategies import MANY, SOME

slopes = st.decimals("0.001", "100", places=3)
delays = st.integers(0, 60)
weight_values = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted)


@pytest.mark.parametrize(
    ("text", "staleness"),
    [
        ("constant", Constant()),
        ("polynomial(0.5)", Polynomial(0.5)),
        (" polynomial ( 2 ) ", Polynomial(2.0)),
        ("hinge(10, 4)", Hinge(10.0, 4)),
        ("hinge(0.25,0)", Hinge(0.25, 0)),
        ("hinge ( 10 ,4 )", Hinge(10.0, 4)),
    ],
)
def test_text_names_a_function(text: str, staleness: Staleness) -> None:
    assert parse_staleness(text) == staleness


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Constant",
        "constant()",
        "constant(1)",
        "polynomial",
        "polynomial()",
        "polynomial(0)",
        "polynomial(0.0)",
        "polynomial(-1)",
        "polynomial(nan)",
        "polynomial(inf)",
        "polynomial(1e3)",
        "polynomial(1_0)",
        "polynomial(٣)",
        "polynomial(0.5, 4)",
        "poly nomial(0.5)",
        "polynomial(0.5",
        "polynomial(0.5))",
        "polynomial(0.5)\n",
        "hinge(10)",
        "hinge(0, 4)",
        "hinge(10, -1)",
        "hinge(10, 4.5)",
        "hinge(10, 4, 1)",
        "hinge(10 4)",
        "exponential(1)",
        "9" * 5000,
        f"hinge(1, {'9' * 5000})",
    ],
)
def test_text_that_names_none_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(
        ParameterError, match=r"wanted 'constant', 'polynomial\(a\)'.*'hinge\(10, 4\)', found"
    ):
        parse_staleness(text)


@pytest.mark.parametrize("a", [0.0, -0.5, math.nan, math.inf])
def test_functions_made_in_code_are_checked_too(a: float) -> None:
    with pytest.raises(ParameterError, match=f"found a = {a}"):
        Polynomial(a)
    with pytest.raises(ParameterError, match=f"found a = {a}"):
        Hinge(a, 4)
    with pytest.raises(ParameterError, match="found b = -1"):
        Hinge(1.0, -1)


def exact(text: str, late: int) -> Fraction:
    """s(late) to forty digits, from the numbers of the text."""
    kind, *numbers = re.findall(r"[a-z]+|[0-9.]+", text)
    if kind == "constant":
        return Fraction(1)
    if kind == "hinge":
        a, b = Fraction(numbers[0]), int(numbers[1])
        return Fraction(1) if late <= b else 1 / (a * (late - b) + 1)
    with localcontext(prec=60) as context:
        return Fraction(context.power(Decimal(1 + late), -Decimal(numbers[0])))


texts = (
    st.just("constant")
    | st.builds("polynomial({})".format, slopes)
    | st.builds("hinge({}, {})".format, slopes, st.integers(0, 20))
)


@given(texts, delays)
@MANY
def test_factors_are_the_papers(text: str, late: int) -> None:
    assert math.isclose(parse_staleness(text).factor(late), exact(text, late), rel_tol=1e-12)


@pytest.mark.parametrize("text", ["polynomial(999999999)", "hinge(999999999.999999999, 0)"])
def test_steepest_functions_stay_finite_and_weigh_the_least(text: str) -> None:
    assert weight_table(parse_staleness(text), (1, 2, 4), 3) == (4, 1, 1, 1)


@given(texts, weight_values, delays)
@example("polynomial(1)", [1, 2, 9], 5)  # 9 / 6 lies between 1 and 2
@MANY
def test_weights_are_the_nearest_values(text: str, values: list[int], max_staleness: int) -> None:
    table = weight_table(parse_staleness(text), values, max_staleness)
    assert len(table) == max_staleness + 1
    if text == "constant":
        assert set(table) == {1}
        return
    assert table[0] == max(values)
    assert list(table) == sorted(table, reverse=True)
    near = Fraction(1, 10**6)  # closer to the middle of two values than this is a tie
    for late, weight in enumerate(table):
        wanted = exact(text, late) * max(values)
        distance = abs(weight - wanted)
        for value in set(values) - {weight}:
            assert distance <= abs(value - wanted) + near


@pytest.mark.parametrize(
    ("text", "values", "table"),
    [
        ("constant", (1, 2, 4), (1, 1, 1, 1, 1, 1)),
        ("constant", (3,), (1, 1, 1, 1, 1, 1)),
        ("polynomial(0.5)", (1, 2, 4), (4, 2, 2, 2, 2, 2)),  # 4, 2.83, 2.31, 2, 1.79, 1.63
        ("polynomial(1)", (1, 2, 4), (4, 2, 1, 1, 1, 1)),
        ("polynomial(1)", (1, 2, 3), (3, 1, 1, 1, 1, 1)),  # 1.5 is as near to 2: the smaller stands
        ("polynomial(1)", (1, 2, 9), (9, 2, 2, 2, 2, 1)),  # and so is 9 / 6, which floats cannot hold
        ("hinge(0.5, 2)", (1, 2, 4), (4, 4, 4, 2, 2, 2)),  # 4, 4, 4, 2.67, 2, 1.6
        ("hinge(10, 4)", (1, 2, 4), (4, 4, 4, 4, 4, 1)),
        ("polynomial(3)", (5,), (5, 5, 5, 5, 5, 5)),
    ],
)
def test_tables_computed_by_hand(text: str, values: tuple[int, ...], table: tuple[int, ...]) -> None:
    assert weight_table(parse_staleness(text), values, 5) == table


def test_a_tie_is_one_although_floats_miss_it() -> None:
    assert Hinge(0.7, 0).factor(6) * 13 > 2.5  # 13 / (0.7 · 6 + 1) is 2.5
    assert weight_table(Hinge(0.7, 0), (2, 3, 13), 6)[6] == 2


@pytest.mark.parametrize("staleness", [Constant(), Polynomial(0.5), Hinge(10.0, 4)])
def test_values_at_their_bounds_are_taken_and_those_beyond_refused(staleness: Staleness) -> None:
    assert len(weight_table(staleness, (1, MAX_STALENESS_WEIGHT), MAX_STALENESS)) == MAX_STALENESS + 1
    for values in [(), (0, 1), (-1,), (1, MAX_STALENESS_WEIGHT + 1), (2, 1), (1, 2, 2), (1, 4, 2)]:
        with pytest.raises(ParameterError, match=r"staleness_values: wanted distinct .* found ") as caught:
            weight_table(staleness, values, 3)
        assert str(caught.value).endswith(f"found {', '.join(map(str, values)) or 'none'}")
    for late in (-1, MAX_STALENESS + 1):
        with pytest.raises(ParameterError, match=f"max_staleness: wanted 0 to {MAX_STALENESS}, found {late}"):
            weight_table(staleness, (1, 2, 4), late)


def worst_modulus(weights: set[int]) -> int:
    """Over every set of weights that the others may have: the lone update is known modulo g / gcd(g, w)."""
    found = 1
    for lone in weights:
        others = sorted(weights - {lone})
        for size in range(1, len(others) + 1):
            for beside in combinations(others, size):
                divisor = math.gcd(*beside)
                found = max(found, divisor // math.gcd(divisor, lone))
    return found


@given(st.lists(st.integers(1, 60), min_size=2, max_size=7))
@SOME
def test_what_is_revealed_is_the_worst_case_of_every_list(table: list[int]) -> None:
    lines = reveals(table, 2, strict=False)
    if len(set(table)) == 1:
        assert lines == []
        return
    (line,) = lines
    named = re.search(r"have weight (\d+) and that one has (\d+).* modulo (\d+)", line)
    assert named
    others, lone, modulus = map(int, named.groups())
    assert {others, lone} <= set(table)
    assert modulus == worst_modulus(set(table)) > 1
    # The attack itself: of two updates, the remainder of Σ w·x tells x modulo that number and no more.
    seen = {x: {(lone * x + others * y) % others for y in range(5)} for x in range(2 * modulus)}
    assert all(len(remainders) == 1 for remainders in seen.values())
    assert all((seen[x] == seen[y]) == ((x - y) % modulus == 0) for x in seen for y in seen)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            (4, 2, 1),
            ["weights 1, 2, 4:", "have weight 4 and that one has 1", "modulo 4 (the lowest 2 bits);"],
        ),
        ((2, 1, 1), ["have weight 2 and that one has 1", "modulo 2 (the lowest bit);"]),
        ((3, 1), ["have weight 3 and that one has 1", "modulo 3;"]),
        ((6, 4), ["have weight 6 and that one has 4", "modulo 3;"]),
        ((9, 8, 7, 6, 5, 4, 3, 2, 1), ["weights 1 to 9:", "modulo 9;"]),
    ],
)
def test_what_weights_reveal_is_said_in_words_with_the_way_out(
    table: tuple[int, ...], words: list[str]
) -> None:
    (line,) = reveals(table, 3, strict=False)
    assert all(word in line for word in words)
    assert line.endswith("strict_weights demands T + 2 = 5 clients of each weight")


@pytest.mark.parametrize(
    ("table", "strict"), [((1, 1, 1), False), ((4,), False), ((4, 2, 1), True), ((), False)]
)
def test_shared_weights_reveal_nothing(table: tuple[int, ...], strict: bool) -> None:
    assert reveals(table, 1, strict) == []
