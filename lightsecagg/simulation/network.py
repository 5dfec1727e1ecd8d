"""A simulated network between a server's machine and its clients': real bytes, no time, one order.

Every pair of peers is a link that keeps order and loses nothing, as ``comm.link`` promises; what varies is
which link delivers next and which long output is pulled next. In ``Network`` the oldest comes first, so that
one client's shares are through before the next one computes its own; ``chaos`` chooses by a seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lightsecagg.errors import Reason
from lightsecagg.field import Elements
from lightsecagg.protocol.actions import (
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
from lightsecagg.protocol.attendance import Attendance
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.masking import MaskingClient
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.wire import from_client, from_server
from lightsecagg.quantize import WeightedUpdate

_T = TypeVar("_T")
_Server = TypeVar("_Server", bound=Attendance)
_Client = TypeVar("_Client", bound=MaskingClient[Any, Any])

Updates = Callable[[int], Elements | WeightedUpdate]
"""A client's number to what it has trained."""

Spy = Callable[[int, int, bytes | memoryview], None]
"""Called with (sender, receiver, message) for everything that is put on the network."""


@dataclass(eq=False)
class Outlet:
    """A long output of one peer that is still being pulled."""

    owner: int
    receiver: int
    sends: Iterator[Send]


Link = tuple[int, int]
"""(sender, receiver)"""

Possible = Link | Outlet | int
"""What may happen next: a link delivers, an outlet is pulled, a client hands over what it trained."""


class Medium(Generic[_Server, _Client]):
    """What lies between a server's machine and its clients'; subclasses choose what happens next.

    Args:
        server, clients: the machines; clients by number.
        updates: what a client has trained, asked for when its model is whole and its shares are out.
        spy: sees every message.
    """

    def __init__(
        self,
        server: _Server,
        clients: Mapping[int, _Client],
        updates: Updates,
        *,
        spy: Spy | None = None,
    ) -> None:
        self.server = server
        self.clients = clients
        self.dropped: dict[int, Reason] = {}
        self.offers: list[What] = []
        """What the server would let its caller do, oldest first."""
        self._updates = updates
        self._spy = spy
        self._links: dict[Link, deque[bytes | memoryview]] = {}
        self._outlets: list[Outlet] = []
        self._untrained: list[int] = []
        self._away: set[int] = set()
        self._gone: set[int] = set()

    def compute(self, owner: int, call: Callable[[], _T]) -> _T:  # noqa: ARG002 - for who measures
        """Let machine ``owner`` do some work; the place to measure it."""
        return call()

    def possible(self) -> list[Possible]:
        """What may happen next, without the caller, oldest first."""
        return list(self._oldest_first())

    def _oldest_first(self) -> Iterator[Possible]:
        if not self._away:  # as a rule, and it is asked all the time
            yield from self._links
            yield from self._outlets
            yield from (number for number in self._untrained if self.clients[number].can_upload)
            return
        away = self._away
        yield from (link for link in self._links if not (link[0] in away or link[1] in away))
        yield from (outlet for outlet in self._outlets if outlet.owner not in away)
        yield from (n for n in self._untrained if n not in away and self.clients[n].can_upload)

    def named(self, what: Possible) -> str:
        """In words for people."""
        if isinstance(what, int):
            return f"{what} has trained"
        if isinstance(what, Outlet):
            return f"{what.owner} computes its next part"
        sender, receiver = what
        raw = self._links[what][0]
        message = from_client(raw) if receiver == SERVER else from_server(raw)
        return f"{sender} -> {receiver}: {type(message).__name__}"

    def step(self) -> bool:
        """Let the oldest thing happen; False where nothing can without the caller."""
        oldest = next(self._oldest_first(), None)
        if oldest is not None:
            self.do(oldest)
        return oldest is not None

    def do(self, what: Possible) -> None:
        """Let this happen."""
        if isinstance(what, Outlet):
            self._pull(what)
        elif isinstance(what, int):
            self._train(what)
        else:
            self._deliver(what)

    def cut(self, number: int) -> None:
        """Nothing passes between this client and the server any more; what is on its links vanishes."""
        self._gone.add(number)
        self._outlets = [outlet for outlet in self._outlets if number not in (outlet.owner, outlet.receiver)]
        self._untrained = [other for other in self._untrained if other != number]
        for link in [link for link in self._links if number in link]:
            del self._links[link]

    def lose(self, number: int, reason: Reason = Reason.LINK_LOST) -> None:
        """The client vanishes for good, and the server is told."""
        self.cut(number)
        self._away.discard(number)
        self.perform(SERVER, self.compute(SERVER, lambda: self.server.lose(number, reason)))

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
                case Stream(to, sends):
                    self._outlets.append(Outlet(owner, to, sends))
                case Ready(What.SHARING):
                    self._outlets.append(Outlet(owner, SERVER, self.clients[owner].shares()))
                case Ready(What.TRAINING):
                    self._untrained.append(owner)
                case Ready(what):
                    self.offers.append(what)
                case ClientDropped(number, reason):
                    self.dropped[number] = reason
                case Left():
                    self._forget(owner)
                case _:
                    pass

    def _put(self, owner: int, send: Send) -> None:
        if owner in self._gone or send.to in self._gone:
            return
        if self._spy is not None:
            self._spy(owner, send.to, send.message)
        self._links.setdefault((owner, send.to), deque()).append(send.message)

    def _deliver(self, link: Link) -> None:
        sender, receiver = link
        message = self._links[link].popleft()
        if not self._links[link]:
            del self._links[link]
        self.deliver(sender, receiver, message)

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        """Hand a message over and carry out what follows; the place to meddle with it."""
        if receiver == SERVER:
            self.perform(SERVER, self.compute(SERVER, lambda: self.server.receive(sender, message)))
        else:
            client = self.clients[receiver]
            self.perform(receiver, self.compute(receiver, lambda: client.receive(message)))

    def _pull(self, outlet: Outlet) -> None:
        send = self.compute(outlet.owner, lambda: next(outlet.sends, None))
        if send is None:
            # It may be gone already: pulling can be what ended the round for its owner.
            self._outlets = [other for other in self._outlets if other is not outlet]
        else:
            self._put(outlet.owner, send)

    def _train(self, number: int) -> None:
        self._untrained.remove(number)
        client = self.clients[number]
        update = self._updates(number)
        sends = self.compute(number, lambda: client.upload(update))
        self._outlets.append(Outlet(number, SERVER, sends))

    def _forget(self, number: int) -> None:
        """The client trains no more for what it was started on."""
        self._untrained = [other for other in self._untrained if other != number]


class Network(Medium[ServerRound, ClientRound]):
    """Carries one synchronous round from its start to its end.

    Args:
        server, clients, updates, spy: as for ``Medium``.
    """

    def __init__(
        self,
        server: ServerRound,
        clients: Mapping[int, ClientRound],
        updates: Updates,
        *,
        spy: Spy | None = None,
    ) -> None:
        super().__init__(server, clients, updates, spy=spy)
        self.outcome: Finished | Aborted | None = None

    def start(self) -> None:
        """Open the round."""
        self.perform(SERVER, self.compute(SERVER, self.server.start))

    def run(self) -> None:
        """From the start to the end: take every offer, and let deadlines end what is stuck."""
        self.start()
        while self.outcome is None:
            if self.offers:
                self.accept(self.offers.pop(0))
            elif not self.step():
                self.perform(SERVER, self.compute(SERVER, self.server.deadline))

    def accept(self, what: What) -> None:
        """The plainest policy: take every offer."""
        match what:
            case What.FREEZE:
                if self.server.can_freeze:
                    self.perform(SERVER, self.compute(SERVER, self.server.freeze))
            case What.CLOSE:
                if self.server.can_close:
                    self.perform(SERVER, self.compute(SERVER, self.server.deadline))
            case What.DECODE:
                self.compute(SERVER, self.server.finish)
                self.perform(SERVER, self.compute(SERVER, self.server.end))
            case _:
                raise AssertionError(what)

    def perform(self, owner: int, actions: list[Action]) -> None:
        super().perform(owner, actions)
        for action in actions:
            if isinstance(action, Finished | Aborted):
                self.outcome = action
