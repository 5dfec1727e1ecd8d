"""The keys of asynchronous runs: what they take, and that the core takes the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lightsecagg.errors import ConfigError, ParameterError
from lightsecagg.settings import load
from lightsecagg.settings.schema import SecureAggregationArgs
from lightsecagg.staleness import (
    MAX_STALENESS,
    MAX_STALENESS_WEIGHT,
    Constant,
    parse_staleness,
    weight_table,
)

SHIPPED = Path(__file__).parents[2] / "config" / "fedml_config.yaml"
SA = "secure_aggregation_args"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return to_file


def refusal(override: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(SHIPPED, [override])
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("constant", "constant"),
        (" polynomial ( 0.50 ) ", "polynomial(0.5)"),
        ("polynomial(0.000000001)", "polynomial(0.000000001)"),
        ("hinge(10,4)", "hinge(10, 4)"),
        ("hinge(010.0, 04)", "hinge(10, 4)"),
    ],
)
def test_staleness_is_written_in_one_way_that_means_the_same(write: Write, text: str, written: str) -> None:
    settings, notices = load(write(f'secure_aggregation_args:\n  mode: async\n  staleness: "{text}"\n'))
    assert settings.secure_aggregation_args.staleness == written
    assert parse_staleness(written) == parse_staleness(text)
    assert notices == []


def test_staleness_of_two_numbers_needs_no_quotes_in_a_file_or_override(write: Write) -> None:
    path = write("secure_aggregation_args:\n  staleness: hinge(10, 4)  # text\n")
    assert load(path)[0].secure_aggregation_args.staleness == "hinge(10, 4)"
    settings = load(path, ["secure_aggregation_args.staleness=hinge(3, 1)"])[0]
    assert settings.secure_aggregation_args.staleness == "hinge(3, 1)"


@pytest.mark.parametrize("found", ["polynomial", "polynomial(0)", "hinge(10)", "linear(1)", "Constant"])
def test_staleness_that_is_none_is_refused_with_the_forms(found: str) -> None:
    assert refusal(f"{SA}.staleness={found}") == (
        "--set secure_aggregation_args.staleness: wanted 'constant', 'polynomial(a)' with a > 0, or "
        "'hinge(a, b)' with a > 0 and a whole number b ≥ 0, such as 'polynomial(0.5)' or 'hinge(10, 4)', "
        f"found '{found}'"
    )


_pieces = st.sampled_from(["constant", "polynomial", "hinge", *"(),- x", "0", "0.0", "0.5", "10", "4", "1e3"])
_kinds = st.sampled_from(["constant", "polynomial", "hinge"])
_numbers = st.lists(st.sampled_from(["0", "0.0", "0.5", "04", "10", "-1", "1.", " 7 "]), max_size=3)


@given(
    st.builds(lambda k, n: f"{k}({','.join(n)})", _kinds, _numbers)
    | st.lists(_pieces, max_size=7).map("".join)
)
@hypothesis.settings(deadline=None, max_examples=300)
def test_settings_take_exactly_the_staleness_that_the_core_takes(text: str) -> None:
    try:
        meant = parse_staleness(text)
    except ParameterError:
        with pytest.raises(ValidationError):
            SecureAggregationArgs(staleness=text)
        return
    assert parse_staleness(SecureAggregationArgs(staleness=text).staleness) == meant


def test_staleness_values_are_taken_up_to_what_the_core_takes() -> None:
    overrides = (f"{SA}.staleness_values=[1, 65536]", f"{SA}.max_staleness=1024")
    secure = load(SHIPPED, overrides)[0].secure_aggregation_args
    assert secure.staleness_values == (1, MAX_STALENESS_WEIGHT)
    assert secure.max_staleness == MAX_STALENESS
    assert len(weight_table(Constant(), secure.staleness_values, secure.max_staleness)) == 1025


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("[]", "a list"),
        ("[0, 1]", "a list"),
        ("[2, 1]", "a list"),
        ("[1, 1]", "a list"),
        ("[1, true]", "a list"),
        ("[1.0]", "a list"),
        ("[1, 65537]", "a list"),
        ("4", "4"),
        ("1, 2, 4", "'1, 2, 4'"),
    ],
)
def test_staleness_values_that_are_none_are_refused(value: str, found: str) -> None:
    assert refusal(f"{SA}.staleness_values={value}") == (
        "--set secure_aggregation_args.staleness_values: wanted a list of distinct whole numbers from 1 to "
        f"65536, the smallest first, such as [1, 2, 4], found {found}"
    )


def test_commented_keys_of_the_shipped_file_work_when_they_are_uncommented(write: Write) -> None:
    text = SHIPPED.read_text().replace("mode: sync", "mode: async")
    uncommented = re.sub(r"(?m)^  # (\w+: )", r"  \1", text)
    settings, notices = load(write(uncommented))
    secure = settings.secure_aggregation_args
    assert notices == []
    assert (secure.buffer_size, secure.staleness, secure.max_staleness, secure.strict_weights) == (
        4,
        "polynomial(0.5)",
        10,
        True,
    )


def test_what_says_how_an_asynchronous_run_goes_is_named_where_it_has_no_effect(write: Write) -> None:
    text = "secure_aggregation_args:\n  strict_weights: true\n  buffer_size: 4\n  staleness: constant\n"
    assert load(write(text))[1] == [
        "secure_aggregation_args.buffer_size: has no effect without mode: async",
        "secure_aggregation_args.strict_weights: has no effect without mode: async",
    ]
    assert load(write(text + "  mode: async\n"))[1] == []
