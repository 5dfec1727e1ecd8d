"""The server of a run: rounds after rounds, from the first client's joining to the last one's goodbye."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, ConfigError, Reason, RoundAborted, RunStopped
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.rounds import RoundRunner
from lightsecagg.managers.scheme import Free, load_roster, make_scheme, plan
from lightsecagg.managers.session import Session
from lightsecagg.managers.workload import Workload
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.messages import Entry
from lightsecagg.protocol.terms import Run
from lightsecagg.settings import Settings
from lightsecagg.tracking import events
from lightsecagg.training.base import State
from lightsecagg.training.state import add_delta, dump


def link_settings(settings: Settings) -> comm.LinkSettings:
    """The link's times and sizes out of ``comm_args``."""
    given = settings.comm_args
    return comm.LinkSettings(
        heartbeat_interval=given.heartbeat_interval,
        heartbeat_timeout=given.heartbeat_timeout,
        reconnect_window=given.reconnect_window,
        relay_buffer=given.relay_buffer,
        connect_timeout=given.connect_timeout,
    )


def carrier_settings(settings: Settings, run_id: str) -> dict[str, object]:
    """The carrier's own section of ``comm_args``."""
    given = settings.comm_args
    return {"name": run_id} if given.backend == "LOCAL" else given.grpc.model_dump()


class Server:
    """One run. One object, one run, one event loop.

    Args:
        settings: the configuration.
        folder: where the run lies, claimed already.
        tracker: is told what happens.

    Raises:
        ConfigError: something that the settings name is missing or does not fit.
    """

    def __init__(self, settings: Settings, folder: RunFolder, tracker: events.Tracker) -> None:
        self._settings = settings
        self._folder = folder
        self._tracker = tracker
        self._planned = plan(settings, settings.cohort_size)
        self._workload = Workload.load(settings)
        self._scheme = make_scheme(settings, self._workload.layout)
        self._state: State = self._workload.trainer.get_state()
        self._machines = ThreadPoolExecutor(1, "machines")
        self._training = ThreadPoolExecutor(1, "training")
        self._round = 0
        self._completed = 0
        self._aborted = 0
        self._accuracy: float | None = None
        self._hub = comm.make_hub(
            settings.comm_args.backend, carrier_settings(settings, folder.run_id), link_settings(settings)
        )
        run = Run.new(folder.run_id)
        self._session = Session(
            hub=self._hub,
            run=run,
            worker_num=settings.device_args.worker_num,
            agreed={**settings.agreed(), **self._scheme.agreed()},
            layout=[Entry(entry.name, entry.shape, entry.dtype) for entry in self._workload.layout],
            given={"train_args": settings.train_args.model_dump_json()},
            roster=load_roster(settings),
            secure=settings.secure,
            stall_timeout=settings.comm_args.stall_timeout,
            tracker=tracker,
        )

    async def run(self) -> None:
        """Serve the run to its end.

        Raises:
            RunStopped: it ended early, with a reason; the model of the last good round is on disk.
            CommError: the address cannot be had.
        """
        started = time.monotonic()
        outcome, reason = "failed", None
        try:
            await self._hub.start()
            self._announce()
            self._folder.save_model(self._state)
            await self._serve()
            outcome = "completed"
        except asyncio.CancelledError:
            outcome, reason = "stopped", Reason.STOPPED_BY_USER.value
            raise
        except (RunStopped, CommError, OSError) as error:
            outcome, reason = "stopped", str(error)
            raise
        finally:
            self._machines.shutdown(wait=False)
            self._training.shutdown(wait=False)
            self._tracker.emit(
                events.RunFinished(
                    rounds=self._completed,
                    aborted=self._aborted,
                    outcome=outcome,
                    reason=reason,
                    accuracy=self._accuracy,
                    seconds=time.monotonic() - started,
                )
            )

    def _announce(self) -> None:
        self._tracker.emit(
            events.RunStarted(
                run_id=self._folder.run_id,
                role="server",
                num_clients=self._planned.num_clients,
                target_survivors=self._planned.target_survivors,
                privacy_threshold=self._planned.privacy_threshold,
                address=self._hub.address,
                secure=self._settings.secure,
                model_path=str(self._folder.model),
                log_path=str(self._folder.logs),
            )
        )
        warnings = self._planned.warnings() if self._settings.secure else []
        for text in [*self._scheme.notices, *warnings]:
            self._tracker.emit(events.Notice(text=text, level="warning"))

    async def _serve(self) -> None:
        pump = asyncio.create_task(self._session.pump())
        rounds = asyncio.create_task(self._rounds())
        finished = "stopped"
        try:
            await asyncio.wait({pump, rounds}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            rounds.result()
            finished = "completed"
        finally:
            if not rounds.done():
                rounds.cancel()
                await asyncio.gather(rounds, return_exceptions=True)
            await self._session.finish(finished, self._settings.secure_aggregation_args.finish_timeout)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            await self._session.close()
            await self._hub.close()

    async def _rounds(self) -> None:
        await self._gather_clients()
        aborts_in_a_row = 0
        while self._completed < self._settings.train_args.comm_round:
            cohort = await self._draw()
            try:
                await self._one_round(cohort)
                aborts_in_a_row = 0
            except RoundAborted as error:
                self._aborted += 1
                aborts_in_a_row += 1
                self._tracker.emit(events.RoundAborted(round=self._round, reason=error.reason.value))
                if aborts_in_a_row >= self._settings.secure_aggregation_args.max_aborts:
                    raise RunStopped(
                        f"{aborts_in_a_row} rounds in a row were aborted, "
                        f"the last one with {error.reason.value}"
                    ) from None

    async def _gather_clients(self) -> None:
        wanted = self._settings.device_args.worker_num
        timeout = self._settings.secure_aggregation_args.join_timeout
        await self._session.until(lambda: len(self._session.free()) >= wanted, timeout)
        joined = len(self._session.free())
        if joined < self._settings.min_joined:
            raise RunStopped(
                f"{joined} of {wanted} clients joined within {timeout:g} s "
                f"(secure_aggregation_args.join_timeout); at least {self._settings.min_joined} are needed"
            )

    async def _draw(self) -> list[Free]:
        """The next round's cohort: clients that are there and have an unspent key.

        Raises:
            RunStopped: too few are left.
        """
        least = max(2, self._settings.min_clients)
        session = self._session

        def settled() -> bool:
            free, here = len(session.free()), len(session.here())
            return free == here or (free == len(session.up()) and free >= least)

        await session.until(settled, self._settings.secure_aggregation_args.key_timeout)
        free = session.free()
        if len(free) < least:
            raise RunStopped(f"{len(free)} clients are left; at least {least} are needed")
        size = min(self._settings.cohort_size, len(free))
        seeded = random.Random(f"cohort {self._settings.common_args.random_seed} {self._round + 1}")
        return sorted(seeded.sample(free, size), key=lambda client: client.rank)

    def _plan(self, num_clients: int) -> Parameters:
        if num_clients == self._planned.num_clients:
            return self._planned
        try:
            parameters = plan(self._settings, num_clients)
        except ConfigError as error:
            raise RunStopped(f"{num_clients} clients are left: {error}") from None
        if self._settings.secure and parameters.privacy_threshold < self._settings.min_privacy_threshold:
            raise RunStopped(
                f"{num_clients} clients are left, which means T = {parameters.privacy_threshold}, below "
                f"min_privacy_threshold = {self._settings.min_privacy_threshold}"
            )
        return parameters

    async def _one_round(self, cohort: list[Free]) -> None:
        parameters = self._plan(len(cohort))
        self._round += 1
        self._folder.store_round(self._round)
        ranks = tuple(client.rank for client in cohort)
        model = dump(self._state)
        machine = self._scheme.server_round(self._session.run, self._round, parameters, cohort, model)
        self._tracker.emit(
            events.RoundStarted(
                round=self._round,
                cohort=ranks,
                num_clients=parameters.num_clients,
                target_survivors=parameters.target_survivors,
                privacy_threshold=parameters.privacy_threshold,
            )
        )
        for rank in ranks:
            self._session.clients[rank].free = None
        runner = RoundRunner(machine, self._session, cohort, self._settings, self._tracker, self._machines)
        result = await runner.run()
        self._take_over(result)
        self._completed += 1
        self._tracker.emit(
            events.RoundCompleted(
                round=self._round,
                survivors=tuple(ranks[number - 1] for number in result.survivors),
                seconds=runner.seconds,
                bytes_per_client=sum(runner.bytes.values()),
                bytes_by_phase=runner.bytes,
            )
        )
        every, last = (
            self._settings.validation_args.frequency_of_the_test,
            self._settings.train_args.comm_round,
        )
        if self._completed % every == 0 or self._completed == last:
            await self._evaluate()

    def _take_over(self, result: RoundResult) -> None:
        self._state = add_delta(self._state, result.mean, self._workload.layout)
        self._folder.save_model(self._state)

    async def _evaluate(self) -> None:
        trainer, dataset = self._workload.trainer, self._workload.dataset

        def measure() -> events.Evaluated:
            trainer.set_state(self._state)
            found = trainer.evaluate(dataset.test_x, dataset.test_y)
            return events.Evaluated(round=self._round, accuracy=found.accuracy, loss=found.loss)

        evaluated = await asyncio.get_running_loop().run_in_executor(self._training, measure)
        self._accuracy = evaluated.accuracy
        self._tracker.emit(evaluated)
