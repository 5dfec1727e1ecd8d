"""What a server of an asynchronous run may try with cohorts, models and messages (DESIGN §3 and §4)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightsecagg.errors import LocalProtocolError, Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import Left, Ready, RoundOver, What
from lightsecagg.protocol.terms import Floors, make_member
from lightsecagg.protocol.transitions import ClientStage
from lightsecagg.protocol.wire import encode
from lightsecagg.sealing import RoundKey
from tests.protocol.buffered_scene import Puppet, answered, dealt, endorsed, refuses
from tests.protocol.scene import change, flat, reason_of, said


def begins(puppet: Puppet, client: int, start: m.UploadStart) -> None:
    assert puppet.tell(client, start) == [Ready(What.SHARING)]


# What begins an upload.


def replaced(puppet: Puppet, start: m.UploadStart, member: m.Member) -> m.UploadStart:
    """``start`` with another entry at the member's slot, or at the end."""
    others = [other for other in start.cohort if other.rank != member.rank]
    return change(start, cohort=tuple(sorted([*others, member], key=lambda other: other.rank)))


def resigned(puppet: Puppet, slot: int, key: bytes) -> m.Member:
    """The entry of a slot whose client is in the server's pay."""
    return make_member(puppet.identities[slot], puppet.protocol_run, slot, 9, key)


STARTS: dict[str, tuple[Callable[[Puppet, m.UploadStart], m.UploadStart], Reason]] = {
    "an old key of its own, forged": (
        lambda p, s: replaced(p, s, change(s.cohort[0], sequence=0)),
        Reason.NOT_MY_KEY,
    ),
    "a cohort without it": (
        lambda p, s: change(s, cohort=(*s.cohort[1:], p.stranger_at(6))),
        Reason.NOT_MY_KEY,
    ),
    "its key under another number": (
        lambda p, s: replaced(p, s, change(s.cohort[0], sequence=7)),
        Reason.NOT_MY_KEY,
    ),
    "a key that nobody signed": (
        lambda p, s: replaced(p, s, change(s.cohort[2], key=RoundKey(p.entropy).public)),
        Reason.BAD_SIGNATURE,
    ),
    "a key signed for another number": (
        lambda p, s: replaced(p, s, change(s.cohort[2], sequence=99)),
        Reason.BAD_SIGNATURE,
    ),
    "a key signed by another client": (
        lambda p, s: replaced(p, s, change(s.cohort[2], signature=s.cohort[3].signature)),
        Reason.BAD_SIGNATURE,
    ),
    "a signed key that is none": (
        lambda p, s: replaced(p, s, resigned(p, 3, bytes(32))),
        Reason.BAD_COHORT,
    ),
    "a key twice": (lambda p, s: replaced(p, s, resigned(p, 3, s.cohort[0].key)), Reason.BAD_COHORT),
    "an identity twice": (
        lambda p, s: replaced(p, s, make_member(p.identities[2], p.protocol_run, 3, 1, s.cohort[2].key)),
        Reason.BAD_COHORT,
    ),
    "slots out of order": (lambda p, s: change(s, cohort=s.cohort[::-1]), Reason.BAD_COHORT),
    "a slot twice": (lambda p, s: change(s, cohort=(*s.cohort[:4], s.cohort[3])), Reason.BAD_COHORT),
    "a slot out of range": (
        lambda p, s: change(s, cohort=(*s.cohort, p.stranger_at(7))),
        Reason.BAD_COHORT,
    ),
    "fewer than U": (lambda p, s: change(s, cohort=s.cohort[:3]), Reason.BAD_COHORT),
    "fewer than min_clients": (lambda p, s: change(s, cohort=s.cohort[:4]), Reason.BELOW_FLOOR),
    "a model too long": (lambda p, s: change(s, model_length=1001), Reason.BELOW_FLOOR),
    "another client at a known slot": (lambda p, s: replaced(p, s, p.stranger_at(3)), Reason.BAD_COHORT),
}


@pytest.mark.parametrize("flaw", STARTS)
def test_an_upload_that_breaks_a_rule_is_refused_and_the_honest_one_beside_it_begun(flaw: str) -> None:
    make, reason = STARTS[flaw]
    for honest in (False, True):
        floors = Floors(5, 1, unique_survivor_set=True, max_model_bytes=1000, min_buffer_clients=3)
        puppet = Puppet(6, 4, 1, present=range(1, 6), floors=floors)
        puppet.deal(1)
        puppet.deal(2)
        start = puppet.start()
        if honest:
            begins(puppet, 1, start)
        else:
            refuses(puppet, 1, make(puppet, start), reason)


def test_an_upload_for_a_key_that_it_spent_is_not_begun_and_nobody_leaves() -> None:
    """It may be of before the client left and came back, and so may its model be."""
    puppet = dealt(1)
    old = replaced(puppet, puppet.start(), puppet.dealt[0].dealer)
    late = [old, m.ModelPart(old.round, 0, memoryview(puppet.model(0))), m.RoundEnd(old.round, "stale")]
    for message in late:
        assert puppet.tell(1, message) == []
    assert puppet.turns[1].late_messages == 3
    assert not puppet.turns[1].can_upload
    with pytest.raises(LocalProtocolError):
        puppet.turns[1].shares()
    begins(puppet, 1, puppet.start())


@pytest.mark.parametrize("floors", [Floors(2, 2), Floors(2, 1, unique_survivor_set=True)])
def test_numbers_of_the_run_below_a_clients_floors_are_refused_with_its_first_upload(floors: Floors) -> None:
    below = Puppet(5, 3, 1, floors=floors)
    refuses(below, 1, below.start(), Reason.BELOW_FLOOR)
    above = Puppet(5, 4, 2, floors=floors)
    begins(above, 1, above.start())


def test_whoever_is_not_in_the_roster_at_that_slot_is_not_dealt_to() -> None:
    puppet = Puppet(6, 4, 1, present=range(1, 6), with_roster=True)
    for slot in (3, 6):
        flawed = replaced(puppet, puppet.start(), puppet.stranger_at(slot))
        refuses(puppet, slot - 1, flawed, Reason.UNKNOWN_IDENTITY)
    open_run = Puppet(6, 4, 1, present=range(1, 6))
    begins(open_run, 1, replaced(open_run, open_run.start(), open_run.stranger_at(6)))
    begins(puppet, 1, puppet.start())


def test_an_upload_number_that_is_not_above_is_refused() -> None:
    for lower, running in itertools.product((0, 1), (False, True)):
        puppet = Puppet()
        puppet.deal(1)
        first = puppet.deal(1)
        if running:
            begins(puppet, 1, puppet.start())
            again = change(puppet.start(), round=first.start.round + 1)  # the one that runs
            refuses(puppet, 1, again, Reason.PROTOCOL_VIOLATION)
        else:
            refuses(puppet, 1, puppet.start(round=first.start.round - lower), Reason.STALE_ROUND)
    puppet = dealt(1, 1)
    begins(puppet, 1, puppet.start())


@pytest.mark.parametrize("heard_by", ["own start", "list announced", "list certified"])
def test_a_version_that_is_not_the_newest_is_not_trained_on(heard_by: str) -> None:
    for version in (0, 1, 2):
        puppet = dealt(2, 3, 4)
        if heard_by == "own start":
            puppet.deal(1, 1)
        elif heard_by == "list announced":
            endorsed(puppet, 1, puppet.updates(puppet.dealt, version=1))
        else:
            answered(puppet, 1, puppet.certificate(puppet.updates(puppet.dealt, version=1)))
        if version == 0:
            refuses(puppet, 1, puppet.start(version), Reason.STALE_ROUND)
        else:
            begins(puppet, 1, puppet.start(version))


# Models.


@pytest.mark.parametrize("order", ["start then offer", "offer then start", "offer then offer"])
@pytest.mark.parametrize("differs", [True, False])
def test_a_version_has_one_model(order: str, differs: bool) -> None:
    puppet = Puppet()

    def meddle(message: m.Message) -> m.Message:
        return change(message, model_hash=bytes(32)) if differs else message

    two, three = puppet.deal(2, to=()), puppet.deal(3, to=())
    if order == "start then offer":
        puppet.deal(1)
        last = meddle(puppet.offer(two, 1))
    elif order == "offer then start":
        puppet.give(two, 1)
        last = meddle(puppet.start())
    else:
        puppet.give(two, 1)
        last = meddle(puppet.offer(three, 1))
    if differs:
        refuses(puppet, 1, last, Reason.MODEL_MISMATCH)
    else:
        assert reason_of(puppet.tell(1, last)) is None


def test_a_model_other_than_announced_is_not_trained() -> None:
    puppet = Puppet()
    start = puppet.start()
    begins(puppet, 1, start)
    part = m.ModelPart(start.round, 0, memoryview(b"?" * start.model_length))
    refuses(puppet, 1, part, Reason.MODEL_MISMATCH)


# Messages that cannot come.


SERVER_MESSAGES: dict[str, Callable[[Puppet, int], m.Message]] = {
    "Challenge": lambda puppet, number: m.Challenge(bytes(32), bytes(32)),
    "Welcome": lambda puppet, number: m.Welcome({}),
    "Refused": lambda puppet, number: m.Refused(Reason.RUN_OVER),
    "RoundStart": lambda puppet, number: m.RoundStart(
        number, puppet.terms, 4, 1, puppet.start().cohort, 0, bytes(32)
    ),
    "PlainStart": lambda puppet, number: m.PlainStart(number, 0, bytes(32)),
    "UploadStart": lambda puppet, number: puppet.start(),
    "ModelPart": lambda puppet, number: m.ModelPart(number, 0, memoryview(puppet.model(0))),
    "UploadGrant": lambda puppet, number: m.UploadGrant(number, 1),
    "ReportShares": lambda puppet, number: m.ReportShares(number),
    "Candidates": lambda puppet, number: m.Candidates(number, b"\x1f"),
    "SurvivorSet": lambda puppet, number: m.SurvivorSet(number, b"\x1f"),
    "Certificate": lambda puppet, number: m.Certificate(number, b"\x1f", b"\x0f", bytes(256)),
    "RoundEnd": lambda puppet, number: m.RoundEnd(number, "done"),
    "Finish": lambda puppet, number: m.Finish("done"),
}

STAGES = ["free", "dealing", "training", "ready", "over"]
LEGAL = {
    "free": {"UploadStart"},
    "dealing": {"UploadStart", "ModelPart", "RoundEnd"},
    "training": {"UploadStart", "RoundEnd"},
    "ready": {"UploadStart", "UploadGrant", "RoundEnd"},
}
"""Written down here once more, so that a slip in the table shows."""


def client_in(stage: str) -> tuple[Puppet, int]:
    """A client that did one upload, in this stage of its second one; and that one's number."""
    puppet = dealt(1)
    turn, start = puppet.turns[1], puppet.start()
    if stage != "free":
        begins(puppet, 1, start)
    if stage in ("training", "ready"):
        turn.receive(encode(SERVER_MESSAGES["ModelPart"](puppet, start.round)))
        list(turn.shares())
    if stage == "ready":
        list(turn.upload(puppet.update(1)))
    if stage == "over":
        turn.receive(encode(m.RoundEnd(start.round, "done")))
        assert turn.stage is ClientStage.OVER
    return puppet, start.round


@pytest.mark.parametrize("kind", SERVER_MESSAGES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_takes_each_message_only_where_it_can_come(stage: str, kind: str) -> None:
    puppet, number = client_in(stage)
    turn = puppet.turns[1]
    message = SERVER_MESSAGES[kind](puppet, number)
    late = turn.late_messages
    if kind in LEGAL.get(stage, ()):
        assert reason_of(puppet.tell(1, message)) is None
        assert turn.late_messages == late
    elif stage == "over" and kind in {kind for kinds in LEGAL.values() for kind in kinds}:
        assert puppet.tell(1, message) == []
        assert turn.late_messages == late + 1
    else:
        refuses(puppet, 1, message, Reason.PROTOCOL_VIOLATION)


@pytest.mark.parametrize("stage", STAGES)
def test_messages_of_an_earlier_upload_are_late_in_every_stage(stage: str) -> None:
    puppet, number = client_in(stage)
    old = [
        m.RoundEnd(number - 1, "done"),
        m.UploadGrant(number - 1, 1),
        m.ModelPart(number - 1, 0, memoryview(b"")),
    ]
    for count, message in enumerate(old, start=1):
        assert puppet.tell(1, message) == []
        assert puppet.turns[1].late_messages == count


def test_two_grants_bring_identical_bytes_and_an_ended_upload_none() -> None:
    puppet, number = client_in("ready")
    first, second = (flat(puppet.tell(1, m.UploadGrant(number, grant))) for grant in (1, 2))
    assert len(first) == len(second) == 1
    vectors = {bytes(message.data) for message in said([*first, *second])}
    assert len(vectors) == 1
    (pending,) = puppet.tell(1, m.UploadGrant(number, 3))
    assert puppet.tell(1, m.RoundEnd(number, "stale")) == [RoundOver("stale")]
    assert list(pending.sends) == []
    assert puppet.turns[1].reclaim() is None


def test_an_update_of_which_nothing_left_is_given_back() -> None:
    puppet, number = client_in("ready")
    wanted = puppet.integers[1, number]
    puppet.tell(1, m.RoundEnd(number, "stale"))
    assert puppet.field.centered(puppet.turns[1].reclaim()).tolist() == wanted


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_message_never_raise(data: bytes) -> None:
    puppet = Puppet(present=(1,))
    actions = puppet.turns[1].receive(data)
    assert not actions or isinstance(actions[-1], Left)
