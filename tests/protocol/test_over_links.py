"""Whole rounds over real ``comm.link`` links, on carriers that lose, repeat, reorder, corrupt and break."""

from __future__ import annotations

import random
from collections import deque

import pytest

from lightsecagg.comm.link import Delivered, Link, LinkEvent, LinkSettings, PeerAway, PeerBack, PeerGone
from lightsecagg.errors import Reason
from lightsecagg.protocol.actions import SERVER, Finished, Send, What
from lightsecagg.simulation.network import Outlet
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, Wire

SETTINGS = LinkSettings(retransmit_timeout=0.2, heartbeat_interval=0.5, heartbeat_timeout=2.0)


class Carriers(Wire):
    """Every client and the server are two links with a bad carrier between them; ``rng`` decides all."""

    def __init__(self, scene: Scene, rng: random.Random, trouble: float) -> None:
        super().__init__(scene.server, scene.clients, scene.update)
        self._luck, self._trouble = rng, trouble
        self._now = 0.0
        self.cuts = self.returns = 0
        self._ends: dict[tuple[int, int], Link] = {}
        self._frames: dict[tuple[int, int], deque[bytes]] = {}
        for number in scene.numbers:
            session = rng.randbytes(16)
            self._ends[number, SERVER] = Link(session, SETTINGS, opens=True)
            self._ends[SERVER, number] = Link(session, SETTINGS, opens=False)
            self._frames[number, SERVER] = deque()
            self._frames[SERVER, number] = deque()
        for link in self._ends.values():
            link.carrier_up(0.0)

    def _put(self, owner: int, send: Send) -> None:
        self._record(owner, send.to, send.message)
        link = self._ends[owner, send.to]
        if link.gone is None:
            link.send(send.message)

    def play(self) -> None:
        self.start()
        for _ in range(200_000):
            if self.outcome is not None:
                return
            self._now += self._luck.choice((0.0, 0.001, 0.05 if self._trouble else 0.002))
            for ends, link in self._ends.items():
                self._act(ends, link.tick(self._now))
            self._luck.choice(
                (self._write, self._write, self._read, self._read, self._compute, self._decide)
            )()
        raise AssertionError("the round does not end")

    def _write(self) -> None:
        ends = self._luck.choice(sorted(self._ends))
        frame = self._ends[ends].next_frame(self._now)
        if frame is None:
            return
        fate = self._luck.random() / self._trouble if self._trouble else 9
        queue = self._frames[ends]
        if fate < 0.1:
            self._cut(*ends)
        elif fate < 0.4:
            pass  # lost
        elif fate < 0.6:
            queue.extend((frame, frame))
        elif fate < 0.8:
            queue.appendleft(frame)  # before those that were sent earlier
        elif fate < 1:
            at = self._luck.randrange(len(frame))
            queue.append(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :])
        else:
            queue.append(frame)

    def _cut(self, one: int, other: int) -> None:
        self.cuts += 1
        for ends in ((one, other), (other, one)):
            self._frames[ends].clear()
            self._act(ends, self._ends[ends].carrier_down(self._now))
        for ends in ((one, other), (other, one)):
            self._ends[ends].carrier_up(self._now)

    def _read(self) -> None:
        full = sorted(ends for ends, queue in self._frames.items() if queue)
        if full:
            sender, receiver = self._luck.choice(full)
            frame = self._frames[sender, receiver].popleft()
            ends = (receiver, sender)
            self._act(ends, self._ends[ends].receive(frame, self._now))

    def _compute(self) -> None:
        possible = [what for what in self.possible() if isinstance(what, int | Outlet)]
        if possible:
            self.do(self._luck.choice(possible))

    def _decide(self) -> None:
        """The caller takes an offer, but closes nothing while somebody is only away for a moment."""
        offers, self.offers = self.offers, []
        for what in offers:
            if what is not What.CLOSE:
                self.accept(what)

    def _act(self, ends: tuple[int, int], events: list[LinkEvent]) -> None:
        owner, peer = ends
        for event in events:
            match event:
                case Delivered(payload):
                    self._ends[ends].consumed(len(payload), self._now)
                    self.deliver(peer, owner, payload)
                case PeerAway() if owner == SERVER:
                    self.perform(SERVER, self.server.away(peer))
                case PeerBack() if owner == SERVER:
                    self.returns += 1
                    self.perform(SERVER, self.server.back(peer))
                case PeerGone() if owner == SERVER:
                    self.perform(SERVER, self.server.lose(peer, Reason.LINK_LOST))


@pytest.mark.parametrize("seed", range(40))
def test_a_round_is_exact_over_links_whose_carriers_misbehave(seed: int) -> None:
    rng = random.Random(seed)
    with short_parts(4):
        n = rng.randint(3, 5)
        scene = Scene(n, n - 1, 1, dimension=20, seed=seed, slots=rng.randint(1, 3))
        carriers = Carriers(scene, rng, trouble=0.15)
        carriers.play()
        assert isinstance(carriers.outcome, Finished)
        assert carriers.cuts > 0
        assert carriers.returns > 0
        assert carriers.left == carriers.dropped == {}  # everybody came back in time
        result = scene.server.finish()
        assert len(result.survivors) == n
        scene.check(result)


def test_a_good_carrier_is_never_away() -> None:
    scene = Scene(4, 3, 1)
    carriers = Carriers(scene, random.Random(5), trouble=0)
    carriers.play()
    assert (carriers.cuts, carriers.returns) == (0, 0)
    scene.check(scene.server.finish())
