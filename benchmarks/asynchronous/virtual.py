"""Asynchronous runs in virtual time: the real machines, training that takes no time, and one order of all.

Training takes as long as a client's pace says, and nothing else takes any time. So a run with masks and one
without, under the same rules, make the same lists of the same updates, and differ in what masks, field and
rounding do to the sums alone.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.asynchronous.curve import Curve
from benchmarks.asynchronous.learner import Learner
from lightsecagg.identity import Identity
from lightsecagg.managers.scheme import AnyClientRound, Scheme
from lightsecagg.managers.schemes import PlainScheme, make_scheme
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
    What,
)
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.buffered.plain import PlainBufferedServer
from lightsecagg.protocol.buffered.results import Contribution
from lightsecagg.protocol.masking import MaskingClient
from lightsecagg.protocol.terms import Run
from lightsecagg.protocol.wire import from_client
from lightsecagg.settings import Settings
from lightsecagg.spans import no_spans
from lightsecagg.training.state import dimension


@dataclass(frozen=True)
class Course:
    """How a run went.

    Attributes:
        curve: in seconds of virtual time; without the first model, which nobody trained.
        lists: of which updates each model was made; empty for rounds.
    """

    curve: Curve = field(default_factory=Curve)
    lists: list[tuple[Contribution, ...]] = field(default_factory=list)

    def add(self, second: float, accuracy: float) -> None:
        """A model was made."""
        self.curve.seconds.append(second)
        self.curve.accuracies.append(accuracy)


def asynchronous(settings: Settings, paces: Sequence[float], horizon: float, *, secure: bool) -> Course:
    """An asynchronous run, with masks or without, under the rules of the one with masks.

    Args:
        settings: of the run with masks.
        paces: seconds that a training takes, by rank from 1.
        horizon: for how many seconds the run goes on.
    """
    learner, run = Learner(settings), Run.new("virtual")
    scheme = make_scheme(settings, learner.layout)
    server = scheme.buffered_server(run, no_spans)
    if not secure:
        scheme = PlainScheme(settings, learner.layout)
        given = settings.secure_aggregation_args
        server = PlainBufferedServer(
            len(paces), replace(server.rules, quorum=0), dimension(learner.layout), given.max_weight
        )
    return _Machines(scheme, server, run, learner, paces).go(horizon)


def synchronous(settings: Settings, paces: Sequence[float], horizon: float) -> Course:
    """Rounds that wait for the slowest, without masks, for ``horizon`` seconds."""
    learner, course = Learner(settings), Course()
    for turn in range(1, math.floor(horizon / max(paces)) + 1):
        model = learner.dump()
        brought = [learner.train(rank, turn, model) for rank in range(1, len(paces) + 1)]
        total = sum(weight for _, weight in brought)
        learner.take_over(np.sum([(weight / total) * change for change, weight in brought], axis=0))
        course.add(turn * max(paces), learner.accuracy())
    return course


class _Machines:
    """One run: its server, its clients, and the messages between them, which take no time."""

    def __init__(
        self, scheme: Scheme, server: BufferMachine, run: Run, learner: Learner, paces: Sequence[float]
    ) -> None:
        self._scheme, self._server, self._run = scheme, server, run
        self._learner, self._paces = learner, paces
        self._identities = {rank: Identity.generate() for rank in range(1, len(paces) + 1)}
        self._clients: dict[int, AnyClientRound] = {}
        self._turns = dict.fromkeys(self._identities, 0)
        self._now = 0.0
        self._trainings: list[tuple[float, int]] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._over: set[int] = set()
        self._course = Course()

    def go(self, horizon: float) -> Course:
        """Run until the next training would end after ``horizon``, in seconds."""
        for rank in self._identities:
            self._renew(rank)
        self._perform(SERVER, self._server.publish(self._learner.dump()))
        self._settle()
        while self._trainings[0][0] <= horizon:
            self._now, rank = heapq.heappop(self._trainings)
            self._train(rank)
            self._settle()
        return self._course

    def _settle(self) -> None:
        """Let everything happen that takes no time; clients get ready anew when all else has been done."""
        while self._calls or self._over:
            if self._calls:
                self._calls.popleft()()
            else:
                rank = min(self._over)
                self._over.discard(rank)
                self._renew(rank)

    def _renew(self, rank: int) -> None:
        before = self._clients.get(rank)
        self._turns[rank] += 1
        self._clients[rank] = client = self._scheme.client_round(
            self._identities[rank],
            rank,
            self._run,
            before=before,
            sequence=self._turns[rank],
            after_round=0 if before is None else before.highest_round,
            max_model_bytes=len(self._learner.dump()),
            spans=no_spans,
        )
        key = from_client(client.round_key().message)
        member = None
        if isinstance(client, MaskingClient) and isinstance(key, m.RoundKeyMessage):
            member = client.member
        self._perform(SERVER, self._server.free(rank, member))

    def _train(self, rank: int) -> None:
        client = self._clients[rank]
        change, weight = self._learner.train(rank, self._turns[rank], client.model)
        for send in client.upload(self._scheme.update(change, weight)):
            self._put(rank, send)

    def _perform(self, owner: int, actions: Sequence[Action]) -> None:
        for action in actions:
            self._act(owner, action)

    def _act(self, owner: int, action: Action) -> None:
        match action:
            case Send():
                self._put(owner, action)
            case Stream(_, sends):
                for send in sends:
                    self._put(owner, send)
            case Ready(What.SHARING):
                client = self._clients[owner]
                assert isinstance(client, MaskingClient)
                for send in client.shares():
                    self._put(owner, send)
            case Ready(What.TRAINING):
                heapq.heappush(self._trainings, (self._now + self._paces[owner - 1], owner))
            case Ready(What.FREEZE):
                self._perform(SERVER, self._server.freeze())
            case Ready(What.DECODE):
                self._make_version()
            case RoundOver():
                self._over.add(owner)
            case Aborted() | ClientDropped() | Left():
                raise AssertionError(f"nobody fails here: {action}")
            case _:
                pass

    def _make_version(self) -> None:
        result = self._server.finish()
        self._learner.take_over(result.mean)
        self._course.add(self._now, self._learner.accuracy())
        self._course.lists.append(result.entries)
        self._perform(SERVER, self._server.publish(self._learner.dump()))

    def _put(self, owner: int, send: Send) -> None:
        if send.to == SERVER:
            self._calls.append(lambda: self._perform(SERVER, self._server.receive(owner, send.message)))
        else:
            self._calls.append(lambda: self._perform(send.to, self._clients[send.to].receive(send.message)))
