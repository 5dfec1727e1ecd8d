"""The client decides what protects it, and all see one view (DESIGN §3, promises 4 to 6)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightsecagg.errors import LocalProtocolError, Reason
from lightsecagg.identity import Identity
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Ready, RoundOver, What
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.terms import Floors, Run, make_member
from lightsecagg.protocol.transitions import ClientStage, ServerStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.faults import STAGES
from tests.protocol.scene import Scene, change, reason_of, said

ALL = frozenset(range(1, 6))
STRANGER = Identity(b"\x55" * 32)


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


def test_the_same_opening_again_makes_the_client_leave_and_a_later_one_ends_its_round() -> None:
    scene = Scene(5, 4, 1)
    scene.clients[1].receive(encode(scene.opening))
    assert reason_of(scene.clients[1].receive(encode(scene.opening))) is Reason.PROTOCOL_VIOLATION
    later = encode(change(scene.opening, round=2))
    scene.clients[2].receive(encode(scene.opening))
    assert scene.clients[2].receive(later) == [RoundOver("superseded")]
    assert scene.clients[2].stage is ClientStage.OVER
    assert scene.clients[2].receive(later) == []
    assert scene.clients[2].highest_round == 2
    successor = scene.new_client(2, after_round=scene.clients[2].highest_round)
    assert reason_of(successor.receive(later)) is Reason.STALE_ROUND
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
