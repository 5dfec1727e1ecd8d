"""``python -m benchmarks.asynchronous``: what its numbers stand on, each by hand or by other means."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.asynchronous.__main__ import main
from benchmarks.asynchronous.accuracy import SchedulesDifferError, check_same_schedule
from benchmarks.asynchronous.curve import Curve, median_time
from benchmarks.asynchronous.overhead import seconds_an_update, summary
from benchmarks.asynchronous.perceptron import Perceptron
from benchmarks.asynchronous.plots import draw_bits, draw_race
from benchmarks.asynchronous.race import report
from benchmarks.asynchronous.tasks import CLIENTS, PACES, SPREAD, TASKS, Choice, settings_of
from benchmarks.asynchronous.trainers import own_samples
from benchmarks.asynchronous.tuning import choose
from benchmarks.asynchronous.turns import Turns
from benchmarks.asynchronous.virtual import Course, asynchronous, synchronous
from benchmarks.asynchronous.writers import CLASSES, WRITERS, Handwriting, handwriting
from lightsecagg.tracking.events import Evaluated, Event, RoundCompleted, RoundStarted, UpdateRefused
from lightsecagg.tracking.jsonl import Entry
from lightsecagg.training.base import Dataset, LocalData, TrainSettings

DIGITS = replace(TASKS[0], epochs=1)
EVEN = tuple(float(rank) for rank in range(1, CLIENTS + 1))
"""Paces that can be followed by hand."""


@pytest.fixture(scope="module")
def written() -> Handwriting:
    return handwriting(0)


def train(model: Perceptron, data: LocalData, epochs: int) -> None:
    model.train(data, TrainSettings(epochs, 20, 0.1, 0.0, "sgd", 0), lambda: False)


def test_handwriting_has_the_form_of_femnist_and_its_writers_for_silos(written: Handwriting) -> None:
    assert written.train_x.shape[1:] == (1, 28, 28)
    assert written.num_classes == CLASSES == 62
    assert 0 <= written.train_x.min() < written.train_x.max() <= 1
    silos = [written.by(writer) for writer in range(WRITERS)]
    assert all(200 <= len(silo) <= 400 for silo in silos)
    assert sum(map(len, silos)) == len(written.train_x)
    own, given = written.by(2), LocalData(written.train_x[:1], written.train_y[:1])
    assert np.array_equal(own_samples(written, 3, given).x, own.x)
    plain = Dataset("plain", written.train_x, written.train_y, written.test_x, written.test_y, CLASSES)
    assert own_samples(plain, 3, given) is given


def test_handwriting_follows_from_its_seed_and_from_nothing_else(written: Handwriting) -> None:
    again, other = handwriting(0), handwriting(1)
    for name in ("train_x", "train_y", "test_x", "test_y", "writer"):
        assert np.array_equal(getattr(written, name), getattr(again, name)), name
    assert not np.array_equal(written.test_x, other.test_x)


def test_handwriting_is_learnt_from_all_writers_and_not_from_one(written: Handwriting) -> None:
    together, alone = Perceptron(written, 0), Perceptron(written, 0)
    train(together, LocalData(written.train_x, written.train_y), 12)
    train(alone, written.by(0), 60)
    accuracy, accuracy_alone = (
        model.evaluate(written.test_x, written.test_y).accuracy or 0.0 for model in (together, alone)
    )
    assert 0.6 < accuracy < 0.9
    assert accuracy_alone < accuracy / 1.5


def test_a_step_of_the_perceptron_goes_down_the_slope_of_the_cross_entropy() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 6)).astype(np.float32), random.integers(3, size=5)
    model = Perceptron(Dataset("toy", x, y, x, y, 3), 0)
    before = model.get_state()
    model.train(LocalData(x, y), TrainSettings(1, 5, 0.5, 0.01, "sgd", 0), lambda: False)

    def loss(state: Mapping[str, Any]) -> float:
        hidden = np.maximum(x @ state["hidden.weight"] + state["hidden.bias"], 0)
        scores = hidden @ state["output.weight"] + state["output.bias"]
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        decay = sum(float((values**2).sum()) for values in state.values()) * 0.01 / 2
        return float(-np.log(chances[np.arange(5), y]).mean()) + decay

    exact = {name: values.astype(np.float64) for name, values in before.items()}
    for name, after in model.get_state().items():
        for place in np.ndindex(min(after.shape[0], 4), *after.shape[1:]):
            slopes = []
            for step in (1e-6, -1e-6):
                moved = exact[name].copy()
                moved[place] += step
                slopes.append(loss({**exact, name: moved}))
            slope = (slopes[0] - slopes[1]) / 2e-6
            assert after[place] - before[name][place] == pytest.approx(-0.5 * slope, abs=1e-5)


def test_paces_are_spread_geometrically_one_to_ten() -> None:
    steps = [later / earlier for earlier, later in pairwise(PACES)]
    assert len(PACES) == CLIENTS
    assert PACES[-1] / PACES[0] == pytest.approx(SPREAD)
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_lists_in_virtual_time_are_those_that_the_rules_make_by_hand() -> None:
    # N = 8 means T = 2: a list of 6 wants 4 clients, and 3 updates of one may wait. Until second 4 clients
    # 1, 1, 2, 1, 3, 2 came, in whose list only 3 would stand; client 4 completes it, and one of each goes
    # first. What is left waits for the next one; client 1, held back, begins anew with the next version.
    settings = settings_of(DIGITS, Choice("async", 0.1, 6), 1)
    secure, plain = (asynchronous(settings, EVEN, 6.0, secure=secure) for secure in (True, False))
    first, second = plain.lists
    assert plain.curve.seconds[0] == 4.0
    assert [(entry.client, entry.staleness) for entry in first] == [
        *((1, 0), (2, 0), (3, 0), (4, 0)),
        *((1, 0), (1, 0)),
    ]
    assert [(entry.client, entry.staleness) for entry in second][:2] == [(2, 1), (1, 0)]
    check_same_schedule(secure, plain)


def test_other_lists_or_times_with_masks_than_without_are_refused() -> None:
    settings = settings_of(DIGITS, Choice("async", 0.1, 6), 1)
    course = asynchronous(settings, EVEN, 6.0, secure=False)
    later = Course(Curve([4.0, 9.9], course.curve.accuracies), course.lists)
    shorter = Course(Curve([4.0], course.curve.accuracies[:1]), course.lists[:1])
    check_same_schedule(course, course)
    for other in (later, shorter):
        with pytest.raises(SchedulesDifferError, match="differ from list 2 on"):
            check_same_schedule(course, other)


def test_masks_change_the_models_by_no_more_than_their_rounding() -> None:
    settings = settings_of(DIGITS, Choice("async", 0.2, 4, "polynomial(0.5)"), 1)
    secure, plain = (asynchronous(settings, PACES, 1.5, secure=secure).curve for secure in (True, False))
    images = 359
    assert plain.accuracies[-1] > plain.accuracies[0] + 10 / images
    assert secure.accuracies == pytest.approx(plain.accuracies, abs=2 / images)


def test_synchronous_rounds_take_as_long_as_their_slowest_client() -> None:
    course = synchronous(settings_of(DIGITS, Choice("sync", 0.2), 1), EVEN, 24.5)
    assert course.curve.seconds == [8.0, 16.0, 24.0]
    assert course.curve.accuracies[-1] > 0.5


def test_a_target_is_reached_where_it_holds_and_not_where_it_was_luck() -> None:
    curve = Curve([1.0, 2.0, 3.0, 4.0, 5.0], [0.9, 0.5, 0.8, 0.9, 0.8])
    assert curve.time_to(0.8) == 3.0
    assert curve.time_to(0.9) is None
    assert curve.settled == pytest.approx(0.85)
    assert median_time([3.0, None, 1.0]) == 3.0
    assert median_time([3.0, None, None]) is None


def test_times_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(AssertionError, match="times ascend"):
        Curve([2.0, 1.0], [0.5, 0.5])


def test_chosen_is_what_comes_soonest_to_the_target_that_both_modes_reach() -> None:
    slow, fast, poor = Choice("async", 0.1), Choice("async", 0.2), Choice("async", 0.4)
    rounds = Choice("sync", 0.1)
    tuned = choose(
        {
            slow: [Curve([1, 2, 3, 4, 5], [0.1, 0.1, 0.99, 0.99, 0.99])],
            fast: [Curve([1, 2, 3, 4, 5], [0.1, 0.8, 0.8, 0.8, 0.8])],
            poor: [Curve([1, 2, 3, 4, 5], [0.7, 0.7, 0.7, 0.7, 0.7])],
            rounds: [Curve([1, 2, 3, 4, 5], [0.1, 0.1, 0.8, 0.8, 0.8])],
        }
    )
    assert tuned.reachable == {"async": pytest.approx(0.99), "sync": pytest.approx(0.8)}
    assert tuned.target == pytest.approx(0.76)
    assert tuned.models == {"async": 5, "sync": 5}
    assert tuned.choices == {"async": fast, "sync": rounds}
    assert [row["seconds"] for row in tuned.grid] == [3, 2, None, 3]


def entry(second: float, event: Event) -> Entry:
    return Entry(datetime.now(UTC), second, event)


def version(number: int, staleness: tuple[int, ...]) -> RoundCompleted:
    return RoundCompleted(
        round=number,
        survivors=(1,) * len(staleness),
        staleness=staleness,
        seconds={},
        bytes_per_client=0,
        bytes_by_phase={},
    )


def test_a_run_is_timed_by_when_its_models_were_made_and_not_measured() -> None:
    begun = RoundStarted(round=1, cohort=(1,), num_clients=8, target_survivors=6, privacy_threshold=2)
    found = report(
        [
            entry(10.0, begun),
            entry(12.0, version(1, (0, 0))),
            entry(13.0, UpdateRefused(rank=1, reason="stale", round=2)),
            entry(14.0, version(2, (1, 2))),
            entry(14.5, Evaluated(round=1, accuracy=0.5)),
            entry(15.0, version(3, (0, 3))),
            entry(15.5, Evaluated(round=3, accuracy=0.7)),
        ],
        0.6,
    )
    assert (found["seconds"], found["accuracies"]) == ([2.0, 5.0], [0.5, 0.7])
    assert found["seconds_to_target"] is None  # one model does not hold it
    assert (found["updates_a_second"], found["mean_staleness"], found["most_stale"]) == (6 / 5, 1.0, 3)
    assert (found["refused"], found["aborted"]) == (1, 0)


def test_a_run_that_is_stopped_between_its_turns_has_a_clock_of_its_own() -> None:
    turns = Turns([(10.0, 16.0), (22.0, 28.0), (34.0, 40.0)])
    assert [turns.clock(moment) for moment in (9.0, 12.0, 20.0, 23.0, 50.0)] == [0.0, 2.0, 6.0, 7.0, 18.0]
    assert turns.between(14.0, 23.0) == 3.0
    assert turns.between(9.0, 12.0) is None


def test_an_updates_time_follows_from_the_batches_of_a_turn() -> None:
    # Two clients, four batches an update. In the one turn that counts, 6 s long, one begins 8 batches and the
    # other 4: a client's update takes 6 s · 2 clients · 4 batches / 12 begun.
    turns = Turns([(0.0, 6.0), (10.0, 16.0), (20.0, 26.0)])

    def note(*batches: float) -> dict[str, Any]:
        return {"started": batches[0], "ended": batches[-1] + 0.5, "batches": list(batches)}

    notes = {
        1: [note(1.0, 2.0, 3.0, 4.0), note(10.0, 10.5, 11.0, 12.0), note(12.5, 13.0, 14.0, 15.5)],
        2: [note(5.0, 10.2, 11.4, 12.6), note(13.8, 20.0, 21.0, 22.0)],
    }
    assert seconds_an_update(notes, turns) == [4.0]
    found = summary(notes, [entry(11.0, version(1, (0,))), entry(21.0, version(2, (0,)))], turns)
    assert found["version"] == 6.0
    assert found["cycle"] == pytest.approx(statistics.median([5.0, 2.5, 4.8]))
    assert found["training"] == pytest.approx(statistics.median([3.5, 2.5, 3.5, 4.1, 4.7]))


def test_pictures_are_drawn_also_where_a_target_was_never_reached(tmp_path: Path) -> None:
    run = {"seconds": [1.0, 2.0, 3.0], "accuracies": [0.2, 0.5, 0.6]}
    race = {
        "task": "toy",
        "paces": [0.2, 2.0],
        "target": 0.55,
        "runs": {"async": [run, run], "sync": [run, run]},
        "seconds_to_target": {"async": 1.5, "sync": None},
        "ratio": None,
    }
    draw_race([race, race], tmp_path / "race.png")
    accuracies = {rounding: [[0.1, 0.2], [0.5, 0.6]] for rounding in ("nearest", "stochastic")}
    bits = {"task": "toy", "seeds": [1, 2], "bits": [2, 4], "accuracies": accuracies, "plain": [0.6, 0.7]}
    draw_bits([bits], tmp_path / "bits.png")
    for name in ("race.png", "bits.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_part_that_needs_the_tuning_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--part", "race", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "asynchronous_tuning.json" in result.output.replace("\n", "")
    assert "--part tuning" in result.output
