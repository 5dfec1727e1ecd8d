"""What may go wrong in one simulated round: the plan that a seed draws before the round begins."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lightsecagg.parameters import Parameters
from lightsecagg.protocol.transitions import ServerStage

STAGES = (
    ServerStage.SHARING,
    ServerStage.REPORTING,
    ServerStage.UPLOADING,
    ServerStage.ENDORSING,
    ServerStage.RECOVERING,
)
"""The stages of a round, in order."""


class Fate(StrEnum):
    """What happens to a client."""

    VANISH = "vanish"  # the server is told that it is gone; what is on its links is lost
    LEAVE = "leave"  # it leaves of its own accord
    FREEZE = "freeze"  # it is up and does nothing any more
    DEPART = "depart"  # it is away and never comes back
    VISIT = "visit"  # it is away and comes back after a while
    VIOLATE = "violate"  # it sends what no order of delivery explains


@dataclass(frozen=True)
class Fault:
    """``fate`` befalls client ``number``, ``delay`` happenings after ``stage`` was reached."""

    number: int
    fate: Fate
    stage: ServerStage
    delay: int
    absence: int = 0
    """Happenings until a visitor comes back."""

    @property
    def loses(self) -> bool:
        """Whether the client is lost by it."""
        return self.fate is not Fate.VISIT


@dataclass(frozen=True)
class Plan:
    """One simulated round.

    Attributes:
        parameters, order, dimension, slots: the round's numbers.
        faults: what befalls whom.
        dealers: who deals shares that do not open, to whom.
        complainers: who says of whom, falsely, that their shares did not open.
        patient: whether the caller closes a step only on those that will be lost anyway.
        slow: who is seldom chosen to act.
        revocations: upload slots that are taken from their holders at random.
        repeats: messages that arrive once more, long after they mattered.
    """

    parameters: Parameters
    order: int
    dimension: int
    slots: int
    faults: tuple[Fault, ...] = ()
    dealers: Mapping[int, frozenset[int]] = field(default_factory=dict)
    complainers: Mapping[int, frozenset[int]] = field(default_factory=dict)
    patient: bool = True
    slow: frozenset[int] = frozenset()
    revocations: int = 0
    repeats: int = 0

    @property
    def doomed(self) -> frozenset[int]:
        """Clients that may be lost."""
        return frozenset(fault.number for fault in self.faults if fault.loses)

    @property
    def liars(self) -> frozenset[int]:
        """Clients that deal bad shares or complain falsely."""
        return frozenset(self.dealers) | frozenset(self.complainers)

    @property
    def is_within_budget(self) -> bool:
        """Whether promise 2 says that the round must finish: L + 2B ≤ N − U, and nobody else is cut off."""
        cost = len(self.doomed) + 2 * len(self.liars)
        return self.patient and cost <= self.parameters.dropout_tolerance


_LOSSES = (Fate.VANISH, Fate.LEAVE, Fate.FREEZE, Fate.DEPART, Fate.VIOLATE)


def draw_plan(rng: random.Random, num_clients: int, orders: Mapping[int, int]) -> Plan:
    """A plan for a cohort of ``num_clients``; about two in three are within the budget.

    Args:
        orders: the field's orders to choose from, each with the largest cohort that it holds.
    """
    n = num_clients
    parameters = _draw_parameters(rng, n)
    numbers = list(range(1, n + 1))
    rng.shuffle(numbers)
    tolerance = parameters.dropout_tolerance
    budget = rng.randint(0, tolerance) if rng.random() < 0.65 else rng.randint(0, n)
    num_liars = rng.randint(0, budget // 2) if rng.random() < 0.5 else 0
    num_lost = max(0, budget - 2 * num_liars)
    liars, lost = numbers[:num_liars], numbers[num_liars : num_liars + num_lost]
    faults = [_draw_fault(rng, n, number, rng.choice(_LOSSES)) for number in lost]
    visits = rng.choice((0, 0, 1, 2, n))
    faults += [_draw_fault(rng, n, rng.randint(1, n), Fate.VISIT) for _ in range(visits)]
    dealers = {number: _draw_others(rng, n, number) for number in liars if rng.random() < 0.7}
    complainers = {
        number: _draw_others(rng, n, number)
        for number in liars
        if number not in dealers or rng.random() < 0.3
    }
    return Plan(
        parameters,
        rng.choice([order for order, largest in orders.items() if largest >= n]),
        rng.randint(1, 40),
        rng.randint(1, 4),
        tuple(faults),
        dealers,
        complainers,
        patient=rng.random() < 0.75,
        slow=frozenset(rng.sample(numbers, rng.choice((0, 0, 1, n // 2)))),
        revocations=rng.choice((0, 0, 1, 4)),
        repeats=rng.choice((0, 2, 6)),
    )


def _draw_parameters(rng: random.Random, n: int) -> Parameters:
    survivors = rng.randint(max(1, n // 2), n) if rng.random() < 0.8 else rng.randint(1, n)
    return Parameters(n, survivors, rng.randint(0, survivors - 1))


def _draw_fault(rng: random.Random, n: int, number: int, fate: Fate) -> Fault:
    stage = rng.choice(STAGES)
    # Sharing takes some n² happenings, the other stages some n.
    delay = rng.randrange(4 * n * n) if stage is ServerStage.SHARING else rng.randrange(8 * n)
    return Fault(number, fate, stage, rng.choice((0, delay)), rng.randrange(1, 12 * n))


def _draw_others(rng: random.Random, n: int, number: int) -> frozenset[int]:
    others = [other for other in range(1, n + 1) if other != number]
    return frozenset(rng.sample(others, rng.choice((1, len(others), rng.randint(1, len(others))))))
