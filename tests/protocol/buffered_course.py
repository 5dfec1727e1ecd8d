"""An asynchronous run in memory with its real server, every list of it held against Python's integers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from lightsecagg.errors import AbortReason, Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    SERVER,
    Aborted,
    Action,
    ClientDropped,
    Left,
    Ready,
    RoundOver,
    Send,
    Stream,
    UpdateRefused,
    What,
)
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from tests.protocol.buffered_scene import Clients
from tests.protocol.scene import Meddler


class Course(Clients):
    """The run with its real server, over links that keep order. What happens next is drawn by a seed, oldest
    first where it is None; a slow client's training comes up as many times less often.
    """

    meddler: Meddler | None = None

    def __init__(
        self,
        *numbers: int,
        slots: int = 4,
        order_seed: int | None = None,
        slow: dict[int, int] | None = None,
        **options,
    ) -> None:
        super().__init__(*numbers, **options)
        self.server = BufferedServer(
            self.protocol_run,
            self.terms,
            min_buffer_clients=self.floors.min_buffer_clients,
            strict_weights=self.floors.strict_weights,
            upload_slots=slots,
        )
        self.dropped: dict[int, Reason] = {}
        self.left: dict[int, Reason] = {}
        self.refused: list[UpdateRefused] = []
        self.aborted: list[AbortReason] = []
        self.results: list[ListResult] = []
        self.traffic: list[tuple[int, int, bytes]] = []
        self.versions: dict[tuple[int, int], int] = {}
        """(client, upload) to the version that its client was told to train on."""
        self._rng = None if order_seed is None else random.Random(order_seed)
        self._slow = slow or {}
        self._links: dict[tuple[int, int], deque[bytes]] = {}
        self._outlets: list[tuple[int, Iterator[Send]]] = []
        self._untrained: list[tuple[int, ClientUpload]] = []
        self._offers: list[What] = []
        self._gone: set[int] = set()
        for number in self.present:
            self.join(number)
        while self.step():
            pass  # everybody's key is there, so the first cohorts are whole
        self.perform(SERVER, self.server.publish(b"the first model"))

    def join(self, number: int, *others: object, **changes: object) -> None:
        self._gone.discard(number)
        super().join(number, *others, **changes)

    def renew(self, number: int, **changes: object) -> None:
        super().renew(number, **changes)
        self.perform(number, [self.turns[number].round_key()])

    def run(self, lists: int) -> None:
        """Until so many lists more are decoded, each of them checked."""
        wanted = len(self.results) + lists
        self.until(lambda: len(self.results) >= wanted)

    def until(self, is_done: Callable[[], bool] | BufferStage) -> None:
        """Go on until then; where nothing can happen, the caller's patience ends."""
        while not (self.server.stage is is_done if isinstance(is_done, BufferStage) else is_done()):
            if not self.step():
                is_collecting = self.server.stage is BufferStage.COLLECTING
                actions = self.server.stalled() if is_collecting else self.server.deadline()
                assert actions, f"{self.server} is stuck"
                self.perform(SERVER, actions)

    def quiet(self, *, offers: bool = False) -> None:
        """Whatever can happen, happens; no offer of the server is taken, or each of them is."""
        while self.step(offers=offers):
            pass

    def step(self, *, offers: bool = True) -> bool:
        """One thing happens; False where nothing can."""
        events: list[Callable[[], None]] = [
            lambda link=link: self._deliver(link) for link, waiting in self._links.items() if waiting
        ]
        events += [lambda outlet=outlet: self._pull(outlet) for outlet in self._outlets]
        if offers and self._offers:
            events.append(lambda: self._accept(self._offers.pop(0)))
        events += [lambda each=each: self._train(*each) for each in self._drawn(bool(events))]
        if not events:
            return False
        (events[0] if self._rng is None else self._rng.choice(events))()
        return True

    def _drawn(self, is_busy: bool) -> list[tuple[int, ClientUpload]]:
        """Whose training may end now; where nothing else can happen, somebody's does."""
        pulling = {owner for owner, _ in self._outlets}
        ready = [(number, turn) for number, turn in self._untrained if number not in pulling]
        if self._rng is None or not ready:
            return ready
        speeds = [1 / self._slow.get(number, 1) for number, _ in ready]
        if not is_busy:
            return self._rng.choices(ready, speeds)
        return [each for each, speed in zip(ready, speeds, strict=True) if self._rng.random() < speed]

    def perform(self, owner: int, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(to, message) if not {owner, to} & self._gone:
                    self.traffic.append((owner, to, bytes(message)))
                    self._links.setdefault((owner, to), deque()).append(bytes(message))
                case Stream(_, sends):
                    self._outlets.append((owner, sends))
                case Ready(What.SHARING):
                    self._outlets.append((owner, self.turns[owner].shares()))
                case Ready(What.TRAINING):
                    self._untrained.append((owner, self.turns[owner]))
                case Ready(what):
                    self._offers.append(what)
                case RoundOver():
                    self.renew(owner)
                case ClientDropped(number, reason):
                    self.dropped[number] = reason
                    self._cut(number)
                case Left(reason):
                    self.left[owner] = reason
                case UpdateRefused():
                    self.refused.append(action)
                case Aborted(reason):
                    self.aborted.append(reason)
                case _:
                    pass

    def sent(self, sender: int, kind: type) -> list[m.Message]:
        """Everything of this type that ``sender`` put on its links."""
        read = from_server if sender == SERVER else from_client
        messages = [read(raw) for source, _, raw in self.traffic if source == sender]
        return [message for message in messages if isinstance(message, kind)]

    def lose(self, number: int, reason: Reason = Reason.LINK_LOST) -> None:
        """The client vanishes for good, with what is on its links."""
        self.perform(SERVER, self.server.lose(number, reason))

    def _cut(self, number: int) -> None:
        self._gone.add(number)
        for link in [link for link in self._links if number in link]:
            del self._links[link]
        self._outlets = [outlet for outlet in self._outlets if outlet[0] != number]
        self._untrained = [each for each in self._untrained if each[0] != number]

    def _deliver(self, link: tuple[int, int]) -> None:
        sender, receiver = link
        raw = self._links[link].popleft()
        for message in [raw] if self.meddler is None else self.meddler(sender, receiver, raw):
            if receiver != SERVER:
                self._hear(receiver, message)
            elif message == self.turns[sender].round_key().message:
                self.perform(SERVER, self.server.free(sender, self.turns[sender].member))
            else:
                self.perform(SERVER, self.server.receive(sender, message))

    def _hear(self, number: int, raw: bytes) -> None:
        turn = self.turns[number]
        message = from_server(raw)
        if isinstance(message, m.UploadStart):
            self.versions[number, message.round] = message.version
        self.perform(number, turn.receive(raw))

    def _pull(self, outlet: tuple[int, Iterator[Send]]) -> None:
        owner, sends = outlet
        send = next(sends, None)
        if send is None:
            self._outlets = [other for other in self._outlets if other[1] is not sends]
        else:
            self.perform(owner, [send])

    def _train(self, number: int, turn: ClientUpload) -> None:
        self._untrained.remove((number, turn))
        if turn.can_upload and self.turns[number] is turn:
            self._outlets.append((number, turn.upload(self.update(number))))

    def _accept(self, what: What) -> None:
        if what is What.FREEZE and self.server.can_freeze:
            self.perform(SERVER, self.server.freeze())
        elif what is What.DECODE and self.server.can_decode:
            result = self.server.finish()
            self.check(result)
            self.results.append(result)
            self.perform(SERVER, self.server.publish(b"model %d" % len(self.results)))

    def check(self, result: ListResult) -> None:
        """``result`` is the exact mean over its entries, weighted by their true staleness."""
        assert len(result.entries) == self.terms.buffering.buffer_size
        total = [0] * (self.dimension + 1)
        for entry in result.entries:
            staleness = result.version - self.versions[entry.client, entry.upload]
            assert (entry.staleness, entry.weight) == (staleness, self.weights[staleness])
            row = self.integers[entry.client, entry.upload]
            total = [sum_ + self.weights[staleness] * value for sum_, value in zip(total, row, strict=True)]
        *values, weight = total
        assert result.total_weight == weight
        assert result.mean.shape == (self.dimension,)
        for found, exact in zip(result.mean.tolist(), values, strict=True):
            wanted = Fraction(exact * self.quantizer.max_weight, weight * 2**self.quantizer.fraction_bits)
            assert abs(Fraction(found) - wanted) <= abs(wanted) * Fraction(1, 2**50)


def drops(course: Course, number: int, message: m.Message | bytes, reason: Reason) -> None:
    """The message drops its sender, and nobody else; lists go on, exact, without it."""
    raw = message if isinstance(message, bytes) else encode(message)
    actions = course.server.receive(number, raw)
    assert [action for action in actions if isinstance(action, ClientDropped)] == [
        ClientDropped(number, reason)
    ]
    course.perform(SERVER, actions)
    late = course.server.late_messages
    assert course.server.receive(number, raw) == []
    assert course.server.late_messages == late + 1
    course.run(3)
    assert course.dropped == {number: reason}
    assert course.left == {}


def ignores(course: Course, number: int, message: m.Message) -> None:
    """The message is late: counted, without effect; its sender goes on."""
    late = course.server.late_messages
    assert course.server.receive(number, encode(message)) == []
    assert course.server.late_messages == late + 1
    course.run(2)
    assert (course.dropped, course.left) == ({}, {})


def hold_back(course: Course, number: int, *kinds: type) -> list[bytes]:
    """Messages of these kinds from or to ``number`` do not arrive; they are kept here."""
    kept: list[bytes] = []

    def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        message = from_client(raw) if receiver == SERVER else from_server(raw)
        if number in (sender, receiver) and isinstance(message, kinds):
            kept.append(raw)
            return []
        return [raw]

    course.meddler = meddle
    return kept


def taken(course: Course, number: int, raw: bytes | memoryview) -> None:
    """The server takes the message, and nobody is dropped."""
    late = course.server.late_messages
    course.perform(SERVER, course.server.receive(number, raw))
    assert course.server.late_messages == late
    assert course.dropped == {}


def begun(course: Course, number: int) -> m.MaskName:
    """The upload that the client is on."""
    upload = course.turns[number].round_number
    assert upload is not None
    return m.MaskName(number, course.versions[number, upload], upload)
