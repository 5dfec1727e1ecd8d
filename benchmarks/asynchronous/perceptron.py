"""A perceptron with one hidden layer in NumPy: what the measured clients train, without loading torch."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import numpy.typing as npt

from lightsecagg.training.base import (
    Array,
    Dataset,
    Evaluation,
    LocalData,
    State,
    Trainer,
    TrainResult,
    TrainSettings,
    batches,
)

HIDDEN = 64

Floats = npt.NDArray[np.float32]


class Perceptron(Trainer):
    """inputs → 64 rectified units → classes, trained by plain SGD on the cross entropy.

    Args:
        dataset: gives the shape of a sample and the number of classes.
        seed: of the initial weights.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        random = np.random.default_rng(seed)
        features, classes = prod(dataset.input_shape), dataset.num_classes
        self._state: State = {
            "hidden.weight": _initial(random, features, HIDDEN),
            "hidden.bias": np.zeros(HIDDEN, np.float32),
            "output.weight": _initial(random, HIDDEN, classes),
            "output.bias": np.zeros(classes, np.float32),
        }

    def get_state(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def set_state(self, state: State) -> None:
        self._state = {name: array.copy() for name, array in state.items()}

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        x = _flat(data.x)
        for _, rows in batches(len(data), settings, should_stop):
            self._step(x[rows], data.y[rows], settings)
        return TrainResult(len(data), None)

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        scores = self._scores(_flat(x))[1]
        return Evaluation(float((scores.argmax(axis=1) == y).mean()), None, len(y))

    def _scores(self, x: Floats) -> tuple[Floats, Floats]:
        state = self._state
        hidden = np.maximum(x @ state["hidden.weight"] + state["hidden.bias"], 0)
        return hidden, hidden @ state["output.weight"] + state["output.bias"]

    def _step(self, x: Floats, y: npt.NDArray[np.int64], settings: TrainSettings) -> None:
        hidden, scores = self._scores(x)
        error = np.exp(scores - scores.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(y)), y] -= 1
        error /= len(y)
        back = (error @ self._state["output.weight"].T) * (hidden > 0)
        gradients = {
            "hidden.weight": x.T @ back,
            "hidden.bias": back.sum(axis=0),
            "output.weight": hidden.T @ error,
            "output.bias": error.sum(axis=0),
        }
        rate, decay = np.float32(settings.learning_rate), np.float32(settings.weight_decay)
        for name, gradient in gradients.items():
            self._state[name] -= rate * (gradient + decay * self._state[name])


def _initial(random: np.random.Generator, inputs: int, outputs: int) -> Floats:
    return random.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)


def _flat(x: Array) -> Floats:
    return np.ascontiguousarray(x.reshape(len(x), -1), dtype=np.float32)
