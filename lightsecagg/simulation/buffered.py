"""A simulated network between one ``BufferedServer`` and its clients' processes, for a whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightsecagg.errors import Reason
from lightsecagg.identity import Identity, Roster, Verifier, verify
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Left, RoundOver, What
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.buffered.holder import Holder
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.terms import Floors, Run
from lightsecagg.protocol.wire import from_client
from lightsecagg.randomness import Entropy, system_entropy
from lightsecagg.simulation.network import Medium, Spy, Updates


@dataclass(frozen=True)
class Cast:
    """Who may take part in a run, and on what terms.

    Attributes:
        run, terms: of the run.
        identities: of the clients, by slot.
        floors: what every client demands.
        roster: what every client knows of the others beforehand.
        entropy: source of every secret.
        verifier: checks signatures for the clients.
    """

    run: Run
    terms: m.Terms
    identities: Mapping[int, Identity]
    floors: Floors
    roster: Roster | None = None
    entropy: Entropy = system_entropy
    verifier: Verifier = verify


class Process:
    """One process of a client, from its start to its end: one upload after another.

    Args:
        cast: the run.
        slot: its slot.
    """

    def __init__(self, cast: Cast, slot: int) -> None:
        self._cast = cast
        self._slot = slot
        self._sequence = 0
        self.holder = self._next_holder(None)
        self.machine = self._next_machine(after_round=0)

    def renew(self) -> None:
        """The upload is over, or the client has left: get ready for another."""
        if self.holder.is_closed:
            self.holder = self._next_holder(self.holder)
        self.machine = self._next_machine(self.machine.highest_round)

    def _next_holder(self, before: Holder | None) -> Holder:
        cast = self._cast
        return Holder(
            cast.identities[self._slot],
            self._slot,
            cast.run,
            cast.terms,
            floors=cast.floors,
            roster=cast.roster,
            before=before,
            verifier=cast.verifier,
        )

    def _next_machine(self, after_round: int) -> ClientUpload:
        cast = self._cast
        self._sequence += 1
        return ClientUpload(
            self.holder,
            cast.identities[self._slot],
            self._slot,
            cast.run,
            cast.terms,
            floors=cast.floors,
            roster=cast.roster,
            sequence=self._sequence,
            after_round=after_round,
            entropy=cast.entropy,
            verifier=cast.verifier,
        )


class BufferedNetwork(Medium[BufferedServer, ClientUpload]):
    """Carries one asynchronous run.

    Args:
        cast: the run.
        server: its machine.
        updates: what a client has trained.
        models: the bytes of a version, from 0 on.
        spy: sees every message.
    """

    def __init__(
        self,
        cast: Cast,
        server: BufferedServer,
        updates: Updates,
        models: Callable[[int], bytes],
        *,
        spy: Spy | None = None,
    ) -> None:
        self._cast = cast
        self._models = models
        self._machines: dict[int, ClientUpload] = {}
        super().__init__(server, self._machines, updates, spy=spy)
        self.processes: dict[int, Process] = {}
        """Who holds a slot, or held it last."""
        self.is_version_due = True
        """Whether the next version is to be published."""

    def join(self, number: int) -> None:
        """A new process takes the client's slot; what is left of the one before is given up."""
        self.lose(number, Reason.REPLACED)
        self._gone.discard(number)
        self.processes[number] = Process(self._cast, number)
        self._publish_key(number)

    def _publish_key(self, number: int) -> None:
        self._machines[number] = machine = self.processes[number].machine
        self.perform(number, [machine.round_key()])

    def publish(self) -> None:
        """The next version of the model."""
        self.is_version_due = False
        self.perform(SERVER, self.server.publish(self._models(self.server.version + 1)))

    def accept(self, what: What) -> None:
        """Take an offer of the server, if it still stands."""
        if what is What.FREEZE and self.server.can_freeze:
            self.perform(SERVER, self.server.freeze())
        elif what is What.DECODE and self.server.can_decode:
            self.take_result(self.server.finish())
            self.is_version_due = True

    def take_result(self, result: ListResult) -> None:
        """A list was decoded; the place to look at it."""

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        if receiver == SERVER:
            self.take(sender, from_client(message), message)
        else:
            super().deliver(sender, receiver, message)

    def take(self, sender: int, message: m.FromClient, raw: bytes | memoryview) -> None:
        """Hand a client's message to the server; keys are what the machine's caller reads itself."""
        if isinstance(message, m.RoundKeyMessage):
            identity = self._cast.identities[sender].public
            member = m.Member(sender, identity, message.sequence, message.key, message.signature)
            self.perform(SERVER, self.server.free(sender, member))
        else:
            super().deliver(sender, SERVER, raw)

    def perform(self, owner: int, actions: list[Action]) -> None:
        super().perform(owner, actions)
        for action in actions:
            if isinstance(action, RoundOver):
                self._renew(owner)
            elif isinstance(action, Left):
                self._left(owner)

    def _renew(self, number: int) -> None:
        """The client's process goes on with another upload."""
        self._forget(number)
        self.processes[number].renew()
        self._publish_key(number)

    def _left(self, number: int) -> None:
        """The client has left, and its process ends; what it has said is still delivered."""
        said = self._links.pop((number, SERVER), None)
        self.cut(number)
        if said:
            self._links[number, SERVER] = said
