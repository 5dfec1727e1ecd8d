"""What a client lets a server do to it (DESIGN §3): nothing but the one sum that it signed for."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RoundAborted
from lightsecagg.identity import Identity
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Aborted, Ready, What
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.terms import Floors, Run, make_member
from lightsecagg.protocol.transitions import ClientStage, ServerStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.faults import STAGES
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, reason_of, said

change = msgspec.structs.replace
ALL = frozenset(range(1, 6))
STRANGER = Identity(b"\x55" * 32)


def collected(**options) -> Scene:
    """Five clients (U = 4, T = 1), every update in; the server is about to announce S."""
    scene = Scene(5, 4, 1, **options)
    scene.wire.until(ServerStage.ENDORSING)
    assert all(client.stage is ClientStage.CANDIDATES for client in scene.clients.values())
    return scene


def answers_of(scene: Scene, number: int, certificate: bytes) -> list[m.Message]:
    replies = said(scene.clients[number].receive(certificate))
    return [reply for reply in replies if isinstance(reply, m.AggregateEncodedMask)]


# One survivor set.


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
        for shown in (which, 1 - which):  # the server tries the other set on everybody as well
            for reply in said(scene.clients[number].receive(scene.survivor_set(sets[shown]))):
                if isinstance(reply, m.Endorse):
                    assert shown == which
                    signatures[shown][number] = reply.signature
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


# One view.


def _another_model(start: m.RoundStart) -> m.RoundStart:
    return change(start, model_hash=bytes(32))


def _another_member(start: m.RoundStart) -> m.RoundStart:
    run = Scene().protocol_run
    key = bytes(range(1, 33))
    return change(start, cohort=(*start.cohort[:-1], make_member(STRANGER, run, 5, 1, key)))


ANOTHER_VIEW: dict[str, Callable[[m.RoundStart], m.RoundStart]] = {
    "model": _another_model,
    "model length": lambda start: change(start, model_length=start.model_length + 1),
    "member": _another_member,
    "N": lambda start: change(start, cohort=start.cohort[:-1]),
    "U": lambda start: change(start, target_survivors=5),
    "T": lambda start: change(start, privacy_threshold=0),
    "round": lambda start: change(start, round=start.round + 1),
}


@pytest.mark.parametrize("what", ANOTHER_VIEW)
def test_a_client_that_is_shown_something_else_can_open_nobodys_shares(what: str) -> None:
    scene = Scene(5, 4, 1)
    victim = scene.clients[3]

    def lie(_: int, receiver: int, raw: bytes) -> list[bytes]:
        if receiver != 3:
            return [raw]
        message = from_server(raw)
        return [encode(ANOTHER_VIEW[what](message)) if isinstance(message, m.RoundStart) else raw]

    scene.wire.meddler = lie
    held: dict[int, frozenset[int]] = {}
    while scene.server.stage is not ServerStage.UPLOADING:
        if victim.stage is ClientStage.SHARING and victim._running is not None:
            held[3] = victim._running.holding.held
        scene.wire.one()
    for sender, _, raw in scene.wire.traffic:
        if sender != SERVER and isinstance(message := from_client(raw), m.SharesHeld):
            held[sender] = m.members(message.held, 5) or frozenset()
    assert held.pop(3) == {3}
    assert held == dict.fromkeys([1, 2, 4, 5], ALL - {3})
    assert scene.finish().survivors == (1, 2, 4, 5)


def test_clients_that_are_shown_the_same_open_everybodys_shares() -> None:
    scene = Scene(5, 4, 1)
    scene.finish()
    for number in scene.numbers:
        (report,) = scene.wire.sent_by(number, m.SharesHeld)
        assert m.members(report.held, 5) == ALL


def test_the_digest_covers_the_run_and_everything_in_the_opening() -> None:
    from lightsecagg.protocol.terms import cohort_digest

    scene = Scene(5, 4, 1)
    start, run = scene.opening, scene.protocol_run
    views = {cohort_digest(run, ANOTHER_VIEW[what](start)) for what in ANOTHER_VIEW}
    views |= {
        cohort_digest(run, start),
        cohort_digest(Run("another", run.nonce), start),
        cohort_digest(Run(run.run_id, bytes(32)), start),
    }
    views |= {
        cohort_digest(run, change(start, terms=change(start.terms, **{name: value})))
        for name, value in OTHER_TERMS.items()
    }
    for name, value in {"rank": 9, "identity": bytes(32), "sequence": 9, "key": bytes(32)}.items():
        member = change(start.cohort[-1], **{name: value})
        views.add(cohort_digest(run, change(start, cohort=(*start.cohort[:-1], member))))
    assert len(views) == len(ANOTHER_VIEW) + 3 + len(OTHER_TERMS) + 4


# The client's own settings protect it.

OTHER_TERMS = {
    "mode": "async",
    "order": 2**31 - 1,
    "clip": 4.0,
    "fraction_bits": 9,
    "max_weight": 99,
    "rounding": "stochastic",
    "layout": (m.Entry("update", (3, 3), "float64"),),
}


def refuses(scene: Scene, start: m.RoundStart, reason: Reason, *, client: ClientRound | None = None) -> bool:
    """The client leaves for this reason, has said nothing but Leave, and can be made to do nothing."""
    client = client or scene.clients[1]
    actions = client.receive(encode(start))
    assert [type(reply) for reply in said(actions)] == [m.Leave]
    with pytest.raises(LocalProtocolError):
        client.shares()
    with pytest.raises(LocalProtocolError):
        client.upload(scene.update(1))
    assert client.receive(encode(scene.opening)) == []
    return reason_of(actions) is reason


def test_the_honest_opening_is_accepted() -> None:
    scene = Scene(5, 4, 1, with_roster=True, floors=Floors(5, 1, unique_survivor_set=True))
    assert scene.clients[1].receive(encode(scene.opening)) == [Ready(What.SHARING)]


@pytest.mark.parametrize("name", OTHER_TERMS)
def test_terms_other_than_its_own_are_refused(name: str) -> None:
    scene = Scene(5, 4, 1)
    terms = change(scene.opening.terms, **{name: OTHER_TERMS[name]})
    assert refuses(scene, change(scene.opening, terms=terms), Reason.TERMS_DIFFER)


@pytest.mark.parametrize(
    ("floors", "accepted"),
    [
        (Floors(5, 1), True),
        (Floors(6, 1), False),
        (Floors(2, 2), False),
        (Floors(2, 0, max_model_bytes=16), True),
        (Floors(2, 0, max_model_bytes=15), False),
    ],
)
def test_a_round_below_the_clients_floors_is_refused(floors: Floors, accepted: bool) -> None:
    scene = Scene(5, 4, 1, floors=floors)
    if accepted:
        assert Ready(What.SHARING) in scene.clients[1].receive(encode(scene.opening))
    else:
        assert refuses(scene, scene.opening, Reason.BELOW_FLOOR)


def test_by_default_a_client_refuses_no_privacy_and_cohorts_of_two() -> None:
    scene = Scene(5, 4, 1, floors=Floors())
    assert refuses(scene, change(scene.opening, privacy_threshold=0), Reason.BELOW_FLOOR)
    pair = Scene(2, 2, 1, floors=Floors())
    assert refuses(pair, pair.opening, Reason.BELOW_FLOOR)
    enough = Scene(3, 3, 1, floors=Floors())
    assert Ready(What.SHARING) in enough.clients[1].receive(encode(enough.opening))


def _cohort(scene: Scene, flaw: str) -> tuple[tuple[m.Member, ...], Reason]:
    one, two, three, four, five = scene.cohort
    run, own_key = scene.protocol_run, five.key
    match flaw:
        case "one identity at two numbers":
            return (
                one,
                two,
                three,
                four,
                make_member(scene.identities[4], run, 5, 1, own_key),
            ), Reason.BAD_COHORT
        case "one key at two numbers":
            return (
                one,
                two,
                three,
                four,
                make_member(scene.identities[5], run, 5, 1, four.key),
            ), Reason.BAD_COHORT
        case "ranks descend":
            return (one, two, three, five, four), Reason.BAD_COHORT
        case "one rank twice":
            return (
                one,
                two,
                three,
                four,
                make_member(scene.identities[5], run, 4, 1, own_key),
            ), Reason.BAD_COHORT
        case "a key that its identity did not sign":
            return (one, two, three, four, change(five, key=bytes(31) + b"\x09")), Reason.BAD_SIGNATURE
        case "a signature of another run":
            other = make_member(scene.identities[5], Run("other", run.nonce), 5, 1, own_key)
            return (one, two, three, four, other), Reason.BAD_SIGNATURE
        case "a signature of another run nonce":
            other = make_member(scene.identities[5], Run(run.run_id, bytes(32)), 5, 1, own_key)
            return (one, two, three, four, other), Reason.BAD_SIGNATURE
        case "a signature over another sequence":
            return (one, two, three, four, change(five, sequence=7)), Reason.BAD_SIGNATURE
        case "an identity that is no curve point":
            return (one, two, three, four, change(five, identity=b"\xff" * 32)), Reason.BAD_SIGNATURE
        case "a key of small order":
            return (
                one,
                two,
                three,
                four,
                make_member(scene.identities[5], run, 5, 1, bytes(32)),
            ), Reason.BAD_COHORT
        case "without the client":
            return (two, three, four, five), Reason.NOT_MY_KEY
        case "another key of the client's identity":
            mine = make_member(scene.identities[1], run, 1, 1, own_key[::-1])
            return (mine, two, three, four, five), Reason.NOT_MY_KEY
        case _:
            stolen = make_member(STRANGER, run, 1, 1, one.key)
            return (stolen, two, three, four, five), Reason.NOT_MY_KEY


@pytest.mark.parametrize(
    "flaw",
    [
        "one identity at two numbers",
        "one key at two numbers",
        "ranks descend",
        "one rank twice",
        "a key that its identity did not sign",
        "a signature of another run",
        "a signature of another run nonce",
        "a signature over another sequence",
        "an identity that is no curve point",
        "a key of small order",
        "without the client",
        "another key of the client's identity",
        "its key under another identity",
    ],
)
def test_a_cohort_that_is_not_of_distinct_signed_members_with_itself_is_refused(flaw: str) -> None:
    scene = Scene(5, 4, 1)
    cohort, reason = _cohort(scene, flaw)
    assert refuses(scene, change(scene.opening, cohort=cohort), reason)


@pytest.mark.parametrize("with_roster", [True, False])
def test_a_stranger_in_the_cohort_is_refused_by_a_client_with_a_roster(with_roster: bool) -> None:
    scene = Scene(5, 4, 1, with_roster=with_roster)
    start = _another_member(scene.opening)
    if with_roster:
        assert refuses(scene, start, Reason.UNKNOWN_IDENTITY)
    else:
        assert Ready(What.SHARING) in scene.clients[1].receive(encode(start))


def test_a_roster_member_under_another_rank_is_refused() -> None:
    scene = Scene(5, 4, 1, with_roster=True)
    five = scene.cohort[4]
    moved = make_member(scene.identities[5], scene.protocol_run, 6, five.sequence, five.key)
    start = change(scene.opening, cohort=(*scene.opening.cohort[:-1], moved))
    assert refuses(scene, start, Reason.UNKNOWN_IDENTITY)


@pytest.mark.parametrize("numbers", [(5, 5), (3, 4), (1, 0)])
def test_numbers_that_do_not_fit_together_are_refused(numbers: tuple[int, int]) -> None:
    scene = Scene(5, 4, 1, floors=Floors(2, 0))
    threshold, survivors = numbers
    start = change(scene.opening, target_survivors=max(1, survivors), privacy_threshold=threshold)
    if threshold < survivors:
        assert Ready(What.SHARING) in scene.clients[1].receive(encode(start))
    else:
        assert refuses(scene, start, Reason.BAD_COHORT)


def test_a_cohort_too_large_for_the_field_is_refused() -> None:
    scene = Scene(5, 4, 1)
    room = scene.field.order // (2 * scene.quantizer.largest_coordinate)
    assert room < 1024  # 16 bits of clip in 24 bits of field
    run = scene.protocol_run
    others = tuple(
        make_member(Identity(i.to_bytes(32, "big")), run, i, 1, (i * 2**200).to_bytes(32, "big"))
        for i in range(6, room + 2)
    )
    start = change(scene.opening, cohort=(*scene.opening.cohort, *others))
    assert len(start.cohort) == room + 1
    assert refuses(scene, start, Reason.BAD_COHORT)


@pytest.mark.parametrize(("seen", "accepted"), [(4, True), (5, False), (6, False)])
def test_a_round_number_is_used_once(seen: int, accepted: bool) -> None:
    scene = Scene(5, 4, 1, round_number=5, after_round=seen)
    if accepted:
        assert Ready(What.SHARING) in scene.clients[1].receive(encode(scene.opening))
    else:
        assert refuses(scene, scene.opening, Reason.STALE_ROUND)


def test_a_replayed_opening_finds_no_key_after_a_restart() -> None:
    scene = Scene(5, 4, 1)
    opening = encode(scene.opening)
    assert Ready(What.SHARING) in scene.clients[1].receive(opening)
    restarted = scene.new_client(1, sequence=2)
    assert reason_of(restarted.receive(opening)) is Reason.NOT_MY_KEY
    same_sequence = scene.new_client(1)
    assert reason_of(same_sequence.receive(opening)) is Reason.NOT_MY_KEY


def test_a_second_opening_in_a_running_round_makes_the_client_leave() -> None:
    for number in (1, 2):
        scene = Scene(5, 4, 1)
        scene.clients[1].receive(encode(scene.opening))
        again = encode(change(scene.opening, round=number))
        assert reason_of(scene.clients[1].receive(again)) is Reason.PROTOCOL_VIOLATION
        with pytest.raises(LocalProtocolError):
            scene.clients[1].shares()


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_a_server_that_starts_plain_averaging_gets_no_update(stage: ServerStage | None) -> None:
    scene = Scene(5, 4, 1)
    if stage is not None:
        scene.wire.until(stage)
    client = scene.clients[1]
    model = scene.model
    for plain in (
        m.PlainStart(1, len(model), scene.opening.model_hash),
        m.PlainStart(9, len(model), scene.opening.model_hash),
    ):
        actions = client.receive(encode(plain))
        assert all(isinstance(reply, m.Leave) for reply in said(actions))
    assert client.stage is ClientStage.OVER
    with pytest.raises(LocalProtocolError):
        client.upload(scene.update(1))
    assert scene.wire.sent_by(1, m.PlainUpdate) == []


# The model.


def running(**options) -> tuple[Scene, ClientRound]:
    scene = Scene(5, 4, 1, **options)
    scene.clients[1].receive(encode(scene.opening))
    return scene, scene.clients[1]


def part(index: int, data: bytes) -> bytes:
    return encode(m.ModelPart(1, index, memoryview(data)))


def test_a_model_that_matches_its_hash_is_handed_to_training() -> None:
    with short_parts(4):
        scene, client = running(model=bytes(range(40)))
        assert client.receive(part(0, scene.model[:16])) == []
        assert client.receive(part(1, scene.model[16:32])) == []
        with pytest.raises(LocalProtocolError):
            _ = client.model
        assert client.receive(part(2, scene.model[32:])) == [Ready(What.TRAINING)]
        assert client.model == scene.model


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([(1, 16)], Reason.PROTOCOL_VIOLATION),
        ([(0, 16), (0, 16)], Reason.PROTOCOL_VIOLATION),
        ([(0, 16), (1, 16), (2, 8), (3, 1)], Reason.PROTOCOL_VIOLATION),
        ([(0, 15)], Reason.BAD_LENGTH),
        ([(0, 17)], Reason.BAD_LENGTH),
        ([(0, 0)], Reason.BAD_LENGTH),
        ([(0, 16), (1, 16), (2, 16)], Reason.BAD_LENGTH),
    ],
)
def test_model_parts_out_of_order_or_of_a_wrong_length_are_refused(
    parts: list[tuple[int, int]], reason: Reason
) -> None:
    with short_parts(4):
        _, client = running(model=bytes(40))
        *fine, last = parts
        for index, length in fine:
            assert reason_of(client.receive(part(index, bytes(length)))) is None
        assert reason_of(client.receive(part(last[0], bytes(last[1])))) is reason


def test_a_model_other_than_announced_is_not_trained() -> None:
    _, client = running(model=b"the right model")
    actions = client.receive(part(0, b"the wrong model"))
    assert reason_of(actions) is Reason.MODEL_MISMATCH
    assert Ready(What.TRAINING) not in actions


def test_an_empty_model_takes_no_part() -> None:
    scene = Scene(5, 4, 1, model=b"")
    assert scene.clients[1].receive(encode(scene.opening)) == [Ready(What.SHARING), Ready(What.TRAINING)]
    assert reason_of(scene.clients[1].receive(part(0, b""))) is Reason.PROTOCOL_VIOLATION


# One update, one upload.


def test_two_grants_bring_identical_bytes_from_the_first_part_on() -> None:
    with short_parts(4):
        scene = Scene(5, 4, 1)
        scene.wire.until(ServerStage.UPLOADING)
        client = scene.clients[2]
        while client.stage is not ClientStage.CANDIDATES or client.can_upload:
            scene.wire.step()
        first = client.receive(encode(m.UploadGrant(1, 101)))[0].sends
        kept = [from_client(next(first).message), from_client(next(first).message)]
        second = [
            from_client(send.message) for send in client.receive(encode(m.UploadGrant(1, 102)))[0].sends
        ]
        assert list(first) == []  # the older grant ends
        assert [message.index for message in second] == [0, 1, 2]
        assert {message.grant for message in second} == {102}
        assert [bytes(message.data) for message in kept] == [bytes(message.data) for message in second[:2]]


def test_a_grant_before_the_update_is_ready_is_refused() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.meddler = lambda _, receiver, raw: (
        [] if receiver == 1 and isinstance(from_server(raw), m.ModelPart) else [raw]
    )
    scene.wire.until(ServerStage.UPLOADING)
    while scene.clients[1].stage is not ClientStage.CANDIDATES:
        scene.wire.step()
    actions = scene.clients[1].receive(encode(m.UploadGrant(1, 1)))
    assert reason_of(actions) is Reason.PROTOCOL_VIOLATION


def test_an_update_that_was_uploaded_is_gone_when_the_round_aborts_in_recovery() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.until(ServerStage.RECOVERING)
    scene.wire.perform(SERVER, scene.server.abort(AbortReason.STOPPED))
    scene.wire.quiet()
    for client in scene.clients.values():
        assert client.stage is ClientStage.OVER
        assert client.reclaim() is None
    # The retry: new number, new keys, trained again.
    retry = Scene(5, 4, 1, round_number=2, after_round=1, seed=2, before=scene)
    retry.finish()
    first = {bytes(u.data) for n in scene.numbers for u in scene.wire.sent_by(n, m.MaskedUpdate)}
    second = {bytes(u.data) for n in scene.numbers for u in retry.wire.sent_by(n, m.MaskedUpdate)}
    assert len(first) == len(second) == 5
    assert not first & second


@pytest.mark.parametrize("part_left", [True, False])
def test_only_an_update_of_which_nothing_left_can_be_used_again(part_left: bool) -> None:
    with short_parts(4):
        scene = Scene(5, 4, 1)
        scene.wire.meddler = lambda _, receiver, raw: (
            [] if receiver == 3 and isinstance(from_server(raw), m.UploadGrant) else [raw]
        )
        scene.wire.until(ServerStage.UPLOADING)
        scene.wire.quiet()
        client = scene.clients[3]
        sends = client.receive(encode(m.UploadGrant(1, 9)))[0].sends
        if part_left:
            next(sends)
        scene.wire.perform(SERVER, scene.server.abort(AbortReason.STOPPED))
        scene.wire.quiet()
        assert list(sends) == []
        unsent = client.reclaim()
        if part_left:
            assert unsent is None
        else:
            assert unsent.tolist() == scene.update(3).tolist()
        assert client.reclaim() is None


def test_an_update_that_never_left_can_be_summed_in_the_next_round() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.meddler = lambda _, __, raw: [] if isinstance(_server_message(raw), m.UploadGrant) else [raw]
    scene.wire.quiet()
    scene.wire.perform(SERVER, scene.server.abort(AbortReason.STOPPED))
    scene.wire.quiet()
    kept = {number: client.reclaim() for number, client in scene.clients.items()}
    retry = Scene(5, 4, 1, round_number=2, after_round=1, before=scene)
    assert all(kept[n].tolist() == retry.update(n).tolist() for n in scene.numbers)
    retry.wire._updates = kept.__getitem__
    retry.finish()


def _server_message(raw: bytes) -> m.Message | None:
    try:
        return from_server(raw)
    except Exception:
        return None


# Messages that cannot come.

SERVER_MESSAGES: dict[str, Callable[[Scene], m.Message]] = {
    "Challenge": lambda scene: m.Challenge(bytes(32), bytes(32)),
    "Welcome": lambda scene: m.Welcome({}),
    "Refused": lambda scene: m.Refused(Reason.RUN_OVER),
    "RoundStart": lambda scene: scene.opening,
    "ModelPart": lambda scene: m.ModelPart(1, 0, memoryview(scene.model)),
    "SealedSeed": lambda scene: m.SealedSeed(m.MaskName(2, 1, 0), memoryview(bytes(48))),
    "EncodedMask": lambda scene: m.EncodedMask(m.MaskName(2, 1, 0), 1, 0, memoryview(bytes(28))),
    "ReportShares": lambda scene: m.ReportShares(1),
    "Candidates": lambda scene: m.Candidates(1, scene.bits(ALL)),
    "UploadGrant": lambda scene: m.UploadGrant(1, 1),
    "SurvivorSet": lambda scene: m.SurvivorSet(1, scene.bits(ALL)),
    "Certificate": lambda scene: from_server(scene.certificate(ALL, {1, 2, 3, 4})),
    "RoundEnd": lambda scene: m.RoundEnd(1, "done"),
    "Finish": lambda scene: m.Finish("done"),
    "PlainStart": lambda scene: m.PlainStart(1, 0, bytes(32)),
}

LEGAL = {
    ClientStage.KEYED: {"RoundStart"},
    ClientStage.SHARING: {"ModelPart", "SealedSeed", "EncodedMask", "ReportShares", "RoundEnd"},
    ClientStage.REPORTED: {"ModelPart", "Candidates", "RoundEnd"},
    ClientStage.CANDIDATES: {"ModelPart", "UploadGrant", "SurvivorSet", "Certificate", "RoundEnd"},
    ClientStage.ENDORSED: {"ModelPart", "SurvivorSet", "Certificate", "RoundEnd"},
    ClientStage.ANSWERED: {"ModelPart", "SurvivorSet", "Certificate", "RoundEnd"},
}
"""Written down here once more, so that a slip in the table shows."""


def client_in(stage: ClientStage) -> Scene:
    """A scene whose client 1 is in ``stage``; from CANDIDATES on its update is uploaded."""
    scene = Scene(5, 4, 1)
    client = scene.clients[1]
    if stage in (ClientStage.KEYED, ClientStage.OVER):
        if stage is ClientStage.OVER:
            client.receive(encode(scene.opening))
            client.receive(encode(m.RoundEnd(1, "done")))
        return scene
    if stage in (ClientStage.SHARING, ClientStage.REPORTED):
        client.receive(encode(scene.opening))
        if stage is ClientStage.REPORTED:
            client.receive(encode(m.ReportShares(1)))
        return scene
    scene = collected()
    if stage is ClientStage.ENDORSED:
        scene.clients[1].receive(scene.survivor_set(ALL))
    if stage is ClientStage.ANSWERED:
        scene.clients[1].receive(scene.certificate(ALL, {1, 2, 3, 4}))
    return scene


@pytest.mark.parametrize("kind", SERVER_MESSAGES)
@pytest.mark.parametrize("stage", ClientStage)
def test_a_client_takes_each_message_only_where_it_can_come(stage: ClientStage, kind: str) -> None:
    scene = client_in(stage)
    client = scene.clients[1]
    assert client.stage is stage
    actions = client.receive(encode(SERVER_MESSAGES[kind](scene)))
    if stage is ClientStage.OVER:
        assert actions == []
    elif kind not in LEGAL[stage]:
        assert reason_of(actions) is Reason.PROTOCOL_VIOLATION
        assert client.stage is ClientStage.OVER
    elif kind == "ModelPart" and stage not in (ClientStage.SHARING, ClientStage.REPORTED):
        assert reason_of(actions) is Reason.PROTOCOL_VIOLATION  # the model was whole before
    else:
        assert reason_of(actions) is None


def test_messages_of_an_earlier_round_are_late_and_of_a_later_one_refused() -> None:
    scene = Scene(5, 4, 1, round_number=3, after_round=2)
    client = scene.clients[1]
    old = [
        m.RoundEnd(2, "done"),
        m.Candidates(1, b"\x1f"),
        m.SealedSeed(m.MaskName(1, 2, 0), memoryview(b"")),
    ]
    for message in old:
        assert client.receive(encode(message)) == []
    client.receive(encode(scene.opening))
    for message in old:
        assert client.receive(encode(message)) == []
    assert client.late_messages == 6
    assert reason_of(client.receive(encode(m.ReportShares(4)))) is Reason.PROTOCOL_VIOLATION


def test_a_share_for_somebody_else_is_refused() -> None:
    _, client = running()
    message = m.EncodedMask(m.MaskName(2, 1, 0), 3, 0, memoryview(bytes(28)))
    assert reason_of(client.receive(encode(message))) is Reason.PROTOCOL_VIOLATION


def test_shares_that_are_invented_repeated_or_sent_as_its_own_are_not_held_and_blame_nobody() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.REPORTING)
    victim = scene.clients[1]
    assert victim.stage is ClientStage.SHARING
    scene.wire._links[SERVER, 1].pop()  # ReportShares waits
    while scene.wire._links.get((SERVER, 1)):
        victim.receive(scene.wire._links[SERVER, 1].popleft())
    shares = [
        raw
        for sender, receiver, raw in scene.wire.traffic
        if sender == SERVER and receiver == 1 and isinstance(from_server(raw), m.SealedSeed | m.EncodedMask)
    ]
    assert len(shares) == 4
    again = from_server(shares[0])
    for extra in (
        shares[0],
        encode(m.SealedSeed(m.MaskName(9, 1, 0), memoryview(bytes(48)))),
        encode(m.EncodedMask(m.MaskName(1024, 1, 0), 1, 0, memoryview(bytes(48)))),
    ):
        assert victim.receive(extra) == []
    (report,) = said(victim.receive(encode(m.ReportShares(1))))
    assert m.members(report.held, 5) == ALL - {again.mask.client}


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), stage=st.sampled_from([ClientStage.KEYED, ClientStage.SHARING]))
def test_bytes_that_are_no_message_never_raise(data: bytes, stage: ClientStage) -> None:
    scene = client_in_cached(stage)
    client = scene.clients[1] if stage is ClientStage.KEYED else scene.new_client(1)
    actions = client.receive(data)
    assert reason_of(actions) is not None or client.late_messages


_scenes: dict[ClientStage, Scene] = {}


def client_in_cached(stage: ClientStage) -> Scene:
    scene = _scenes.setdefault(stage, Scene(3, 2, 0))
    scene.clients[1] = scene.new_client(1)
    return scene


def test_an_oversized_message_is_refused_before_it_is_read() -> None:
    _, client = running()
    assert reason_of(client.receive(bytes(2**20 + 2**12 + 1))) is Reason.MALFORMED


@settings(max_examples=250, deadline=None)
@given(
    place=st.integers(0, 40),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    flip=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
)
def test_damaged_messages_never_raise_and_never_make_a_wrong_sum(
    place: int, cut: float | None, flip: tuple[float, int]
) -> None:
    """Whichever of the server's messages to client 1 is cut or has a bit flipped."""
    scene = Scene(4, 3, 1)
    count = itertools.count()

    def damage(_: int, receiver: int, raw: bytes) -> list[bytes]:
        if receiver != 1 or next(count) != place:
            return [raw]
        if cut is not None:
            return [raw[: int(cut * len(raw))]]
        where = int(flip[0] * len(raw))
        return [raw[:where] + bytes([raw[where] ^ 1 << flip[1]]) + raw[where + 1 :]]

    scene.wire.meddler = damage
    scene.wire.to_the_end()
    if isinstance(scene.wire.outcome, Aborted):
        with pytest.raises(RoundAborted):
            scene.server.finish()
    else:
        scene.check(scene.server.finish())
    assert set(scene.wire.left) <= {1}
