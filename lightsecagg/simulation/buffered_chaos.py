"""An asynchronous run from its start to its end, at random, with every promise checked at every step."""

from __future__ import annotations

import random
from collections.abc import Callable

from lightsecagg.errors import Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    SERVER,
    Aborted,
    Action,
    ClientDropped,
    Left,
    Send,
    StageReached,
    Stream,
    UpdateRefused,
    UploadCompleted,
)
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import from_server
from lightsecagg.quantize import FixedPoint
from lightsecagg.simulation.buffered import Cast
from lightsecagg.simulation.buffered_fates import FatefulNetwork
from lightsecagg.simulation.buffered_plan import RunPlan
from lightsecagg.simulation.buffered_promises import Promises
from lightsecagg.simulation.buffered_replays import Replays
from lightsecagg.simulation.chaos import FlawError

_SOON, _LATE = 1_000, 60_000  # happenings without a list after which too few are left, or that is a flaw
_PATIENCE = 400  # happenings of a stage, or without a part of an update, after which the server is told so
_TIMED = (BufferStage.ENDORSING, BufferStage.RECOVERING)
_HOSTILE = frozenset({Reason.PROTOCOL_VIOLATION, Reason.MALFORMED, Reason.BAD_LENGTH, Reason.BAD_SIGNATURE})


class BufferedChaos(FatefulNetwork):
    """One run under a plan. After ``play()``, what happened stands in the attributes.

    Args:
        cast, server, plan, quantizer, rng, trace: as for ``FatefulNetwork``.
        promises: what is checked.
    """

    def __init__(
        self,
        cast: Cast,
        server: BufferedServer,
        plan: RunPlan,
        quantizer: FixedPoint,
        promises: Promises,
        rng: random.Random,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(cast, server, plan, quantizer, promises, rng, trace)
        self._last_list = self._came_in = self._stage_since = 0
        self._is_quiet = False
        self._closing = False
        self._revocations, self._repeats = plan.revocations, plan.repeats
        self._replays = Replays(rng, promises)
        self.decoded = 0
        """Lists that were decoded."""
        self.is_short = False
        """Whether the run ended because too few clients were left."""

    def play(self) -> None:
        """From the first version to the last list, or until too few clients are left.

        Raises:
            FlawError: a promise was broken.
        """
        for number in sorted(self._plan.present):
            self.join(number)
        self.publish()
        while self.decoded < self._plan.lists and not self.is_short:
            self._strike()
            if not self._meddle():
                self._advance()
            self._tick()
        self._come_to_rest()

    def _tick(self) -> None:
        self._clock += 1
        if self.server.stage is not BufferStage.COLLECTING:
            self._came_in = self._clock
            if self._plan.mutes and self._clock >= self._stage_since + _PATIENCE:
                self._close()
            return
        if self._clock >= self._came_in + _PATIENCE:
            self._tell_stalled()
        waited = self._clock - self._last_list
        if waited >= _LATE or (waited >= _SOON and len(self._honest()) < self._plan.quorum):
            self._end_or_protest()

    def _tell_stalled(self) -> None:
        self._tell("nothing comes in")
        self._came_in = self._clock
        self.perform(SERVER, self.server.stalled())

    def _advance(self) -> None:
        """One happening, or what the caller of the server's machine may do."""
        is_quiet, self._is_quiet = self._is_quiet, False
        found = self.possible()
        choices = len(self.offers) + self.is_version_due
        if found and (not choices or self._chance.random() < 0.8):
            what = self._disorder.choose(found)
            if self._trace is not None:
                self._tell(self.named(what))
            self.do(what)
        elif self.is_version_due:
            self.publish()
        elif self.offers:
            self.accept(self.offers.pop(self._chance.randrange(len(self.offers))))
        else:
            self._unblock(is_quiet)

    def _unblock(self, is_quiet: bool) -> None:
        """Nothing can happen by itself: what a manager's timers would do.

        Args:
            is_quiet: whether the server was just told so, and nothing came of it.
        """
        ways: list[Callable[[], None]] = []
        if self._next:
            ways.append(self._pass_time)
        if self.server.unheld:
            ways.append(self._give_up)
        if (self._next or self._plan.mutes) and self.server.stage in _TIMED:
            ways.append(self._close)
        if ways:
            self._chance.choice(ways)()
        elif (event := self._next_join()) is not None:
            self._befall(event)
        elif self.server.stage in _TIMED:
            raise FlawError(f"{self.server!r} is stuck, though everybody has said all there is to say")
        elif is_quiet:
            self._end_or_protest()
        else:
            self._is_quiet = True
            self._tell_stalled()

    def _give_up(self) -> None:
        number = self._chance.choice(sorted(self.server.unheld))
        self._tell(f"{number} has waited for holders for too long")
        self.perform(SERVER, self.server.give_up(number))

    def _close(self) -> None:
        self._tell("deadline")
        self._closing = True
        self.perform(SERVER, self.server.deadline())
        self._closing = False

    def _end_or_protest(self) -> None:
        """No list comes: too few clients are left, or else that is a flaw."""
        honest = self._honest()
        if len(honest) >= self._plan.quorum:
            raise FlawError(f"{self.server!r} makes no list, though {sorted(honest)} could")
        self.is_short = True

    def _honest(self) -> set[int]:
        return self._promises.alive - self._plan.liars

    # A caller that is in no hurry to do what is right.

    def _meddle(self) -> bool:
        """Whether it did something."""
        chance = self._chance.random
        if self._revocations and chance() < 0.05 and (holders := self.server.slot_holders):
            self._revocations -= 1
            self.seen["revoked"] += 1
            self.perform(SERVER, self.server.revoke(self._chance.choice(sorted(holders))))
            return True
        if self._repeats and chance() < 0.02:
            return self._repeat()
        if not self._plan.patient and chance() < 0.003:
            if self.server.stage in _TIMED:
                self._close()
            elif self.server.unheld:
                self._give_up()
            else:
                self._tell_stalled()
            return True
        return False

    def _repeat(self) -> bool:
        """Deliver once more what must have no effect any more; whether there was something."""
        if self._chance.random() < 0.5:
            done = self._replays.to_server(self.server)
        else:
            there = {n: machine for n, machine in self.clients.items() if n not in self._gone}
            done = self._replays.to_client(there)
        self._repeats -= done
        self.seen["repeated"] += done
        return done

    # What passes, and what the machines ask, seen on its way.

    def join(self, number: int) -> None:
        self._replays.forget(number)
        super().join(number)

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        if receiver != SERVER and self._plan.repeats:
            self._replays.note_to_client(receiver, from_server(message), bytes(message))
        super().deliver(sender, receiver, message)

    def take(self, sender: int, message: m.FromClient, raw: bytes | memoryview) -> None:
        if isinstance(message, m.RoundKeyMessage):
            self._promises.joined(sender)
        elif sender in self._promises.alive:
            self._promises.arrived(sender, message, self.server)
            if isinstance(message, m.MaskedUpdate):
                self._came_in = self._clock
            if self._plan.repeats:
                self._replays.note_to_server(sender, message, bytes(raw))
        super().take(sender, message, raw)

    def perform(self, owner: int, actions: list[Action]) -> None:
        for action in actions:
            if not isinstance(action, Send | Stream):
                self._examine(owner, action)
        super().perform(owner, actions)
        if owner == SERVER and actions:
            self._promises.check_server(self.server)

    def _examine(self, owner: int, action: Action) -> None:
        match action:
            case StageReached(stage):
                self._stage_since = self._clock
                self._reach(BufferStage(stage))
            case ClientDropped(number, reason, left):
                self._examine_drop(number, reason, left)
            case UploadCompleted(number):
                self._promises.completed(number)
            case UpdateRefused(_, reason):
                self.seen[f"refused {reason.value}"] += 1
            case Aborted(reason):
                self._promises.check_failure(reason, self._closing)
                self.seen[f"failed {reason.value}"] += 1
            case Left(reason, detail) if not self._leaving[owner]:
                raise FlawError(f"honest client {owner} left an honest server: {reason.value}, {detail}")

    def _examine_drop(self, number: int, reason: Reason, left: bool) -> None:
        if not (self._leaving[number] if left else number in self._losing):
            raise FlawError(f"honest client {number} was dropped: {reason.value}")
        self._tell(f"{number} is dropped: {reason.value}")
        self._promises.dropped(number)
        self._leaving[number] -= left
        if not left and reason in _HOSTILE:
            self._expel(number)

    def take_result(self, result: ListResult) -> None:
        self._promises.check_result(result)
        self._reach(BufferStage.PUBLISHING)
        self.decoded += 1
        self._last_list = self._clock
        clients = {entry.client for entry in result.entries}
        self.seen["mixed versions"] += len({entry.staleness for entry in result.entries}) > 1
        self.seen["mixed weights"] += len({entry.weight for entry in result.entries}) > 1
        self.seen["twice in a list"] += len(clients) < len(result.entries)

    # The end.

    def _come_to_rest(self) -> None:
        """Nobody trains any more; once all is delivered, nothing useless may be held."""
        if self.is_version_due:
            self.publish()
        self._bring_back()
        while found := [what for what in self.possible() if not isinstance(what, int)]:
            self.do(self._disorder.choose(found))
        there = {n: process for n, process in self.processes.items() if n in self._promises.alive}
        self._promises.check_rest(self.server, there)
