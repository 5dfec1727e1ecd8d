"""A data set and trainers for process tests: small, without scikit-learn or torch, with known updates."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import numpy as np

from lightsecagg.training.base import (
    Array,
    Dataset,
    Evaluation,
    LocalData,
    State,
    Trainer,
    TrainingStopped,
    TrainResult,
    TrainSettings,
)

DIMENSION = 23
LARGE_DIMENSION = 2_000_000
PULL = 0.1
"""Share of the model that ``PullingTrainer`` takes back."""


def tiny() -> Dataset:
    """100 training samples of 4 features in 3 classes."""
    random = np.random.RandomState(7)
    x = random.normal(size=(120, 4)).astype(np.float32)
    y = np.arange(120, dtype=np.int64) % 3
    return Dataset("tiny", x[:100], y[:100], x[100:], y[100:], 3)


def known_delta(data: LocalData, dimension: int = DIMENSION) -> Array:
    """What a client with this data adds to the model in every round: float64 (dimension,)."""
    basis = np.linspace(-1.0, 1.0, dimension)
    return np.sin(basis * (1 + float(data.x.sum()))) + len(data) / 100


class KnownTrainer(Trainer):
    """Adds ``known_delta`` of its data to the model; beside it stands an integer buffer that never moves."""

    def __init__(self, _dataset: Dataset, _seed: int) -> None:
        self._state: State = {"w": np.zeros(DIMENSION, np.float64), "steps": np.array([5], np.int64)}

    def get_state(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def set_state(self, state: State) -> None:
        self._state = {name: array.copy() for name, array in state.items()}

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        self._state["w"] = self._state["w"] + known_delta(data)
        self._state["steps"] = self._state["steps"] + 1
        return TrainResult(len(data), None)

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        return Evaluation(None, None, len(y))


class PullingTrainer(KnownTrainer):
    """Adds ``known_delta`` and takes some of the model back, so that its update tells from which version."""

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        model = self._state["w"]
        self._state["w"] = (1 - PULL) * model + known_delta(data, len(model)).astype(model.dtype)
        return TrainResult(len(data), None)


class GatedTrainer(PullingTrainer):
    """The same; each training waits for a byte out of the FIFO that ``E2E_GATE`` names, or to be stopped."""

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        gate = os.open(os.environ["E2E_GATE"], os.O_RDONLY | os.O_NONBLOCK)
        try:
            while not self._is_through(gate):
                if should_stop():
                    raise TrainingStopped("stopped at the gate")
        finally:
            os.close(gate)
        return super().train(data, settings, should_stop)

    @staticmethod
    def _is_through(gate: int) -> bool:
        select.select([gate], [], [], 0.02)
        try:
            return bool(os.read(gate, 1))
        except BlockingIOError:  # nothing there, or another client took it
            return False


class LargeTrainer(KnownTrainer):
    """The same with a model that takes its time on a slow line: 8 MB of float32."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset, seed)
        self._state["w"] = np.zeros(LARGE_DIMENSION, np.float32)

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        self._state["w"] = self._state["w"] + known_delta(data, LARGE_DIMENSION).astype(np.float32)
        return TrainResult(len(data), None)


class DivergingTrainer(KnownTrainer):
    """Its update is NaN."""

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        self._state["w"] = self._state["w"] * np.nan
        return TrainResult(len(data), None)


class FailingTrainer(KnownTrainer):
    """Its training raises."""

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        raise RuntimeError("out of patience")


class WiderTrainer(KnownTrainer):
    """Its model has another shape than the others'."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset, seed)
        self._state["w"] = np.zeros(DIMENSION + 1, np.float64)
