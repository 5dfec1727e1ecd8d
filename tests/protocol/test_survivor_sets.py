"""One survivor set and no second one gets any answer (DESIGN §3, promise 3)."""

from __future__ import annotations

import itertools

import pytest

from lightsecagg.errors import Reason
from lightsecagg.identity import Identity
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Ready, What
from lightsecagg.protocol.terms import Floors
from lightsecagg.protocol.transitions import ServerStage
from lightsecagg.protocol.wire import encode, from_server
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, change, collected, reason_of, said

ALL = frozenset(range(1, 6))
STRANGER = Identity(b"\x55" * 32)


def answers_of(scene: Scene, number: int, certificate: bytes) -> list[m.Message]:
    replies = said(scene.clients[number].receive(certificate))
    return [reply for reply in replies if isinstance(reply, m.AggregateEncodedMask)]


@pytest.mark.parametrize("forged_first", [False, True])
@pytest.mark.parametrize("assignment", list(itertools.product((0, 1), repeat=4)))
def test_no_honest_client_answers_a_second_survivor_set(
    assignment: tuple[int, ...], forged_first: bool
) -> None:
    """Whoever is shown which set, with client 5 in the server's pay: one set at most gets any answer."""
    scene = collected()
    sets = (frozenset({1, 2, 3, 4}), frozenset({1, 2, 4, 5}))
    signatures: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
    for number, which in enumerate(assignment, start=1):
        (endorsement,) = said(scene.clients[number].receive(scene.survivor_set(sets[which])))
        assert isinstance(endorsement, m.Endorse)
        signatures[which][number] = endorsement.signature
    for which in (0, 1):
        signatures[which][5] = scene.signatures(sets[which], [5])[0]
    answered: set[int] = set()
    order = sorted((0, 1), key=assignment.count, reverse=not forged_first)
    for which, number in itertools.product(order, range(1, 5)):
        known = signatures[which] | {  # what lacks is filled with signatures over the other set
            other: signature for other, signature in signatures[1 - which].items() if other != 5
        }
        endorsers = sorted(known, key=lambda n: (n not in signatures[which], n))[:4]
        certificate = scene.certificate(sets[which], endorsers, [known[n] for n in sorted(endorsers)])
        if answers_of(scene, number, certificate):
            answered.add(which)
    for which, number in itertools.product((0, 1), range(1, 5)):  # the other set, once more
        replies = said(scene.clients[number].receive(scene.survivor_set(sets[which])))
        assert all(isinstance(reply, m.Leave) for reply in replies)
    # Three honest clients and the bought one are U; a forged certificate makes everybody leave.
    certified = max(assignment.count(0), assignment.count(1)) >= 3
    assert len(answered) == (1 if certified and not forged_first else 0)


def test_everybody_answers_the_one_survivor_set_that_was_certified() -> None:
    scene = collected()
    survivors = frozenset({1, 2, 3, 5})
    for client in scene.clients.values():
        assert [type(reply) for reply in said(client.receive(scene.survivor_set(survivors)))] == [m.Endorse]
    certificate = scene.certificate(survivors, {1, 2, 4, 5})
    assert all(len(answers_of(scene, number, certificate)) == 1 for number in scene.numbers)


def test_a_client_that_signed_leaves_on_another_set_and_on_a_certificate_for_another_set() -> None:
    for lie in ("set", "certificate"):
        scene = collected()
        client = scene.clients[1]
        client.receive(scene.survivor_set({1, 2, 3, 4}))
        other = {1, 2, 3, 5}
        message = scene.survivor_set(other) if lie == "set" else scene.certificate(other, {2, 3, 4, 5})
        assert reason_of(client.receive(message)) is Reason.SECOND_SURVIVOR_SET
        assert client.receive(scene.certificate({1, 2, 3, 4}, {1, 2, 3, 4})) == []


def test_the_same_set_again_is_signed_only_once() -> None:
    scene = collected()
    message = scene.survivor_set(ALL)
    assert len(said(scene.clients[1].receive(message))) == 1
    assert scene.clients[1].receive(message) == []


def test_a_client_that_signed_nothing_answers_on_a_certificate_and_then_signs_nothing_else() -> None:
    scene = collected()
    client = scene.clients[5]
    survivors = frozenset({1, 2, 3, 4})
    assert len(answers_of(scene, 5, scene.certificate(survivors, {1, 2, 3, 4}))) == 1
    assert client.receive(scene.survivor_set(survivors)) == []
    assert reason_of(client.receive(scene.survivor_set(ALL))) is Reason.SECOND_SURVIVOR_SET


def test_a_client_answers_once() -> None:
    scene = collected()
    assert len(answers_of(scene, 2, scene.certificate(ALL, {1, 2, 3, 4}))) == 1
    assert scene.clients[2].receive(scene.certificate(ALL, {1, 2, 3, 4})) == []
    assert scene.clients[2].receive(scene.certificate(ALL, {1, 2, 3, 5})) == []
    other = scene.clients[2].receive(scene.certificate({1, 2, 3, 4}, {1, 2, 3, 4}))
    assert reason_of(other) is Reason.SECOND_SURVIVOR_SET


@pytest.mark.parametrize(
    "bits",
    [b"\x07", b"\x00", b"", b"\x3f", b"\xff", b"\x1f\x00", b"\x1f" + b"\xff" * 127],
    ids=["three", "none", "empty", "beyond N", "far beyond N", "too long", "longest"],
)
def test_a_survivor_set_that_is_too_small_or_no_set_of_this_cohort_is_refused(bits: bytes) -> None:
    scene = collected()
    for message in (
        m.SurvivorSet(1, bits),
        m.Certificate(1, bits, scene.bits({1, 2, 3, 4}), bytes(4 * 64)),
    ):
        client = scene.clients[1] if isinstance(message, m.SurvivorSet) else scene.clients[2]
        actions = client.receive(encode(message))
        assert reason_of(actions) is Reason.BAD_SURVIVOR_SET
        assert [type(reply) for reply in said(actions)] == [m.Leave]


def test_a_survivor_set_of_exactly_target_survivors_is_signed() -> None:
    scene = collected()
    assert isinstance(said(scene.clients[5].receive(scene.survivor_set({1, 2, 3, 4})))[0], m.Endorse)


def test_nobody_signs_or_answers_for_a_client_whose_share_it_lacks() -> None:
    scene = Scene(5, 4, 1)

    def spoil(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        if sender == SERVER and receiver == 1:
            message = from_server(raw)
            if isinstance(message, m.SealedSeed | m.EncodedMask) and message.mask.client == 5:
                flipped = bytes(message.data[:-1]) + bytes([message.data[-1] ^ 1])
                return [encode(change(message, data=memoryview(flipped)))]
        return [raw]

    scene.wire.meddler = spoil
    scene.wire.until(ServerStage.ENDORSING)
    assert reason_of(scene.clients[1].receive(scene.survivor_set(ALL))) is Reason.BAD_SURVIVOR_SET
    assert isinstance(said(scene.clients[2].receive(scene.survivor_set(ALL)))[0], m.Endorse)
    again = Scene(5, 4, 1)
    again.wire.meddler = spoil
    again.wire.until(ServerStage.ENDORSING)
    refused = again.clients[1].receive(again.certificate(ALL, {2, 3, 4, 5}))
    assert reason_of(refused) is Reason.BAD_SURVIVOR_SET
    assert isinstance(said(again.clients[3].receive(again.survivor_set({1, 2, 3, 4})))[0], m.Endorse)


@pytest.mark.parametrize("parts_let_through", [0, 1, 2])
def test_a_client_signs_a_set_with_itself_in_it_only_if_its_upload_was_whole(parts_let_through: int) -> None:
    with short_parts(4):
        scene = Scene(5, 4, 1)  # ten coordinates, three parts
        pulled: list[object] = []

        def hold_back(sender: int, receiver: int, raw: bytes) -> list[bytes]:
            if receiver == 1 and isinstance(from_server(raw), m.UploadGrant):
                sends = iter(scene.clients[1].receive(raw)[0].sends)
                pulled.extend(itertools.islice(sends, parts_let_through))
                return []
            return [raw]

        scene.wire.meddler = hold_back
        scene.wire.until(ServerStage.UPLOADING)
        scene.wire.quiet()
        assert len(pulled) == parts_let_through
        assert reason_of(scene.clients[1].receive(scene.survivor_set(ALL))) is Reason.BAD_SURVIVOR_SET
        assert isinstance(said(scene.clients[2].receive(scene.survivor_set(ALL)))[0], m.Endorse)


def test_a_set_without_it_is_signed_by_a_client_whose_upload_was_not_whole() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.meddler = lambda _, receiver, raw: (
        [] if receiver == 1 and isinstance(from_server(raw), m.UploadGrant) else [raw]
    )
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.quiet()
    assert isinstance(said(scene.clients[1].receive(scene.survivor_set(ALL - {1})))[0], m.Endorse)


def _forged(name: str, scene: Scene) -> bytes:
    good = {1, 2, 3, 4}
    right = dict(zip(sorted(good), scene.signatures(ALL, good), strict=True))
    stranger = STRANGER.sign(ENDORSEMENT, scene.digest, scene.bits(ALL))
    other_set = scene.signatures({1, 2, 3, 4}, [4])[0]
    other_round = scene.identities[4].sign(ENDORSEMENT, bytes(32), scene.bits(ALL))
    other_label = scene.identities[4].sign("lightsecagg/1 hello", scene.digest, scene.bits(ALL))
    match name:
        case "one too few":
            return scene.certificate(ALL, {1, 2, 3})
        case "one too many":
            return scene.certificate(ALL, ALL)
        case "none":
            return scene.certificate(ALL, set())
        case "one signature twice":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], right[3]])
        case "a stranger's signature":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], stranger])
        case "over another set":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], other_set])
        case "over another digest":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], other_round])
        case "under another label":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], other_label])
        case "out of order":
            return scene.certificate(ALL, good, [right[2], right[1], right[3], right[4]])
        case "cut short":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], right[4][:-1]])
        case "one more byte":
            return scene.certificate(ALL, good, [right[1], right[2], right[3], right[4] + b"\0"])
        case "not a member":
            return encode(
                m.Certificate(1, scene.bits(ALL), b"\x27", b"".join([*right.values()][:3]) + stranger)
            )
        case _:
            return encode(m.Certificate(1, scene.bits(ALL), b"\x0f\x00", b"".join(right.values())))


@pytest.mark.parametrize(
    "forgery",
    [
        "one too few",
        "one too many",
        "none",
        "one signature twice",
        "a stranger's signature",
        "over another set",
        "over another digest",
        "under another label",
        "out of order",
        "cut short",
        "one more byte",
        "not a member",
        "a long bitmap",
    ],
)
@pytest.mark.parametrize("has_signed", [True, False])
def test_a_certificate_without_the_signatures_of_enough_distinct_members_gets_no_answer(
    forgery: str, has_signed: bool
) -> None:
    scene = collected()
    client = scene.clients[5]
    if has_signed:
        client.receive(scene.survivor_set(ALL))
    actions = client.receive(_forged(forgery, scene))
    assert reason_of(actions) is Reason.BAD_CERTIFICATE
    assert [type(reply) for reply in said(actions)] == [m.Leave]


def test_where_two_sets_can_be_certified_a_client_that_demands_uniqueness_stays_out() -> None:
    assert not Parameters(4, 2, 1).unique_survivor_set
    strict = Scene(4, 2, 1, floors=Floors(2, 0, unique_survivor_set=True))
    assert reason_of(strict.clients[1].receive(encode(strict.opening))) is Reason.BELOW_FLOOR
    unique = Scene(4, 3, 1, floors=Floors(2, 0, unique_survivor_set=True))
    assert Ready(What.SHARING) in unique.clients[1].receive(encode(unique.opening))
    lax = Scene(4, 2, 1)
    assert Ready(What.SHARING) in lax.clients[1].receive(encode(lax.opening))
