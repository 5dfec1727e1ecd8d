"""Training that lasts at least so long, on a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import Dataset, LocalData, TrainingStopped, TrainResult, TrainSettings
from lightsecagg.training.numpy_trainer import NumpySoftmax
from lightsecagg.training.paced import PacedTrainer


class Clock:
    """Seconds that pass only while somebody sleeps, or where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Laborious(NumpySoftmax):
    """Its training takes two seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(64, 10)
        self._clock = clock

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        self._clock.now += 2.0
        return super().train(data, settings, should_stop)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def paced(clock: Clock, least: float) -> PacedTrainer:
    return PacedTrainer(Laborious(clock), least, monotonic=clock.monotonic, sleep=clock.sleep)


def test_training_that_is_done_early_sleeps_the_rest(clock: Clock, local: LocalData, settings) -> None:
    paced(clock, 3.0).train(local, settings(), lambda: False)
    assert clock.now == pytest.approx(103.0)
    assert sum(clock.slept) == pytest.approx(1.0)


@pytest.mark.parametrize("least", [0.0, 1.5, 2.0])
def test_training_that_lasts_long_enough_sleeps_not_at_all(
    clock: Clock, local: LocalData, settings, least: float
) -> None:
    paced(clock, least).train(local, settings(), lambda: False)
    assert clock.now == 102.0
    assert clock.slept == []


def test_sleep_ends_soon_after_training_is_to_stop(clock: Clock, local: LocalData, settings) -> None:
    with pytest.raises(TrainingStopped, match="3600 s"):
        paced(clock, 3600.0).train(local, settings(), lambda: clock.now >= 110.0)
    assert 110.0 <= clock.now < 110.1


def test_stop_between_batches_is_the_inner_trainers(
    clock: Clock, local: LocalData, settings, stop_before_batch
) -> None:
    with pytest.raises(TrainingStopped, match="before a batch"):
        paced(clock, 3.0).train(local, settings(), stop_before_batch(2))
    assert clock.slept == []


def test_model_and_result_are_those_of_the_inner_trainer(
    clock: Clock, digits: Dataset, local: LocalData, settings
) -> None:
    alone, slow = NumpySoftmax(64, 10), paced(clock, 3.0)
    slow.set_state(alone.get_state())
    assert slow.train(local, settings(), lambda: False) == alone.train(local, settings(), lambda: False)
    for name, array in alone.get_state().items():
        assert np.array_equal(slow.get_state()[name], array)
    assert slow.evaluate(digits.test_x, digits.test_y) == alone.evaluate(digits.test_x, digits.test_y)


@pytest.mark.parametrize("least", [-1.0, math.inf, math.nan])
def test_pace_that_is_no_time_is_refused(clock: Clock, least: float) -> None:
    with pytest.raises(ConfigError, match="pace: wanted a number of seconds, 0 or above, found"):
        paced(clock, least)
