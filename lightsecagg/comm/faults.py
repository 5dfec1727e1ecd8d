"""A carrier that misbehaves on purpose, by a seed: drop, delay, duplicate, reorder, corrupt, cut, freeze."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass

from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often, of all frames in each direction; `delay` holds a frame (and those behind it) up."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # the frame changes places with the next one
    corrupt: float = 0.0  # one byte is altered
    cut: float = 0.0  # the connection breaks instead
    delay: float = 0.0
    longest_delay: float = 0.01  # seconds


class _Direction:
    """What the faults make of one direction's frames."""

    def __init__(self, faults: Faults, rng: random.Random) -> None:
        self._faults = faults
        self._rng = rng
        self._held_back: list[Data] = []

    def pause(self) -> float:
        """Seconds to hold the next frame up."""
        is_held_up = self._rng.random() < self._faults.delay
        return self._rng.uniform(0, self._faults.longest_delay) if is_held_up else 0.0

    def transform(self, frame: Data) -> list[Data]:
        """The frames that arrive for this one; ConnectionError where the connection breaks."""
        faults, draw = self._faults, self._rng.random
        if draw() < faults.cut:
            raise ConnectionResetError("cut on purpose")
        if draw() < faults.drop:
            return []
        if frame and draw() < faults.corrupt:
            at = self._rng.randrange(len(frame))
            frame = b"".join((frame[:at], bytes([frame[at] ^ self._rng.randint(1, 255)]), frame[at + 1 :]))
        if draw() < faults.reorder:
            self._held_back.append(frame)
            return []
        arriving = [frame] * (2 if draw() < faults.duplicate else 1) + self._held_back
        self._held_back = []
        return arriving


class FaultyCarrier(Carrier):
    """Wraps one end of a carrier and spoils both directions."""

    def __init__(self, carrier: Carrier, faults: Faults, rng: random.Random) -> None:
        self.authenticated_as = carrier.authenticated_as
        self._carrier = carrier
        self._outgoing = _Direction(faults, random.Random(rng.random()))
        self._incoming = _Direction(faults, random.Random(rng.random()))
        self._arrived: deque[Data] = deque()
        self._thawed = asyncio.Event()
        self._thawed.set()

    def freeze(self) -> None:
        """Let nothing pass either way, with the connection standing, until `thaw`."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Let frames pass again."""
        self._thawed.set()

    async def read(self) -> Data | None:
        while not self._arrived:
            frame = await self._carrier.read()
            await self._thawed.wait()
            if frame is None:
                return None
            await asyncio.sleep(self._incoming.pause())
            try:
                self._arrived.extend(self._incoming.transform(frame))
            except ConnectionError:
                await self.close()
                return None
        return self._arrived.popleft()

    async def write(self, frame: bytes) -> None:
        await self._thawed.wait()
        await asyncio.sleep(self._outgoing.pause())
        try:
            for spoilt in self._outgoing.transform(frame):
                await self._carrier.write(bytes(spoilt))
        except ConnectionError:
            await self.close()
            raise

    async def finish(self) -> None:
        await self._carrier.finish()

    async def close(self) -> None:
        await self._carrier.close()
