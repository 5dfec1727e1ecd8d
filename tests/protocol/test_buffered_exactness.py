"""What comes out of an asynchronous run is the exact sum of what went in, each as often as it weighs.

Every list of a ``Course`` is held against Python's integers, by the versions that its clients were told.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from lightsecagg.errors import Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.wire import from_client, from_server
from lightsecagg.quantize import FixedPoint, Rounding, WeightedUpdate
from lightsecagg.simulation.schedule import short_parts
from lightsecagg.staleness import Constant, Hinge, Polynomial, Staleness, weight_table
from tests.core import oracle
from tests.protocol.buffered_course import Course

FIELDS = {
    2**16 - 15: FixedPoint(4.0, 7, 500),
    2**24 - 3: FixedPoint(8.0, 10, 1000),
    2**31 - 1: FixedPoint(8.0, 16, 1000),
    2**32 - 5: FixedPoint(100.0, 16, 3),
}
"""Each with a quantizer of which it holds 12 · 4 updates."""

SPEEDS = {1: 1000, 2: 300, 3: 100, 4: 30}
"""How many times longer than the others these clients train."""

fields = pytest.mark.parametrize("order", FIELDS, ids=["16 bits", "24 bits", "31 bits", "32 bits"])


def weights_seen(course: Course) -> set[frozenset[int]]:
    """The sets of weights that stood in one list."""
    return {frozenset(entry.weight for entry in result.entries) for result in course.results}


@fields
@pytest.mark.parametrize(
    ("capacity", "u", "t", "size", "dimension"),
    [
        (4, 3, 1, 4, 1),
        (5, 4, 1, 4, 25),  # 26 coordinates in 9 columns of 3 rows
        (6, 4, 0, 12, 10),  # 11 coordinates in 3 columns of 4 rows
        (6, 5, 3, 6, 8),
        (7, 5, 2, 7, 13),
        (8, 6, 1, 12, 40),  # 41 coordinates in 9 columns of 5 rows
    ],
)
def test_lists_of_mixed_versions_and_weights_are_exact(
    capacity: int, u: int, t: int, size: int, dimension: int, order: int
) -> None:
    with short_parts(4):
        course = Course(
            capacity,
            u,
            t,
            size=size,
            weights=(4, 2, 2, 1, 1),
            dimension=dimension,
            order=order,
            quantizer=FIELDS[order],
            order_seed=capacity,
            slow=SPEEDS,
        )
        course.run(12)
    assert any(len(weights) > 1 for weights in weights_seen(course))
    assert (course.dropped, course.left, course.aborted) == ({}, {}, [])


TABLES: list[tuple[Staleness, tuple[int, ...], int]] = [
    (Constant(), (1, 2, 4), 0),
    (Constant(), (1, 2, 4), 6),
    (Polynomial(0.5), (1, 2, 4), 0),
    (Polynomial(0.5), (1, 2, 4), 6),
    (Polynomial(2.0), (1, 3, 7), 4),
    (Hinge(10.0, 1), (1, 4), 3),
    (Hinge(0.5, 0), (1, 2, 3, 5, 8, 13), 5),
    (Polynomial(1.0), (1, 100), 3),
    (Polynomial(1.0), (16,), 2),
]


@pytest.mark.parametrize(("staleness", "values", "most"), TABLES)
def test_every_table_of_weights_is_exact(staleness: Staleness, values: tuple[int, ...], most: int) -> None:
    table = weight_table(staleness, values, most)
    with short_parts(4):
        course = Course(
            6,
            4,
            1,
            size=5,
            weights=table,
            order=2**32 - 5,
            quantizer=FixedPoint(8.0, 16, 1000),
            order_seed=3,
            slow=SPEEDS,
        )
        course.run(15)
    if len(set(table[:3])) > 1:
        assert any(len(weights) > 1 for weights in weights_seen(course))
    ages = {entry.staleness for result in course.results for entry in result.entries}
    assert max(ages) <= most
    if most < 2:
        assert any(refusal.reason is Reason.STALE for refusal in course.refused)


@pytest.mark.parametrize("seed", range(4))
def test_cohorts_with_gaps_that_grow_and_shrink_are_exact(seed: int) -> None:
    """Nine slots (U = 3), of which five are taken; one joins, one vanishes, and comes back."""
    with short_parts(4):
        course = Course(9, 3, 1, present=(2, 3, 5, 8, 9), dimension=14, order_seed=seed)
        course.run(3)
        course.join(7)
        course.run(3)
        course.lose(3)
        course.run(3)
        course.join(3)
        course.run(4)
    assert {frozenset({2, 3, 5, 8, 9}), frozenset({2, 3, 5, 7, 8, 9}), frozenset({2, 5, 7, 8, 9})} <= {
        frozenset(member.rank for member in start.cohort) for start in course.sent(SERVER, m.UploadStart)
    }
    listed = {entry.client for result in course.results[-4:] for entry in result.entries}
    assert {3, 7} & listed
    assert (course.dropped, course.left) == ({3: Reason.LINK_LOST}, {})


def test_an_update_whose_client_is_gone_is_summed() -> None:
    course = Course(6, 4, 1)
    course.quiet()
    assert course.server.buffered >= 4
    course.lose(1)
    course.run(1)
    assert 1 in {entry.client for entry in course.results[0].entries}


ANSWERERS = list(combinations(range(1, 6), 3))


@pytest.mark.parametrize("answerers", ANSWERERS, ids=lambda chosen: "".join(map(str, chosen)))
def test_any_u_holders_answers_decode_to_the_same_sum(answerers: tuple[int, ...]) -> None:
    with short_parts(4):
        course = Course(5, 3, 1, dimension=18)

        def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
            message = from_server(raw) if sender == SERVER else from_client(raw)
            silent = isinstance(message, m.ListCertificate) and receiver not in answerers
            return [] if silent else [raw]

        course.meddler = meddle
        course.until(lambda: course.server.can_decode)
        assert course.server._answers.whole == frozenset(answerers)
        course.run(1)
        whole = Course(5, 3, 1, dimension=18)
        whole.run(1)
    assert course.results[0].entries == whole.results[0].entries
    assert np.array_equal(course.results[0].mean, whole.results[0].mean)


class FloatCourse(Course):
    """Clients hand over floats and sample counts, quantized as they go under the mask."""

    def update(self, number: int) -> WeightedUpdate:
        upload = self.turns[number].round_number
        values = [self.source.uniform(-3, 3) for _ in range(self.dimension)]
        samples = self.source.randint(1, 2 * self.quantizer.max_weight)
        self.floats[number, upload] = values, min(samples, self.quantizer.max_weight)
        return WeightedUpdate(np.array(values), samples)

    def __init__(self, *numbers: int, **options) -> None:
        self.floats: dict[tuple[int, int], tuple[list[float], int]] = {}
        super().__init__(*numbers, **options)

    def check(self, result: ListResult) -> None:
        rows, counts, steps = [], [], 0
        for entry in result.entries:
            staleness = result.version - self.versions[entry.client, entry.upload]
            values, samples = self.floats[entry.client, entry.upload]
            rows.append(values)
            counts.append(self.weights[staleness] * samples)
            steps += self.weights[staleness]
        assert result.total_weight == sum(counts)
        expected = oracle.weighted_mean(rows, counts, self.quantizer.clip, max(counts))
        each = Fraction(1, 2) if self.quantizer.rounding == "nearest" else Fraction(1)
        step = Fraction(self.quantizer.max_weight, sum(counts) * 2**self.quantizer.fraction_bits)
        for found, exact in zip(result.mean.tolist(), expected, strict=True):
            assert abs(Fraction(found) - exact) <= steps * each * step * (1 + Fraction(1, 2**20))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_floats_are_averaged_by_staleness_times_sample_count_within_their_rounding(
    rounding: Rounding,
) -> None:
    quantizer = FixedPoint(2.0, 12, 50, rounding)
    course = FloatCourse(6, 4, 1, quantizer=quantizer, dimension=30, order_seed=1, slow=SPEEDS)
    course.run(12)
    assert any(len(weights) > 1 for weights in weights_seen(course))


def test_the_check_of_these_tests_notices_a_wrong_weight_and_a_wrong_sum() -> None:
    course = Course(6, 4, 1)
    course.until(lambda: course.server.can_decode)
    result = course.server.finish()
    course.check(result)
    total, mean = result.total_weight, result.mean
    wrong = mean.copy()
    wrong[0] += 2.0**-40
    for flawed in (
        ListResult(wrong, total, result.version, result.entries),
        ListResult(mean, total + 1, result.version, result.entries),
        ListResult(mean, total, result.version + 1, result.entries),
        ListResult(mean, total, result.version, result.entries[1:]),
    ):
        with pytest.raises(AssertionError):
            course.check(flawed)
