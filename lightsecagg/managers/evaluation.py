"""Measuring the model beside a run that goes on meanwhile."""

from __future__ import annotations

import asyncio

from lightsecagg.managers.global_model import GlobalModel
from lightsecagg.tracking.events import Notice, Tracker
from lightsecagg.training.base import State


class Evaluations:
    """Measures one state of the model after another; of those that wait only the newest is kept.

    Belongs to one event loop.
    """

    def __init__(self, model: GlobalModel, tracker: Tracker) -> None:
        self._model = model
        self._tracker = tracker
        self._waiting: tuple[State, int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_skipped = False

    def add(self, after_round: int) -> None:
        """Measure the model as it is now, as soon as the one before is measured."""
        if self._waiting is not None and not self._has_skipped:
            self._has_skipped = True
            text = (
                "measuring the model takes longer than making the next ones: not all are measured; raise "
                "validation_args.frequency_of_the_test"
            )
            self._tracker.emit(Notice(text=text, level="warning"))
        self._waiting = (self._model.state, after_round)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def finish(self) -> None:
        """Wait until what was added last is measured."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Measure no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting is not None:
            (state, after_round), self._waiting = self._waiting, None
            await self._model.evaluate(state, after_round)
