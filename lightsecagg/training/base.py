"""What the managers need of any trainer and any data set: interfaces and values, NumPy only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError, LightSecAggError

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
State = dict[str, Array]
"""A model's state dict as NumPy arrays: entry name -> array. Arrays are owned by whoever holds the state."""

OPTIMIZERS = ("sgd", "adam")


class TrainingStopped(LightSecAggError):
    """Training ended between two batches because the caller asked for it; the trainer's state is partial."""


@dataclass(frozen=True)
class Dataset:
    """A labelled data set, whole; every process of a run loads the same one.

    Attributes:
        name: what people call it.
        train_x: (n, channels, height, width) or (n, features), float32 (int64 for token ids).
        train_y: (n,) int64 labels in 0..num_classes - 1.
        test_x, test_y: the held-out samples, in the same form.
        num_classes: how many labels there are.

    Raises:
        ConfigError: an array has another shape or dtype, or a label is out of range.
    """

    name: str
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    num_classes: int

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            _check_samples(f"data set {self.name!r}: {part}", x, y, self.num_classes)
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ConfigError(
                f"data set {self.name!r}: test samples must have the shape of the training samples, "
                f"{self.train_x.shape[1:]}, found {self.test_x.shape[1:]}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train_x.shape[1:])


def _check_samples(what: str, x: Array, y: Array, num_classes: int) -> None:
    if x.ndim < 2 or x.dtype not in (np.float32, np.int64):
        raise ConfigError(
            f"{what}_x: wanted float32 (or int64 ids) of shape (samples, ...), found {x.dtype} {x.shape}"
        )
    if y.shape != (len(x),) or y.dtype != np.int64:
        raise ConfigError(f"{what}_y: wanted int64 of shape ({len(x)},), found {y.dtype} {y.shape}")
    if y.size and (y.min() < 0 or y.max() >= num_classes):
        raise ConfigError(f"{what}_y: wanted labels 0..{num_classes - 1}, found {y.min()}..{y.max()}")


@dataclass(frozen=True)
class LocalData:
    """One client's own samples: x (n, ...) and y (n,); n may be 0.

    Raises:
        ValueError: x and y differ in length.
    """

    x: Array
    y: Array

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"wanted a label for each sample: {len(self.x)} samples, {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class TrainSettings:
    """How a client trains in one round.

    Attributes:
        epochs: passes over the local data, at least 1.
        batch_size: samples a step, at least 1.
        learning_rate: above 0.
        weight_decay: L2 coefficient added to the gradient of every parameter, at least 0.
        client_optimizer: "sgd" or "adam" (with AMSGrad, as FedML's); it starts afresh every round.
        seed: 0 <= seed < 2^64, seeds the batch order and the model's own randomness. The caller puts run
            seed, rank and round into it; nothing secret may come from it or go into it.

    Raises:
        ConfigError: a value out of its range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    client_optimizer: str
    seed: int

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _require(0 < self.learning_rate < math.inf, "learning_rate", "a number above 0", self.learning_rate)
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or above", self.weight_decay)
        known = " or ".join(map(repr, OPTIMIZERS))
        _require(self.client_optimizer in OPTIMIZERS, "client_optimizer", known, self.client_optimizer)
        _require(0 <= self.seed < 2**64, "seed", "0..2^64 - 1", self.seed)


def _require(holds: bool, key: str, wanted: str, found: object) -> None:
    if not holds:
        raise ConfigError(f"train_args.{key}: wanted {wanted}, found {found!r}")


@dataclass(frozen=True)
class TrainResult:
    """What local training did; it stays with the client.

    Attributes:
        num_samples: samples trained on (each counted once).
        loss: mean loss over the samples of the last epoch, as it was when each batch came; None if not known.
    """

    num_samples: int
    loss: float | None


@dataclass(frozen=True)
class Evaluation:
    """How well a model does: accuracy in 0..1 and mean loss, each None where not known or without samples."""

    accuracy: float | None
    loss: float | None
    num_samples: int


class Trainer(ABC):
    """A model that can be trained; one object a process, not thread-safe."""

    @abstractmethod
    def get_state(self) -> State:
        """The model's present state, as copies."""

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Put the model into ``state``, which is copied.

        Raises:
            UpdateError: an entry is missing, too many, or of another shape.
        """

    @abstractmethod
    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        """Train the present state on ``data``; ``should_stop`` is asked before every batch.

        Raises:
            TrainingStopped: ``should_stop`` said so. The state is partial until ``set_state``.
        """

    @abstractmethod
    def evaluate(self, x: Array, y: Array) -> Evaluation:
        """Accuracy and mean loss of the present state on x (n, ...) and labels y (n,)."""


def batches(
    num_samples: int, settings: TrainSettings, should_stop: Callable[[], bool]
) -> Iterator[tuple[int, IntArray]]:
    """The batches of a local training: (epoch from 0, sample indices), every epoch in a new seeded order.

    All built-in trainers draw their batches here, so one seed means one order whatever the library.

    Raises:
        TrainingStopped: ``should_stop`` said so before a batch.
    """
    generator = np.random.default_rng(settings.seed)
    for epoch in range(settings.epochs):
        order = generator.permutation(num_samples).astype(np.int64, copy=False)
        for start in range(0, num_samples, settings.batch_size):
            if should_stop():
                raise TrainingStopped(f"stopped before a batch of epoch {epoch + 1} of {settings.epochs}")
            yield epoch, order[start : start + settings.batch_size]
