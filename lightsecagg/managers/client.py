"""A client of a run: it looks for the server, joins, and takes part until the run is over."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pydantic

from lightsecagg import kernels
from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, Reason, RemoteProtocolError, RunStopped
from lightsecagg.identity import Identity
from lightsecagg.managers.carrier import GIVEN, carrier_settings, link_settings, server_address
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.client_context import Context, Observer
from lightsecagg.managers.participation import ForgottenError, Participation, RefusedError
from lightsecagg.managers.scheme import entries_of, plan
from lightsecagg.managers.schemes import make_scheme, plan_buffering
from lightsecagg.managers.workload import Workload
from lightsecagg.protocol.joining import ClientJoining, Joined, JoiningRefusedError
from lightsecagg.protocol.terms import Run
from lightsecagg.settings import Settings
from lightsecagg.settings.schema import TrainArgs
from lightsecagg.spans import Spans, no_spans
from lightsecagg.tracking import events
from lightsecagg.training.paced import PacedTrainer
from lightsecagg.training.state import dimension, dump

_LONGEST_PAUSE = 1.0  # seconds between two attempts to be heard


class _CrowdedOutError(Exception):
    """The server closed the connection before it heard who we are."""


class Client:
    """One rank of one run. One object, one event loop.

    Args:
        settings: the client's own configuration: what protects it comes from here alone.
        folder: where the run lies.
        rank: 1..worker_num.
        identity: its long-term key pair.
        tracker: is told what happens.
        observer: see ``Observer``.
        spans: is told what takes how long.
        pace: seconds that local training lasts at least.

    Raises:
        ConfigError: something that the settings name is missing or does not fit.
    """

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        rank: int,
        identity: Identity,
        tracker: events.Tracker,
        observer: Observer | None = None,
        spans: Spans = no_spans,
        pace: float = 0.0,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._tracker = tracker
        self._planned = plan(settings, settings.cohort_size)
        self._buffer_size = (
            plan_buffering(settings, self._planned).buffer_size if settings.asynchronous else None
        )
        workload = _paced(Workload.load(settings), pace)
        machines, streams, training = (
            ThreadPoolExecutor(1, name) for name in ("machines", "streams", "training")
        )
        self._executors = (machines, streams, training)
        if settings.secure:
            streams.submit(kernels.loops, dimension(workload.layout))  # loaded by the time it is needed
        self._context = Context(
            settings,
            rank,
            identity,
            workload,
            make_scheme(settings, workload.layout),
            # A model travels as a dump of the state, whose length is the same every round.
            len(dump(workload.trainer.get_state())),
            tracker,
            observer,
            machines,
            streams,
            training,
            spans,
        )

    async def run(self) -> None:
        """Take part until the run is over.

        Raises:
            RefusedError: the server turned this client away.
            RunStopped: the server vanished, or ended the run early.
            CommError: no server was found.
            ConfigError: a setting of the carrier is wrong.
        """
        transport: comm.Transport | None = self._transport()  # first: a wrong setting of it begins no run
        started = time.monotonic()
        outcome, reason = "failed", None
        crowded_since: float | None = None
        self._announce()
        try:
            while True:
                try:
                    await self._take_part(transport or self._transport())
                    break
                except ForgottenError:
                    crowded_since = None
                    self._tracker.emit(events.Notice(text="the server forgot this session; joining anew"))
                except _CrowdedOutError:
                    crowded_since = crowded_since or time.monotonic()
                    await self._wait_in_the_crowd(crowded_since)
                transport = None  # is used once
            outcome = "completed"
        except asyncio.CancelledError:
            outcome, reason = "stopped", Reason.STOPPED_BY_USER.value
            raise
        except (RunStopped, CommError) as error:
            outcome, reason = "stopped", str(error)
            raise
        finally:
            for executor in self._executors:
                executor.shutdown(wait=False, cancel_futures=True)
            self._tracker.emit(
                events.RunFinished(
                    rounds=self._context.completed,
                    aborted=0,
                    outcome=outcome,
                    reason=reason,
                    seconds=time.monotonic() - started,
                )
            )

    async def _wait_in_the_crowd(self, since: float) -> None:
        """Pause before the next attempt to join.

        Raises:
            CommError: `connect_timeout` is over.
        """
        patience = self._settings.comm_args.connect_timeout
        if time.monotonic() > since + patience:
            raise CommError(
                f"the server at {server_address(self._settings)} did not hear us within {patience:g} s: a "
                "crowd of connections is at its door; client certificates or broker users keep strangers away"
            )
        await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))

    def _announce(self) -> None:
        settings = self._settings
        self._tracker.emit(
            events.RunStarted(
                run_id=self._folder.run_id,
                role="client",
                num_clients=self._planned.num_clients,
                target_survivors=self._planned.target_survivors,
                privacy_threshold=self._planned.privacy_threshold,
                address=server_address(settings),
                secure=settings.secure,
                buffer_size=self._buffer_size,
                model_path="",  # the server writes it
                log_path=str(self._folder.logs),
            )
        )
        for text in (*self._context.workload.notices, *self._context.scheme.notices):
            self._tracker.emit(events.Notice(text=text, level="warning"))

    def _transport(self) -> comm.Transport:
        return comm.make_transport(
            self._settings.comm_args.backend,
            carrier_settings(self._settings, self._folder.run_id, self._context.rank),
            link_settings(self._settings),
            on_waiting=lambda text: self._tracker.emit(events.Notice(text=text)),
            rng=random.Random(),
        )

    async def _take_part(self, transport: comm.Transport) -> None:
        try:
            await transport.connect()
            run = await self._join(transport)
            self._context.enter(run)
            await Participation(self._context, transport, run).run()
        except RemoteProtocolError as error:
            raise RunStopped(f"the server broke the protocol: {error}") from None
        finally:
            await transport.close(Reason.GOODBYE.value)

    async def _join(self, transport: comm.Transport) -> Run:
        joining = ClientJoining(
            self._context.identity,
            self._context.rank,
            self._folder.run_id,
            {**self._settings.agreed(), **self._context.scheme.agreed()},
            entries_of(self._context.workload.layout),
        )
        try:
            async with asyncio.timeout(self._settings.comm_args.connect_timeout):
                return await self._be_admitted(transport, joining)
        except TimeoutError:
            raise CommError(
                f"the server at {server_address(self._settings)} took the connection and said no more within "
                f"{self._settings.comm_args.connect_timeout:g} s (comm_args.connect_timeout)"
            ) from None

    async def _be_admitted(self, transport: comm.Transport, joining: ClientJoining) -> Run:
        while True:
            match await transport.receive():
                case comm.Payload(_, data):
                    try:
                        answer = joining.receive(data)
                    except JoiningRefusedError as error:
                        detail = f" ({error.detail})" if error.detail else ""
                        raise RefusedError(
                            f"the server refused this client: {error.reason.value}{detail}"
                        ) from None
                    if isinstance(answer, Joined):
                        self._adopt(answer)
                        self._tracker.emit(events.ClientJoined(rank=self._context.rank))
                        return answer.run
                    await transport.send(answer)
                case comm.Gone(_, "unknown_session"):
                    raise ForgottenError
                case comm.Gone(_, comm.SERVER_FULL | Reason.LINK_LOST.value):
                    raise _CrowdedOutError
                case comm.Gone(_, code):
                    raise RunStopped(f"the server ended the session while this client joined: {code}")
                case _:
                    pass

    def _adopt(self, joined: Joined) -> None:
        """Learning rate, epochs and batch size come from the server; nothing that protects a client does."""
        text = joined.settings.get(GIVEN, "")
        try:
            given = TrainArgs.model_validate_json(text)
        except pydantic.ValidationError:
            raise RemoteProtocolError(Reason.MALFORMED, "its training settings cannot be read") from None
        chosen = {
            name: getattr(given, name)
            for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "client_optimizer")
        }
        own = self._settings.train_args.model_copy(update=chosen)
        self._context.scheme = self._context.scheme.seen_by_all(text)
        self._context.settings = self._settings.model_copy(update={"train_args": own})


def _paced(workload: Workload, pace: float) -> Workload:
    return dataclasses.replace(workload, trainer=PacedTrainer(workload.trainer, pace)) if pace else workload
