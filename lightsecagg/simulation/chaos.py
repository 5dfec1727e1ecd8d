"""A network on which a plan's faults happen at random moments, and every promise is checked at every step."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping

from lightsecagg.codec.seeded import seeded_receivers
from lightsecagg.errors import Reason
from lightsecagg.field import Elements
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Left, Send, StageReached, UploadCompleted, What
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.transitions import FROM_CLIENT, ClientStage, ServerStage, Verdict, judge
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.disorder import Disorder
from lightsecagg.simulation.faults import Fate, Fault, Plan
from lightsecagg.simulation.lies import spoil
from lightsecagg.simulation.network import Link, Network, Possible

_SLOW = 0.03  # how likely a slow client takes its turn


class FlawError(Exception):
    """A promise was broken."""


class Chaos(Network):
    """One round under a plan. After ``play()``, what happened stands in the attributes.

    Args:
        server, clients, updates: as for ``Network``.
        plan: what goes wrong.
        rng: every choice; one seed is one schedule.
        trace: told of everything that happens, for replays.
    """

    def __init__(
        self,
        server: ServerRound,
        clients: Mapping[int, ClientRound],
        updates: Callable[[int], Elements],
        plan: Plan,
        rng: random.Random,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(server, clients, updates, spy=self._watch)
        self._plan = plan
        self._chance = rng
        self._trace = trace
        self._clock = 0
        self._reached: dict[ServerStage, int] = {}
        self._faults = list(plan.faults)
        self._returns: dict[int, int] = {}
        self._disorder = Disorder(rng, dict.fromkeys(plan.slow, _SLOW))
        self._revocations, self._repeats = plan.revocations, plan.repeats
        self._sent: list[tuple[int, m.FromClient, bytes]] = []
        self._repeatable: list[tuple[int, bytes]] = []
        self._once: set[tuple[int, type[m.Message], int]] = set()
        self._reports: dict[int, frozenset[int]] = {}
        self._candidates: frozenset[int] = frozenset()
        self._inside: set[int] = set()
        self._answers: dict[int, int] = {}
        self._answer_parts: int | None = None
        self.survivor_sets: set[frozenset[int]] = set()
        """Every survivor set that the server announced."""
        self.uploaded: dict[int, dict[int, bytes]] = {}
        """Parts of masked updates that left: client to index to bytes."""
        self.left: set[int] = set()
        """Clients that left of their own accord."""
        self.cut_off: set[int] = set()
        """Clients that a step was closed without."""
        self.liars: set[int] = set()
        """Clients that did deal a bad share or complain falsely."""

    @property
    def lost(self) -> frozenset[int]:
        """Whom promise 2 calls lost."""
        return frozenset(self.dropped) | self.left | self.cut_off

    def adopt(self, links: Mapping[Link, list[bytes | memoryview]]) -> None:
        """Put on the links what an earlier round left there."""
        for link, messages in links.items():
            self._links.setdefault(link, deque()).extend(messages)

    def leftovers(self) -> dict[Link, list[bytes | memoryview]]:
        """What is still on the links, except openings: a client without one has no key for another round."""
        return {
            link: [raw for raw in messages if link[0] != SERVER or not _opens(raw)]
            for link, messages in self._links.items()
        }

    def play(self) -> None:
        """From the start to the end of the round.

        Raises:
            FlawError: a promise was broken.
        """
        self.start()
        while self.outcome is None:
            self._clock += 1
            if self._clock > 100_000:
                raise FlawError("the round does not end")
            self._strike()
            if self.outcome is None and not self._meddle():
                self._advance()
        if self.lost and (self._trace is not None):
            self._trace(f"lost {sorted(self.lost)}, liars {sorted(self.liars)}")

    # One happening after another.

    def _advance(self) -> None:
        found = self.possible()
        offers = [what for what in self.offers if self._may_accept(what)]
        if found and (not offers or self._chance.random() < 0.8):
            self._happen(self._disorder.choose(found))
        elif offers:
            self.offers.remove(offers[0])
            self._accept(offers[0])
        else:
            self._unblock()

    def _happen(self, what: Possible) -> None:
        if self._trace is not None:
            self._trace(f"{self._clock:6} {self.server.stage.value:10} {self.named(what)}")
        self.do(what)

    def possible(self) -> list[Possible]:
        return self._disorder.lively(super().possible())

    def _may_accept(self, what: What) -> bool:
        return what is not What.CLOSE or not self._plan.patient or self.server.missing <= self._plan.doomed

    def _accept(self, what: What) -> None:
        if what is What.CLOSE:
            self._close()
        elif what is What.FREEZE:
            self._freeze()
        else:
            self.accept(what)

    def _freeze(self) -> None:
        if self.server.can_freeze:
            self.cut_off |= self.server.missing
            self.perform(SERVER, self.server.freeze())

    def _close(self) -> None:
        stage, missing = self.server.stage, self.server.missing
        actions = self.server.deadline()
        if self.server.stage is not stage:
            self.cut_off |= missing
        if self._trace is not None:
            self._trace(f"{self._clock:6} {stage.value:10} deadline, missing {sorted(missing)}")
        self.perform(SERVER, actions)

    def _unblock(self) -> None:
        """Nothing can happen by itself: what a manager's timers would do."""
        if self._returns:
            self.back(min(self._returns))
            return
        missing, doomed = self.server.missing, self._plan.doomed
        if self.server.uploads_wait and not missing <= doomed:
            for number in self.server.slot_holders.keys() & doomed:
                self.perform(SERVER, self.server.revoke(number))
            return
        if self._plan.patient and not missing <= doomed:
            raise FlawError(f"{self.server.stage.value}: stuck without {sorted(missing - doomed)}")
        self._close()

    # Faults.

    def _strike(self) -> None:
        for number in [n for n, when in self._returns.items() if when <= self._clock]:
            self.back(number)
        for fault in [fault for fault in self._faults if self._is_due(fault)]:
            self._faults.remove(fault)
            if fault.number not in self.lost | self._disorder.frozen and self.outcome is None:
                self._befall(fault)

    def _is_due(self, fault: Fault) -> bool:
        return fault.stage in self._reached and self._clock >= self._reached[fault.stage] + fault.delay

    def _befall(self, fault: Fault) -> None:
        number = fault.number
        if self._trace is not None:
            self._trace(f"{self._clock:6} {self.server.stage.value:10} {fault}")
        match fault.fate:
            case Fate.VANISH:
                self.lose(number)
            case Fate.LEAVE:
                self.left.add(number)
                self.perform(number, self.clients[number].leave(Reason.STOPPED_BY_USER))
            case Fate.FREEZE:
                self._disorder.frozen.add(number)
            case Fate.DEPART:
                self._returns.pop(number, None)
                self.away(number)
                self._disorder.frozen.add(number)
            case Fate.VISIT:
                self.away(number)
                self._returns[number] = self._clock + fault.absence
            case Fate.VIOLATE:
                nonsense = b"\xc1" if self._chance.random() < 0.5 else encode(m.UpdateReady(2**40))
                self.perform(SERVER, self.server.receive(number, nonsense))
                if number not in self.dropped and self.outcome is None:
                    raise FlawError(f"client {number} broke the protocol and was not dropped")

    def back(self, number: int) -> None:
        self._returns.pop(number, None)
        super().back(number)

    def lose(self, number: int, reason: Reason = Reason.LINK_LOST) -> None:
        self._returns.pop(number, None)
        super().lose(number, reason)

    def _meddle(self) -> bool:
        """A caller that is in no hurry to do what is right; whether it did something."""
        holders = self.server.slot_holders
        if holders and self._revocations and self._chance.random() < 0.1:
            self._revocations -= 1
            self.perform(SERVER, self.server.revoke(self._chance.choice(sorted(holders))))
            return True
        if self._repeats and self._chance.random() < 0.05:
            self._repeats -= 1
            return self._repeat()
        if not self._plan.patient and self._chance.random() < 0.004:
            if self.server.can_freeze and self._chance.random() < 0.5:
                self._freeze()
            else:
                self._close()
            return True
        return False

    def _repeat(self) -> bool:
        """Deliver once more what must have no effect any more."""
        if self._repeatable and self._chance.random() < 0.5:
            number, message = self._chance.choice(self._repeatable)
            client = self.clients[number]
            if client.stage in (ClientStage.ENDORSED, ClientStage.ANSWERED) and client.receive(message):
                raise FlawError(f"client {number} acted twice on a message of the server")
            return True
        if not self._sent:
            return False
        number, decoded, raw = self._chance.choice(self._sent)
        if judge(FROM_CLIENT, self.server.stage, decoded) is not Verdict.LATE:
            return False
        before = self.server.late_messages
        if self.server.receive(number, raw) or self.server.late_messages != before + 1:
            raise FlawError(f"a late {type(decoded).__name__} of client {number} was not ignored")
        return True

    # What liars send.

    def _put(self, owner: int, send: Send) -> None:
        if owner in self._plan.liars:
            send = Send(send.to, self._tampered(owner, send.message))
        super()._put(owner, send)

    def _tampered(self, liar: int, raw: bytes | memoryview) -> bytes | memoryview:
        message = from_client(raw)
        match message:
            case m.SealedSeeds() | m.EncodedMask() if liar in self._plan.dealers:
                n, u = self._plan.parameters.num_clients, self._plan.parameters.target_survivors
                seeded = seeded_receivers(liar, range(1, n + 1), u)
                spoilt = spoil(message, self._plan.dealers[liar], seeded)
                if spoilt is not None:
                    self.liars.add(liar)
                    return encode(spoilt)
            case m.SharesHeld(number, held) if liar in self._plan.complainers:
                n = self._plan.parameters.num_clients
                claimed = (m.members(held, n) or frozenset()) - self._plan.complainers[liar]
                self.liars.add(liar)
                return encode(m.SharesHeld(number, m.bitmap(claimed, n)))
        return raw

    # What must hold, whatever happens.

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        if receiver == SERVER and sender not in self.dropped:
            self._note(sender, from_client(message), bytes(message))
        elif receiver != SERVER and isinstance(from_server(message), m.SurvivorSet | m.Certificate):
            self._repeatable.append((receiver, bytes(message)))
        super().deliver(sender, receiver, message)

    def _note(self, sender: int, message: m.FromClient, raw: bytes) -> None:
        if m.round_of(message) != self.server.round_number:
            return
        if not isinstance(message, m.Leave):
            self._sent.append((sender, message, raw))
        match message:
            case m.SharesHeld(_, held) if self.server.stage is ServerStage.REPORTING:
                held_numbers = m.members(held, self._plan.parameters.num_clients)
                self._reports[sender] = held_numbers or frozenset()
            case m.AggregateEncodedMask() if self.server.stage is ServerStage.RECOVERING:
                self._answers[sender] = self._answers.get(sender, 0) + 1

    def _watch(self, sender: int, _receiver: int, raw: bytes | memoryview) -> None:
        if sender == SERVER:
            match from_server(raw):
                case m.Candidates(_, bits):
                    self._candidates = self._numbers(bits)
                case m.SurvivorSet(_, bits) | m.Certificate(_, bits):
                    self.survivor_sets.add(self._numbers(bits))
            return
        match from_client(raw):
            case m.MaskedUpdate(_, _, index, data):
                known = self.uploaded.setdefault(sender, {}).setdefault(index, bytes(data))
                if known != data:
                    raise FlawError(f"client {sender} uploaded two different vectors")
            case m.Endorse() as message:
                self._only_once(sender, message, 0)
            case m.AggregateEncodedMask(_, index, _) as message:
                self._only_once(sender, message, index)

    def _only_once(self, sender: int, message: m.Message, index: int) -> None:
        if (key := (sender, type(message), index)) in self._once:
            raise FlawError(f"client {sender} sent {type(message).__name__} {index} twice")
        self._once.add(key)

    def _numbers(self, bits: bytes) -> frozenset[int]:
        numbers = m.members(bits, self._plan.parameters.num_clients)
        if numbers is None:
            raise FlawError("the server announced a set that is none of this cohort")
        return numbers

    def perform(self, owner: int, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StageReached(stage):
                    self._reached[ServerStage(stage)] = self._clock
                    self.offers.clear()
                case UploadCompleted(number):
                    if number in self._inside:
                        raise FlawError(f"client {number} was added twice")
                    self._inside.add(number)
                case Left(reason) if owner not in self.left:
                    raise FlawError(f"honest client {owner} left an honest server: {reason.value}")
        super().perform(owner, actions)
        if owner == SERVER:
            self._check_server()

    def _check_server(self) -> None:
        if innocent := self.dropped.keys() - self._plan.doomed:
            raise FlawError(f"honest clients were dropped: { {n: self.dropped[n].value for n in innocent} }")
        if len(self.server.slot_holders) > self._plan.slots:
            raise FlawError(f"more than {self._plan.slots} upload slots are out")
        wanted, able = self._plan.parameters.target_survivors, self._able()
        if able is not None and len(able) < wanted:
            raise FlawError(f"{self.server.stage.value} goes on, but only {sorted(able)} can finish it")

    def _able(self) -> set[int] | frozenset[int] | None:
        """Who can still finish, or has finished, the present stage; None after the end."""
        alive = self.clients.keys() - self.dropped.keys()
        survivors = next(iter(self.survivor_sets), frozenset())
        holders = {number for number, held in self._reports.items() if survivors <= held}
        match self.server.stage:
            case ServerStage.SHARING | ServerStage.REPORTING:
                return alive
            case ServerStage.UPLOADING:
                return self._inside | (self._candidates & alive)
            case ServerStage.ENDORSING:
                return holders & alive
            case ServerStage.RECOVERING:
                whole = {number for number, count in self._answers.items() if count == self._answer_parts}
                return whole | (holders & alive)
            case _:
                return None

    def expect_answer_parts(self, count: int) -> None:
        """How many parts a whole answer has."""
        self._answer_parts = count


def _opens(raw: bytes | memoryview) -> bool:
    return isinstance(from_server(raw), m.RoundStart)
