"""A simulated network between one ``ServerRound`` and its ``ClientRound``s: real bytes, no time, one order.

Every pair of peers is a link that keeps order and loses nothing, as ``comm.link`` promises; what varies is
which link delivers next and which long output is pulled next. Without a source of randomness the oldest comes
first; with a seeded one each seed is one schedule, which replays.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import Reason
from ..field import Elements
from ..protocol.actions import (
    SERVER,
    Aborted,
    Action,
    ClientDropped,
    Finished,
    Left,
    Ready,
    Send,
    Stream,
    What,
)
from ..protocol.client import ClientRound
from ..protocol.server import ServerRound

Spy = Callable[[int, int, bytes | memoryview], None]
"""Called with (sender, receiver, message) for everything that is put on the network."""


@dataclass
class _Outlet:
    """A long output of one peer that is still being pulled."""

    owner: int
    sends: Iterator[Send]


class Network:
    """Carries one round from its start to its end.

    Args:
        server, clients: the machines; clients by number.
        updates: what a client has trained, asked for when its model is whole and its shares are out.
        rng: chooses what happens next; None for the oldest first.
        spy: sees every message.
    """

    def __init__(
        self,
        server: ServerRound,
        clients: Mapping[int, ClientRound],
        updates: Callable[[int], Elements],
        *,
        rng: random.Random | None = None,
        spy: Spy | None = None,
    ) -> None:
        self.server = server
        self.clients = clients
        self.outcome: Finished | Aborted | None = None
        self.dropped: dict[int, Reason] = {}
        self.offers: list[What] = []
        """What the server would let its caller do, oldest first."""
        self._updates = updates
        self._rng = rng
        self._spy = spy
        self._links: dict[tuple[int, int], deque[bytes | memoryview]] = {}
        self._outlets: list[_Outlet] = []
        self._untrained: list[int] = []
        self._away: set[int] = set()
        self._gone: set[int] = set()

    def start(self) -> None:
        """Open the round."""
        self.perform(SERVER, self.server.start())

    def step(self) -> bool:
        """Let one thing happen; False where nothing can without the caller."""
        links = [link for link in self._links if not self._away & set(link)]
        outlets = [outlet for outlet in self._outlets if outlet.owner not in self._away]
        trainees = [number for number in self._untrained if self._may_upload(number)]
        count = len(links) + len(outlets) + len(trainees)
        if not count:
            return False
        choice = 0 if self._rng is None else self._rng.randrange(count)
        if choice < len(links):
            self._deliver(links[choice])
        elif choice < len(links) + len(outlets):
            self._pull(outlets[choice - len(links)])
        else:
            self._train(trainees[choice - len(links) - len(outlets)])
        return True

    def run(self) -> None:
        """From the start to the end: take every offer, and let deadlines end what is stuck."""
        self.start()
        while self.outcome is None:
            if self.offers:
                self.accept(self.offers.pop(0))
            elif not self.step():
                self.perform(SERVER, self.server.deadline())

    def accept(self, what: What) -> None:
        """The plainest policy: take every offer."""
        match what:
            case What.FREEZE:
                if self.server.can_freeze:
                    self.perform(SERVER, self.server.freeze())
            case What.CLOSE:
                self.perform(SERVER, self.server.deadline())
            case What.DECODE:
                self.server.finish()
                self.perform(SERVER, self.server.end())
            case _:
                raise AssertionError(what)

    def lose(self, number: int, reason: Reason = Reason.LINK_LOST) -> None:
        """The client vanishes for good; what is on its links vanishes with it."""
        self._gone.add(number)
        self._away.discard(number)
        self._outlets = [outlet for outlet in self._outlets if outlet.owner != number]
        self._untrained = [other for other in self._untrained if other != number]
        for link in [link for link in self._links if number in link]:
            del self._links[link]
        self.perform(SERVER, self.server.lose(number, reason))

    def away(self, number: int) -> None:
        """The client's link breaks; what is on it waits."""
        if number not in self._gone:
            self._away.add(number)
            self.perform(SERVER, self.server.away(number))

    def back(self, number: int) -> None:
        """The client's link resumes."""
        if number in self._away:
            self._away.discard(number)
            self.perform(SERVER, self.server.back(number))

    def perform(self, owner: int, actions: list[Action]) -> None:
        """Carry out what machine ``owner`` asks for."""
        for action in actions:
            match action:
                case Send():
                    self._put(owner, action)
                case Stream():
                    self._outlets.append(_Outlet(owner, action.sends))
                case Ready(What.SHARING):
                    self._outlets.append(_Outlet(owner, self.clients[owner].shares()))
                case Ready(What.TRAINING):
                    self._untrained.append(owner)
                case Ready(what):
                    self.offers.append(what)
                case ClientDropped(number, reason):
                    self.dropped[number] = reason
                case Finished() | Aborted() if owner == SERVER:
                    self.outcome = action
                case Left():
                    self._forget(owner)
                case _:
                    pass

    def _put(self, owner: int, send: Send) -> None:
        if {owner, send.to} & self._gone:
            return
        if self._spy is not None:
            self._spy(owner, send.to, send.message)
        self._links.setdefault((owner, send.to), deque()).append(send.message)

    def _deliver(self, link: tuple[int, int]) -> None:
        sender, receiver = link
        message = self._links[link].popleft()
        if not self._links[link]:
            del self._links[link]
        self.deliver(sender, receiver, message)

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        """Hand a message over and carry out what follows; the place to meddle with it."""
        if receiver == SERVER:
            self.perform(SERVER, self.server.receive(sender, message))
        else:
            self.perform(receiver, self.clients[receiver].receive(message))

    def _pull(self, outlet: _Outlet) -> None:
        send = next(outlet.sends, None)
        if send is None:
            # It may be gone already: pulling can be what ended the round for its owner.
            self._outlets = [other for other in self._outlets if other is not outlet]
        else:
            self._put(outlet.owner, send)

    def _may_upload(self, number: int) -> bool:
        dealing = any(outlet.owner == number for outlet in self._outlets)
        return number not in self._away and not dealing

    def _train(self, number: int) -> None:
        self._untrained.remove(number)
        client = self.clients[number]
        if client.has_mask:
            self._outlets.append(_Outlet(number, client.upload(self._updates(number))))

    def _forget(self, number: int) -> None:
        self._untrained = [other for other in self._untrained if other != number]

