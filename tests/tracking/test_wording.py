"""Numbers and lists as people read them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightsecagg.tracking import wording
from lightsecagg.tracking.events import (
    ClientLost,
    Event,
    PhaseStarted,
    RoundCompleted,
    RunStarted,
    UpdateRefused,
    UploadDone,
)
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


def version(survivors: tuple[int, ...], staleness: tuple[int, ...]) -> RoundCompleted:
    return RoundCompleted(
        round=7,
        survivors=survivors,
        staleness=staleness,
        seconds={"collecting": 0.41},
        bytes_per_client=1.0,
        bytes_by_phase={},
    )


def test_age_of_an_update_stands_in_the_place_of_its_client() -> None:
    assert wording.completed(version((5, 1, 2, 1), (3, 2, 0, 0)), unit="version") == (
        "version 7  done: clients 1 1 2 5 in the average, staleness 0 2 0 3  (0.4 s)"
    )


def test_ages_of_many_updates_are_told_as_their_span_and_mean() -> None:
    survivors = (*range(1, 14), 3, 20)
    assert wording.completed(version(survivors, (0,) * 12 + (4, 1, 1)), unit="version") == (
        "version 7  done: 15 updates of clients 1-13 20 in the average, staleness 0 to 4, mean 0.4  (0.4 s)"
    )


def test_ages_that_do_not_match_the_clients_are_not_shown_as_if_they_did() -> None:
    with pytest.raises(ValueError, match="shorter"):
        wording.completed(version((1, 2), (0,)))


def test_numbers_count_versions_where_the_run_has_a_buffer_and_rounds_elsewhere(
    run: list[Event], buffered_run: list[Event]
) -> None:
    synchronous, asynchronous = run[0], buffered_run[0]
    assert isinstance(synchronous, RunStarted)
    assert isinstance(asynchronous, RunStarted)
    assert wording.unit_of(None) == wording.unit_of(synchronous) == "round"
    assert wording.unit_of(asynchronous) == "version"
    phase = PhaseStarted(round=2, phase="endorsing")
    assert wording.line(phase) == "round 2  endorsing"
    assert wording.line(phase, "version") == "version 2  endorsing"


def test_update_beyond_a_full_list_waits_for_a_later_one() -> None:
    lines = [wording.line(UploadDone(round=2, rank=1, done=done, of=3), "version") for done in (3, 4)]
    assert lines == [
        "version 2  update 3 of 3 is in the buffer (client 1)",
        "version 2  4 updates are in the buffer (client 1)",
    ]


def test_summary_of_an_asynchronous_run_counts_updates_and_their_ages(buffered_run: list[Event]) -> None:
    summary = Summary()
    for event in buffered_run:
        summary.emit(event)
    assert summary.rows() == [
        ("outcome", "completed after 12.0 s"),
        ("versions", "2 completed, 1 list failed (version 2 too_few_answers)"),
        ("accuracy", "91.4 %"),
        ("bytes per client and version", "2.0 kB"),
        ("time per phase and version", "collecting 1.0 s, recovering 0.5 s"),
        ("updates used", "6 of clients 1 2 3 4, 1 to 3 of each, none of clients 5"),
        ("staleness", "0.3 on average, 1 at most"),
        ("updates refused", "1 stale"),
        ("lost", "version 1, client 4 (link_lost) while collecting"),
        ("model", "runs/my_run/model.npz"),
        ("log", "runs/my_run/events.jsonl"),
    ]


def test_summary_counts_refusals_by_reason_and_says_where_there_was_none(buffered_run: list[Event]) -> None:
    summary = Summary()
    summary.emit(buffered_run[0])
    summary.emit(version((1, 2), (0, 0)))
    rows = dict(summary.rows())
    assert rows["updates used"] == "2 of clients 1 2, 1 of each"
    assert rows["updates refused"] == "none"
    for rank, reason in ((1, "stale"), (2, "not_finite"), (3, "stale")):
        summary.emit(UpdateRefused(rank=rank, reason=reason, round=8))
    assert dict(summary.rows())["updates refused"] == "1 not_finite, 2 stale"


def test_summary_of_an_asynchronous_client_knows_of_its_own_refusals_only(buffered_run: list[Event]) -> None:
    started = buffered_run[0]
    assert isinstance(started, RunStarted)
    summary = Summary()
    summary.emit(replace(started, role="client", model_path="", log_path=""))
    assert summary.rows() == [("uploads", "0 delivered")]
    summary.emit(UpdateRefused(rank=3, reason="stale", round=8))
    assert summary.rows() == [("uploads", "0 delivered"), ("updates refused", "1 stale")]
