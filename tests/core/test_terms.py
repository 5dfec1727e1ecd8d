"""What the clients of a round must see alike: any difference changes the digest or is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given

from lightsecagg.errors import ParameterError
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.messages import Buffering, Entry, Member, RoundStart, Terms
from lightsecagg.protocol.terms import (
    Run,
    cohort_digest,
    cohort_flaw,
    differing_term,
    is_signed,
    make_member,
    make_terms,
    outside_roster,
    parameters_of,
    quantizer_of,
    vector_length,
    vector_terms,
)
from lightsecagg.quantize import FixedPoint
from lightsecagg.sealing import RoundKey
from tests.core import oracle
from tests.core.strategies import SOME, messages

RUN = Run("my_run", oracle.seed_named("run nonce"))
LAYOUT = (
    Entry("layer.weight", (3, 4), "float32"),
    Entry("layer.bias", (3,), "float64"),
    Entry("t", (), "f4"),
)
IDENTITIES = [Identity(oracle.seed_named(f"identity {i}")) for i in range(5)]
KEYS = [RoundKey(lambda count, i=i: oracle.seed_named(f"round key {i}")[:count]).public for i in range(5)]
COHORT = tuple(
    make_member(identity, RUN, rank, 3, key)
    for rank, (identity, key) in enumerate(zip(IDENTITIES, KEYS, strict=True), start=1)
)
TERMS = make_terms(FixedPoint(8.0, 16, 1000), LAYOUT, num_clients=5)
START = RoundStart(7, TERMS, 4, 1, COHORT, 1000, oracle.seed_named("model"))


def changed(thing: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(thing, **fields)


def with_terms(**fields: Any) -> RoundStart:
    found: RoundStart = changed(START, terms=changed(TERMS, **fields))
    return found


def with_member(number: int, **fields: Any) -> RoundStart:
    cohort = list(COHORT)
    cohort[number] = changed(cohort[number], **fields)
    found: RoundStart = changed(START, cohort=tuple(cohort))
    return found


BUFFERING = Buffering(6, 4, 1, 3, (4, 2, 1))

OTHER_STARTS = {
    "round": changed(START, round=8),
    "U": changed(START, target_survivors=5),
    "T": changed(START, privacy_threshold=2),
    "model length": changed(START, model_length=1001),
    "model hash": changed(START, model_hash=bytes(32)),
    "mode": with_terms(mode="plain"),
    "field": with_terms(order=2**31 - 1),
    "clip": with_terms(clip=8.000000000000002),
    "fraction bits": with_terms(fraction_bits=15),
    "max weight": with_terms(max_weight=1001),
    "rounding": with_terms(rounding="stochastic"),
    "what the application adds": with_terms(application=bytes(31) + b"x"),
    "what an asynchronous run adds": with_terms(buffering=BUFFERING),
    "an entry's name": with_terms(layout=(changed(LAYOUT[0], name="layer.weights"), *LAYOUT[1:])),
    "an entry's shape": with_terms(layout=(changed(LAYOUT[0], shape=(4, 3)), *LAYOUT[1:])),
    "an entry's dtype": with_terms(layout=(changed(LAYOUT[0], dtype="float16"), *LAYOUT[1:])),
    "the entries' order": with_terms(layout=LAYOUT[::-1]),
    "one entry fewer": with_terms(layout=LAYOUT[:-1]),
    "a rank": with_member(4, rank=6),
    "an identity": with_member(1, identity=bytes(32)),
    "a sequence": with_member(2, sequence=4),
    "a key": with_member(0, key=bytes(32)),
    "a signature": with_member(3, signature=bytes(64)),
    "the cohort's order": changed(START, cohort=COHORT[::-1]),
    "one client fewer": changed(START, cohort=COHORT[:-1]),
}


@pytest.mark.parametrize("difference", OTHER_STARTS)
def test_any_difference_in_the_round_changes_the_digest(difference: str) -> None:
    digest = cohort_digest(RUN, START)
    assert len(digest) == 32
    assert cohort_digest(Run("my_run", RUN.nonce), msgspec.structs.replace(START)) == digest
    assert cohort_digest(RUN, OTHER_STARTS[difference]) != digest


def test_the_differences_tried_are_all_there_are() -> None:
    assert (
        len(RoundStart.__struct_fields__)
        + len(Terms.__struct_fields__)
        + len(Member.__struct_fields__)
        + len(Entry.__struct_fields__)
        == 7 + 9 + 5 + 3
    )
    assert len({cohort_digest(RUN, start) for start in OTHER_STARTS.values()}) == len(OTHER_STARTS)


def test_another_run_has_another_digest() -> None:
    digests = {
        cohort_digest(run, START)
        for run in (RUN, Run("my_ru", RUN.nonce), Run("my_run", bytes(32)), Run("my_runn", RUN.nonce))
    }
    assert len(digests) == 4


@given(messages(RoundStart), messages(RoundStart))
@SOME
def test_different_rounds_have_different_digests(some: RoundStart, other: RoundStart) -> None:
    assume(max(vector_length(some.terms), vector_length(other.terms)) < 2**63)  # else no client's own
    assert (cohort_digest(RUN, some) == cohort_digest(RUN, other)) == (
        msgspec.msgpack.encode(some) == msgspec.msgpack.encode(other)
    )


# Members.


def test_a_member_is_signed_for_its_run_sequence_and_key_by_its_identity() -> None:
    member = COHORT[0]
    assert is_signed(member, RUN)
    assert not is_signed(member, Run("other", RUN.nonce))
    assert not is_signed(member, Run("my_run", bytes(32)))
    for fields in (
        {"sequence": 4},
        {"key": KEYS[1]},
        {"identity": IDENTITIES[1].public},
        {"signature": COHORT[1].signature},
        {"signature": bytes(64)},
        {"identity": bytes(32)},
    ):
        assert not is_signed(changed(member, **fields), RUN)


def test_a_cohort_of_distinct_ascending_members_has_no_flaw() -> None:
    assert cohort_flaw(COHORT) is None
    assert cohort_flaw(COHORT[1::2]) is None


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        (COHORT[::-1], "ascend"),
        ((COHORT[0], COHORT[0]), "ascend"),
        ((COHORT[0], changed(COHORT[1], rank=1)), "ascend"),
        ((COHORT[0], changed(COHORT[1], identity=COHORT[0].identity)), "identity"),
        ((COHORT[0], COHORT[1], changed(COHORT[2], key=COHORT[0].key)), "key"),
    ],
)
def test_a_flaw_of_a_cohort_is_named(cohort: tuple[Member, ...], words: str) -> None:
    assert words in (cohort_flaw(cohort) or "")


def test_everyone_must_stand_in_the_roster_under_the_own_rank() -> None:
    keys = {rank: identity.public for rank, identity in enumerate(IDENTITIES, start=1)}
    assert not outside_roster(COHORT, Roster(keys))
    assert not outside_roster(COHORT[:2], Roster(keys))
    assert outside_roster(COHORT, Roster({rank: keys[rank] for rank in (1, 2, 3, 4)}))
    assert outside_roster(COHORT, Roster({**keys, 1: keys[2], 2: keys[1]}))
    assert outside_roster(COHORT, Roster({}))


# Terms.


def test_the_vector_is_as_long_as_all_entries_and_the_weight() -> None:
    assert vector_length(TERMS) == 3 * 4 + 3 + 1 + 1
    assert vector_length(vector_terms(FixedPoint(8.0, 16, 1), 50, num_clients=3)) == 51
    assert vector_length(changed(TERMS, layout=())) == 1
    assert vector_length(changed(TERMS, layout=(Entry("none", (4, 0), "float32"),))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "plain"),
        ("order", 2**31 - 1),
        ("clip", 4.0),
        ("fraction_bits", 3),
        ("max_weight", 5),
        ("rounding", "stochastic"),
        ("layout", LAYOUT[:1]),
        ("application", bytes(31) + b"x"),
        ("buffering", BUFFERING),
    ],
)
def test_a_term_that_differs_is_named(name: str, value: Any) -> None:
    assert differing_term(TERMS, msgspec.structs.replace(TERMS)) is None
    assert differing_term(TERMS, changed(TERMS, **{name: value})) == name
    assert {
        "mode",
        "order",
        "clip",
        "fraction_bits",
        "max_weight",
        "rounding",
        "layout",
        "application",
        "buffering",
    } == set(Terms.__struct_fields__)


def test_terms_take_the_smallest_field_or_the_one_given_if_it_holds_the_sum() -> None:
    quantizer = FixedPoint(8.0, 16, 1000)
    assert TERMS.order == 2**24 - 3
    assert make_terms(quantizer, LAYOUT, num_clients=5, field=PrimeField(2**31 - 1)).order == 2**31 - 1
    with pytest.raises(ParameterError, match="smallest supported prime that can is 16777213"):
        make_terms(quantizer, LAYOUT, num_clients=5, field=PrimeField(32749))
    assert quantizer_of(TERMS) == quantizer
    with pytest.raises(ParameterError):
        quantizer_of(changed(TERMS, rounding="up"))


def test_the_numbers_of_a_round_are_its_cohorts() -> None:
    assert parameters_of(START) == Parameters(5, 4, 1)


@pytest.mark.parametrize(
    "start",
    [
        changed(START, target_survivors=6),
        changed(START, privacy_threshold=4),
        with_terms(order=2**24 - 1),
        with_terms(order=32749),
        with_terms(order=2**40),
        with_terms(clip=float("nan")),
        with_terms(clip=float("inf")),
        with_terms(clip=-1.0),
        with_terms(fraction_bits=31),
        with_terms(max_weight=0),
        with_terms(rounding=""),
        with_terms(clip=1e308),
    ],
)
def test_numbers_of_a_round_that_cannot_work_are_refused(start: RoundStart) -> None:
    with pytest.raises(ParameterError):
        parameters_of(start)


@given(messages(RoundStart))
@SOME
def test_any_round_start_that_can_be_read_gives_parameters_or_a_refusal(start: RoundStart) -> None:
    try:
        found = parameters_of(start)
    except ParameterError:
        return
    assert found.num_clients == len(start.cohort)
