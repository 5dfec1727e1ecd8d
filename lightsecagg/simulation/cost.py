"""What a round costs: bytes and CPU seconds of the server and of every client, phase by phase."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lightsecagg.identity import Field, verify
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.wire import from_client, from_server
from lightsecagg.simulation.losses import LossyNetwork, Moment
from lightsecagg.simulation.network import Updates

_T = TypeVar("_T")

Clock = Callable[[], float]
"""CPU seconds of this process, threads of the codec included."""


class Phase(StrEnum):
    """What a round's bytes and seconds are spent on, in the order of its beginning."""

    OPENING = "opening"  # the round key out, the cohort in; checking it, and a key agreed with each of it
    SHARING = "sharing"  # shares dealt, sealed, relayed, opened, reported
    UPLOAD = "upload"  # the update quantized, masked, sent, added to the sum
    ENDORSEMENT = "endorsement"  # the survivor set signed
    RECOVERY = "recovery"  # the certificate checked, shares summed, the sum of the masks decoded


PHASES = tuple(Phase)

PHASE_OF: dict[type[m.Message], Phase] = {
    m.RoundKeyMessage: Phase.OPENING,
    m.RoundStart: Phase.OPENING,
    m.SealedSeeds: Phase.SHARING,
    m.SealedSeed: Phase.SHARING,
    m.EncodedMask: Phase.SHARING,
    m.ReportShares: Phase.SHARING,
    m.SharesHeld: Phase.SHARING,
    m.Candidates: Phase.UPLOAD,
    m.UpdateReady: Phase.UPLOAD,
    m.UploadGrant: Phase.UPLOAD,
    m.MaskedUpdate: Phase.UPLOAD,
    m.SurvivorSet: Phase.ENDORSEMENT,
    m.Endorse: Phase.ENDORSEMENT,
    m.Certificate: Phase.RECOVERY,
    m.AggregateEncodedMask: Phase.RECOVERY,
}
"""What ends a round, or leaves it, is of the phase that its sender is in."""

_PACE = {m.RoundStart, m.SealedSeeds, m.MaskedUpdate, m.AggregateEncodedMask}
"""What comes with most of a client's work in a phase: the first of each tells how far the round is."""

Costs = npt.NDArray[np.float64]
"""By party, phase, and one of the following: bytes of messages sent and received, seconds of computing."""

SENT, RECEIVED, SECONDS = range(3)


class SharedChecks:
    """Signature checks of many clients in one process: what one has checked, the others need not check again.

    Only for clients that trust each other with everything because they are one process.

    Args:
        clock: CPU seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.0
        """CPU seconds that the checks took."""
        self.verify = functools.cache(self._verify)
        """As ``identity.verify``; a statement that was checked before costs a look-up."""

    @property
    def made(self) -> int:
        """Checks that were made."""
        return self.verify.cache_info().misses

    def _verify(self, public: bytes, signature: bytes, label: str, *fields: Field) -> bool:
        started = self._clock()
        try:
            return verify(public, signature, label, *fields)
        finally:
            self.seconds += self._clock() - started


class Ledger:
    """Who spent what on which phase of one round.

    Args:
        num_clients: N.
        clock: CPU seconds.
    """

    def __init__(self, num_clients: int, clock: Clock) -> None:
        self._clock = clock
        self.costs: Costs = np.zeros((num_clients + 1, len(PHASES), 3))
        """Of the server (0) and of every client by its number."""

    def compute(self, owner: int, phase: Phase, call: Callable[[], _T]) -> _T:
        """Do a machine's work and charge it for the time."""
        started = self._clock()
        try:
            return call()
        finally:
            self.costs[owner, PHASES.index(phase), SECONDS] += self._clock() - started

    def carry(self, sender: int, receiver: int, phase: Phase, size: int) -> None:
        """Charge both ends for a message."""
        self.costs[sender, PHASES.index(phase), SENT] += size
        self.costs[receiver, PHASES.index(phase), RECEIVED] += size


class MeteredNetwork(LossyNetwork):
    """A lossy network that keeps a ledger.

    Args:
        server, clients, updates, moments, terms: as for ``LossyNetwork``.
        ledger: where the costs go.
        watch: told the phase whenever one more client has got as far.
    """

    def __init__(
        self,
        server: ServerRound,
        clients: Mapping[int, ClientRound],
        updates: Updates,
        moments: Mapping[int, Moment],
        terms: m.Terms,
        ledger: Ledger,
        watch: Callable[[Phase], None],
    ) -> None:
        super().__init__(server, clients, updates, moments, terms)
        self._ledger = ledger
        self._watch = watch
        self._phases = dict.fromkeys((SERVER, *clients), Phase.OPENING)

    def run(self) -> None:
        """From the start to the end, with everybody who is left in each step: late answers cost too."""
        self.start()
        while self.outcome is None:
            if self.step():
                continue
            if self.offers:
                self.accept(self.offers.pop(0))
            else:
                self.perform(SERVER, self.compute(SERVER, self.server.deadline))
        while self.step():
            pass

    def compute(self, owner: int, call: Callable[[], _T]) -> _T:
        return self._ledger.compute(owner, self._phases[owner], call)

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        decoded = from_client(message) if receiver == SERVER else from_server(message)
        kind = type(decoded)
        phase = self._phases[receiver] = PHASE_OF.get(kind, self._phases[sender])
        self._ledger.carry(sender, receiver, phase, len(message))
        super().deliver(sender, receiver, message)
        if kind in _PACE and getattr(decoded, "index", 0) == 0:
            self._watch(phase)
        if kind is m.RoundStart:
            self._phases[receiver] = Phase.SHARING  # its shares follow without another word
