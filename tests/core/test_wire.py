"""Bytes of the wire: every message comes back, and nothing else is ever read, raised or allocated."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.protocol import messages as m
from lightsecagg.protocol import wire
from tests.core import oracle
from tests.core.strategies import FEW, MANY, SOME, messages

SERVER_KINDS: tuple[type[m.Message], ...] = get_args(m.FromServer)
CLIENT_KINDS: tuple[type[m.Message], ...] = get_args(m.FromClient)
ALL_KINDS = tuple(dict.fromkeys(SERVER_KINDS + CLIENT_KINDS))
READERS = {"server": (wire.from_server, SERVER_KINDS), "client": (wire.from_client, CLIENT_KINDS)}

any_message = st.sampled_from(ALL_KINDS).flatmap(messages)


def refusal(read: Any, data: Any) -> Reason:
    with pytest.raises(RemoteProtocolError) as error:
        read(data)
    return error.value.reason


def read_or_refuse(data: Any) -> None:
    """Both readers either give a message or say that the peer sent none."""
    for read, kinds in READERS.values():
        reason = None
        try:
            assert isinstance(read(data), kinds)
        except RemoteProtocolError as error:
            reason = error.reason
        assert reason in (None, Reason.MALFORMED)


def test_every_message_type_of_the_module_is_somebodys() -> None:
    found = {
        kind
        for kind in vars(m).values()
        if isinstance(kind, type) and issubclass(kind, m.Message) and kind is not m.Message
    }
    assert found == set(ALL_KINDS)
    tags = [kind.__struct_config__.tag for kind in ALL_KINDS]
    assert len(set(tags)) == len(tags)
    assert set(SERVER_KINDS) & set(CLIENT_KINDS) == {m.EncodedMask}


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@FEW
def test_a_message_comes_back_from_its_bytes_and_only_in_its_direction(
    kind: type[m.Message], data: st.DataObject
) -> None:
    message = data.draw(messages(kind))
    encoded = wire.encode(message)
    for read, kinds in READERS.values():
        if kind in kinds:
            for buffer in (encoded, bytearray(encoded), memoryview(encoded), memoryview(b"x" + encoded)[1:]):
                found = read(buffer)
                assert type(found) is kind
                assert found == message
        else:
            assert refusal(read, encoded) is Reason.MALFORMED


@given(any_message)
@SOME
def test_every_message_cut_short_or_prolonged_is_refused(message: m.Message) -> None:
    encoded = wire.encode(message)
    for read, _ in READERS.values():
        for length in range(len(encoded)):
            assert refusal(read, encoded[:length]) is Reason.MALFORMED
        for tail in (b"\0", b"\xc0", encoded):
            assert refusal(read, encoded + tail) is Reason.MALFORMED


@given(any_message, st.data())
@SOME
def test_flipped_bits_give_a_message_or_a_refusal(message: m.Message, data: st.DataObject) -> None:
    encoded = bytearray(wire.encode(message))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(encoded) - 1), min_size=1, max_size=20)):
        encoded[bit // 8] ^= 1 << bit % 8
        read_or_refuse(bytes(encoded))


def test_every_single_byte_of_a_round_start_may_be_anything() -> None:
    member = m.Member(1, bytes(32), 0, bytes(32), bytes(64))
    terms = m.Terms("sync", 13, 1.0, 4, 1, "nearest", (m.Entry("w", (2, 3), "float32"),))
    encoded = wire.encode(m.RoundStart(1, terms, 2, 1, (member, member), 5, bytes(32)))
    headers = [*range(60), *range(len(encoded) - 50, len(encoded))]
    for place in headers:
        for value in range(256):
            read_or_refuse(encoded[:place] + bytes([value]) + encoded[place + 1 :])


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=70),
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
tagged = st.tuples(
    st.sampled_from([kind.__struct_config__.tag for kind in ALL_KINDS]), st.lists(trees, max_size=8)
).map(lambda pair: msgspec.msgpack.encode([pair[0], *pair[1]]))


@given(st.binary(max_size=300) | tagged)
@MANY
def test_bytes_that_are_no_message_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    read_or_refuse(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x80",
        b"\x91\xc0",
        b"\x92\x05\xd4\x01\x00",  # an extension type
        b"\x91" * 10**6,  # nested without end
        b"\x92\x02" + b"\x91" * 10**6,
        b"\x81\xa1a" * 10**5,
        b"\x92\x34\xa3\xff\xfe\xfd",  # a string that is no UTF-8
        b"\x92\x17\xcf" + b"\xff" * 8,  # a round of 2^64 − 1
        b"\x92\x17\xff",  # a round of −1
        b"\x92\x17\xcb" + struct.pack(">d", 1.5),
        b"\x92\x17\xcb" + struct.pack(">d", 1e300),
        b"\x92\x17\xcb" + struct.pack(">d", float("nan")),
        b"\x92\x17\xc3",
        b"\x93\x17\x01\x01",  # one field too many
    ],
    ids=lambda data: data[:12].hex(),
)
def test_awkward_bytes_are_malformed(data: bytes) -> None:
    for read, _ in READERS.values():
        assert refusal(read, data) is Reason.MALFORMED


def test_a_refusal_never_quotes_what_was_sent() -> None:
    secret = oracle.seed_named("quoted").hex()[:40]
    for data in (
        msgspec.msgpack.encode([51, 3, secret]),
        msgspec.msgpack.encode([52, secret * 10]),
        msgspec.msgpack.encode([secret]),
        msgspec.msgpack.encode({secret: secret}),
    ):
        for read, _ in READERS.values():
            with pytest.raises(RemoteProtocolError) as error:
                read(data)
            assert secret not in str(error.value)
            assert error.value.__suppress_context__


def test_numbers_out_of_their_bounds_are_refused_and_the_bounds_taken() -> None:
    """MaskName.client is 1..1024; counts are below 2^53; keys, hashes and signatures have one length."""

    def share(client: int, receiver: int) -> bytes:
        return msgspec.msgpack.encode([22, [client, 0, 0], receiver, 0, b""])

    for client, receiver in ((1, 1), (1024, 1024)):
        assert wire.from_client(share(client, receiver)).receiver == receiver  # type: ignore[union-attr]
    for client, receiver in ((0, 1), (1, 0), (1025, 1), (1, 1025), (-1, 1)):
        assert refusal(wire.from_client, share(client, receiver)) is Reason.MALFORMED
    for count, fine in ((0, True), (2**53 - 1, True), (2**53, False), (-1, False)):
        data = msgspec.msgpack.encode([30, count])
        if fine:
            assert wire.from_client(data) == m.UpdateReady(count)
        else:
            assert refusal(wire.from_client, data) is Reason.MALFORMED
    for length in (63, 65, 0):
        assert refusal(wire.from_client, msgspec.msgpack.encode([41, 1, bytes(length)])) is Reason.MALFORMED
    assert wire.from_client(msgspec.msgpack.encode([41, 1, bytes(64)])) == m.Endorse(1, bytes(64))


# Sizes.


def test_the_longest_message_is_taken_and_one_byte_more_is_not() -> None:
    header = len(wire.encode(m.MaskedUpdate(1, 1, 1, memoryview(bytes(2**17))))) - 2**17
    data = bytes(wire.MAX_MESSAGE - header)
    longest = wire.encode(m.MaskedUpdate(1, 1, 1, memoryview(data)))
    assert len(longest) == wire.MAX_MESSAGE
    assert wire.from_client(longest).data == data  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="MaskedUpdate"):
        wire.encode(m.MaskedUpdate(1, 1, 1, memoryview(data + b"\0")))
    too_long = msgspec.msgpack.encode(m.MaskedUpdate(1, 1, 1, memoryview(data + b"\0")))
    assert refusal(wire.from_client, too_long) is Reason.MALFORMED  # for its length alone
    for read, _ in READERS.values():
        assert refusal(read, longest + b"\0") is Reason.MALFORMED
        assert refusal(read, bytes(10 * wire.MAX_MESSAGE)) is Reason.MALFORMED


def test_a_whole_part_fits_in_a_message_with_the_largest_header() -> None:
    largest = 2**53 - 1
    data = memoryview(bytes(wire.PART_BYTES + 16))
    name = m.MaskName(1024, largest, largest)
    for message in (
        m.EncodedMask(name, 1024, largest, data),
        m.ModelPart(largest, largest, data),
        m.MaskedUpdate(largest, largest, largest, data),
        m.AggregateEncodedMask(largest, largest, data),
        m.SealedSeeds(name, memoryview(bytes(1023 * 48))),
        m.Certificate(largest, bytes(128), bytes(128), bytes(1024 * 64)),
    ):
        assert len(wire.encode(message)) <= wire.MAX_MESSAGE


def test_a_cohort_of_1024_fits_in_a_message() -> None:
    member = m.Member(2**31 - 1, bytes(32), 2**53 - 1, bytes(32), bytes(64))
    entries = tuple(m.Entry(f"layer{i}.weight", (512, 512, 3, 3), "float32") for i in range(1000))
    terms = m.Terms("sync", 2**32 - 5, 8.0, 16, 1000, "nearest", entries)
    start = m.RoundStart(2**53 - 1, terms, 1024, 1023, (member,) * 1024, 2**53 - 1, bytes(32))
    assert wire.from_server(wire.encode(start)) == start


ARRAY, MAP, BIN, STR = b"\xdd", b"\xdf", b"\xc6", b"\xdb"
ENDLESS = b"\xff" * 4


def pack(*values: Any) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, values))


HELLO = b"\x98" + pack(2, "run", 1, 1, bytes(32))
TERMS = b"\x97" + pack("sync", 13, 1.0, 4, 1, "nearest")
CLAIMS = {
    "the message": ARRAY + ENDLESS,
    "the message, as a map": MAP + ENDLESS,
    "a layout": HELLO + pack({}) + ARRAY + ENDLESS,
    "settings": HELLO + MAP + ENDLESS,
    "a shape": HELLO + pack({}) + b"\x91\x93" + pack("w") + ARRAY + ENDLESS,
    "a run's name": b"\x98\x02" + STR + ENDLESS,
    "an identity": b"\x98" + pack(2, "run", 1, 1) + BIN + ENDLESS,
    "a cohort": b"\x98" + pack(10, 1) + TERMS + pack([]) + pack(2, 1) + ARRAY + ENDLESS,
    "terms": b"\x98" + pack(10, 1) + TERMS + ARRAY + ENDLESS,
    "a share": b"\x95" + pack(22, [1, 1, 1], 1, 1) + BIN + ENDLESS,
    "a masked update": b"\x95" + pack(32, 1, 1, 1) + BIN + ENDLESS,
    "signatures": b"\x95" + pack(42, 1, b"", b"") + BIN + ENDLESS,
    "an unknown tag's field": b"\x92" + pack(99) + ARRAY + ENDLESS,
    "an extra field": b"\x94" + pack(24, 1, b"") + ARRAY + ENDLESS,
}


@pytest.mark.parametrize("where", CLAIMS)
@pytest.mark.parametrize("padding", [0, 4096])
def test_a_claim_of_4_billion_items_is_refused_and_allocates_nothing(where: str, padding: int) -> None:
    data = CLAIMS[where] + b"\xc0" * padding
    for read, _ in READERS.values():
        tracemalloc.start()
        try:
            assert refusal(read, data) is Reason.MALFORMED
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2**18, f"{where}: {peak} bytes"


def test_the_longest_message_of_nothing_but_items_stays_small_in_memory() -> None:
    """A megabyte of one-byte items must not become a hundred of Python objects."""
    count = wire.MAX_MESSAGE - 100
    for where in ("a layout", "a shape", "the message", "terms", "an extra field"):
        data = CLAIMS[where][:-4] + struct.pack(">I", count) + b"\x00" * count
        tracemalloc.start()
        try:
            read_or_refuse(data[: wire.MAX_MESSAGE])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 16 * wire.MAX_MESSAGE, where


# Bitmaps, parts and rounds.


@given(st.integers(1, 1024).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(1, n), max_size=40))))
@SOME
def test_bitmaps_come_back(case: tuple[int, set[int]]) -> None:
    n, numbers = case
    bits = m.bitmap(numbers, n)
    assert len(bits) == (n + 7) // 8
    assert [
        number for number in range(1, n + 1) if bits[(number - 1) // 8] >> (number - 1) % 8 & 1
    ] == sorted(numbers)
    assert m.members(bits, n) == numbers


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 1023, 1024])
def test_bitmaps_of_another_length_or_with_bits_beyond_n_are_refused(n: int) -> None:
    everyone = m.bitmap(set(range(1, n + 1)), n)
    assert m.members(everyone, n) == frozenset(range(1, n + 1))
    assert m.members(bytes(len(everyone)), n) == frozenset()
    for wrong in (everyone + b"\0", everyone[:-1], b""):
        assert m.members(wrong, n) is None
    for bit in range(n, 8 * len(everyone)):
        assert m.members(m.bitmap({bit + 1}, 8 * len(everyone)), n) is None


@given(st.integers(0, 10**7), st.integers(1, 10**6))
@SOME
def test_parts_make_up_the_whole_and_only_the_last_is_shorter(length: int, part: int) -> None:
    count = wire.part_count(length, part)
    if count < 1000:
        lengths = [wire.part_length(length, part, index) for index in range(count)]
        assert sum(lengths) == length
        assert all(found == part for found in lengths[:-1])
        assert all(found > 0 for found in lengths)


@pytest.mark.parametrize("p", oracle.PRIMES)
def test_parts_hold_whole_expansion_blocks_and_fit(p: int) -> None:
    field = PrimeField(p)
    count = wire.part_elements(field)
    assert count > 0
    assert count % oracle.BLOCK == 0
    assert count * field.element_bytes <= wire.PART_BYTES < (count + oracle.BLOCK) * field.element_bytes


@given(any_message)
@SOME
def test_every_message_says_its_round_or_belongs_to_the_run(message: m.Message) -> None:
    found = m.round_of(message)
    if hasattr(message, "mask"):
        assert found == message.mask.version
    else:
        assert found == getattr(message, "round", None)
    names = {name for name in type(message).__struct_fields__ if name in ("mask", "round")}
    assert (found is None) == (not names)


def test_parts_are_views_of_the_message_and_not_copies() -> None:
    encoded = wire.encode(m.MaskedUpdate(1, 2, 3, memoryview(bytes(2**20))))
    tracemalloc.start()
    try:
        found = wire.from_client(encoded)
        assert tracemalloc.get_traced_memory()[1] < 2**17
    finally:
        tracemalloc.stop()
    assert isinstance(found, m.MaskedUpdate)
    assert found.data.obj is encoded
