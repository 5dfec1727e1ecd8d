"""The server of a run, from the first client's joining to the last one's goodbye, whichever way it goes."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from lightsecagg import kernels
from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, ConfigError, Reason, RunStopped
from lightsecagg.managers.buffered import BufferedRun
from lightsecagg.managers.carrier import GIVEN, carrier_settings, link_settings
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.context import ServerContext
from lightsecagg.managers.gathering import Gathering
from lightsecagg.managers.global_model import GlobalModel
from lightsecagg.managers.scheme import entries_of, load_roster, plan
from lightsecagg.managers.schemes import make_scheme
from lightsecagg.managers.session import Session
from lightsecagg.managers.synchronous import SynchronousRun
from lightsecagg.managers.workload import Workload
from lightsecagg.protocol.terms import Run
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking import events
from lightsecagg.training.state import dimension


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
        planned = plan(settings, settings.cohort_size)
        self._workload = Workload.load(settings)
        given = settings.train_args.model_dump_json()
        self._scheme = make_scheme(settings, self._workload.layout).seen_by_all(given)
        self._machines = ThreadPoolExecutor(1, "machines")
        self._training = ThreadPoolExecutor(1, "training")
        if settings.secure:
            self._machines.submit(kernels.loops, dimension(self._workload.layout))  # loaded when it is needed
        self._hub = comm.make_hub(
            settings.comm_args.backend,
            carrier_settings(settings, folder.run_id, 0),
            link_settings(settings, serves=True),
        )
        self._session = self._make_session(given, spans)
        self._gathering = Gathering(self._session, settings)
        self._context = ServerContext(
            settings=settings,
            folder=folder,
            session=self._session,
            scheme=self._scheme,
            model=GlobalModel(
                self._workload, folder, settings.train_args.server_lr, self._training, tracker, spans
            ),
            tracker=tracker,
            machines=self._machines,
            spans=spans,
            planned=planned,
        )
        self._way = BufferedRun(self._context) if settings.asynchronous else SynchronousRun(self._context)

    def _make_session(self, given: str, spans: Spans) -> Session:
        settings = self._settings
        return Session(
            hub=self._hub,
            run=Run.new(self._folder.run_id),
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
            permanent_slots=settings.asynchronous,
            tracker=self._tracker,
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
                    self._context.model.save()
                else:
                    self._context.warn(
                        f"{self._folder.model} exists: this run does not start from it, and replaces it as "
                        "soon as it has a model of its own (model_args.global_model_file_path)"
                    )
                await self._serve()
            finally:
                await self._hub.close()
                if not self._context.number:
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
                    rounds=self._context.completed,
                    aborted=self._context.aborted,
                    outcome=outcome,
                    reason=reason,
                    accuracy=self._context.model.accuracy,
                    seconds=time.monotonic() - started,
                )
            )

    def expect_at_most(self, clients: int) -> None:
        """Wait for no more clients than these to join: the others have ended. Belongs to the event loop."""
        self._gathering.expect_at_most(clients)

    def _check_names(self) -> None:
        wanted, why = self._settings.comm_args.authenticated_as, self._hub.why_nameless
        if wanted is not None and why is not None:
            raise ConfigError(f"comm_args.authenticated_as: {wanted} cannot be asked for here: {why}")

    def _announce(self) -> None:
        planned = self._context.planned
        self._tracker.emit(
            events.RunStarted(
                run_id=self._folder.run_id,
                role="server",
                num_clients=planned.num_clients,
                target_survivors=planned.target_survivors,
                privacy_threshold=planned.privacy_threshold,
                address=self._hub.address,
                secure=self._settings.secure,
                model_path=str(self._folder.model),
                log_path=str(self._folder.logs),
                buffer_size=self._way.buffer_size,
            )
        )
        self._context.warn(*self._workload.notices, *self._scheme.notices)
        self._context.warn_of(planned)

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
        await self._gathering.wait()
        await self._way.run()
