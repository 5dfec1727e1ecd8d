"""Identities, what they sign, rosters, and that no secret is ever shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lightsecagg.errors import ConfigError
from lightsecagg.identity import Identity, Roster, decode_key, encode_key, statement, verify
from tests.core import oracle
from tests.core.strategies import MANY

SECRET = oracle.seed_named("identity")
SHOWN = (
    base64.b64encode(SECRET).decode(),
    SECRET.hex(),
    repr(SECRET)[2:-1],
    str(list(SECRET))[1:-1],
)
"""The forms in which a secret might be shown."""


def shows_no_secret(text: str) -> bool:
    return not any(form in text for form in SHOWN)


FIELDS: tuple[bytes | int | str, ...] = (b"nonce", 7, "run", b"")


def test_a_signature_verifies_for_what_was_signed() -> None:
    identity = Identity(SECRET)
    signature = identity.sign("label", *FIELDS)
    assert len(signature) == 64
    assert len(identity.public) == 32
    assert verify(identity.public, signature, "label", *FIELDS)
    assert Identity(SECRET).public == identity.public


@pytest.mark.parametrize(
    ("label", "fields"),
    [
        ("label ", FIELDS),
        ("Label", FIELDS),
        ("label", (b"nonces", 7, "run", b"")),
        ("label", (b"nonce", 8, "run", b"")),
        ("label", (b"nonce", 7, "ran", b"")),
        ("label", (b"nonce", 7, "run", b"\0")),
        ("label", (b"nonce", 7, "run")),
        ("label", (b"nonce", 7, "run", b"", b"")),
        ("label", ("nonce", 7, "run", b"")),  # the same letters, of another type
        ("label", (b"nonce", "7", "run", b"")),
        ("label", (b"noncer", 7, "un", b"")),  # a boundary moved
        ("label", (7, b"nonce", "run", b"")),
        ("labelnonce", (7, "run", b"")),
    ],
)
def test_a_signature_over_anything_else_is_refused(label: str, fields: tuple[bytes | int | str, ...]) -> None:
    identity = Identity(SECRET)
    assert not verify(identity.public, identity.sign("label", *FIELDS), label, *fields)


def test_a_changed_signature_or_key_is_refused_and_never_raises() -> None:
    identity = Identity(SECRET)
    signature = identity.sign("label", *FIELDS)
    for place in range(64):
        changed = bytearray(signature)
        changed[place] ^= 1
        assert not verify(identity.public, bytes(changed), "label", *FIELDS)
    assert not verify(Identity.generate().public, signature, "label", *FIELDS)
    for public in (b"", bytes(31), bytes(33), b"\xff" * 32, identity.public[::-1]):
        assert not verify(public, signature, "label", *FIELDS)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64)):
        assert not verify(identity.public, wrong, "label", *FIELDS)


SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
]
"""Encodings of y of the points whose order divides 8; the top bit is the sign of x."""


def signs(point: bytes) -> tuple[bytes, bytes]:
    return point, point[:31] + bytes([point[31] | 0x80])


@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:4])
def test_a_key_of_small_order_signs_nothing(point: bytes) -> None:
    """For such a key anyone can make signatures: S = 0 and R of small order do, for one message in 8."""
    forgeries = [r + bytes(32) for small in SMALL_ORDER for r in signs(small)]
    for public in signs(point):
        assert not any(verify(public, forged, "label", i) for forged in forgeries for i in range(32))
        with pytest.raises(ConfigError, match="wanted an Ed25519 public key"):
            decode_key(encode_key(public))


fields = st.lists(st.binary(max_size=5) | st.integers(0, 2**63) | st.text(max_size=5), max_size=4)


@given(st.text(max_size=5), fields, st.text(max_size=5), fields)
@MANY
def test_different_statements_never_share_their_bytes(
    label: str, some: list[bytes | int | str], other_label: str, others: list[bytes | int | str]
) -> None:
    assume((label, some) != (other_label, others))
    assert statement(label, *some) != statement(other_label, *others)


def test_generated_identities_differ_and_come_from_the_entropy_given() -> None:
    assert Identity.generate().public != Identity.generate().public
    assert Identity.generate(lambda count: SECRET[:count]).public == Identity(SECRET).public


# Files.


def test_a_saved_identity_comes_back_and_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "id"
    identity = Identity(SECRET)
    old = os.umask(0)
    try:
        identity.save(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    loaded = Identity.load(path)
    assert loaded.public == identity.public
    assert verify(identity.public, loaded.sign("l", 1), "l", 1)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610, 0o601])
def test_an_identity_that_others_can_reach_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "id"
    Identity(SECRET).save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}") as error:
        Identity.load(path)
    assert shows_no_secret(str(error.value))
    path.chmod(0o400)
    assert Identity.load(path).public == Identity(SECRET).public


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "id"
    Identity(SECRET).save(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        Identity.generate().save(path)
    assert path.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="never overwritten"):
        Identity.generate().save(link)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"lightsecagg-identity",
        b"lightsecagg-identity %s extra" % SHOWN[0].encode(),
        b"other-identity %s" % SHOWN[0].encode(),
        b"lightsecagg-identity %s" % SHOWN[0][:-4].encode(),
        b"lightsecagg-identity *%s" % SHOWN[0].encode(),
        b"lightsecagg-identity %s" % SHOWN[1].encode(),
        b"\xff\xfe\x00binary",
    ],
)
def test_a_file_that_is_no_identity_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "id"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=str(path)) as error:
        Identity.load(path)
    assert shows_no_secret(str(error.value))
    assert shows_no_secret(repr(error.value))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    for load in (Identity.load, Roster.load):
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(ConfigError, match=str(path)):
                load(path)


def test_an_identity_prints_its_public_key_and_no_secret() -> None:
    identity = Identity(SECRET)
    for text in (repr(identity), str(identity), f"{identity}", repr([identity]), repr(vars(identity))):
        assert shows_no_secret(text)
    assert encode_key(identity.public) in repr(identity)


# Keys and rosters.


def key(name: str) -> bytes:
    return Identity(oracle.seed_named(name)).public


def test_a_key_as_people_see_it_comes_back() -> None:
    assert decode_key(encode_key(key("a"))) == key("a")
    assert len(encode_key(key("a"))) == 44


@pytest.mark.parametrize("text", ["", "abc", "!" * 44, base64.b64encode(bytes(31)).decode(), "é" * 44])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted an Ed25519 public key"):
        decode_key(text)


def roster_of(tmp_path: Path, *lines: str) -> Roster:
    path = tmp_path / "roster"
    path.write_text("\n".join(lines))
    return Roster.load(path)


def test_a_roster_is_read_line_by_line(tmp_path: Path) -> None:
    roster = roster_of(
        tmp_path,
        "# who takes part",
        "",
        f"1 {encode_key(key('a'))} the hospital on the hill",
        "   ",
        f"  7\t{encode_key(key('b'))}",
        f"#2 {encode_key(key('c'))}",
    )
    assert dict(roster.keys) == {1: key("a"), 7: key("b")}
    assert roster_of(tmp_path).keys == {}


def test_a_roster_admits_an_identity_under_its_own_rank_only(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, f"1 {encode_key(key('a'))}", f"2 {encode_key(key('b'))}")
    assert roster.admits(1, key("a"))
    assert roster.admits(2, key("b"))
    for rank, public in ((2, key("a")), (1, key("b")), (3, key("a")), (1, key("c")), (1, b""), (0, b"")):
        assert not roster.admits(rank, public)


@pytest.mark.parametrize(
    "line",
    [
        "5",
        f"x {encode_key(key('c'))}",
        f"0 {encode_key(key('c'))}",
        f"-1 {encode_key(key('c'))}",
        f"1.5 {encode_key(key('c'))}",
        f"{encode_key(key('c'))} 5",
        "5 nokey",
        f"5 {encode_key(key('c'))[:-1]}",
        f"1 {encode_key(key('c'))}",  # a rank twice
        f"01 {encode_key(key('c'))}",  # a rank twice, written otherwise
        f"5 {encode_key(key('a'))}",  # a key twice
        pytest.param(f"{'9' * 5000} {encode_key(key('c'))}", id="a rank of 5000 digits"),
    ],
)
def test_a_line_that_is_no_entry_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    good = f"1 {encode_key(key('a'))}"
    assert dict(roster_of(tmp_path, "# head", good, "").keys) == {1: key("a")}
    with pytest.raises(ConfigError, match=r"roster:4: "):
        roster_of(tmp_path, "# head", good, "", line)


def test_an_identity_file_pasted_into_a_roster_is_refused_and_not_quoted(tmp_path: Path) -> None:
    """Its author meant the public key; the refusal lands in logs and issues."""
    Identity(SECRET).save(tmp_path / "id")
    with pytest.raises(ConfigError, match=r"roster:1: ") as error:
        roster_of(tmp_path, (tmp_path / "id").read_text())
    assert shows_no_secret(str(error.value))
