"""Sealed shares open for one receiver, in one round, at one place, as one thing; and for nothing else."""

from __future__ import annotations

import hmac
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg import labels
from lightsecagg.sealing import TAG_BYTES, PairKeys, RoundKey, is_round_key, seal, unseal
from tests.core import oracle
from tests.core.strategies import SOME

DIGEST = oracle.seed_named("digest")
KIND, TOTAL = labels.KIND_ELEMENTS, 300


def key_named(name: str) -> RoundKey:
    return RoundKey(lambda count: oracle.seed_named(name)[:count])


ALICE, BOB, EVE = key_named("alice"), key_named("bob"), key_named("eve")


def pair(digest: bytes = DIGEST, round_number: int = 4, own: int = 1, other: int = 2) -> PairKeys:
    return ALICE.agree(BOB.public, digest, round_number, own, other)


def other_end(digest: bytes = DIGEST, round_number: int = 4, own: int = 2, other: int = 1) -> PairKeys:
    return BOB.agree(ALICE.public, digest, round_number, own, other)


@given(st.binary(max_size=100), st.integers(0, 2**53), st.booleans())
@SOME
def test_a_sealed_part_opens_at_the_other_end(data: bytes, index: int, last: bool) -> None:
    here, there = pair(), other_end()
    sealed = seal(here.outgoing, index, last, data, KIND, TOTAL)
    assert len(sealed) == len(data) + TAG_BYTES
    assert unseal(there.incoming, index, last, sealed, KIND, TOTAL) == data
    assert unseal(there.incoming, index, last, memoryview(sealed), KIND, TOTAL) == data
    back = seal(there.outgoing, index, last, data, KIND, TOTAL)
    assert unseal(here.incoming, index, last, back, KIND, TOTAL) == data
    assert back != sealed


@pytest.mark.parametrize(
    "changed",
    [
        {"index": 2},
        {"index": 4},
        {"index": 3 + 2**32},
        {"last": True},
        {"kind": labels.KIND_SEED},
        {"kind": ""},
        {"total": 299},
        {"total": 301},
        {"total": 0},
    ],
    ids=str,
)
def test_a_part_opens_as_nothing_else(changed: dict[str, Any]) -> None:
    sealed = seal(pair().outgoing, 3, False, b"share", KIND, TOTAL)
    as_it_is = {"index": 3, "last": False, "sealed": sealed, "kind": KIND, "total": TOTAL}
    assert unseal(other_end().incoming, **as_it_is) == b"share"
    assert unseal(other_end().incoming, **(as_it_is | changed)) is None


def test_an_unflagged_last_part_and_a_flagged_earlier_one_do_not_open() -> None:
    here, there = pair().outgoing, other_end().incoming
    unflagged, flagged = seal(here, 1, False, b"end", KIND, TOTAL), seal(here, 0, True, b"begin", KIND, TOTAL)
    assert unseal(there, 1, True, unflagged, KIND, TOTAL) is None
    assert unseal(there, 0, False, flagged, KIND, TOTAL) is None


@pytest.mark.parametrize(
    "receiver",
    [
        pytest.param(lambda: other_end(digest=oracle.seed_named("other")), id="another digest"),
        pytest.param(lambda: other_end(digest=DIGEST[:-1]), id="a shorter digest"),
        pytest.param(lambda: other_end(round_number=5), id="another round"),
        pytest.param(lambda: other_end(own=3), id="another receiver's number"),
        pytest.param(lambda: other_end(other=3), id="another sender's number"),
        pytest.param(lambda: other_end(own=1, other=2), id="the ends exchanged"),
        pytest.param(lambda: EVE.agree(ALICE.public, DIGEST, 4, 2, 1), id="another receiver"),
        pytest.param(lambda: BOB.agree(EVE.public, DIGEST, 4, 2, 1), id="another sender"),
    ],
)
def test_keys_of_anything_else_do_not_open(receiver: Callable[[], PairKeys]) -> None:
    sealed = seal(pair().outgoing, 0, True, b"share", KIND, TOTAL)
    assert unseal(other_end().incoming, 0, True, sealed, KIND, TOTAL) == b"share"
    assert unseal(receiver().incoming, 0, True, sealed, KIND, TOTAL) is None


def test_each_direction_has_a_key_of_its_own_so_nothing_reflects() -> None:
    here, there = pair(), other_end()
    sealed = seal(here.outgoing, 0, True, b"share", KIND, TOTAL)
    assert unseal(here.incoming, 0, True, sealed, KIND, TOTAL) is None
    assert unseal(there.outgoing, 0, True, sealed, KIND, TOTAL) is None


def test_the_keys_are_hkdf_of_the_shared_secret_as_the_design_says() -> None:
    secret = X25519PrivateKey.from_private_bytes(oracle.seed_named("alice")).exchange(
        X25519PublicKey.from_public_bytes(BOB.public)
    )
    extracted = hmac.digest(DIGEST, secret, "sha256")  # RFC 5869, by hand
    for sender, receiver, key in ((1, 2, pair().outgoing), (2, 1, pair().incoming)):
        info = labels.SHARE_KEY + msgspec.msgpack.encode(["", 4, sender, receiver])
        wanted = AESGCM(hmac.digest(extracted, info + b"\x01", "sha256"))
        assert wanted.decrypt(bytes(12), key.encrypt(bytes(12), b"share", None), None) == b"share"


def test_what_is_kept_for_each_of_a_thousand_clients_is_two_bare_keys() -> None:
    keys = pair()
    assert not hasattr(keys, "__dict__")
    kept = [getattr(keys, name) for name in PairKeys.__slots__]
    assert [len(key) for key in kept] == [32, 32]
    assert sys.getsizeof(keys) + sum(map(sys.getsizeof, kept)) < 256


def test_any_changed_bit_and_any_other_length_do_not_open() -> None:
    sealed = seal(pair().outgoing, 0, True, b"share", KIND, TOTAL)
    key = other_end().incoming
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert unseal(key, 0, True, bytes(changed), KIND, TOTAL) is None
    for length in range(len(sealed)):
        assert unseal(key, 0, True, sealed[:length], KIND, TOTAL) is None
    assert unseal(key, 0, True, sealed + b"\0", KIND, TOTAL) is None


class Spy:
    """Records the nonces a key is used with."""

    def __init__(self) -> None:
        self.nonces: list[bytes] = []

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        self.nonces.append(nonce)
        return AESGCM(bytes(32)).encrypt(nonce, data, associated)


def test_no_two_parts_of_a_share_have_one_nonce() -> None:
    spy = Spy()
    for index in (*range(40), 255, 256, 2**32, 2**53):
        for last in (False, True):
            seal(spy, index, last, b"", KIND, TOTAL)  # type: ignore[arg-type]
    assert len(set(spy.nonces)) == len(spy.nonces)
    assert {len(nonce) for nonce in spy.nonces} == {12}
    assert spy.nonces[2] == bytes(10) + b"\x01\x00"
    assert spy.nonces[1] == bytes(11) + b"\x01"


LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]
"""Every point of small order (RFC 7748, section 7; the list is D. J. Bernstein's)."""


@pytest.mark.parametrize("public", LOW_ORDER, ids=lambda public: public.hex()[:8])
def test_a_point_of_small_order_is_no_round_key(public: bytes) -> None:
    assert is_round_key(ALICE.public)
    for point in (public, public[:31] + bytes([public[31] | 0x80])):  # the top bit is ignored by X25519
        assert not is_round_key(point)
        with pytest.raises(ValueError, match=r"shared key"):
            ALICE.agree(point, DIGEST, 4, 1, 2)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_is_no_round_key(length: int) -> None:
    assert not is_round_key(b"\x09" * length)
    with pytest.raises(ValueError, match=r"32 bytes"):
        ALICE.agree(b"\x09" * length, DIGEST, 4, 1, 2)


def test_round_keys_are_x25519_and_fresh_unless_entropy_is_given() -> None:
    assert RoundKey().public != RoundKey().public
    private = X25519PrivateKey.from_private_bytes(oracle.seed_named("alice"))
    assert ALICE.public == private.public_key().public_bytes_raw()
    assert X25519PublicKey.from_public_bytes(ALICE.public)


def test_round_and_pair_keys_print_no_secret() -> None:
    secret = oracle.seed_named("alice")
    shared = X25519PrivateKey.from_private_bytes(secret).exchange(
        X25519PublicKey.from_public_bytes(BOB.public)
    )
    for thing in (ALICE, pair(), [ALICE, pair()], vars(ALICE)):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
            assert shared.hex() not in text
            assert repr(shared)[2:-1] not in text
    assert "<secret>" in repr(ALICE)
    assert "<secret>" in repr(pair())
