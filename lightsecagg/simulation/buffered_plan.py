"""One simulated asynchronous run: its numbers and what goes wrong in it, as a seed draws them beforehand."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lightsecagg.protocol.messages import Buffering
from lightsecagg.protocol.transitions import BufferStage


class Mishap(StrEnum):
    """What happens to a client."""

    VANISH = "vanish"  # the server is told that it is gone; what is on its links is lost
    LEAVE = "leave"  # it leaves of its own accord
    RETURN = "return"  # it leaves, and comes back in the same session
    RESTART = "restart"  # its process dies, and after a while another takes its slot
    VISIT = "visit"  # it is away, and comes back after a while
    DEPART = "depart"  # it is away, and is given up after a while
    HANG = "hang"  # it is up and does nothing any more, and is given up after a while
    VIOLATE = "violate"  # it sends what no order of delivery explains
    MANGLE = "mangle"  # the next long message that it sends is malformed
    FAIL = "fail"  # its next training fails
    JOIN = "join"  # a process takes its slot, if that is empty


LOSSES = frozenset({Mishap.VANISH, Mishap.LEAVE, Mishap.DEPART, Mishap.HANG, Mishap.VIOLATE, Mishap.MANGLE})
"""What takes a client away for good, unless it joins again."""


@dataclass(frozen=True)
class Event:
    """``mishap`` befalls client ``number``, ``delay`` happenings after ``stage`` of a list was reached.

    Attributes:
        list_number: how many lists were frozen by then.
        absence: happenings until the next word about the client, where there is one.
    """

    number: int
    mishap: Mishap
    list_number: int
    stage: BufferStage
    delay: int
    absence: int = 0


@dataclass(frozen=True)
class RunPlan:
    """One simulated run.

    Attributes:
        buffering, order, dimension, slots: the run's numbers.
        min_clients: fewest clients to whom a mask is dealt; at least U.
        min_buffer_clients: fewest distinct clients in a list; at least T + 2.
        strict_weights: T + 2 distinct clients beside each weight.
        has_roster: whether the clients know each other beforehand.
        lists: the run ends when so many were decoded.
        present: who is there at the beginning.
        events: what befalls whom.
        dealers: who deals shares that do not open, to whom.
        mutes: who never signs a list and never answers.
        patient: whether the caller ends nothing that may still go on.
        paces: how likely a slow client takes its turn.
        revocations: upload slots that are taken from their holders at random.
        repeats: messages that arrive once more, long after they mattered.
    """

    buffering: Buffering
    order: int
    dimension: int
    slots: int
    min_clients: int
    min_buffer_clients: int
    strict_weights: bool
    has_roster: bool
    lists: int
    present: frozenset[int]
    events: tuple[Event, ...] = ()
    dealers: Mapping[int, frozenset[int]] = field(default_factory=dict)
    mutes: frozenset[int] = frozenset()
    patient: bool = True
    paces: Mapping[int, float] = field(default_factory=dict)
    revocations: int = 0
    repeats: int = 0

    @property
    def liars(self) -> frozenset[int]:
        """Clients that lists need not come of."""
        return self.mutes | self.dealers.keys()

    @property
    def quorum(self) -> int:
        """Honest clients with whom lists must keep coming."""
        return max(self.min_clients, self.min_buffer_clients)


_CAPACITIES = (2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 6, 7, 8)
_FEW = 4  # slots of runs that may be long: those of many clients take much time
_TABLES = ((1,), (4, 2, 1), (4, 2, 2, 1), (1, 1, 1), (2, 1), (4, 4, 2, 2, 1, 1, 1), (3, 5, 1, 7), (1, 2))
_TROUBLE = (
    *(Mishap.RESTART,) * 4,
    *(Mishap.VISIT,) * 4,
    *(Mishap.JOIN,) * 2,
    *(Mishap.FAIL,) * 2,
    Mishap.RETURN,
)


def draw_run_plan(rng: random.Random, orders: tuple[int, ...]) -> RunPlan:
    """A plan; in most of them enough clients are left for all lists.

    Args:
        orders: the field's orders to choose from.
    """
    capacity = rng.choice(_CAPACITIES)
    survivors = rng.randint(max(1, capacity // 2), capacity) if rng.random() < 0.8 else 1
    threshold = rng.randint(0, min(survivors - 1, capacity - 2))
    distinct = min(threshold + rng.choice((2, 2, 2, 3)), capacity)
    size = distinct + rng.choice((0, 0, 0, 0, 1, 2))
    least = rng.choice((survivors, survivors, rng.randint(survivors, capacity)))
    lists = rng.choice((3, 3, 3, 3, 3, 3, 3, 4, 5, 10) if capacity <= _FEW else (3, 3, 3, 4))
    doomed = _draw_doomed(rng, capacity, capacity - max(least, distinct))
    liars = doomed[: rng.randint(0, len(doomed))] if rng.random() < 0.3 else []
    late = [number for number in doomed if number not in liars and rng.random() < 0.3]
    lost = [number for number in doomed if number not in liars and rng.random() < 0.7]
    return RunPlan(
        Buffering(capacity, survivors, threshold, size, _draw_table(rng)),
        order=rng.choice(orders),
        dimension=rng.choice((8, 8, 8, 9, 10, 16)),
        slots=rng.randint(1, 4),
        min_clients=least,
        min_buffer_clients=distinct,
        strict_weights=rng.random() < 0.25,
        has_roster=rng.random() < 0.5,
        lists=lists,
        present=frozenset(range(1, capacity + 1)) - frozenset(late),
        events=tuple(_draw_events(rng, capacity, lists, late, lost)),
        dealers={number: _draw_victims(rng, capacity, number) for number in liars},
        mutes=frozenset(number for number in liars if rng.random() < 0.5),
        patient=rng.random() < 0.7,
        paces=_draw_paces(rng, capacity),
        revocations=rng.choice((0, 0, 1, 4)),
        repeats=rng.choice((0, 4, 12)),
    )


def _draw_doomed(rng: random.Random, capacity: int, spare: int) -> list[int]:
    """Who may be lost, is not there at first, or lies: mostly no more than can be spared."""
    most = spare if rng.random() < 0.8 else capacity
    return rng.sample(range(1, capacity + 1), rng.randint(0, most))


def _draw_table(rng: random.Random) -> tuple[int, ...]:
    if rng.random() < 0.7:
        return rng.choice(_TABLES)
    return tuple(rng.randint(1, 8) for _ in range(rng.randint(1, 7)))


def _draw_events(
    rng: random.Random, capacity: int, lists: int, late: list[int], lost: list[int]
) -> Iterator[Event]:
    for number in late:
        yield _draw_event(rng, capacity, lists, number, Mishap.JOIN)
    for number in lost:
        yield _draw_event(rng, capacity, lists, number, rng.choice(sorted(LOSSES)))
    for _ in range(rng.choice((0, 1, 2, 4, lists))):
        yield _draw_event(rng, capacity, lists, rng.randint(1, capacity), rng.choice(_TROUBLE))


def _draw_event(rng: random.Random, capacity: int, lists: int, number: int, mishap: Mishap) -> Event:
    stage = rng.choice(tuple(BufferStage))
    # Collecting takes some 10 C² happenings, the other stages some C, and those begin with the first list.
    if stage is BufferStage.COLLECTING:
        first, delay = 0, rng.randrange(20 * capacity**2)
    else:
        first, delay = 1, rng.randrange(6 * capacity)
    absence = rng.randrange(1, rng.choice((4, 20, 200)) * capacity)
    return Event(number, mishap, rng.randint(first, lists), stage, rng.choice((0, delay)), absence)


def _draw_victims(rng: random.Random, capacity: int, dealer: int) -> frozenset[int]:
    others = [number for number in range(1, capacity + 1) if number != dealer]
    return frozenset(rng.sample(others, rng.choice((1, 1, 1, rng.randint(1, len(others))))))


def _draw_paces(rng: random.Random, capacity: int) -> dict[int, float]:
    slow = rng.sample(range(1, capacity + 1), rng.choice((0, 0, 1, capacity // 2)))
    return {number: rng.choice((0.3, 0.1, 0.03)) for number in slow}
