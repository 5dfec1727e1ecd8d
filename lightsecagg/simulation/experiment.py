"""Rounds with many clients in one process, exactness checked in each, and what they cost."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from lightsecagg.errors import LightSecAggError, ParameterError, RoundAborted
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity
from lightsecagg.in_memory import secure_mean
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.actions import SERVER, Aborted
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.terms import Floors, Run, vector_terms
from lightsecagg.quantize import FixedPoint, WeightedUpdate
from lightsecagg.simulation.cost import (
    PHASES,
    Clock,
    Costs,
    Ledger,
    MeteredNetwork,
    Phase,
    SharedChecks,
)
from lightsecagg.simulation.losses import MOMENTS, Moment

QUANTIZER = FixedPoint(clip=8.0, fraction_bits=16, max_weight=1000)
"""The program's own defaults."""

Watch = Callable[[int, Phase], None]
"""Told the round's number and the phase whenever one more client has got as far."""


class InexactSumError(LightSecAggError):
    """What the server decoded is not the sum of the survivors' updates."""


@dataclass(frozen=True)
class Experiment:
    """What is simulated.

    Args:
        parameters: N, U, T.
        dimension: d ≥ 1, coordinates of an update.
        rounds: how many, at least 1.
        losses: clients that vanish in each round, at most D.
        moments: when they do, taken in turn.
        seed: who vanishes, and the updates; no secret follows from it.

    Raises:
        ParameterError: more clients would vanish than a round tolerates.
    """

    parameters: Parameters
    dimension: int
    rounds: int = 1
    losses: int = 0
    moments: Sequence[Moment] = MOMENTS
    seed: int = 0

    def __post_init__(self) -> None:
        tolerance = self.parameters.dropout_tolerance
        if self.losses > tolerance:
            raise ParameterError(
                f"{self.losses} of {self.parameters.num_clients} clients are to vanish in each round, and "
                f"U = {self.parameters.target_survivors} tolerates {tolerance}; "
                "lose fewer, plan for fewer colluders, or lower U"
            )

    def moments_of(self, round_number: int) -> dict[int, Moment]:
        """Who vanishes in a round, and when."""
        chance = random.Random(f"{self.seed} {round_number}")
        numbers = chance.sample(range(1, self.parameters.num_clients + 1), self.losses)
        return dict(zip(sorted(numbers), itertools.cycle(self.moments)))

    def update(self, round_number: int, number: int) -> WeightedUpdate:
        """What a client has trained; some coordinates are beyond the clip."""
        chance = np.random.default_rng([self.seed, round_number, number])
        vector = chance.normal(0.0, QUANTIZER.clip / 4, self.dimension)
        return WeightedUpdate(vector, int(chance.integers(1, QUANTIZER.max_weight + 1)))


@dataclass(frozen=True)
class Cost:
    """What one party spends on a phase of one round: bytes of messages, and CPU seconds."""

    sent: float
    received: float
    seconds: float


@dataclass(frozen=True)
class PhaseCost:
    """What a phase of one round costs, or "total", rounds averaged.

    Attributes:
        client: the mean over the clients that stayed to the end.
        most: the most that one of them sent, received and computed.
        server: the server's part.
    """

    name: str
    client: Cost
    most: Cost
    server: Cost


@dataclass(frozen=True)
class Report:
    """What an experiment found.

    Attributes:
        order: p, the field's order.
        costs: phase by phase, and the total last.
        survivors: clients in the sum, round by round.
        checks: signatures that a client checks in a round; together these clients checked each one once.
        check_seconds: CPU seconds of one check, not in ``costs``.
    """

    order: int
    costs: tuple[PhaseCost, ...]
    survivors: tuple[int, ...]
    checks: int
    check_seconds: float


def simulate(experiment: Experiment, clock: Clock, watch: Watch = lambda _round, _phase: None) -> Report:
    """Run the experiment's rounds.

    Args:
        clock: CPU seconds of this process.
        watch: hears how far it is.

    Raises:
        RoundAborted: a round ended without a sum.
        InexactSumError: a sum is wrong.
    """
    secure_mean([np.zeros(experiment.dimension)] * 3)  # what is loaded at its first use is no client's cost
    laboratory = _Laboratory(experiment, clock, watch)
    clients, servers, survivors = [], [], []
    for round_number in range(1, experiment.rounds + 1):
        moments = experiment.moments_of(round_number)
        with _collector_at_rest():
            result, costs = laboratory.play(round_number, moments)
        stayed = [number for number in range(1, len(costs)) if number not in moments]
        clients.append(costs[stayed])
        servers.append(costs[[SERVER]])
        survivors.append(len(result.survivors))
    return Report(
        laboratory.field.order,
        _summary(np.concatenate(clients), np.concatenate(servers)),
        tuple(survivors),
        experiment.parameters.num_clients + experiment.parameters.target_survivors,
        laboratory.checks.seconds / laboratory.checks.made,
    )


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Its passes over everybody's objects would be charged to whoever is at work just then."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.collect()


def _summary(clients: Costs, servers: Costs) -> tuple[PhaseCost, ...]:
    clients, servers = (
        np.append(each, each.sum(axis=1, keepdims=True), axis=1) for each in (clients, servers)
    )
    parties = (clients.mean(axis=0), clients.max(axis=0), servers.mean(axis=0))
    return tuple(
        PhaseCost(name, *(Cost(*party[place].tolist()) for party in parties))
        for place, name in enumerate((*PHASES, "total"))
    )


class _Laboratory:
    """What stays from round to round: the run, everybody's identity, and the checks that were made."""

    def __init__(self, experiment: Experiment, clock: Clock, watch: Watch) -> None:
        self._experiment = experiment
        self._watch = watch
        self._numbers = range(1, experiment.parameters.num_clients + 1)
        self._run = Run.new("simulate")
        self._terms = vector_terms(QUANTIZER, experiment.dimension, num_clients=len(self._numbers))
        self._identities = {number: Identity.generate() for number in self._numbers}
        self.field = PrimeField(self._terms.order)
        self.checks = SharedChecks(clock)
        # One client would pay for what all of them use.
        self._clock = lambda: clock() - self.checks.seconds

    def play(self, round_number: int, moments: Mapping[int, Moment]) -> tuple[RoundResult, Costs]:
        """One round: its result, which is exact, and its ledger's costs."""
        ledger = Ledger(len(self._numbers), self._clock)
        clients = {number: self._client(round_number, number, ledger) for number in self._numbers}
        cohort = [client.member for client in clients.values()]
        parameters = self._experiment.parameters
        server = ledger.compute(
            SERVER,
            Phase.OPENING,
            lambda: ServerRound(self._run, round_number, parameters, self._terms, cohort),
        )
        network = MeteredNetwork(
            server,
            clients,
            partial(self._experiment.update, round_number),
            moments,
            self._terms,
            ledger,
            partial(self._watch, round_number),
        )
        network.run()
        if isinstance(network.outcome, Aborted):
            raise RoundAborted(network.outcome.reason, f"in round {round_number}")
        result = server.finish()
        self._check(round_number, result)
        return result, ledger.costs

    def _client(self, round_number: int, number: int, ledger: Ledger) -> ClientRound:
        client = ledger.compute(
            number,
            Phase.OPENING,
            lambda: ClientRound(
                self._identities[number],
                number,
                self._run,
                self._terms,
                floors=Floors(min_clients=2, min_privacy_threshold=0),
                sequence=round_number,
                after_round=round_number - 1,
                verifier=self.checks.verify,
            ),
        )
        ledger.carry(number, SERVER, Phase.OPENING, len(client.round_key().message))
        return client

    def _check(self, round_number: int, result: RoundResult) -> None:
        """Compare with the plain sum of what the survivors quantized, as integers and without the codec."""
        total = np.zeros(self._experiment.dimension + 1, dtype=np.int64)
        for number in result.survivors:
            update = self._experiment.update(round_number, number)
            integers = QUANTIZER.quantize(self.field, update.values, update.weight).astype(np.int64)
            total += np.where(integers > self.field.order // 2, integers - self.field.order, integers)
        scale = result.total_weight * 2.0**QUANTIZER.fraction_bits / QUANTIZER.max_weight
        found = np.append(np.rint(result.mean * scale).astype(np.int64), result.total_weight)
        wrong = int(np.count_nonzero(found != total))
        if wrong:
            raise InexactSumError(
                f"round {round_number}: {wrong} of {len(total)} coordinates of the decoded sum are not the "
                "sum of the survivors' updates"
            )
