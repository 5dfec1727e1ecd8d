"""The server of a run: rounds after rounds, from the first client's joining to the last one's goodbye."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lightsecagg import kernels
from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, ConfigError, Reason, RoundAborted, RunStopped
from lightsecagg.managers.carrier import GIVEN, carrier_settings, link_settings
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.inbox import Client, Status
from lightsecagg.managers.rounds import RoundRunner
from lightsecagg.managers.scheme import entries_of, load_roster, make_scheme, plan
from lightsecagg.managers.session import Session
from lightsecagg.managers.workload import Workload
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.terms import Run
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking import events
from lightsecagg.training.base import Evaluation, State
from lightsecagg.training.state import add_delta, dimension, dump

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Server:
    """One run. One object, one run, one event loop.

    Args:
        settings: the configuration.
        folder: where the run lies; ``run`` claims it.
        tracker: is told what happens.
        spans: is told what takes how long.

    Raises:
        ConfigError: something that the settings name is missing or does not fit.
    """

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        tracker: events.Tracker,
        spans: Spans = no_spans,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._tracker = tracker
        self._spans = spans
        self._planned = plan(settings, settings.cohort_size)
        self._workload = Workload.load(settings)
        given = settings.train_args.model_dump_json()
        self._scheme = make_scheme(settings, self._workload.layout).seen_by_all(given)
        self._state: State = self._workload.trainer.get_state()
        self._machines = ThreadPoolExecutor(1, "machines")
        self._training = ThreadPoolExecutor(1, "training")
        if settings.secure:
            self._machines.submit(kernels.loops, dimension(self._workload.layout))  # loaded when it is needed
        self._round = 0
        self._told: set[str] = set()
        self._losses = ""
        self._most = settings.device_args.worker_num  # clients that can join at all
        self._completed = 0
        self._aborted = 0
        self._accuracy: float | None = None
        self._hub = comm.make_hub(
            settings.comm_args.backend,
            carrier_settings(settings, folder.run_id, 0),
            link_settings(settings, serves=True),
        )
        run = Run.new(folder.run_id)
        self._session = Session(
            hub=self._hub,
            run=run,
            worker_num=settings.device_args.worker_num,
            agreed={**settings.agreed(), **self._scheme.agreed()},
            layout=entries_of(self._workload.layout),
            given={GIVEN: given},
            roster=load_roster(settings),
            secure=settings.secure,
            authenticated_as=settings.comm_args.authenticated_as,
            # Whoever holds the others up is given up before their shares are late.
            stall_timeout=min(
                settings.comm_args.stall_timeout, settings.secure_aggregation_args.share_timeout / 3
            ),
            relay_buffer=settings.comm_args.relay_buffer,
            tracker=tracker,
            spans=spans,
        )

    async def run(self) -> None:
        """Serve the run to its end.

        Raises:
            RunStopped: it ended early, with a reason; the model of the last good round is on disk.
            ConfigError: the run id was used before.
            CommError: the address cannot be had.
        """
        started = time.monotonic()
        outcome, reason = "failed", None
        try:
            await self._hub.start()
            try:
                self._check_names()
                self._folder.claim()
                self._announce()
                if self._folder.keeps_model or not self._folder.model.exists():
                    self._folder.save_model(self._state)
                await self._serve()
            finally:
                await self._hub.close()
                if not self._round:
                    self._folder.release()
            outcome = "completed"
        except asyncio.CancelledError:
            outcome, reason = "stopped", Reason.STOPPED_BY_USER.value
            raise
        except (RunStopped, CommError, ConfigError) as error:
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

    def expect_at_most(self, clients: int) -> None:
        """Wait for no more clients than these to join: the others have ended. Belongs to the event loop."""
        self._most = clients
        self._session.look_again()

    def _check_names(self) -> None:
        wanted, why = self._settings.comm_args.authenticated_as, self._hub.why_nameless
        if wanted is not None and why is not None:
            raise ConfigError(f"comm_args.authenticated_as: {wanted} cannot be asked for here: {why}")

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
        for text in (*self._workload.notices, *self._scheme.notices):
            self._tracker.emit(events.Notice(text=text, level="warning"))
        self._warn(self._planned)

    def _warn(self, parameters: Parameters) -> None:
        """Say once what a choice of numbers does not give, also a new one because clients were lost."""
        if not self._settings.secure:
            return
        for text in parameters.warnings():
            if text not in self._told:
                self._told.add(text)
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
            try:
                if not pump.done():
                    timeout = self._settings.secure_aggregation_args.finish_timeout
                    await self._session.finish(finished, timeout)
            except asyncio.CancelledError:
                if finished != "completed":
                    raise  # otherwise all is done, and Ctrl-C only ends the waiting for goodbyes
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
                await self._session.close()

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
                        f"{' (' + self._losses + ')' if self._losses else ''}"
                    ) from None

    async def _gather_clients(self) -> None:
        wanted = self._settings.device_args.worker_num
        timeout = self._settings.secure_aggregation_args.join_timeout
        least = self._settings.min_joined

        def settled() -> bool:
            return self._most < least or len(self._session.free()) >= min(wanted, self._most)

        is_settled = await self._session.until(settled, timeout)
        joined = len(self._session.free())
        if joined < least and is_settled:
            raise RunStopped(f"too many clients have ended before they joined; at least {least} are needed")
        if joined < least:
            raise RunStopped(
                f"{joined} of {wanted} clients joined within {timeout:g} s "
                f"(secure_aggregation_args.join_timeout); at least {least} are needed"
            )

    async def _draw(self) -> list[Client]:
        """The next round's cohort: clients that are there and have an unspent key.

        Raises:
            RunStopped: too few are left.
        """
        session = self._session

        def settled() -> bool:
            size = min(len(session.free()), self._settings.cohort_size)
            return all(client.free for client in session.up()) and self._shortage(size) is None

        await session.until(settled, self._settings.secure_aggregation_args.key_timeout)
        for client in session.here():
            if client.status is Status.AWAY and not client.absence_is_told:
                client.absence_is_told = True
                self._tracker.emit(events.ClientLost(rank=client.rank, reason=Reason.AWAY.value))
        free = session.free()
        size = min(self._settings.cohort_size, len(free))
        if (shortage := self._shortage(size)) is not None:
            raise RunStopped(shortage)
        seeded = random.Random(f"cohort {self._settings.common_args.random_seed} {self._round + 1}")
        return sorted(seeded.sample(free, size), key=lambda client: client.rank)

    def _shortage(self, num_clients: int) -> str | None:
        """Why there can be no round of so many clients, or None."""
        least = max(2, self._settings.min_clients)
        if num_clients < least:
            return f"{num_clients} clients are left; at least {least} are needed"
        try:
            parameters = self._plan(num_clients)
        except ConfigError as error:
            return f"{num_clients} clients are left: {error}"
        floor = self._settings.min_privacy_threshold
        if self._settings.secure and parameters.privacy_threshold < floor:
            return (
                f"{num_clients} clients are left, which means T = {parameters.privacy_threshold}, below "
                f"min_privacy_threshold = {floor}"
            )
        return None

    def _plan(self, num_clients: int) -> Parameters:
        return (
            self._planned if num_clients == self._planned.num_clients else plan(self._settings, num_clients)
        )

    async def _one_round(self, cohort: list[Client]) -> None:
        parameters = self._plan(len(cohort))
        self._round += 1
        ranks = tuple(client.rank for client in cohort)
        free = [client.free for client in cohort if client.free is not None]
        for client in cohort:
            client.free = None  # a round that is announced spends the keys it names, whatever follows

        def prepare() -> ServerMachine:
            self._folder.store_round(self._round)
            model = dump(self._state)
            return self._scheme.server_round(
                self._session.run, self._round, parameters, free, model, self._spans
            )

        machine = await self._in_machine_thread(prepare)
        self._warn(parameters)
        self._tracker.emit(
            events.RoundStarted(
                round=self._round,
                cohort=ranks,
                num_clients=parameters.num_clients,
                target_survivors=parameters.target_survivors,
                privacy_threshold=parameters.privacy_threshold,
            )
        )
        runner = RoundRunner(
            machine, self._session, cohort, self._settings, self._tracker, self._machines, self._spans
        )
        try:
            result = await runner.run()
        finally:
            self._losses = runner.losses
        await self._in_machine_thread(lambda: self._take_over(result))
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

        def measure() -> Evaluation:
            with self._spans("evaluate"):
                trainer.set_state(self._state)
                return trainer.evaluate(dataset.test_x, dataset.test_y)

        try:
            found = await asyncio.get_running_loop().run_in_executor(self._training, measure)
        except Exception:  # a user's own code may raise anything; the model is safe, and so is the run
            log.exception("evaluating the model after round %s failed", self._round)
            text = f"the model after round {self._round} could not be evaluated; see the traceback"
            self._tracker.emit(events.Notice(text=text, level="warning"))
            return
        self._accuracy = found.accuracy
        self._tracker.emit(events.Evaluated(round=self._round, accuracy=found.accuracy, loss=found.loss))

    async def _in_machine_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._machines, work)
