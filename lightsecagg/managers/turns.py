"""Long outputs to many clients, a few at a time: what is on its way takes memory, however fast it goes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Done = Callable[[], None]


class Turns:
    """Starts things one after another, as many at a time as there are places. Belongs to one event loop.

    Whoever is not done when its turn is over keeps nobody waiting: the next begins beside it.

    Args:
        places: how many have their turn at a time.
        seconds: how long a turn lasts at most.
    """

    def __init__(self, places: int, seconds: float) -> None:
        self._free = places
        self._seconds = seconds
        self._waiting: deque[Callable[[Done], None]] = deque()
        self._timers: set[asyncio.TimerHandle] = set()

    def take(self, start: Callable[[Done], None]) -> None:
        """Call ``start`` when its turn comes, with what it calls once it is done."""
        self._waiting.append(start)
        self._next()

    def close(self) -> None:
        """Start nothing more."""
        self._free = 0
        self._waiting.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _next(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._begin(self._waiting.popleft())

    def _begin(self, start: Callable[[Done], None]) -> None:
        def end() -> None:
            if timer in self._timers:
                self._timers.discard(timer)
                timer.cancel()
                self._free += 1
                self._next()

        timer = asyncio.get_running_loop().call_later(self._seconds, end)
        self._timers.add(timer)
        start(end)
