"""One global model and all clients' training on it, in one process: what virtual time is spent on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.asynchronous.trainers import own_samples
from lightsecagg.managers.workload import Workload, train_settings
from lightsecagg.settings import Settings
from lightsecagg.training.state import FloatVector, add_delta, delta, dump, load


class Learner:
    """The program's own data, silos, batches and model, without its processes.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workload = Workload.load(settings)
        self._state = self._workload.trainer.get_state()
        self.layout = self._workload.layout

    def dump(self) -> bytes:
        """The model as it goes to the clients."""
        return dump(self._state)

    def train(self, rank: int, turn: int, model: bytes) -> tuple[npt.NDArray[np.floating], int]:
        """What client ``rank`` brings back from its training number ``turn``: the change, (d,), and n."""
        workload, start = self._workload, load(model)
        data = own_samples(workload.dataset, rank, workload.local_data(rank - 1))
        workload.trainer.set_state(start)
        done = workload.trainer.train(data, train_settings(self._settings, rank, turn), lambda: False)
        return delta(workload.trainer.get_state(), start), done.num_samples

    def take_over(self, mean: FloatVector) -> None:
        """Add the mean of the clients' changes, (d,), times the server's learning rate."""
        step = self._settings.train_args.server_lr * mean
        self._state = add_delta(self._state, step, self.layout)

    def accuracy(self) -> float:
        """Of the model as it is now, in 0..1."""
        trainer, dataset = self._workload.trainer, self._workload.dataset
        trainer.set_state(self._state)
        found = trainer.evaluate(dataset.test_x, dataset.test_y).accuracy
        assert found is not None, "the data sets have test samples"
        return found
