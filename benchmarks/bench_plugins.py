"""What the benchmarks' runs train: a vector that grows at once, and a CNN beside clients that only sleep."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.processes import own_peak_bytes
from lightsecagg.errors import NotFiniteError
from lightsecagg.training.base import (
    Array,
    Dataset,
    Evaluation,
    LocalData,
    State,
    Trainer,
    TrainingStopped,
    TrainResult,
    TrainSettings,
)
from lightsecagg.training.registry import make_trainer

_CLASSES = 62
_IMAGES = 2000  # in all
_NAP = 0.02  # seconds between two looks at whether it is time to wake up


def empty() -> Dataset:
    """As few samples as 64 silos need."""
    x = np.zeros((64, 1), np.float32)
    return Dataset("empty", x, np.zeros(64, np.int64), x[:1], np.zeros(1, np.int64), 1)


class InstantTrainer(Trainer):
    """A vector of LIGHTSECAGG_BENCH_DIMENSION float32 that grows by a constant.

    Where LIGHTSECAGG_BENCH_RECORDS names a folder, the file RANK there tells the peak memory of this process
    up to the end of its first training.
    """

    def __init__(self, _dataset: Dataset, _seed: int) -> None:
        self._state: State = {"w": np.zeros(int(os.environ["LIGHTSECAGG_BENCH_DIMENSION"]), np.float32)}

    def get_state(self) -> State:
        return dict(self._state)

    def set_state(self, state: State) -> None:
        self._state = dict(state)

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        self._state = {"w": self._state["w"] + np.float32(0.001)}
        self._record()
        return TrainResult(len(data), None)

    def _record(self) -> None:
        folder = os.environ.get("LIGHTSECAGG_BENCH_RECORDS")
        if folder is not None and not (path := Path(folder) / os.environ["LIGHTSECAGG_BENCH_RANK"]).exists():
            path.write_text(str(own_peak_bytes(os.getpid())))

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        return Evaluation(None, None, len(y))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the processes of a run with real training do; travels as JSON in LIGHTSECAGG_BENCH_WORK.

    Attributes:
        training: ranks that train; the others sleep until the first of them is done.
        dropping: ranks that are done with their work and then do not upload, every round.
        records: folder in which every client notes when it trained, a line a round in RANK.jsonl.
        turns: file with the name of the run that may go on; None for a run that is alone.
        name, other: this run, and the one that takes turns with it, round by round.
        rounds: after so many the run waits for no turn any more.
    """

    training: tuple[int, ...]
    dropping: tuple[int, ...] = ()
    records: str = ""
    turns: str | None = None
    name: str = ""
    other: str = ""
    rounds: int = 0

    @classmethod
    def here(cls) -> Work:
        """This process's."""
        return msgspec.json.decode(os.environ["LIGHTSECAGG_BENCH_WORK"], type=cls)


def images() -> Dataset:
    """Noise in the form of FEMNIST: 28 x 28 pixels, 62 classes."""
    random = np.random.default_rng(0)
    x = random.standard_normal((_IMAGES, 1, 28, 28), dtype=np.float32)
    y = random.integers(_CLASSES, size=_IMAGES)
    return Dataset("noise", x, y, x[:1], y[:1], _CLASSES)


def femnist_cnn() -> Any:
    """The CNN of 1,206,590 parameters that LightSecAgg's paper trains on FEMNIST."""
    from torch import nn  # noqa: PLC0415 - the processes that InstantTrainer serves must not load it

    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 12 * 64, 128),
        nn.ReLU(),
        nn.Linear(128, _CLASSES),
    )


class RecordingTrainer(Trainer):
    """The program's own torch trainer, which notes the time of every batch; or one that only sleeps.

    The server's passes the turn on where it would evaluate, after every round, and waits for its own: between
    two rounds nothing else is to be done.

    One that drops raises at the end of its training, and a client whose training fails leaves the round: it
    has dealt its shares, brings no update, and is there again for the next round.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._work = Work.here()
        self._rank = int(os.environ["LIGHTSECAGG_BENCH_RANK"])
        self._inner = make_trainer("torch", "bench_plugins:femnist_cnn", dataset, seed)
        self._rounds = 0

    def get_state(self) -> State:
        return self._inner.get_state()

    def set_state(self, state: State) -> None:
        self._inner.set_state(state)

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        started, batches = time.monotonic(), []
        self._rounds += 1

        def note_and_ask() -> bool:
            batches.append(time.monotonic())
            return should_stop()

        if self._rank in self._work.training:
            result = self._inner.train(data, settings, note_and_ask)
        else:
            result = self._sleep(len(data), should_stop)
        self._record(started, batches)
        if self._rank in self._work.dropping:
            raise NotFiniteError("this client drops out at upload")
        return result

    def _sleep(self, samples: int, should_stop: Callable[[], bool]) -> TrainResult:
        awaited = self._records_of(self._work.training[0])
        while not awaited.exists() or awaited.read_text().count("\n") < self._rounds:
            if should_stop():
                raise TrainingStopped("stopped asleep")
            time.sleep(_NAP)
        self.set_state({name: array + array.dtype.type(0.001) for name, array in self.get_state().items()})
        return TrainResult(samples, None)

    def _records_of(self, rank: int) -> Path:
        return Path(self._work.records) / f"{rank}.jsonl"

    def _record(self, started: float, batches: list[float]) -> None:
        line = {"started": started, "ended": time.monotonic(), "batches": batches}
        with self._records_of(self._rank).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        self._rounds += 1
        if self._work.turns is not None:
            turns = Path(self._work.turns)
            turns.write_text(self._work.other)
            while self._rounds < self._work.rounds and turns.read_text() != self._work.name:
                time.sleep(_NAP)
        return Evaluation(None, None, len(y))
