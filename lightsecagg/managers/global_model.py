"""The global model of a run: it takes over means, lies on disk, goes out as bytes, and is measured."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.workload import Workload
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking import events
from lightsecagg.training.base import Evaluation, State
from lightsecagg.training.state import FloatVector, add_delta, dump

log = logging.getLogger(__name__)


class GlobalModel:
    """The model that all clients train. A state is never changed, only replaced.

    ``take_over``, ``save`` and ``dump`` are for one thread at a time, ``evaluate`` is for the event loop.

    Args:
        workload: whose trainer's present state is the first model, and whose data it is measured with.
        folder: where it is saved.
        server_lr: share of a mean that is added.
        training: the thread of the trainer.
        tracker: is told what measuring yields.
        spans: is told what takes how long.
    """

    def __init__(
        self,
        workload: Workload,
        folder: RunFolder,
        server_lr: float,
        training: Executor,
        tracker: events.Tracker,
        spans: Spans = no_spans,
    ) -> None:
        self._workload = workload
        self._folder = folder
        self._server_lr = server_lr
        self._training = training
        self._tracker = tracker
        self._spans = spans
        self._state: State = workload.trainer.get_state()
        self.accuracy: float | None = None
        """In 0..1, when it was last measured."""

    @property
    def state(self) -> State:
        """The model as it is now."""
        return self._state

    def take_over(self, mean: FloatVector) -> None:
        """Add the mean of the clients' updates, (d,) float64, times ``server_lr``, and save.

        Raises:
            RunStopped: the model cannot be written.
        """
        step = mean if self._server_lr == 1.0 else self._server_lr * mean
        self._state = add_delta(self._state, step, self._workload.layout)
        self.save()

    def save(self) -> None:
        """Replace the model file.

        Raises:
            RunStopped: it cannot be written.
        """
        self._folder.save_model(self._state)

    def dump(self) -> bytes:
        """The model as it goes to the clients."""
        return dump(self._state)

    async def evaluate(self, state: State, after_round: int) -> None:
        """Measure a state of the model in the training thread; one that cannot be measured is told."""
        trainer, dataset = self._workload.trainer, self._workload.dataset

        def measure() -> Evaluation:
            with self._spans("evaluate"):
                trainer.set_state(state)
                return trainer.evaluate(dataset.test_x, dataset.test_y)

        try:
            found = await asyncio.get_running_loop().run_in_executor(self._training, measure)
        except Exception:  # a user's own code may raise anything; the model is safe, and so is the run
            log.exception("evaluating the model after round %s failed", after_round)
            text = f"the model after round {after_round} could not be evaluated; see the traceback"
            self._tracker.emit(events.Notice(text=text, level="warning"))
            return
        self.accuracy = found.accuracy
        self._tracker.emit(events.Evaluated(round=after_round, accuracy=found.accuracy, loss=found.loss))
