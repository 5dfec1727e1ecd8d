"""The synchronous way to run: rounds after rounds, each with a cohort of those who are there."""

from __future__ import annotations

import random

from lightsecagg.errors import ConfigError, RoundAborted, RunStopped
from lightsecagg.managers.context import ServerContext
from lightsecagg.managers.inbox import Client
from lightsecagg.managers.rounds import RoundRunner
from lightsecagg.managers.scheme import plan
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.tracking.events import RoundCompleted


class SynchronousRun:
    """The rounds of one run. One object, one run, one event loop."""

    buffer_size: None = None
    """There are no lists."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._losses = ""

    async def run(self) -> None:
        """Run all rounds.

        Raises:
            RunStopped: too few clients are left, or too many rounds in a row were aborted.
        """
        while not self._context.is_complete:
            cohort = await self._draw()
            try:
                await self._one_round(cohort)
            except RoundAborted as error:
                self._context.abort(error.reason, self._losses)

    async def _draw(self) -> list[Client]:
        """The next round's cohort: clients that are there and have an unspent key.

        Raises:
            RunStopped: too few are left.
        """
        session, settings = self._context.session, self._context.settings

        def settled() -> bool:
            size = min(len(session.free()), settings.cohort_size)
            return all(client.free for client in session.up()) and self._shortage(size) is None

        await session.until(settled, settings.secure_aggregation_args.key_timeout)
        self._context.tell_who_is_away()
        free = session.free()
        size = min(settings.cohort_size, len(free))
        if (shortage := self._shortage(size)) is not None:
            raise RunStopped(shortage)
        seeded = random.Random(f"cohort {settings.common_args.random_seed} {self._context.number + 1}")
        return sorted(seeded.sample(free, size), key=lambda client: client.rank)

    def _shortage(self, num_clients: int) -> str | None:
        """Why there can be no round of so many clients, or None."""
        settings = self._context.settings
        least = max(2, settings.min_clients)
        if num_clients < least:
            return f"{num_clients} clients are left; at least {least} are needed"
        try:
            parameters = self._plan(num_clients)
        except ConfigError as error:
            return f"{num_clients} clients are left: {error}"
        floor = settings.min_privacy_threshold
        if settings.secure and parameters.privacy_threshold < floor:
            return (
                f"{num_clients} clients are left, which means T = {parameters.privacy_threshold}, below "
                f"min_privacy_threshold = {floor}"
            )
        return None

    def _plan(self, num_clients: int) -> Parameters:
        planned = self._context.planned
        return planned if num_clients == planned.num_clients else plan(self._context.settings, num_clients)

    async def _one_round(self, cohort: list[Client]) -> None:
        context = self._context
        parameters = self._plan(len(cohort))
        context.number += 1
        number, ranks = context.number, tuple(client.rank for client in cohort)
        free = [client.free for client in cohort if client.free is not None]
        for client in cohort:
            client.free = None  # a round that is announced spends the keys it names, whatever follows

        def prepare() -> ServerMachine:
            context.folder.store_round(number)
            model = context.model.dump()
            return context.scheme.server_round(
                context.session.run, number, parameters, free, model, context.spans
            )

        machine = await context.in_machine_thread(prepare)
        context.announce_round(ranks, parameters)
        runner = RoundRunner(
            machine,
            context.session,
            cohort,
            context.settings,
            context.tracker,
            context.machines,
            context.spans,
        )
        try:
            result = await runner.run()
        finally:
            self._losses = runner.losses
        await context.in_machine_thread(lambda: context.model.take_over(result.mean))
        context.complete(
            RoundCompleted(
                round=number,
                survivors=tuple(ranks[place - 1] for place in result.survivors),
                seconds=runner.seconds,
                bytes_per_client=sum(runner.bytes.values()),
                bytes_by_phase=runner.bytes,
            )
        )
        if context.is_evaluation_due:
            await context.model.evaluate(context.model.state, number)
