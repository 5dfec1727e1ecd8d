"""What the server carries from one client to another: how much of it, and whose credit waits for that."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

_SLOW = 2.0
"""Seconds under way after which a message may show that its receiver is slow."""

_SLOWER = 4
"""Times the others' wait: where all are slow together, nobody is set apart."""

_LOOK = 0.25
"""Seconds after which waiting credit makes us look who is slow."""

GiveCredit = Callable[[int, int], None]
"""(peer, size): let the peer send as much again."""


@dataclass
class _Receiver:
    """What is under way to one client.

    Attributes:
        since: when each of the messages began, in their order; loop time.
        is_apart: whether the others do not wait for it.
        blocked: (sender, size) whose credit waits for this receiver.
        stalls: runs while it is full.
    """

    size: int = 0
    since: deque[float] = field(default_factory=deque)
    is_absent: bool = False
    is_slow: bool = False
    blocked: list[tuple[int, int]] = field(default_factory=list)
    stalls: asyncio.TimerHandle | None = None

    @property
    def is_apart(self) -> bool:
        return self.is_absent or self.is_slow


class Relay:
    """Bounds what goes from client to client by the senders' credit.

    While more than ``total`` bytes are under way, senders wait for arrivals: the server's memory hardly grows
    with the clients. But nobody waits for a receiver that is absent, or slow: it is set apart until it has
    taken all. Credit for what is beyond ``each`` bytes to one receiver waits for that one, and if it has not
    taken half after ``stall_timeout``, it is given up. Peers are named by their numbers. Belongs to one event
    loop.

    Args:
        total, each: bytes under way to all that are not set apart, and to one receiver.
        stall_timeout: seconds.
        give_credit: see there.
        give_up: is told a receiver that takes too little of what it is sent; it is to call ``forget``.
    """

    def __init__(
        self,
        total: int,
        each: int,
        stall_timeout: float,
        give_credit: GiveCredit,
        give_up: Callable[[int], None],
    ) -> None:
        self._most = total
        self._each = each
        self._stall_timeout = stall_timeout
        self._give_credit = give_credit
        self._give_up = give_up
        self._receivers: defaultdict[int, _Receiver] = defaultdict(_Receiver)
        self._total = 0  # to those that are not set apart
        self._waiting: deque[tuple[int, int]] = deque()  # sender, size
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, sender: int, receiver: int, size: int) -> Callable[[], None]:
        """A message of ``sender``'s goes to ``receiver``; what is returned is to be called on its arrival."""
        client, loop = self._receivers[receiver], asyncio.get_running_loop()
        client.since.append(loop.time())
        self._add(client, size)
        if client.size > self._each:
            client.blocked.append((sender, size))
            if client.stalls is None:
                client.stalls = loop.call_later(self._stall_timeout, self._give_up, receiver)
        else:
            self._waiting.append((sender, size))
        self._settle()
        return lambda: self._arrived(receiver, client, size)

    def set_absent(self, receiver: int, is_absent: bool) -> None:
        """Whether the receiver is away."""
        client = self._receivers[receiver]
        self._set_apart(client, is_absent=is_absent, is_slow=client.is_slow)
        self._settle()

    def forget(self, receiver: int) -> None:
        """The receiver is gone, and what was under way to it."""
        if (client := self._receivers.pop(receiver, None)) is not None:
            self._add(client, -client.size)
            self._unblock(client)
            self._settle()

    def close(self) -> None:
        """Give back all credit, and set no more timers."""
        for receiver in list(self._receivers):
            self.forget(receiver)

    def _arrived(self, receiver: int, client: _Receiver, size: int) -> None:
        if self._receivers.get(receiver) is not client:
            return
        client.since.popleft()
        self._add(client, -size)
        if client.size <= self._each:
            self._unblock(client)
        if not client.since:
            self._set_apart(client, is_absent=client.is_absent, is_slow=False)
        self._settle()

    def _add(self, client: _Receiver, size: int) -> None:
        client.size += size
        if not client.is_apart:
            self._total += size

    def _set_apart(self, client: _Receiver, *, is_absent: bool, is_slow: bool) -> None:
        self._total -= 0 if client.is_apart else client.size
        client.is_absent, client.is_slow = is_absent, is_slow
        self._total += 0 if client.is_apart else client.size

    def _unblock(self, client: _Receiver) -> None:
        self._waiting.extend(client.blocked)
        client.blocked.clear()
        if client.stalls is not None and 2 * client.size <= self._each:
            client.stalls.cancel()
            client.stalls = None

    def _settle(self) -> None:
        while self._waiting and self._total <= self._most:
            self._give_credit(*self._waiting.popleft())
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _look(self) -> None:
        """Set those apart that are slow, if somebody still waits."""
        self._timer = None
        if self._waiting:
            now = asyncio.get_running_loop().time()
            waits = {peer: now - client.since[0] for peer, client in self._receivers.items() if client.since}
            usual = sorted(waits.get(peer, 0.0) for peer in self._receivers)[(len(self._receivers) - 1) // 2]
            for peer, wait in waits.items():
                if wait > max(_SLOW, _SLOWER * usual):
                    client = self._receivers[peer]
                    self._set_apart(client, is_absent=client.is_absent, is_slow=True)
            self._settle()
