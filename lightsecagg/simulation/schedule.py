"""One seed, one schedule: a few rounds in a row under chaos, each held against an exact oracle.

Two outcomes of a round are right: the exact sum over S, or an abort that the losses explain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from unittest import mock

import numpy as np
import numpy.typing as npt

from lightsecagg import randomness
from lightsecagg.errors import AbortReason, Reason
from lightsecagg.field import Elements, PrimeField
from lightsecagg.identity import Identity
from lightsecagg.protocol import collecting, dealing, holding, model, terms, wire
from lightsecagg.protocol.actions import Aborted
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.server import ServerRound
from lightsecagg.quantize import FixedPoint
from lightsecagg.simulation.chaos import Chaos, FlawError
from lightsecagg.simulation.faults import Plan, draw_plan
from lightsecagg.simulation.network import Link

Trace = Callable[[str], None]

QUANTIZERS = {
    32749: FixedPoint(4.0, 4, 100),
    2**16 - 15: FixedPoint(2.0, 6, 250),
    2**24 - 3: FixedPoint(8.0, 10, 1000),
    2**31 - 1: FixedPoint(8.0, 16, 1000),
    2**32 - 5: FixedPoint(100.0, 16, 3),
}
"""Fields of the simulated rounds, each with a quantizer whose sums it holds."""

_MOST_CLIENTS = 12
_ORDERS = {
    order: max(n for n in range(2, _MOST_CLIENTS + 1) if quantizer.fits(PrimeField(order), n))
    for order, quantizer in QUANTIZERS.items()
}


@dataclass(frozen=True)
class Played:
    """How one round of a schedule ended.

    Attributes:
        plan: what was to go wrong.
        survivors: S, or None after an abort.
        abort: why there is no sum, or None.
        lost, liars: L and B as they came out.
    """

    plan: Plan
    survivors: tuple[int, ...] | None
    abort: AbortReason | None
    lost: frozenset[int]
    liars: frozenset[int]


class ScheduleError(Exception):
    """A schedule broke a promise, or a machine raised what it must not; the message names the seed."""

    def __init__(self, seed: int, error: BaseException, mode: str = terms.MODE_SYNC) -> None:
        super().__init__(
            f"seed {seed}: {type(error).__name__}: {error} "
            f"(replay: python -m lightsecagg.simulation.soak --mode {mode} --seed {seed})"
        )
        self.seed = seed


@contextmanager
def short_parts(elements: int = 4) -> Iterator[None]:
    """Shrink parts and expansion blocks to a few elements, so that small vectors take many parts."""
    with (
        mock.patch.multiple(wire, BLOCK_ELEMENTS=elements, PART_BYTES=4 * elements),
        mock.patch.multiple(model, PART_BYTES=4 * elements),
        mock.patch.multiple(dealing, BLOCK_ELEMENTS=elements),
        mock.patch.multiple(holding, BLOCK_ELEMENTS=elements),
        mock.patch.multiple(collecting, BLOCK_ELEMENTS=elements),
        mock.patch.multiple(randomness, BLOCK_ELEMENTS=elements),
    ):
        yield


def play(seed: int, trace: Trace | None = None) -> list[Played]:
    """Play the schedule of ``seed``: up to three rounds, the later ones with those who are left.

    Raises:
        ScheduleError: it shows a flaw.
    """
    try:
        with short_parts():
            return _Schedule(seed, trace).play()
    except Exception as error:
        raise ScheduleError(seed, error) from error


@dataclass
class _Member:
    """One client through the rounds of a schedule."""

    rank: int
    identity: Identity
    sequence: int = 0
    kept: list[int] | None = None
    """An update that never left, as integers."""
    weight: int = 0
    machine: ClientRound | None = field(default=None, repr=False)


class _Schedule:
    def __init__(self, seed: int, trace: Trace | None) -> None:
        self._rng = random.Random(seed)
        self._trace = trace
        self._run = terms.Run("simulated", self._rng.randbytes(32))
        self._round = 0

    def play(self) -> list[Played]:
        rng = self._rng
        # Small cohorts often, for there a single loss decides.
        size = rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 7, 8, rng.randint(2, _MOST_CLIENTS)))
        members = [
            _Member(rank, Identity(rng.randbytes(32))) for rank in sorted(rng.sample(range(1, 99), size))
        ]
        played: list[Played] = []
        links: dict[tuple[int, int], list[bytes | memoryview]] = {}
        order = dimension = None
        for _ in range(rng.choice((1, 1, 2, 3))):
            plan = draw_plan(rng, len(members), _ORDERS if order is None else {order: _MOST_CLIENTS})
            order, dimension = plan.order, dimension or plan.dimension
            members, links, outcome = self._play_round(plan, dimension, members, links)
            played.append(outcome)
            if len(members) < 2:
                break
        return played

    def _play_round(
        self,
        plan: Plan,
        dimension: int,
        members: list[_Member],
        links: dict[Link, list[bytes | memoryview]],
    ) -> tuple[list[_Member], dict[Link, list[bytes | memoryview]], Played]:
        rng, parameters = self._rng, plan.parameters
        quantizer, prime = QUANTIZERS[plan.order], PrimeField(plan.order)
        agreed = terms.vector_terms(quantizer, dimension, num_clients=parameters.num_clients, field=prime)
        before, self._round = self._round, self._round + rng.randint(1, 3)
        if self._trace is not None:
            self._trace(f"round {self._round}, d = {dimension}: {plan}")
        for member in members:
            member.sequence += 1
            member.machine = ClientRound(
                member.identity,
                member.rank,
                self._run,
                agreed,
                floors=terms.Floors(2, 0),
                sequence=member.sequence,
                after_round=before,
                entropy=rng.randbytes,
            )
            if member.kept is None:
                member.weight = rng.choice((0, 1, rng.randint(0, quantizer.max_weight)))
                member.kept = draw_update(rng, quantizer, member.weight, dimension)
        by_number = dict(enumerate(members, start=1))
        machines = {n: member.machine for n, member in by_number.items() if member.machine is not None}
        server = ServerRound(
            self._run,
            self._round,
            parameters,
            agreed,
            [machine.member for machine in machines.values()],
            rng.randbytes(rng.choice((0, 1, 16, 50))),
            upload_slots=plan.slots,
        )
        vectors = {n: [*(member.kept or []), member.weight] for n, member in by_number.items()}
        handed_over: set[int] = set()

        def update(number: int) -> Elements:
            handed_over.add(number)
            return prime.elements(vectors[number])

        chaos = Chaos(server, machines, update, plan, rng, self._trace)
        columns = -(-(dimension + 1) // (parameters.target_survivors - parameters.privacy_threshold))
        chaos.expect_answer_parts(wire.part_count(columns, wire.part_elements(prime)))
        chaos.adopt(_renumbered(links, {member.rank: n for n, member in by_number.items()}))
        chaos.play()
        survivors = _judge(chaos, plan, quantizer, vectors)
        for number, member in by_number.items():
            vector = prime.elements(vectors[number]) if number in handed_over else None
            _settle_update(chaos, number, member, vector)
        aborted = chaos.outcome.reason if isinstance(chaos.outcome, Aborted) else None
        outcome = Played(plan, survivors, aborted, chaos.lost, frozenset(chaos.liars))
        if self._trace is not None:
            self._trace(f"survivors {survivors}, abort {aborted}")
        left = [member for number, member in by_number.items() if number not in chaos.dropped]
        ranks = {n: member.rank for n, member in by_number.items()}
        return left, _renumbered(chaos.leftovers(), ranks), outcome


def _settle_update(chaos: Chaos, number: int, member: _Member, handed_over: Elements | None) -> None:
    """One update, one upload: one that never left may be used again, and no other."""
    assert member.machine is not None
    member.machine.leave(Reason.GOODBYE)
    unsent = member.machine.reclaim()
    if number in chaos.uploaded:
        if unsent is not None:
            raise FlawError(f"client {number} may use an update again that was uploaded")
        member.kept = None
    elif handed_over is not None and (unsent is None or not np.array_equal(unsent, handed_over)):
        raise FlawError(f"client {number} lost an update that never left")


def draw_update(rng: random.Random, quantizer: FixedPoint, weight: int, dimension: int) -> list[int]:
    """What a client of this weight may upload: integers up to ±⌊clip · 2^bits · n / max_weight⌋."""
    scale = Fraction(quantizer.clip) * 2**quantizer.fraction_bits * Fraction(weight, quantizer.max_weight)
    most = int(scale)
    return [rng.choice((most, -most, rng.randint(-most, most))) for _ in range(dimension)]


def _renumbered(
    links: dict[Link, list[bytes | memoryview]], names: dict[int, int]
) -> dict[Link, list[bytes | memoryview]]:
    """Links between the server (0) and clients under other names; clients without one are left out."""
    names = {0: 0, **names}
    return {
        (names[sender], names[receiver]): messages
        for (sender, receiver), messages in links.items()
        if sender in names and receiver in names
    }


def _judge(
    chaos: Chaos, plan: Plan, quantizer: FixedPoint, vectors: dict[int, list[int]]
) -> tuple[int, ...] | None:
    """The survivors, or None after an abort; the exact oracle."""
    cost = len(chaos.lost) + 2 * len(chaos.liars)
    if isinstance(chaos.outcome, Aborted):
        if cost <= plan.parameters.dropout_tolerance:
            raise FlawError(
                f"aborted ({chaos.outcome.reason.value}) with L = {len(chaos.lost)} lost "
                f"{sorted(chaos.lost)} and B = {len(chaos.liars)} liars {sorted(chaos.liars)}, "
                f"where D = {plan.parameters.dropout_tolerance}"
            )
        return None
    result = chaos.server.finish()
    if chaos.survivor_sets != {frozenset(result.survivors)}:
        raise FlawError(f"S = {result.survivors}, but the clients were shown {chaos.survivor_sets}")
    if len(result.survivors) < plan.parameters.target_survivors:
        raise FlawError(f"S = {result.survivors} has fewer than U members")
    total = [sum(column) for column in zip(*(vectors[n] for n in result.survivors), strict=True)]
    check_mean(result.mean, result.total_weight, quantizer, total)
    return result.survivors


def check_mean(
    mean: npt.NDArray[np.float64], total_weight: int, quantizer: FixedPoint, total: Sequence[int]
) -> None:
    """Python's integers know the sum: ``total``, of which the last is that of the weights.

    Raises:
        FlawError: what was decoded is not its mean.
    """
    *coordinates, weight = total
    if total_weight != weight:
        raise FlawError(f"the weight is {total_weight}, not {weight}")
    for found, exact in zip(mean.tolist(), coordinates, strict=True):
        if weight == 0:
            right = found == 0
        else:
            wanted = Fraction(exact * quantizer.max_weight, weight * 2**quantizer.fraction_bits)
            right = abs(Fraction(found) - wanted) <= abs(wanted) * Fraction(1, 2**50)
        if not right:
            raise FlawError(f"a coordinate of the mean is {found}, not {exact} · {quantizer.max_weight}/…")
