"""A model of any size that trains at once: what is left of a round is its aggregation."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from lightsecagg.training.base import (
    Array,
    Dataset,
    Evaluation,
    LocalData,
    State,
    Trainer,
    TrainResult,
    TrainSettings,
)


def empty() -> Dataset:
    """As few samples as 64 silos need."""
    x = np.zeros((64, 1), np.float32)
    return Dataset("empty", x, np.zeros(64, np.int64), x[:1], np.zeros(1, np.int64), 1)


class InstantTrainer(Trainer):
    """A vector of LIGHTSECAGG_BENCH_DIMENSION float32 that grows by a constant."""

    def __init__(self, _dataset: Dataset, _seed: int) -> None:
        self._state: State = {"w": np.zeros(int(os.environ["LIGHTSECAGG_BENCH_DIMENSION"]), np.float32)}

    def get_state(self) -> State:
        return dict(self._state)

    def set_state(self, state: State) -> None:
        self._state = dict(state)

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        self._state = {"w": self._state["w"] + np.float32(0.001)}
        return TrainResult(len(data), None)

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        return Evaluation(None, None, len(y))
