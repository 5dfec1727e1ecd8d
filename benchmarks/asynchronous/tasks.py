"""What is trained, by whom, and how fast: the settings of every run, in processes as in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightsecagg.settings import Settings

CLIENTS = 8
SPREAD = 10
"""The slowest client takes so many times as long as the fastest; the others stand between, geometrically."""
FASTEST = 0.2
"""Seconds."""
PACES: tuple[float, ...] = tuple(FASTEST * SPREAD ** (place / (CLIENTS - 1)) for place in range(CLIENTS))
"""Seconds of one training, by rank from 1."""


@dataclass(frozen=True)
class Task:
    """A data set, and how it is trained.

    Attributes:
        name: what people call it.
        dataset: as in a configuration file.
        epochs, batch_size: of one local training.
        horizon: seconds for which a run is watched.
    """

    name: str
    dataset: str
    epochs: int
    batch_size: int
    horizon: float


TASKS = (
    Task("digits", "digits", epochs=3, batch_size=20, horizon=20),
    Task("handwriting", "benchmarks.asynchronous.writers:handwriting", epochs=3, batch_size=20, horizon=36),
)

SEEDS = (1, 2, 3, 4, 5)
"""Of the split or the set, the first model and the batches, in what is measured."""


@dataclass(frozen=True)
class Choice:
    """How a run goes, beyond its task.

    Attributes:
        mode: "sync" or "async".
        learning_rate: of the clients; the server adds the whole mean.
        buffer_size: K; means nothing in a synchronous run.
        staleness: as in a configuration file.
        bits: of a fraction.
        rounding: "nearest", "stochastic", or None for the mode's own.
    """

    mode: str
    learning_rate: float
    buffer_size: int = 6
    staleness: str = "constant"
    bits: int = 16
    rounding: str | None = None


def settings_of(task: Task, choice: Choice, seed: int) -> Settings:
    """The settings of a run in one process."""
    return Settings.model_validate(sections(task, choice, seed))


def sections(task: Task, choice: Choice, seed: int, models: int = 1) -> dict[str, dict[str, Any]]:
    """A configuration file's sections; ``models``: rounds or versions, which virtual time does not count."""
    return {
        "common_args": {"random_seed": seed},
        "data_args": {"dataset": task.dataset, "partition_method": "hetero", "partition_alpha": 0.5},
        "model_args": {"trainer": "benchmarks.asynchronous.perceptron:Perceptron"},
        "train_args": {
            "comm_round": models,
            "epochs": task.epochs,
            "batch_size": task.batch_size,
            "learning_rate": choice.learning_rate,
            "weight_decay": 0.0001,
        },
        "validation_args": {"frequency_of_the_test": 1},
        "secure_aggregation_args": {
            "mode": choice.mode,
            "buffer_size": choice.buffer_size,
            "staleness": choice.staleness,
            "precision_parameter": choice.bits,
            "rounding": choice.rounding,
        },
        "device_args": {"worker_num": CLIENTS},
    }
