"""A trainer of any speed: on one machine clients may be as unequal as their devices are elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import (
    Array,
    Evaluation,
    LocalData,
    State,
    Trainer,
    TrainingStopped,
    TrainResult,
    TrainSettings,
)

_LOOK = 0.05  # seconds from one question whether to stop to the next


class PacedTrainer(Trainer):
    """Another trainer whose training lasts at least ``least`` seconds; what is left of them it sleeps.

    Args:
        trainer: does the work.
        least: wall time in seconds, 0 or above.
        monotonic: tells the time, in seconds.
        sleep: waits for so many seconds.

    Raises:
        ConfigError: ``least`` is no such number.
    """

    def __init__(
        self,
        trainer: Trainer,
        least: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 <= least < math.inf:
            raise ConfigError(f"pace: wanted a number of seconds, 0 or above, found {least}")
        self._trainer = trainer
        self._least = least
        self._monotonic = monotonic
        self._sleep = sleep

    def get_state(self) -> State:
        return self._trainer.get_state()

    def set_state(self, state: State) -> None:
        self._trainer.set_state(state)

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        end = self._monotonic() + self._least
        result = self._trainer.train(data, settings, should_stop)
        while (left := end - self._monotonic()) > 0:
            if should_stop():
                raise TrainingStopped(f"stopped before the {self._least:g} s of this training were over")
            self._sleep(min(left, _LOOK))
        return result

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        return self._trainer.evaluate(x, y)
