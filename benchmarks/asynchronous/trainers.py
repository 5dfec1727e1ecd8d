"""The clients' trainer in processes: a perceptron on a client's own samples, at the client's own pace."""

from __future__ import annotations

import os
from collections.abc import Callable

from benchmarks.asynchronous.perceptron import Perceptron
from benchmarks.asynchronous.writers import Handwriting
from lightsecagg.training.base import Dataset, LocalData, Trainer, TrainResult, TrainSettings
from lightsecagg.training.paced import PacedTrainer

PACES = "LIGHTSECAGG_BENCH_PACES"
"""The environment variable with the least seconds of a training: the server's (rank 0) and each rank's."""


def own_samples(dataset: Dataset, rank: int, silo: LocalData) -> LocalData:
    """What client ``rank`` trains on: what its writer wrote, or the silo that the program gave it."""
    return dataset.by(rank - 1) if isinstance(dataset, Handwriting) else silo


class OwnPerceptron(Perceptron):
    """A perceptron that one client trains, or the server measures."""

    def __init__(self, dataset: Dataset, seed: int, rank: int) -> None:
        super().__init__(dataset, seed)
        self._dataset = dataset
        self._rank = rank

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        return super().train(own_samples(self._dataset, self._rank, data), settings, should_stop)


def paced_perceptron(dataset: Dataset, seed: int) -> Trainer:
    """This process's trainer; it sleeps what is left of its pace, as if it worked on a slower machine."""
    rank = int(os.environ["LIGHTSECAGG_BENCH_RANK"])
    paces = [float(pace) for pace in os.environ[PACES].split(",")]
    return PacedTrainer(OwnPerceptron(dataset, seed, rank), paces[rank])
