"""A trainer that waits for the test."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lightsecagg.training.base import Array, Evaluation, LocalData, TrainResult, TrainSettings
from tests.e2e.e2e_plugins import KnownTrainer

may_train = threading.Event()
stopped = threading.Event()


class BlockingTrainer(KnownTrainer):
    """Trains once ``may_train`` is set, unless it is told to stop before."""

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        while not may_train.wait(0.01):
            if should_stop():
                stopped.set()
                break
        return super().train(data, settings, should_stop)


class UnmeasurableTrainer(KnownTrainer):
    """Its evaluation raises."""

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        raise RuntimeError("no ruler")
