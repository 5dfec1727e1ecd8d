"""What the clients of a round must see alike: terms, run, cohort, and the digest over all of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from lightsecagg.errors import ParameterError
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity, Roster, Verifier, verify
from lightsecagg.labels import COHORT_DIGEST, PROTOCOL_VERSION, ROUND_KEY
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.messages import (
    MAX_LISTED,
    NONCE_BYTES,
    Buffering,
    Entry,
    Member,
    RoundStart,
    Terms,
    as_plain,
)
from lightsecagg.quantize import FixedPoint, Rounding
from lightsecagg.randomness import Entropy, system_entropy

MODE_SYNC = "sync"
MODE_ASYNC = "async"


@dataclass(frozen=True)
class Run:
    """Which run a signature or digest belongs to.

    Args:
        run_id: the name that people gave it.
        nonce: 32 random bytes of the server; two runs of one name differ in it.
    """

    run_id: str
    nonce: bytes

    @classmethod
    def new(cls, run_id: str, entropy: Entropy = system_entropy) -> Run:
        """A run with a fresh nonce."""
        return cls(run_id, entropy(NONCE_BYTES))


@dataclass(frozen=True)
class Floors:
    """What a client demands of a round before it takes part, whatever the server says (promise 4).

    Args:
        min_clients: smallest cohort N.
        min_privacy_threshold: smallest T.
        unique_survivor_set: demand 2U > N + T (promise 3).
        max_model_bytes: longest model it takes.
        min_buffer_clients: fewest distinct clients in a list of an asynchronous run; T + 2 at least.
        strict_weights: demand T + 2 distinct clients for each weight in such a list.
    """

    min_clients: int = 3
    min_privacy_threshold: int = 1
    unique_survivor_set: bool = False
    max_model_bytes: int = 2**32
    min_buffer_clients: int = 0
    strict_weights: bool = False


def make_terms(
    quantizer: FixedPoint, layout: Sequence[Entry], *, num_clients: int, field: PrimeField | None = None
) -> Terms:
    """Terms for rounds of up to ``num_clients``; the field is the smallest that holds their sum if None.

    Raises:
        ParameterError: the field is too small, or none is large enough.
    """
    return _terms(MODE_SYNC, quantizer, layout, num_clients, field, None)


def make_buffered_terms(
    quantizer: FixedPoint, layout: Sequence[Entry], buffering: Buffering, *, field: PrimeField | None = None
) -> Terms:
    """Terms for an asynchronous run; the field is the smallest that holds K · s_max updates if None.

    Raises:
        ParameterError: its numbers do not fit together, the field is too small, or none is large enough.
    """
    buffered_parameters(buffering)
    return _terms(MODE_ASYNC, quantizer, layout, most_summands(buffering), field, buffering)


def _terms(
    mode: str,
    quantizer: FixedPoint,
    layout: Sequence[Entry],
    summands: int,
    field: PrimeField | None,
    buffering: Buffering | None,
) -> Terms:
    if field is None:
        field = quantizer.smallest_field(summands)
    quantizer.check(field, summands)
    return Terms(
        mode,
        field.order,
        float(quantizer.clip),
        quantizer.fraction_bits,
        quantizer.max_weight,
        quantizer.rounding,
        tuple(layout),
        buffering=buffering,
    )


def most_summands(buffering: Buffering) -> int:
    """K · s_max: as many updates as a list can amount to, each as often as it weighs."""
    return buffering.buffer_size * max(buffering.weights)


def buffered_parameters(buffering: Buffering) -> Parameters:
    """C in the place of N, U and T of an asynchronous run.

    Raises:
        ParameterError: they do not fit together, or the buffer or the weights are empty.
    """
    if not 1 <= buffering.buffer_size <= MAX_LISTED or not buffering.weights or min(buffering.weights) < 1:
        raise ParameterError(
            f"wanted a buffer of 1..{MAX_LISTED} updates and weights of at least 1, found "
            f"{buffering.buffer_size} and {list(buffering.weights)}"
        )
    return Parameters(buffering.capacity, buffering.target_survivors, buffering.privacy_threshold)


def vector_terms(
    quantizer: FixedPoint, dimension: int, *, num_clients: int, field: PrimeField | None = None
) -> Terms:
    """Terms for updates that are one plain vector of ``dimension`` floats."""
    return make_terms(quantizer, _vector(dimension), num_clients=num_clients, field=field)


def buffered_vector_terms(
    quantizer: FixedPoint, dimension: int, buffering: Buffering, *, field: PrimeField | None = None
) -> Terms:
    """Terms of an asynchronous run for updates that are one plain vector of ``dimension`` floats."""
    return make_buffered_terms(quantizer, _vector(dimension), buffering, field=field)


def _vector(dimension: int) -> list[Entry]:
    return [Entry("update", (dimension,), "float64")]


def quantizer_of(terms: Terms) -> FixedPoint:
    """The quantizer that the terms name.

    Raises:
        ParameterError: they name none.
    """
    return FixedPoint(terms.clip, terms.fraction_bits, terms.max_weight, cast(Rounding, terms.rounding))


def vector_length(terms: Terms) -> int:
    """d + 1: the coordinates of the layout's entries and the weight."""
    return sum(math.prod(entry.shape) for entry in terms.layout) + 1


def differing_term(own: Terms, found: Terms) -> str | None:
    """The name of the first term that differs, or None."""
    for name in Terms.__struct_fields__:
        if getattr(own, name) != getattr(found, name):
            return name
    return None


def make_member(identity: Identity, run: Run, rank: int, sequence: int, key: bytes) -> Member:
    """A client's entry in a cohort, its round key signed."""
    signature = identity.sign(ROUND_KEY, run.run_id, run.nonce, sequence, key)
    return Member(rank, identity.public, sequence, key, signature)


def is_signed(member: Member, run: Run, verifier: Verifier = verify) -> bool:
    """Whether the member's identity signed its round key for this run."""
    return verifier(
        member.identity, member.signature, ROUND_KEY, run.run_id, run.nonce, member.sequence, member.key
    )


def cohort_flaw(cohort: Sequence[Member]) -> str | None:
    """What is wrong with a cohort's form, or None: ranks ascend, identities and keys are distinct."""
    ranks = [member.rank for member in cohort]
    if ranks != sorted(set(ranks)):
        return "the ranks do not ascend"
    if len({member.identity for member in cohort}) != len(cohort):
        return "an identity stands at two numbers"
    if len({member.key for member in cohort}) != len(cohort):
        return "a round key stands at two numbers"
    return None


def outside_roster(cohort: Sequence[Member], roster: Roster) -> bool:
    """Whether anyone in the cohort is not in the roster under its rank."""
    return not all(roster.admits(member.rank, member.identity) for member in cohort)


def parameters_of(start: RoundStart) -> Parameters:
    """N, U, T of a round.

    Raises:
        ParameterError: they do not fit together, or the field has no room for the sum or the points.
    """
    parameters = Parameters(len(start.cohort), start.target_survivors, start.privacy_threshold)
    quantizer_of(start.terms).check(PrimeField(start.terms.order), parameters.num_clients)
    return parameters


def cohort_digest(run: Run, start: RoundStart) -> bytes:
    """SHA-256 over everything that all clients of a round must see alike (promise 5).

    It salts every share key and stands in every endorsement.
    """
    everything = [
        COHORT_DIGEST,
        PROTOCOL_VERSION,
        run.run_id,
        run.nonce,
        vector_length(start.terms),
        as_plain(start),
    ]
    return hashlib.sha256(msgspec.msgpack.encode(everything)).digest()
