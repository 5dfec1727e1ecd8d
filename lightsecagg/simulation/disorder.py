"""Which of the possible things happens next, where clients differ in pace and some have stopped."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lightsecagg.protocol.actions import SERVER
from lightsecagg.simulation.network import Outlet, Possible

_PATIENCE = 12  # picks, after which even the slowest client has its turn


class Disorder:
    """Chooses by chance.

    Args:
        rng: every choice; one seed is one order.
        paces: client number to how likely it takes its turn, in 0..1; 1 for those that are not in it.
    """

    def __init__(self, rng: random.Random, paces: Mapping[int, float]) -> None:
        self._rng = rng
        self._paces = paces
        self.frozen: set[int] = set()
        """Clients that are there and do nothing any more."""

    def lively(self, found: list[Possible]) -> list[Possible]:
        """Those that need nothing of a frozen client."""
        return [what for what in found if _client_of(what) not in self.frozen] if self.frozen else found

    def choose(self, found: Sequence[Possible]) -> Possible:
        """One of them."""
        what = self._any(found)
        for _ in range(_PATIENCE if self._paces else 0):
            pace = self._paces.get(_client_of(what), 1.0)
            if pace == 1.0 or self._rng.random() < pace:
                break
            what = self._any(found)
        return what

    def _any(self, found: Sequence[Possible]) -> Possible:
        return found[int(self._rng.random() * len(found))]  # thrice as fast as choice()


def _client_of(what: Possible) -> int:
    """The client whose turn it would be; 0 where the server computes on its own."""
    if isinstance(what, Outlet):
        return what.owner
    if isinstance(what, int):
        return what
    sender, receiver = what
    return receiver if sender == SERVER else sender
