"""What a client keeps from session to session, and its training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightsecagg.errors import RunStopped
from lightsecagg.identity import Identity
from lightsecagg.managers.scheme import Scheme
from lightsecagg.managers.workload import Workload, train_settings
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.terms import Run
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking import events
from lightsecagg.training.state import delta, load

Observer = Callable[[str], None]
"""Called on the event loop with "take NAME" before a message is taken and "send NAME" before one is sent:
tests stop a process with it at an exact point."""

Source = tuple[bytes, int]
"""What an update was trained on: the hash of the model, and the silo."""


class Trained(NamedTuple):
    """What local training yields; it prints without the update."""

    update: Any
    num_samples: int
    clipped: int
    dimension: int

    def __repr__(self) -> str:
        return "Trained(<secret>)"


@dataclass
class Context:
    """What a client keeps from session to session."""

    settings: Settings
    rank: int
    identity: Identity
    workload: Workload
    scheme: Scheme
    model_bytes: int
    tracker: events.Tracker
    observe: Observer | None
    machines: Executor
    streams: Executor
    training: Executor
    spans: Spans = no_spans
    run: Run | None = None
    sequence: int = 0
    highest_round: int = 0
    completed: int = 0
    seen_parameters: set[Parameters] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    unsent: tuple[Source, Any] | None = field(default=None, repr=False)
    """An update that never left, with what it was trained on."""

    def enter(self, run: Run) -> None:
        """Take part in ``run`` from now on.

        Raises:
            RunStopped: this process took part in another. There numbers begin again, and with them the same
                batches on the same model: two sums of one update would tell what it is.
        """
        if self.highest_round and self.run != run:
            raise RunStopped(
                "the server was started anew and serves another run than the one that this client took part "
                "in; start the client again to take part in it"
            )
        self.run = run

    def train(self, round_number: int, model: bytes, stop: threading.Event) -> Trained:
        """Train on this round's silo and make the update; runs in the training thread.

        Raises:
            TrainingStopped: ``stop`` was set.
            NotFiniteError: what came out is not finite.
            UpdateError: it does not fit the model.
        """
        start = load(model)
        trainer = self.workload.trainer
        trainer.set_state(start)
        data = self.workload.local_data(self.workload.silo_of(self.rank, round_number))
        with self.spans("train"):
            done = trainer.train(data, train_settings(self.settings, self.rank, round_number), stop.is_set)
        with self.spans("quantize"):
            change = delta(trainer.get_state(), start)
            update = self.scheme.update(change, done.num_samples)
            return Trained(update, done.num_samples, self.scheme.clipped(change), len(change))
