"""What the server carries from one client to another: how much of it, and whose credit waits for that."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

GiveCredit = Callable[[int, int], None]
"""(peer, size): let the peer send as much again."""


class Relay:
    """Keeps what is under way between clients within a budget, by the senders' credit.

    A sender gets the credit of a message back at once while no more than ``budget`` bytes are under way, and
    otherwise as soon as that is so again. A receiver that is away counts only with what is beyond a budget of
    its own: the others do not wait for it. Peers are named by their numbers. Belongs to one event loop.
    """

    def __init__(self, budget: int, give_credit: GiveCredit) -> None:
        self._budget = budget
        self._give_credit = give_credit
        self._under_way: Counter[int] = Counter()
        self._absent: set[int] = set()
        self._total = 0
        self._held: deque[tuple[int, int]] = deque()

    def begin(self, sender: int, receiver: int, size: int) -> Callable[[], None]:
        """A message of ``sender``'s goes to ``receiver``; what is returned is to be called on its arrival."""
        self._change(receiver, size)
        self._held.append((sender, size))
        self._settle()
        return lambda: self._arrived(receiver, size)

    def set_absent(self, receiver: int, is_absent: bool) -> None:
        """Whether the receiver is away."""
        before = self._share_of(receiver)
        (self._absent.add if is_absent else self._absent.discard)(receiver)
        self._total += self._share_of(receiver) - before
        self._settle()

    def forget(self, receiver: int) -> None:
        """The receiver is gone, and what was under way to it."""
        self._change(receiver, -self._under_way[receiver])
        self._absent.discard(receiver)
        del self._under_way[receiver]
        self._settle()

    def _arrived(self, receiver: int, size: int) -> None:
        if receiver in self._under_way:
            self._change(receiver, -size)
            self._settle()

    def _change(self, receiver: int, size: int) -> None:
        before = self._share_of(receiver)
        self._under_way[receiver] += size
        self._total += self._share_of(receiver) - before

    def _share_of(self, receiver: int) -> int:
        size = self._under_way[receiver]
        return max(0, size - self._budget) if receiver in self._absent else size

    def _settle(self) -> None:
        while self._held and self._total <= self._budget:
            self._give_credit(*self._held.popleft())
