"""Figures of single passes over long vectors: quantizing under the mask, packing, and the server's sum."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle

import numpy as np

from benchmarks.codec.figures import Figure, Kind, take_turns, timed
from benchmarks.codec.products import DIMENSION, ORDERS
from benchmarks.codec.yardsticks import Memory, quantize_and_mask
from lightsecagg import FixedPoint, PrimeField
from lightsecagg.kernels import set_threads, spread
from lightsecagg.packing import Bytes, add_packed, check_packed, pack, pack_into, unpack_into
from lightsecagg.protocol.uploads import RunningSum, UploadDesk
from lightsecagg.protocol.wire import part_count, part_elements
from lightsecagg.randomness import SEED_BYTES, expand, system_entropy

DIMENSIONS = (DIMENSION, 5_288_548)
QUANTIZE_GOAL, PACK_GOAL, SUM_GOAL = 8.0, 1.5, 0.55
THREADS = 2

_CLIP, _FRACTION_BITS, _WEIGHT, _MAX_WEIGHT = 8.0, 16, 600, 1000
_PACKED = PrimeField(2**24 - 3)
_WALL_TURNS = 25  # short ones, since what else the machine does counts
_UPDATES = 6  # that come one after the other: together far larger than a cache


def quantizing(dimension: int, order: int) -> Iterator[Figure]:
    """A float32 update, checked, quantized and added to its mask."""
    field, quantizer = PrimeField(order), FixedPoint(_CLIP, _FRACTION_BITS, _MAX_WEIGHT)
    update = np.random.default_rng(dimension).standard_normal(dimension, dtype=np.float32)
    mask = expand(system_entropy(SEED_BYTES), field, 0, dimension + 1)
    naive = partial(
        quantize_and_mask, update, _CLIP, _WEIGHT * 2.0**_FRACTION_BITS / _MAX_WEIGHT, order, mask[:-1]
    )
    masked = mask.copy()
    quantizer.add_to(field, masked, update, _WEIGHT)
    # In single precision a product may come to lie on the other side of a half.
    assert np.abs(field.centered(field.subtract(masked[:-1], naive()))).max() <= 1
    ours = partial(quantizer.add_to, field, masked, update, _WEIGHT)
    seconds = take_turns({"ours": timed(ours, times=4), "theirs": timed(naive)})
    what = f"quantize + mask, d = {dimension:,}, {ORDERS[order]}"
    yield Figure(what, "NumPy, pass by pass", Kind.FASTER, QUANTIZE_GOAL, seconds["ours"], seconds["theirs"])


def packing(dimension: int) -> Iterator[Figure]:
    """Three bytes an element, there and back; the way back checks length and range."""
    elements = expand(system_entropy(SEED_BYTES), _PACKED, 0, dimension)
    packed, out = np.array(pack(_PACKED, elements)), np.empty_like(elements)
    works = {
        "pack": timed(partial(pack_into, _PACKED, elements, packed), times=20),
        "unpack": timed(partial(unpack_into, _PACKED, packed.data, out), times=20),
        "copy": timed(partial(np.copyto, out, elements), times=20),
    }
    seconds = take_turns(works)
    for name in ("pack", "unpack"):
        what = f"{name} 24 bits, d = {dimension:,}"
        yield Figure(what, "a copy of the elements", Kind.COST, PACK_GOAL, seconds[name], seconds["copy"])


class Server:
    """Takes whole updates in, part by part.

    Args:
        length: coordinates of an update.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._part = part_elements(_PACKED)
        self._total = np.zeros(length, dtype=np.uint32)
        updates = [expand(system_entropy(SEED_BYTES), _PACKED, 0, length) for _ in range(_UPDATES)]
        starts = [index * self._part for index in range(part_count(length, self._part))]
        self._updates = cycle(
            [[pack(_PACKED, update[start : start + self._part]) for start in starts] for update in updates]
        )

    def take(self) -> float:
        """The next update through the protocol's desk: every part checked, then all added; the seconds."""
        read, add = partial(check_packed, _PACKED), partial(add_packed, _PACKED)
        total = RunningSum(self._total, self._part, add)
        desk = UploadDesk(self._length, self._part, read, total.take, slots=1)
        desk.begin(1, round_number=1)
        desk.admit([1])
        desk.ready(1)
        grant, _ = desk.holders[1]
        seconds = 0.0
        for index, data in enumerate(next(self._updates)):
            arrived = memoryview(bytes(data))  # a carrier has just written it
            begin = time.perf_counter()
            desk.take(1, grant, index, arrived)
            seconds += time.perf_counter() - begin
        assert desk.inside == {1}
        return seconds

    def add(self) -> None:
        """The next update's parts only added, from memory that nobody has touched lately."""
        parts = [np.frombuffer(data, dtype=np.uint8) for data in next(self._updates)]
        spread(partial(self._add, parts), len(parts), 1)

    def _add(self, parts: list[Bytes], first: int, last: int) -> None:
        for index in range(first, last):
            add_packed(_PACKED, self._total[index * self._part : (index + 1) * self._part], parts[index])


def summing(length: int) -> Iterator[Figure]:
    """The server's sum on two threads, against the rate at which these read memory.

    What has to be read of a coordinate is 3 bytes of an update and 4 of the sum; 4 are written besides. The
    sum stays partly in a large cache from one update to the next, as a server's does: so 100 % is no limit.
    """
    set_threads(THREADS)
    server, memory = Server(length), Memory()
    works = {
        "checked as it comes, then added": server.take,
        "added": timed(server.add, times=_UPDATES, clock=time.perf_counter),
        "read": timed(memory.read, part=memory.size, clock=time.perf_counter),  # seconds a byte
    }
    seconds = take_turns(works, _WALL_TURNS)
    set_threads(1)
    for name in ("added", "checked as it comes, then added"):
        what = f"update {name}, d = {length:,}, {THREADS} threads"
        for label, count, goal in (("3 + 4 bytes", 7, SUM_GOAL), ("3 + 4 + 4 written", 11, None)):
            bound = [count * length * one for one in seconds["read"]]
            yield Figure(what, f"{label} at memory's rate", Kind.SHARE, goal, seconds[name], bound)
