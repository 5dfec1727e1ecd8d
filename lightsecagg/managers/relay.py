"""What the server carries from one client to another: how much of it, and whose credit waits for that."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable

_PACE = 0.25
"""Seconds that a sender's credit waits at most for what is under way to others than its receiver."""

GiveCredit = Callable[[int, int], None]
"""(peer, size): let the peer send as much again."""


class Relay:
    """Sets the pace of what goes from client to client by the senders' credit.

    While more than ``budget`` bytes are under way in all, a sender's credit for a message comes ``_PACE``
    later: so receivers that keep up keep the server's memory low, and those that do not hold nobody up. What
    is under way to one receiver is bounded by ``budget`` too: credit for what is beyond waits until it takes
    some, and one that has not taken half after ``stall_timeout`` is given up. Peers are named by their
    numbers. Belongs to one event loop.

    Args:
        budget: bytes.
        stall_timeout: seconds.
        give_credit: see there.
        give_up: is told a receiver that takes too little of what it is sent; it is to call ``forget``.
    """

    def __init__(
        self, budget: int, stall_timeout: float, give_credit: GiveCredit, give_up: Callable[[int], None]
    ) -> None:
        self._budget = budget
        self._stall_timeout = stall_timeout
        self._give_credit = give_credit
        self._give_up = give_up
        self._under_way: Counter[int] = Counter()
        self._absent: set[int] = set()
        self._total = 0  # to those that are not absent
        self._paced: deque[tuple[float, int, int]] = deque()  # until when, sender, size
        self._timer: asyncio.TimerHandle | None = None
        self._blocked: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # by receiver
        self._full: dict[int, asyncio.TimerHandle] = {}

    def begin(self, sender: int, receiver: int, size: int) -> Callable[[], None]:
        """A message of ``sender``'s goes to ``receiver``; what is returned is to be called on its arrival."""
        self._add(receiver, size)
        if self._under_way[receiver] > self._budget:
            self._blocked[receiver].append((sender, size))
            self._watch(receiver)
        else:
            self._paced.append((asyncio.get_running_loop().time() + _PACE, sender, size))
            self._settle()
        return lambda: self._arrived(receiver, size)

    def set_absent(self, receiver: int, is_absent: bool) -> None:
        """Whether the receiver is away: what is under way to it makes nobody slower."""
        if is_absent != (receiver in self._absent):
            (self._absent.add if is_absent else self._absent.discard)(receiver)
            self._total += self._under_way[receiver] * (-1 if is_absent else 1)
            self._settle()

    def forget(self, receiver: int) -> None:
        """The receiver is gone, and what was under way to it."""
        self._add(receiver, -self._under_way[receiver])
        self._unblock(receiver)
        del self._under_way[receiver]
        self._absent.discard(receiver)
        self._settle()

    def close(self) -> None:
        """Give back all credit, and set no more timers."""
        for receiver in list(self._under_way):
            self.forget(receiver)

    def _arrived(self, receiver: int, size: int) -> None:
        if receiver in self._under_way:
            self._add(receiver, -size)
            if self._under_way[receiver] <= self._budget:
                self._unblock(receiver)
            self._settle()

    def _add(self, receiver: int, size: int) -> None:
        self._under_way[receiver] += size
        if receiver not in self._absent:
            self._total += size

    def _watch(self, receiver: int) -> None:
        if receiver not in self._full:
            loop = asyncio.get_running_loop()
            self._full[receiver] = loop.call_later(self._stall_timeout, self._give_up, receiver)

    def _unblock(self, receiver: int) -> None:
        for sender, size in self._blocked.pop(receiver, []):
            self._give_credit(sender, size)
        if receiver in self._full and 2 * self._under_way[receiver] <= self._budget:
            self._full.pop(receiver).cancel()

    def _settle(self) -> None:
        loop = asyncio.get_running_loop()
        while self._paced and (self._total <= self._budget or self._paced[0][0] <= loop.time()):
            self._give_credit(*self._paced.popleft()[1:])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._paced:
            self._timer = loop.call_at(self._paced[0][0], self._settle)
