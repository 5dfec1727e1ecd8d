"""Clients that vanish, each at its moment: for ``secure_mean`` and ``simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from lightsecagg.field import PrimeField
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.messages import (
    Certificate,
    MaskedUpdate,
    SealedSeeds,
    SharesHeld,
    SurvivorSet,
    Terms,
)
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.terms import vector_length
from lightsecagg.protocol.wire import from_client, from_server, part_count, part_elements
from lightsecagg.simulation.network import Network, Updates

Moment = Literal["sharing", "training", "upload", "endorse", "recovery"]
"""When a client vanishes: "sharing" (part of its shares out, at least one receiver unserved), "training"
(after it reported), "upload" (granted, before its last part): not in the average; "endorse" (its update in,
nothing signed), "recovery" (signed, no answer): in it."""

MOMENTS: tuple[Moment, ...] = get_args(Moment)


class LossyNetwork(Network):
    """A network on which each client of ``moments`` vanishes at its moment."""

    def __init__(
        self,
        server: ServerRound,
        clients: Mapping[int, ClientRound],
        updates: Updates,
        moments: Mapping[int, Moment],
        terms: Terms,
    ) -> None:
        super().__init__(server, clients, updates)
        self._moments = moments
        self._last_part = part_count(vector_length(terms), part_elements(PrimeField(terms.order))) - 1

    def deliver(self, sender: int, receiver: int, message: bytes | memoryview) -> None:
        client = sender if receiver == SERVER else receiver
        moment = self._moments.get(client)
        if moment is None:
            super().deliver(sender, receiver, message)
            return
        match moment, from_client(message) if receiver == SERVER else from_server(message):
            case "sharing", SealedSeeds():
                # Where every receiver is seeded, the seeds are all there is: then none may get through.
                if self.server.parameters.dropout_tolerance:
                    super().deliver(sender, receiver, message)
                self.lose(client)
            case "training", SharesHeld():
                super().deliver(sender, receiver, message)
                self.lose(client)
            case "upload", MaskedUpdate(index=index) if index == self._last_part:
                self.lose(client)
            case ("endorse", SurvivorSet()) | ("recovery", Certificate()):
                self.lose(client)
            case _:
                super().deliver(sender, receiver, message)
