"""A simulated asynchronous run whose clients meet what a plan has in store for them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from itertools import chain

from lightsecagg.codec.seeded import seeded_receivers
from lightsecagg.errors import Reason
from lightsecagg.field import Elements, PrimeField
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Send
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import encode, from_client
from lightsecagg.quantize import FixedPoint
from lightsecagg.simulation.buffered import BufferedNetwork, Cast
from lightsecagg.simulation.buffered_plan import Event, Mishap, RunPlan
from lightsecagg.simulation.buffered_promises import Promises
from lightsecagg.simulation.chaos import FlawError
from lightsecagg.simulation.disorder import Disorder
from lightsecagg.simulation.lies import mangle, nonsense, spoil
from lightsecagg.simulation.network import Possible
from lightsecagg.simulation.schedule import draw_update

_WORDS = m.Endorse | m.AggregateEncodedMask  # what a mute does not send


class _Next(Enum):
    """What is to come of a client that is not there."""

    BACK = auto()
    GIVEN_UP = auto()
    JOIN = auto()


class FatefulNetwork(BufferedNetwork):
    """One run under a plan.

    Args:
        cast, server: as for ``BufferedNetwork``.
        plan: what goes wrong.
        quantizer: the run's.
        promises: is told what nobody can see on the network.
        rng: every choice; one seed is one schedule.
        trace: told of everything that happens, for replays.
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
        super().__init__(cast, server, self._draw_update, self._draw_model, spy=promises.watch)
        self._plan = plan
        self._quantizer = quantizer
        self._field = PrimeField(cast.terms.order)
        self._promises = promises
        self._chance = rng
        self._trace = trace
        self._clock = 0
        self._events: dict[tuple[int, BufferStage], list[Event]] = {}
        for event in plan.events:
            self._events.setdefault((event.list_number, event.stage), []).append(event)
        self._due: list[tuple[int, Event]] = []
        self._reach(BufferStage.COLLECTING)
        self._disorder = Disorder(rng, plan.paces)
        self._next: dict[int, tuple[int, _Next]] = {}
        self._leaving: Counter[int] = Counter()
        self._returning: set[int] = set()
        self._losing: set[int] = set()
        self._expelled: set[int] = set()
        self._mangling: set[int] = set()
        self._failing: set[int] = set()
        self._versions: dict[bytes, int] = {}
        self.seen: Counter[str] = Counter()
        """How often what happened."""

    def _tell(self, text: str) -> None:
        if self._trace is not None:
            stage = f"{self.server.version}/{self.server.list_number} {self.server.stage.value}"
            self._trace(f"{self._clock:6} {stage:16} {text}")

    def possible(self) -> list[Possible]:
        return self._disorder.lively(super().possible())

    def _reach(self, stage: BufferStage) -> None:
        """A list got as far: what is to happen from there on begins to be counted."""
        for event in self._events.pop((self.server.list_number, stage), ()):
            self._due.append((self._clock + event.delay, event))

    def _strike(self) -> None:
        """Whatever is due now."""
        if self._next:
            for number in [number for number, (when, _) in self._next.items() if when <= self._clock]:
                self._continue(number)
        if self._due:
            for entry in [entry for entry in self._due if entry[0] <= self._clock]:
                self._due.remove(entry)
                self._befall(entry[1])

    def _pass_time(self) -> None:
        """To the next word about a client that is not there."""
        self._clock = max(self._clock, min(when for when, _ in self._next.values()))

    def _next_join(self) -> Event | None:
        """Somebody who was to come later, and may as well come now."""
        for event in (*(event for _, event in self._due), *chain.from_iterable(self._events.values())):
            if event.mishap is Mishap.JOIN and self._can_befall(event):
                return event
        return None

    def _continue(self, number: int) -> None:
        _, what = self._next.pop(number)
        self._tell(f"{number} {what.name.lower()}")
        match what:
            case _Next.BACK:
                self.back(number)
            case _Next.GIVEN_UP:
                self._disorder.frozen.discard(number)
                self.lose(number, Reason.STALLED)
            case _Next.JOIN:
                self.join(number)

    def _bring_back(self) -> None:
        """End every absence."""
        for number, (_, what) in list(self._next.items()):
            self._next[number] = 0, _Next.GIVEN_UP if what is _Next.JOIN else what
            self._continue(number)

    def _can_befall(self, event: Event) -> bool:
        is_there = event.number in self.processes and event.number not in self._gone
        is_settled = event.number not in self._next.keys() | self._expelled
        return is_settled and is_there != (event.mishap is Mishap.JOIN)

    def _befall(self, event: Event) -> None:
        if not self._can_befall(event):
            return
        number, later = event.number, self._clock + event.absence
        self._tell(f"{event.mishap.value} {number}")
        self.seen[event.mishap.value] += 1
        match event.mishap:
            case Mishap.VANISH:
                self.lose(number)
            case Mishap.LEAVE:
                self._leave(number)
            case Mishap.RETURN:
                self._returning.add(number)
                self._leave(number)
            case Mishap.RESTART:
                self._die(number)
                self._next[number] = later, _Next.JOIN
            case Mishap.VISIT:
                self.away(number)
                self._next[number] = later, _Next.BACK
            case Mishap.DEPART:
                self.away(number)
                self._next[number] = later, _Next.GIVEN_UP
            case Mishap.HANG:
                self._disorder.frozen.add(number)
                self._next[number] = later, _Next.GIVEN_UP
            case Mishap.VIOLATE:
                self._violate(number)
            case Mishap.MANGLE:
                self._mangling.add(number)
            case Mishap.FAIL:
                self._failing.add(number)
            case Mishap.JOIN:
                self.join(number)

    def _leave(self, number: int) -> None:
        self._leaving[number] += 1
        self.perform(number, self.clients[number].leave(Reason.STOPPED_BY_USER))

    def _left(self, number: int) -> None:
        if number not in self._returning:
            super()._left(number)
            return
        self._returning.discard(number)
        self._outlets = [outlet for outlet in self._outlets if outlet.owner != number]
        self._renew(number)

    def _die(self, number: int) -> None:
        """The process dies; the server hears of it at once, or when another process takes the slot."""
        if self._chance.random() < 0.5:
            self.lose(number)
        else:
            self.away(number)
            self.cut(number)

    def _violate(self, number: int) -> None:
        others = [other for other in range(1, self._plan.buffering.capacity + 1) if other != number]
        self._losing.add(number)
        message = nonsense(self._chance, number, self._chance.choice(others))
        self.perform(SERVER, self.server.receive(number, message))
        if number in self.server.alive:
            raise FlawError(f"client {number} broke the protocol and was not dropped")

    def _expel(self, number: int) -> None:
        """Nothing more is heard of who broke the protocol."""
        self._expelled.add(number)
        self.cut(number)

    def join(self, number: int) -> None:
        self._leaving[number] = 0
        self._failing.discard(number)
        self._mangling.discard(number)
        super().join(number)

    def lose(self, number: int, reason: Reason = Reason.LINK_LOST) -> None:
        self._losing.add(number)
        super().lose(number, reason)
        self._losing.discard(number)

    def away(self, number: int) -> None:
        self._promises.absent.add(number)
        super().away(number)

    def back(self, number: int) -> None:
        self._promises.absent.discard(number)
        super().back(number)

    def publish(self) -> None:
        self._promises.published()
        super().publish()

    def _draw_model(self, version: int) -> bytes:
        model = self._chance.randbytes(self._chance.choice((8, 20)))
        self._versions[model] = version
        return model

    def _draw_update(self, number: int) -> Elements:
        weight = self._chance.choice((0, 1, self._chance.randint(0, self._quantizer.max_weight)))
        vector = [*draw_update(self._chance, self._quantizer, weight, self._plan.dimension), weight]
        machine = self.clients[number]
        name = number, machine.round_number or 0
        self._promises.trained(name, self._versions[machine.model], vector)
        return self._field.elements(vector)

    def _train(self, number: int) -> None:
        if number not in self._failing:
            super()._train(number)
            return
        self._failing.discard(number)
        self.seen["withdrawn"] += 1
        self.perform(number, self.clients[number].withdraw(Reason.TRAINING_FAILED))

    def _put(self, owner: int, send: Send) -> None:
        if owner != SERVER:
            if owner in self._plan.mutes and isinstance(from_client(send.message), _WORDS):
                return
            send = Send(send.to, self._tampered(owner, send.message))
        super()._put(owner, send)

    def _tampered(self, owner: int, raw: bytes | memoryview) -> bytes | memoryview:
        if owner in self._mangling and (mangled := mangle(raw)) is not None:
            self._mangling.discard(owner)
            self._losing.add(owner)
            self._promises.malformed.add(owner)
            return mangled
        victims = self._plan.dealers.get(owner)
        if victims is None:
            return raw
        match message := from_client(raw):
            case m.SealedSeeds(mask) | m.EncodedMask(mask):
                cohort = self._promises.cohorts[owner, mask.upload]
                seeded = seeded_receivers(owner, cohort, self._plan.buffering.target_survivors)
                spoilt = spoil(message, victims, seeded)
                if spoilt is not None:
                    self.seen["spoilt"] += 1
                    return encode(spoilt)
        return raw
