"""Frames over a medium whose messages may have to be shorter: cut by one end, joined by the other."""

from __future__ import annotations

from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import MAX_FRAME, Data

SMALLEST_PACKET = 1024  # bytes; a medium that takes less is of no use

# A piece of a frame begins with one of these; no other packet does.
_MIDDLE, _FIRST, _LAST = 0, 1, 2
_MARKS = {_MIDDLE, _FIRST, _LAST, _FIRST | _LAST}


class PacketLimit:
    """How many bytes a message may have, as far as the medium has said or shown."""

    def __init__(self) -> None:
        self.bytes = MAX_FRAME

    def announced(self, size: int) -> None:
        """The medium says so."""
        self.bytes = min(self.bytes, size)

    def exceeded(self, size: int) -> None:
        """A message of this size was too long, and nobody had said so: try half of it."""
        self.bytes = min(self.bytes, max(size // 2, SMALLEST_PACKET))


class Packets(Carrier):
    """Frames over a lane whose packets may have to be smaller.

    A frame travels as it is where it fits and cannot be taken for a piece, and in pieces otherwise. Pieces
    that went astray give a frame whose checksum is wrong.
    """

    def __init__(self, lane: Carrier, limit: PacketLimit) -> None:
        self.authenticated_as = lane.authenticated_as
        self._lane = lane
        self._limit = limit
        self._longest = SMALLEST_PACKET  # of a frame in pieces: whoever has not begun costs nothing

    async def read(self) -> Data | None:
        frame = bytearray()
        while (packet := await self._lane.read()) is not None:
            mark = packet[0]
            if mark not in _MARKS:
                self._longest = MAX_FRAME
                return packet
            if mark & _FIRST:
                frame.clear()
            if len(frame) <= self._longest:  # what goes beyond is no frame, and not kept
                frame += packet[1:]
            if mark & _LAST:
                self._longest = MAX_FRAME
                return frame
        return None

    async def write(self, frame: bytes) -> None:
        largest = self._limit.bytes
        if frame and frame[0] not in _MARKS and len(frame) <= largest:
            await self._lane.write(frame)
            return
        step = largest - 1
        for start in range(0, len(frame) or 1, step):
            mark = (_FIRST if start == 0 else 0) | (_LAST if start + step >= len(frame) else 0)
            await self._lane.write(bytes((mark,)) + frame[start : start + step])

    async def finish(self) -> None:
        await self._lane.finish()

    async def close(self) -> None:
        await self._lane.close()
