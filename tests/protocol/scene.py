"""One round in memory with every part at hand: machines, identities, updates as integers, and the wire."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import msgspec
import numpy as np

from lightsecagg.errors import Reason
from lightsecagg.field import Elements, PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, ClientDropped, Finished, Left, Send, Stream
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.terms import Floors, Run, cohort_digest, vector_terms
from lightsecagg.protocol.transitions import ClientStage, ServerStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.quantize import FixedPoint
from lightsecagg.randomness import Entropy
from lightsecagg.simulation.network import Network

change = msgspec.structs.replace
"""A message with other fields."""

QUANTIZER = FixedPoint(8.0, 10, 100)

Meddler = Callable[[int, int, bytes], Iterable[bytes]]
"""(sender, receiver, message) to what is delivered in its place."""


class Wire(Network):
    """A network that records everything, and on which a test may meddle."""

    meddler: Meddler | None = None
    has_begun = False

    def __init__(self, server: ServerRound, clients: Mapping[int, ClientRound], updates) -> None:
        self.traffic: list[tuple[int, int, bytes]] = []
        self.left: dict[int, Reason] = {}
        super().__init__(server, clients, updates, spy=self._record)

    def _record(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        self.traffic.append((sender, receiver, bytes(message)))

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        raw = bytes(message)
        for replacement in [raw] if self.meddler is None else self.meddler(sender, receiver, raw):
            super().deliver(sender, receiver, replacement)

    def perform(self, owner: int, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Left):
                self.left[owner] = action.reason
        super().perform(owner, actions)

    def sent_by(self, sender: int, kind: type | None = None) -> list[m.Message]:
        """Everything that ``sender`` put on the network, decoded."""
        read = from_server if sender == SERVER else from_client
        decoded = [read(raw) for source, _, raw in self.traffic if source == sender]
        return [message for message in decoded if kind is None or isinstance(message, kind)]

    def until(self, stage: ServerStage) -> None:
        """Go on until the server reached ``stage``; what it then said is still under way."""
        if not self.has_begun:
            self.start()
        while self.server.stage is not stage:
            assert self.outcome is None, f"the round ended ({self.outcome}) before {stage}"
            self.one()

    def quiet(self) -> None:
        """Deliver and compute whatever can be, and take no offer."""
        while self.step():
            pass

    def to_the_end(self) -> None:
        while self.outcome is None:
            self.one()

    def start(self) -> None:
        self.has_begun = True
        super().start()

    def one(self) -> None:
        if not self.has_begun:
            self.start()
        elif self.offers:
            self.accept(self.offers.pop(0))
        elif not self.step():
            self.perform(SERVER, self.server.deadline())


class Scene:
    """A cohort of N clients and their server at the beginning of one round; secrets follow from ``seed``."""

    def __init__(
        self,
        n: int = 5,
        u: int = 3,
        t: int = 1,
        *,
        dimension: int = 9,
        order: int = 2**24 - 3,
        quantizer: FixedPoint = QUANTIZER,
        model: bytes = b"the global model",
        slots: int = 4,
        seed: int = 1,
        round_number: int = 1,
        after_round: int = 0,
        floors: Floors | None = None,
        with_roster: bool = False,
        before: Scene | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        source = random.Random(seed)
        self.numbers = range(1, n + 1)
        self.parameters = Parameters(n, u, t)
        self.quantizer = quantizer
        self.field = PrimeField(order)
        self.dimension = dimension
        self.entropy = entropy or random.Random(f"secrets {seed}").randbytes
        self.round_number = round_number
        if before is None:
            self.protocol_run = Run("scene", random.Random(7).randbytes(32))
            self.identities = {i: Identity(random.Random(100 + i).randbytes(32)) for i in self.numbers}
        else:
            self.protocol_run, self.identities = before.protocol_run, before.identities
        self.terms = vector_terms(quantizer, dimension, num_clients=n, field=self.field)
        self.roster = Roster({i: self.identities[i].public for i in self.numbers}) if with_roster else None
        self.floors = floors or Floors(min_clients=2, min_privacy_threshold=0)
        self.clients = {i: self.new_client(i, after_round=after_round) for i in self.numbers}
        self.model = model
        self.server = ServerRound(
            self.protocol_run,
            round_number,
            self.parameters,
            self.terms,
            self.cohort,
            model,
            upload_slots=slots,
        )
        self.weights = {i: source.randint(1, quantizer.max_weight) for i in self.numbers}
        self.integers = {i: self._integers(source, self.weights[i]) for i in self.numbers}
        self.wire = Wire(self.server, self.clients, self.update)

    def new_client(self, number: int, *, after_round: int = 0, **changes) -> ClientRound:
        """A machine of client ``number`` with a fresh round key."""
        options = {"floors": self.floors, "roster": self.roster, "sequence": self.round_number, **changes}
        terms = options.pop("terms", self.terms)
        return ClientRound(
            self.identities[number],
            number,
            self.protocol_run,
            terms,
            after_round=after_round,
            entropy=self.entropy,
            **options,
        )

    def _integers(self, source: random.Random, weight: int) -> list[int]:
        most = int(self.quantizer.clip * 2**self.quantizer.fraction_bits * weight / self.quantizer.max_weight)
        return [source.randint(-most, most) for _ in range(self.dimension)] + [weight]

    @property
    def cohort(self) -> list[m.Member]:
        return [client.member for client in self.clients.values()]

    def update(self, number: int) -> Elements:
        return self.field.elements(self.integers[number])

    # Messages of a server, honest or not.

    @property
    def opening(self) -> m.RoundStart:
        """The RoundStart of the honest server."""
        start = from_server(self.server.start()[1].message)
        assert isinstance(start, m.RoundStart)
        return start

    @property
    def digest(self) -> bytes:
        return cohort_digest(self.protocol_run, self.opening)

    def bits(self, numbers: Iterable[int]) -> bytes:
        return m.bitmap(frozenset(numbers), self.parameters.num_clients)

    def survivor_set(self, numbers: Iterable[int]) -> bytes:
        return encode(m.SurvivorSet(self.round_number, self.bits(numbers)))

    def signatures(self, survivors: Iterable[int], endorsers: Iterable[int]) -> list[bytes]:
        bits = self.bits(survivors)
        return [self.identities[i].sign(ENDORSEMENT, self.digest, bits) for i in sorted(endorsers)]

    def certificate(
        self, survivors: Iterable[int], endorsers: Iterable[int], signatures: Sequence[bytes] | None = None
    ) -> bytes:
        survivors, endorsers = list(survivors), list(endorsers)
        signed = self.signatures(survivors, endorsers) if signatures is None else signatures
        return encode(
            m.Certificate(self.round_number, self.bits(survivors), self.bits(endorsers), b"".join(signed))
        )

    # The oracle.

    def check(self, result: RoundResult) -> None:
        """``result`` is the exact weighted mean over its survivors, by Python's integers."""
        assert len(result.survivors) >= self.parameters.target_survivors
        rows = [self.integers[i] for i in result.survivors]
        *total, weight = (sum(column) for column in zip(*rows, strict=True))
        assert result.total_weight == weight
        assert result.mean.shape == (self.dimension,)
        for found, exact in zip(result.mean.tolist(), total, strict=True):
            wanted = Fraction(exact * self.quantizer.max_weight, weight * 2**self.quantizer.fraction_bits)
            assert abs(Fraction(found) - wanted) <= abs(wanted) * Fraction(1, 2**50)

    def finish(self) -> RoundResult:
        """Play to the end, check the result, and return it."""
        self.wire.to_the_end()
        result = self.server.finish()
        self.check(result)
        return result


def flat(actions: Iterable[Action]) -> list[Send]:
    """Everything that actions send, long outputs pulled to their end."""
    sends: list[Send] = []
    for action in actions:
        if isinstance(action, Send):
            sends.append(action)
        elif isinstance(action, Stream):
            sends.extend(action.sends)
    return sends


def said(actions: Iterable[Action]) -> list[m.Message]:
    """What a client's actions say to the server."""
    return [from_client(send.message) for send in flat(actions)]


def reason_of(actions: Iterable[Action]) -> Reason | None:
    """Why a client left, or None."""
    return next((action.reason for action in actions if isinstance(action, Left)), None)


def as_bytes(elements: Elements, width: int) -> bytes:
    """Elements as little-endian integers of ``width`` bytes, by Python's integers."""
    return b"".join(int(value).to_bytes(width, "little") for value in np.asarray(elements))


def tamper(scene: Scene, liar: int, change_message: Callable[[m.Message], m.Message | None]) -> None:
    """Whatever ``liar`` sends goes through ``change_message``; None is the message as it was."""

    def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        if sender != liar or receiver != SERVER:
            return [raw]
        changed = change_message(from_client(raw))
        return [raw if changed is None else encode(changed)]

    scene.wire.meddler = meddle


def collected(**options) -> Scene:
    """Five clients (U = 4, T = 1), every update in; the server is about to announce S."""
    scene = Scene(5, 4, 1, **options)
    scene.wire.until(ServerStage.ENDORSING)
    assert all(client.stage is ClientStage.CANDIDATES for client in scene.clients.values())
    return scene


def at(stage: ServerStage, **options) -> Scene:
    """Five clients (U = 3, T = 1), all of them alive; the server has just reached ``stage``."""
    scene = Scene(5, 3, 1, **options)
    scene.wire.one()
    if stage is not ServerStage.SHARING:
        scene.wire.until(stage)
    return scene


def drops(scene: Scene, number: int, message: m.Message | bytes, reason: Reason) -> None:
    """The message drops its sender, and the rest of the cohort still gets its exact sum."""
    raw = message if isinstance(message, bytes) else encode(message)
    actions = scene.server.receive(number, raw)
    assert actions[0] == ClientDropped(number, reason)
    scene.wire.perform(SERVER, actions)
    assert scene.server.receive(number, raw) == []
    scene.finish()
    assert isinstance(scene.wire.outcome, Finished)


def ignores(scene: Scene, number: int, message: m.Message | bytes) -> None:
    """The message is late: counted, without effect, and the round completes with its sender in it."""
    raw = message if isinstance(message, bytes) else encode(message)
    before = scene.server.late_messages
    assert scene.server.receive(number, raw) == []
    assert scene.server.late_messages == before + 1
    scene.finish()
    assert scene.wire.dropped == {}


def hold_back(scene: Scene, *kinds: type, client: int | None = None) -> None:
    """Messages of these kinds, from or to ``client`` or anyone, do not arrive."""

    def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        message = from_client(raw) if receiver == SERVER else from_server(raw)
        return [] if isinstance(message, kinds) and client in (None, sender, receiver) else [raw]

    scene.wire.meddler = meddle
