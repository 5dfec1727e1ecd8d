"""What a process trains and measures with: data, silos, trainer and layout, from the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightsecagg.managers.processors import choose_device, share_out
from lightsecagg.settings import Settings
from lightsecagg.training.base import Dataset, LocalData, Trainer, TrainSettings
from lightsecagg.training.data import load_dataset
from lightsecagg.training.partition import partition
from lightsecagg.training.registry import make_trainer
from lightsecagg.training.state import Layout, layout_of


@dataclass(frozen=True)
class Workload:
    """Data and trainer of one process; the trainer is not thread-safe."""

    settings: Settings
    dataset: Dataset
    trainer: Trainer
    layout: Layout
    silos: Sequence[npt.NDArray[np.int64]]
    notices: Sequence[str] = ()
    """What people should be told once about the choice of device."""

    @classmethod
    def load(cls, settings: Settings) -> Workload:
        """Read the data set and build the trainer.

        Raises:
            ConfigError: something that the settings name is missing or does not fit.
        """
        seed = settings.common_args.random_seed
        dataset = load_dataset(settings.data_args.dataset, settings.data_args.data_cache_dir, seed)
        device, notice = choose_device(settings)
        trainer = make_trainer(
            settings.model_args.trainer,
            settings.model_args.model,
            dataset,
            seed,
            device=device,
            args=_flat(settings),
        )
        share_out(settings, device)
        data = settings.data_args
        silos = partition(
            dataset.train_y, settings.num_silos, data.partition_method, data.partition_alpha, seed
        )
        notices = () if notice is None else (notice,)
        return cls(settings, dataset, trainer, layout_of(trainer.get_state()), silos, notices)

    def silo_of(self, rank: int, round_number: int) -> int:
        """Which silo client ``rank`` trains on: its own, or, with more silos than clients, a draw a round."""
        if self.settings.num_silos == self.settings.device_args.worker_num:
            return rank - 1
        seeded = np.random.default_rng([self.settings.common_args.random_seed, round_number])
        return int(seeded.permutation(self.settings.num_silos)[rank - 1])

    def local_data(self, silo: int) -> LocalData:
        """The training samples of one silo."""
        indices = self.silos[silo]
        return LocalData(self.dataset.train_x[indices], self.dataset.train_y[indices])


def train_settings(settings: Settings, rank: int, round_number: int) -> TrainSettings:
    """How a client trains in one round; the batch order is seeded by run seed, rank and round."""
    given = settings.train_args
    text = f"batches {settings.common_args.random_seed} {rank} {round_number}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    return TrainSettings(
        given.epochs, given.batch_size, given.learning_rate, given.weight_decay, given.client_optimizer, seed
    )


def _flat(settings: Settings) -> dict[str, object]:
    """The settings as FedML's one flat ``args`` object has them."""
    sections = settings.model_dump(exclude={"tracking_args": {"wandb_key"}})
    return {key: value for section in sections.values() for key, value in section.items()}
