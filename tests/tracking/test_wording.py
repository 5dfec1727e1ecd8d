"""Numbers and lists as people read them."""

from __future__ import annotations

import pytest

from lightsecagg.tracking import wording
from lightsecagg.tracking.events import ClientLost, RoundCompleted
from lightsecagg.tracking.summary import Summary


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((), "none"),
        ((3, 1, 2), "1 2 3"),
        (range(1, 13), "1 2 3 4 5 6 7 8 9 10 11 12"),
        (range(1, 14), "1-13"),
        ((*range(1, 41), 42, *range(44, 51)), "1-40 42 44-50"),
    ],
)
def test_ranks_are_listed_until_they_are_many(numbers: range, text: str) -> None:
    assert wording.ranks(numbers) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (3e10, "30.0 GB")]
)
def test_sizes_have_a_unit(number: float, text: str) -> None:
    assert wording.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0421, "42 ms"), (0.84, "0.8 s"), (119.0, "119.0 s"), (200.0, "3 min 20 s")]
)
def test_durations_have_a_unit(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_accuracy_is_a_percentage_or_a_dash() -> None:
    assert wording.percent(0.9136) == "91.4 %"
    assert wording.percent(None) == "-"


def test_summary_averages_over_completed_rounds_and_keeps_the_order_of_phases() -> None:
    summary = Summary()
    summary.emit(
        RoundCompleted(
            round=1, survivors=(1, 2), seconds={"b": 1.0, "a": 2.0}, bytes_per_client=10, bytes_by_phase={}
        )
    )
    summary.emit(
        RoundCompleted(round=2, survivors=(2, 3), seconds={"b": 3.0}, bytes_per_client=30, bytes_by_phase={})
    )
    assert list(summary.seconds_per_phase.items()) == [("b", 2.0), ("a", 2.0)]
    assert summary.bytes_per_client == 20
    assert ("in every average", "clients 2") in summary.rows()


def test_summary_before_any_round_knows_nothing() -> None:
    summary = Summary()
    assert (summary.final_accuracy, summary.bytes_per_client, summary.seconds_per_phase) == (None, None, {})
    assert summary.rows() == [("rounds", "0 completed")]


def test_summary_of_many_losses_names_the_first_and_counts_the_rest() -> None:
    summary = Summary()
    for rank in range(1, 31):
        summary.emit(ClientLost(rank=rank, reason="stalled"))
    lost = [text for label, text in summary.rows() if label == "lost"]
    assert len(lost) == 21
    assert lost[0] == "client 1 (stalled)"
    assert lost[-1] == "and 10 more, in the log"
