"""``secure_mean``: the shortest way in, exact for whoever survives."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest

from lightsecagg import ParameterError, Parameters, RoundAborted, UpdateError, secure_mean
from lightsecagg.errors import AbortReason
from lightsecagg.in_memory import Moment

MOMENTS = get_args(Moment)
IN_THE_SUM = {"endorse", "recovery"}
NUMBERS = [(2, 2, 1), (2, 1, 0), (3, 2, 1), (4, 3, 1), (5, 3, 1), (6, 4, 2), (7, 4, 0), (8, 8, 5), (9, 5, 4)]


def eighths(count: int, dimension: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Updates in multiples of 1/8: exact in 16 fraction bits."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-64, 65, dimension) / 8 for _ in range(count)]


def exact_mean(updates: list[np.ndarray], survivors: tuple[int, ...]) -> list[float]:
    rows = [[Fraction(float(x)) for x in updates[n - 1]] for n in survivors]
    return [float(sum(column) / len(rows)) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_as_many_clients_as_tolerated_may_vanish_at_any_one_moment(
    numbers: tuple[int, int, int], moment: Moment
) -> None:
    parameters = Parameters(*numbers)
    n, d = parameters.num_clients, parameters.dropout_tolerance
    updates = eighths(n)
    for gone in ([], list(range(1, d + 1)), list(range(n - d + 1, n + 1))):
        result = secure_mean(updates, parameters=parameters, lost=dict.fromkeys(gone, moment))
        wanted = set(range(1, n + 1)) - (set() if moment in IN_THE_SUM else set(gone))
        assert result.survivors == tuple(sorted(wanted))
        np.testing.assert_allclose(result.mean, exact_mean(updates, result.survivors), rtol=1e-14, atol=0)
        assert result.total_weight == len(result.survivors)


REASONS = {
    "sharing": AbortReason.TOO_FEW_SHARED,
    "training": AbortReason.TOO_FEW_SHARED,
    "upload": AbortReason.TOO_FEW_UPDATES,
    "endorse": AbortReason.TOO_FEW_ENDORSEMENTS,
    "recovery": AbortReason.TOO_FEW_ANSWERS,
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_one_more_than_tolerated_aborts_with_the_reason_of_the_moment(
    numbers: tuple[int, int, int], moment: Moment
) -> None:
    parameters = Parameters(*numbers)
    gone = range(1, parameters.dropout_tolerance + 2)
    with pytest.raises(RoundAborted) as caught:
        secure_mean(eighths(parameters.num_clients), parameters=parameters, lost=dict.fromkeys(gone, moment))
    expected = {REASONS[moment]}
    if moment == "training":  # the last of them may be lost after the others' reports closed the step
        expected.add(AbortReason.TOO_FEW_UPDATES)
    assert caught.value.reason in expected


@pytest.mark.parametrize("moments", list(itertools.permutations(MOMENTS, 3)), ids="-".join)
def test_losses_at_different_moments_add_up(moments: tuple[Moment, ...]) -> None:
    parameters = Parameters(7, 4, 1)
    updates = eighths(7)
    lost = dict(zip((2, 5, 7), moments, strict=True))
    result = secure_mean(updates, parameters=parameters, lost=lost)
    out = {n for n, moment in lost.items() if moment not in IN_THE_SUM}
    assert result.survivors == tuple(sorted(set(range(1, 8)) - out))
    np.testing.assert_allclose(result.mean, exact_mean(updates, result.survivors), rtol=1e-14, atol=0)
    with pytest.raises(RoundAborted):
        secure_mean(updates, parameters=parameters, lost=lost | {1: "recovery"})


def test_weights_weigh() -> None:
    updates = [np.array([1.0, -2.0]), np.array([3.0, 4.0]), np.array([7.0, 0.5])]
    result = secure_mean(updates, [1, 2, 4])
    assert result.total_weight == 7
    np.testing.assert_allclose(result.mean, [(1 + 6 + 28) / 7, (-2 + 8 + 2) / 7], rtol=0, atol=2e-5)
    assert secure_mean(updates, [0, 0, 5]).mean.tolist() == [7.0, 0.5]


def test_weights_that_are_all_0_give_zeros() -> None:
    result = secure_mean([np.ones(3)] * 3, [0, 0, 0])
    assert (result.mean.tolist(), result.total_weight) == ([0.0, 0.0, 0.0], 0)


def test_coordinates_are_clipped() -> None:
    assert secure_mean([np.array([100.0, -100.0])] * 3, clip=2.0).mean.tolist() == [2.0, -2.0]


def test_an_update_may_be_empty_or_of_any_float_type() -> None:
    assert secure_mean([np.empty(0)] * 3).mean.shape == (0,)
    assert secure_mean([np.ones(2, dtype=np.float32)] * 3).mean.tolist() == [1.0, 1.0]


def test_a_vector_longer_than_one_part_comes_out_exact() -> None:
    updates = eighths(3, dimension=300_000)
    result = secure_mean(updates, parameters=Parameters(3, 2, 1), lost={2: "upload"})
    assert result.survivors == (1, 3)
    assert np.array_equal(result.mean, (updates[0] + updates[2]) / 2)


def test_updates_that_are_not_finite_are_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UpdateError, match="NaN or infinity"):
            secure_mean([np.zeros(2), np.array([0.0, bad]), np.zeros(2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([np.zeros(2)],), "at least 2 clients"),
        (([],), "at least 2 clients"),
        (([np.zeros(2), np.zeros(3)],), "one shape"),
        (([np.zeros((2, 2))] * 2,), "one shape"),
        (([np.zeros(2)] * 3, [1, 2]), "wanted 3 weights"),
        (([np.zeros(2)] * 3, [1, 2, -1]), "integers ≥ 0"),
        (([np.zeros(2)] * 3, [1, 2, 0.5]), "integers ≥ 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        secure_mean(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"lost": {0: "upload"}},
        {"lost": {4: "upload"}},
        {"lost": {1: "lunch"}},
        {"clip": -1.0},
        {"clip": float("nan")},
        {"fraction_bits": 31},
        {"clip": 1e9, "fraction_bits": 30},
        {"parameters": Parameters(4, 3, 1)},
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict) -> None:
    with pytest.raises(ParameterError):
        secure_mean([np.zeros(2)] * 3, **options)
