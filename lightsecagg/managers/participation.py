"""One session of a client: its rounds, from joining to the end of the run or of the link."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lightsecagg.comm import base as comm
from lightsecagg.errors import CommError, LocalProtocolError, NotFiniteError, Reason, RunStopped
from lightsecagg.managers.client_context import Context, Source, Trained
from lightsecagg.managers.outbox import OnArrival, Outbox
from lightsecagg.managers.scheme import AnyClientRound
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import Action, Left, Ready, RoundOver, Send, Stream, What
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.masking import MaskingClient
from lightsecagg.protocol.terms import Run
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.tracking import events
from lightsecagg.training.base import TrainingStopped

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_FLUSH_TIMEOUT = 2.0  # seconds that the last words of a session may take
_LAST_WORDS = 10.0  # seconds that reading what lies unread may take, once nothing can be sent any more


class RefusedError(RunStopped):
    """The server turned this client away."""


class ForgottenError(Exception):
    """The server no longer knows the session: join anew."""


@dataclass
class _Round:
    """The present round: its machine, and the training beside it."""

    machine: AnyClientRound
    stop: threading.Event = field(default_factory=threading.Event)
    update: Any = field(default=None, repr=False)
    source: Source | None = None


class Participation:
    """One session of a client: its rounds, from joining to the end of the run.

    Every call of a round's machine runs on the one machine thread, one after another.
    """

    def __init__(self, context: Context, transport: comm.Transport, run: Run) -> None:
        self._context = context
        self._transport = transport
        self._run = run
        self._outbox = Outbox(self._deliver, context.streams)
        self._round = self._next_round(None)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_over = False

    async def run(self) -> None:
        """Take messages until the run is over.

        Raises:
            RunStopped: the server is gone, turned this client away, or ended the run early.
            ForgottenError: the server no longer knows this session.
            CommError: the link failed without another word.
        """
        sender = asyncio.create_task(self._outbox.run())
        receiver = asyncio.create_task(self._receive())
        try:
            await asyncio.wait({sender, receiver, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
            if not receiver.done():
                if isinstance(sender.exception(), CommError):
                    # Sending met the end of the session first; what lies unread says why it ended.
                    await asyncio.wait({receiver}, timeout=_LAST_WORDS)
                if not receiver.done():
                    sender.result()
            await receiver
        except asyncio.CancelledError:
            machine = self._round.machine
            if not self._is_over and not sender.done():
                for action in await self._call(lambda: machine.leave(Reason.STOPPED_BY_USER)):
                    if isinstance(action, Send):
                        self._outbox.put(action.message)
                await self._flush()
            raise
        finally:
            self._round.stop.set()
            if not self._failure.done():
                self._failure.cancel()
            for task in (sender, receiver, *self._tasks):
                task.cancel()
            await asyncio.gather(sender, receiver, *self._tasks, return_exceptions=True)

    async def _flush(self) -> None:
        self._outbox.drop_streams()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._outbox.drained()

    async def _receive(self) -> None:
        self._publish()
        while not self._is_over:
            match await self._transport.receive():
                case comm.Payload(_, data):
                    await self._payload(data)
                case comm.Away():
                    self._say("lost the server; trying to reach it again")
                case comm.Back():
                    self._say("reached the server again")
                case comm.Gone(_, "unknown_session"):
                    raise ForgottenError
                case comm.Gone(_, code):
                    raise RunStopped(f"the server is gone ({code})")
                case _:
                    pass

    async def _payload(self, data: bytes | memoryview) -> None:
        message = from_server(data)
        if self._context.observe is not None:
            self._context.observe(f"take {type(message).__name__}")
        match message:
            case m.Finish():
                self._is_over = True
                self._outbox.drop_streams()
                self._outbox.put(encode(m.FinishAcknowledged()))
                await self._flush()
                if message.outcome != "completed":
                    raise RunStopped(f"the server ended the run early ({message.outcome})")
            case m.Refused():
                self._is_over = True
                raise RefusedError(f"the server turned this client away: {message.reason.value}")
            case _:
                round_ = self._round
                await self._carry_out(round_, await self._call(lambda: self._take(round_, data)))

    def _take(self, round_: _Round, data: bytes | memoryview) -> list[Action]:
        with self._context.spans("receive"):
            actions = round_.machine.receive(data)
        # At once, and not when the round ends: a session may be lost in between, and a number is used once.
        context = self._context
        context.highest_round = max(context.highest_round, round_.machine.highest_round)
        return actions

    async def _call(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._context.machines, work)

    async def _carry_out(self, round_: _Round, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._outbox.put(action.message)
                case Stream():
                    self._outbox.stream(action.sends, is_urgent=action.is_urgent)
                case Ready(What.SHARING):
                    await self._share(round_)
                case Ready(What.TRAINING):
                    self._spawn(self._train(round_))
                case RoundOver(outcome):
                    self._over(round_, outcome)
                    self._spawn(self._renew(round_))
                case Left(reason, detail):
                    because = f" ({detail})" if detail else ""
                    self._say(f"left {self._named(round_)}: {reason.value}{because}", "warning")
                    self._outbox.drop_streams()
                    # In an asynchronous run it is what all of this client's machines share that has ended.
                    self._spawn(self._renew(self._round))
                case _:
                    pass

    def _over(self, round_: _Round, outcome: str) -> None:
        is_done = outcome == "done"
        self._context.completed += is_done
        if self._context.settings.asynchronous and is_done:
            outcome = "delivered"  # whether a list will name it is still open
        self._say(f"{self._named(round_)}  {outcome}")
        if outcome == Reason.STALE.value:
            self._say_once(
                "stale",
                "training took so long that the server has made more versions than "
                "secure_aggregation_args.max_staleness allows; where that happens often, raise it or "
                "secure_aggregation_args.buffer_size on all machines",
            )

    async def _share(self, round_: _Round) -> None:
        machine = round_.machine
        assert isinstance(machine, MaskingClient)
        parameters = machine.parameters
        if parameters is not None and parameters not in self._context.seen_parameters:
            self._context.seen_parameters.add(parameters)
            for text in parameters.warnings():
                self._say(text, "warning")
        self._phase(round_, "sharing")
        shares = await self._call(machine.shares)
        self._outbox.stream(shares, lambda: self._spawn(self._try_upload(round_)))

    async def _train(self, round_: _Round) -> None:
        context = self._context
        number = round_.machine.round_number or 0
        try:
            model = await self._call(lambda: round_.machine.model)
        except LocalProtocolError:
            return  # the round has ended meanwhile
        self._phase(round_, "training")
        round_.source = (hashlib.sha256(model).digest(), context.workload.silo_of(context.rank, number))
        unsent, context.unsent = context.unsent, None
        try:
            if unsent is not None and unsent[0] == round_.source:
                round_.update = unsent[1]
            else:
                loop = asyncio.get_running_loop()
                trained = await loop.run_in_executor(
                    context.training, context.train, number, model, round_.stop
                )
                self._tell_limits(trained)
                round_.update = trained.update
        except TrainingStopped:
            return
        except NotFiniteError as error:
            self._say(f"the update of {self._named(round_)} cannot be sent: {error}", "warning")
            await self._withdraw(round_, Reason.NOT_FINITE)
            return
        except Exception as error:  # a user's own code may raise anything; the round goes on without us
            self._tell_failure(round_, error)
            await self._withdraw(round_, Reason.TRAINING_FAILED)
            return
        await self._try_upload(round_)

    def _tell_failure(self, round_: _Round, error: Exception) -> None:
        """The traceback of each kind of failure once, then a line a round; both stay with this client."""
        kind = f"failure {error!r}"
        traceback = None if kind in self._context.told else error
        self._context.told.add(kind)
        log.error(
            "client %s: training failed in %s", self._context.rank, self._named(round_), exc_info=traceback
        )

    def _tell_limits(self, trained: Trained) -> None:
        """What the quantizer takes away, once a run and here only."""
        given = self._context.settings.secure_aggregation_args
        if trained.num_samples > given.max_weight:
            self._say_once(
                "weight",
                f"{trained.num_samples} samples count as {given.max_weight} "
                "(secure_aggregation_args.max_weight)",
            )
        if trained.clipped:
            self._say_once(
                "clip",
                f"{trained.clipped} of {trained.dimension} coordinates of the update were clipped to "
                f"±{given.clip:g} (secure_aggregation_args.clip)",
            )

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._context.told:
            self._context.told.add(what)
            self._say(text, "warning")

    async def _withdraw(self, round_: _Round, reason: Reason) -> None:
        await self._carry_out(round_, await self._call(lambda: round_.machine.withdraw(reason)))

    async def _try_upload(self, round_: _Round) -> None:
        """Hand the update over once training is done and every share was pulled."""

        def hand_over() -> list[Send]:
            if round_.update is None or not round_.machine.can_upload:
                return []
            update, round_.update = round_.update, None
            return list(round_.machine.upload(update))

        for send in await self._call(hand_over):
            self._outbox.put(send.message)

    async def _renew(self, ended: _Round) -> None:
        """Get ready for the next round, once training has stopped."""
        if ended is not self._round or ended.stop.is_set():
            return
        context = self._context
        ended.stop.set()
        if not isinstance(ended.machine, ClientUpload):
            # That one's own streams end by themselves; an answer for a list outlives it.
            self._outbox.drop_streams()
        await asyncio.get_running_loop().run_in_executor(context.training, lambda: None)
        unsent = await self._call(ended.machine.reclaim)
        if unsent is None:
            unsent, ended.update = ended.update, None
        if unsent is not None and ended.source is not None:
            context.unsent = (ended.source, unsent)
        # In an asynchronous run the machines share what the client holds: all of it is the one thread's.
        self._round = await self._call(lambda: self._next_round(ended.machine))
        self._publish()

    def _next_round(self, before: AnyClientRound | None) -> _Round:
        context = self._context
        context.sequence += 1
        return _Round(
            context.scheme.client_round(
                context.identity,
                context.rank,
                self._run,
                before=before,
                sequence=context.sequence,
                after_round=context.highest_round,
                max_model_bytes=context.model_bytes,
                spans=context.spans,
            )
        )

    def _publish(self) -> None:
        self._outbox.put(self._round.machine.round_key().message)

    def _named(self, round_: _Round) -> str:
        unit = "upload" if self._context.settings.asynchronous else "round"
        return f"{unit} {round_.machine.round_number or 0}"

    def _phase(self, round_: _Round, phase: str) -> None:
        self._context.tracker.emit(events.PhaseStarted(round=round_.machine.round_number or 0, phase=phase))

    async def _deliver(self, message: bytes | memoryview, _: OnArrival | None) -> None:
        if self._context.observe is not None:
            self._context.observe(f"send {type(from_client(message)).__name__}")
        with self._context.spans("send"):
            await self._transport.send(message)

    def _say(self, text: str, level: Literal["info", "warning"] = "info") -> None:
        self._context.tracker.emit(events.Notice(text=text, level=level))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """What a task raises is our own bug, and ends the session instead of being lost."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)
