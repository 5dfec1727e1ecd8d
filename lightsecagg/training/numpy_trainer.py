"""Multinomial logistic regression in NumPy: a trainer for processes that must not load torch."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lightsecagg.training.base import (
    Array,
    Evaluation,
    IntArray,
    LocalData,
    State,
    Trainer,
    TrainResult,
    TrainSettings,
    batches,
)
from lightsecagg.training.state import require_same_entries

FloatArray = npt.NDArray[np.float32]


class NumpySoftmax(Trainer):
    """Softmax regression on flattened samples, from zero weights; the same model as torch's ``lr``.

    State: ``linear.weight`` (num_classes, num_features) and ``linear.bias`` (num_classes,), float32.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        self._parameters: dict[str, FloatArray] = {
            "linear.weight": np.zeros((num_classes, num_features), np.float32),
            "linear.bias": np.zeros(num_classes, np.float32),
        }

    def get_state(self) -> State:
        return {name: array.copy() for name, array in self._parameters.items()}

    def set_state(self, state: State) -> None:
        require_same_entries(state, self._parameters)
        self._parameters = {name: state[name].astype(np.float32) for name in self._parameters}

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        x, y = _flat(data.x), np.asarray(data.y, np.int64)
        optimizer = _OPTIMIZERS[settings.client_optimizer](settings.learning_rate)
        last_loss = 0.0
        for epoch, rows in batches(len(data), settings, should_stop):
            log_probabilities = self._log_probabilities(x[rows])
            if epoch == settings.epochs - 1:
                last_loss += float(_losses(log_probabilities, y[rows]).sum(dtype=np.float64))
            gradients = _gradients(log_probabilities, x[rows], y[rows])
            for name, parameter in self._parameters.items():
                gradient = gradients[name] + np.float32(settings.weight_decay) * parameter
                optimizer.step(name, parameter, gradient)
        return TrainResult(len(data), last_loss / len(data) if len(data) else None)

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        if not len(x):
            return Evaluation(None, None, 0)
        log_probabilities = self._log_probabilities(_flat(x))
        labels = np.asarray(y, np.int64)
        return Evaluation(
            accuracy=float((log_probabilities.argmax(axis=1) == labels).mean()),
            loss=float(_losses(log_probabilities, labels).mean(dtype=np.float64)),
            num_samples=len(x),
        )

    def _log_probabilities(self, x: FloatArray) -> FloatArray:
        """(n, num_features) -> (n, num_classes)."""
        scores: FloatArray = x @ self._parameters["linear.weight"].T + self._parameters["linear.bias"]
        scores -= scores.max(axis=1, keepdims=True)  # so that no exponential overflows
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores


def _flat(x: Array) -> FloatArray:
    return np.asarray(x, np.float32).reshape(len(x), prod(x.shape[1:]))


def _losses(log_probabilities: FloatArray, y: IntArray) -> FloatArray:
    return -log_probabilities[np.arange(len(y)), y]


def _gradients(log_probabilities: FloatArray, x: FloatArray, y: IntArray) -> dict[str, FloatArray]:
    """The mean cross entropy's gradients over one batch."""
    by_score = np.exp(log_probabilities)
    by_score[np.arange(len(y)), y] -= 1
    by_score /= np.float32(len(y))
    return {"linear.weight": by_score.T @ x, "linear.bias": by_score.sum(axis=0)}


class _Optimizer(Protocol):
    def step(self, name: str, parameter: FloatArray, gradient: FloatArray) -> None: ...


class _Sgd:
    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = np.float32(learning_rate)

    def step(self, name: str, parameter: FloatArray, gradient: FloatArray) -> None:  # noqa: ARG002
        parameter -= self._learning_rate * gradient


class _Adam:
    """Adam (Kingma & Ba, 2015) with AMSGrad (Reddi et al., 2018), with torch's defaults."""

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._steps: dict[str, int] = {}
        self._moments: dict[str, tuple[FloatArray, FloatArray, FloatArray]] = {}

    def step(self, name: str, parameter: FloatArray, gradient: FloatArray) -> None:
        step = self._steps[name] = self._steps.get(name, 0) + 1
        zeros = np.zeros_like(parameter)
        mean, square, largest = self._moments.get(name, (zeros, zeros, zeros))
        mean = np.float32(self.BETA_1) * mean + np.float32(1 - self.BETA_1) * gradient
        square = np.float32(self.BETA_2) * square + np.float32(1 - self.BETA_2) * gradient**2
        largest = np.maximum(largest, square)
        self._moments[name] = mean, square, largest
        scale = np.float32(self._learning_rate / (1 - self.BETA_1**step))
        root = np.sqrt(largest) / np.float32(np.sqrt(1 - self.BETA_2**step)) + np.float32(self.EPSILON)
        parameter -= scale * mean / root


_OPTIMIZERS: dict[str, Callable[[float], _Optimizer]] = {"sgd": _Sgd, "adam": _Adam}
