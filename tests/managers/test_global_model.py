"""The global model: what of a mean is added, and what is measured while it goes on changing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.evaluation import Evaluations
from lightsecagg.managers.global_model import GlobalModel
from lightsecagg.managers.workload import Workload
from lightsecagg.tracking import events
from lightsecagg.training.base import Array, Evaluation
from lightsecagg.training.state import load, read
from tests.e2e.e2e_plugins import DIMENSION, KnownTrainer
from tests.managers.test_runs import PATIENCE, Recorder, make_settings

may_measure = threading.Event()
has_begun = threading.Event()


class MeasuredTrainer(KnownTrainer):
    """Its accuracy is the first coordinate, once the test lets it measure."""

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        has_begun.set()
        assert may_measure.wait(PATIENCE)
        return Evaluation(float(self._state["w"][0]), None, len(y))


class Stage:
    """A model and who is told of it."""

    def __init__(self, folder: Path, training: ThreadPoolExecutor, server_lr: float) -> None:
        settings = make_settings(3)
        trainer = {"trainer": "tests.managers.test_global_model:MeasuredTrainer"}
        settings = settings.model_copy(update={"model_args": settings.model_args.model_copy(update=trainer)})
        self.recorder = Recorder()
        self.folder = RunFolder(folder, "r1", settings)
        self.model = GlobalModel(Workload.load(settings), self.folder, server_lr, training, self.recorder)

    @property
    def measured(self) -> list[tuple[int, float]]:
        return [(event.round, event.accuracy) for event in self.recorder.of(events.Evaluated)]


@pytest.fixture
def training() -> Iterator[ThreadPoolExecutor]:
    may_measure.clear()
    has_begun.clear()
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.mark.parametrize(("server_lr", "wanted"), [(1.0, 2.5), (0.5, 1.25), (0.1, 0.25)])
def test_server_lr_is_the_share_of_the_mean_that_is_added(
    tmp_path: Path, training: ThreadPoolExecutor, server_lr: float, wanted: float
) -> None:
    stage = Stage(tmp_path, training, server_lr)
    mean = np.full(DIMENSION, 2.5)
    stage.model.take_over(mean)
    stage.model.take_over(mean)
    assert np.allclose(stage.model.state["w"], 2 * wanted, rtol=1e-15, atol=0)
    assert stage.model.state["steps"] == [5], "integer buffers stay the server's"
    assert (mean == 2.5).all()
    for found in (read(stage.folder.model), load(stage.model.dump())):
        assert (found["w"] == stage.model.state["w"]).all()


async def test_what_is_measured_is_the_model_as_it_was_and_of_those_that_wait_the_newest(
    tmp_path: Path, training: ThreadPoolExecutor
) -> None:
    stage = Stage(tmp_path, training, 1.0)
    evaluations = Evaluations(stage.model, stage.recorder)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        for number in (1, 2, 3, 4):
            stage.model.take_over(np.ones(DIMENSION))
            evaluations.add(number)
            if number == 1:
                await loop.run_in_executor(None, has_begun.wait)
        assert not stage.measured
        may_measure.set()
        await evaluations.finish()
    assert stage.measured == [(1, 1.0), (4, 4.0)]
    assert stage.model.accuracy == 4.0
    said = [event.text for event in stage.recorder.of(events.Notice)]
    assert len(said) == 1
    assert "frequency_of_the_test" in said[0]


async def test_every_state_is_measured_where_there_is_time(
    tmp_path: Path, training: ThreadPoolExecutor
) -> None:
    stage = Stage(tmp_path, training, 1.0)
    evaluations = Evaluations(stage.model, stage.recorder)
    may_measure.set()
    async with asyncio.timeout(PATIENCE):
        for number in (1, 2, 3):
            stage.model.take_over(np.ones(DIMENSION))
            evaluations.add(number)
            await evaluations.finish()
    assert stage.measured == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert not stage.recorder.of(events.Notice)
