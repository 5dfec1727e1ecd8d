"""What one client can do to an asynchronous run: cost itself, while lists go on (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightsecagg.errors import LocalProtocolError, Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, ClientDropped, UpdateRefused, UploadCompleted
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import encode, from_client
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.buffered_course import Course, begun, drops, hold_back, ignores, taken
from tests.protocol.scene import change

CAPACITY = 6
"""Slots; U = 4, T = 1, K = 4: two clients can be lost."""


# Shares. Client 2 deals seeds to 3, 4 and 5, and parts to 6 and 1.


def dealing(**options) -> tuple[Course, m.MaskName, list[m.Message]]:
    """Client 2's shares were held back: its upload's name, and what it dealt."""
    course = Course(CAPACITY, **options)
    kept = hold_back(course, 2, m.SealedSeeds, m.EncodedMask)
    course.quiet()
    sent = [from_client(raw) for raw in kept]
    return course, begun(course, 2), [message for message in sent if message.mask.client == 2]


SHARES: dict[str, tuple[Callable[[m.MaskName, list[m.Message]], list[m.Message]], Reason]] = {
    "seeds under another's name": (
        lambda n, s: [change(s[0], mask=change(n, client=3))],
        Reason.PROTOCOL_VIOLATION,
    ),
    "a part under another's name": (
        lambda n, s: [s[0], change(s[1], mask=change(n, client=3))],
        Reason.PROTOCOL_VIOLATION,
    ),
    "seeds of another version": (
        lambda n, s: [change(s[0], mask=change(n, version=n.version + 1))],
        Reason.PROTOCOL_VIOLATION,
    ),
    "a part of another version": (
        lambda n, s: [s[0], change(s[1], mask=change(n, version=n.version + 1))],
        Reason.PROTOCOL_VIOLATION,
    ),
    "an upload that did not begin": (
        lambda n, s: [change(s[0], mask=change(n, upload=n.upload + 100))],
        Reason.PROTOCOL_VIOLATION,
    ),
    "seeds twice": (lambda n, s: [s[0], s[0]], Reason.PROTOCOL_VIOLATION),
    "a part before the seeds": (lambda n, s: [s[1]], Reason.PROTOCOL_VIOLATION),
    "a part twice": (lambda n, s: [s[0], s[1], s[1]], Reason.PROTOCOL_VIOLATION),
    "a part out of order": (lambda n, s: [s[0], change(s[1], index=1)], Reason.PROTOCOL_VIOLATION),
    "a part too many": (lambda n, s: [*s, change(s[-1], index=3)], Reason.PROTOCOL_VIOLATION),
    "a part for who has a seed": (lambda n, s: [s[0], change(s[1], receiver=3)], Reason.PROTOCOL_VIOLATION),
    "a part for itself": (lambda n, s: [s[0], change(s[1], receiver=2)], Reason.PROTOCOL_VIOLATION),
    "a part for nobody": (lambda n, s: [s[0], change(s[1], receiver=7)], Reason.PROTOCOL_VIOLATION),
    "a seed too few": (lambda n, s: [change(s[0], data=s[0].data[:-48])], Reason.BAD_LENGTH),
    "a seed too many": (lambda n, s: [change(s[0], data=memoryview(bytes(192)))], Reason.BAD_LENGTH),
    "a short part": (lambda n, s: [s[0], change(s[1], data=s[1].data[:-1])], Reason.BAD_LENGTH),
    "a long part": (lambda n, s: [s[0], change(s[1], data=memoryview(bytes(99)))], Reason.BAD_LENGTH),
}


@pytest.mark.parametrize("flaw", SHARES)
def test_shares_that_break_a_rule_drop_their_dealer_and_the_honest_ones_are_relayed(flaw: str) -> None:
    make, reason = SHARES[flaw]
    with short_parts(4):
        course, name, shares = dealing(dimension=20)
        assert len(shares) == 1 + 2 * 2  # 21 coordinates in 7 columns, in two parts
        *fine, bad = make(name, shares)
        for message in fine:
            taken(course, 2, encode(message))
        course.meddler = None
        drops(course, 2, bad, reason)
        honest, _, shares = dealing(dimension=20)
        for message in shares:
            taken(honest, 2, encode(message))
        honest.meddler = None
        honest.run(2)
        assert honest.dropped == {}


def test_shares_that_do_not_open_are_held_by_nobody_and_their_update_enters_no_list() -> None:
    """Their dealer is told in time; nobody else notices."""
    course = Course(CAPACITY)

    def spoil(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        message = from_client(raw) if sender == 2 else None
        if isinstance(message, m.SealedSeeds | m.EncodedMask):
            return [encode(change(message, data=memoryview(bytes(len(message.data)))))]
        return [raw]

    course.meddler = spoil
    course.run(3)
    course.until(lambda: 2 in course.server.unheld)
    course.perform(SERVER, course.server.give_up(2))
    assert course.refused[-1] == UpdateRefused(2, Reason.TOO_FEW_HOLDERS)
    course.run(3)
    assert all(entry.client != 2 for result in course.results for entry in result.entries)
    assert (course.dropped, course.left) == ({}, {})


def test_shares_for_a_client_that_came_back_meanwhile_are_not_passed_on() -> None:
    """Its new process was not offered them, and would have to take the server for a liar."""
    course, name, shares = dealing()
    course.lose(6)
    course.lose(3)
    course.join(6)
    course.join(3)
    course.quiet()
    course.meddler = None
    for message in shares:
        course.perform(SERVER, course.server.receive(2, encode(message)))
    course.run(3)
    assert (set(course.dropped), course.left) == ({3, 6}, {})
    assert {name.client} <= {entry.client for result in course.results for entry in result.entries}


# Who holds what.


def reporting() -> tuple[Course, m.MaskName]:
    """All of client 2's shares are through, and client 3's word of holding its own was kept back."""
    course = Course(CAPACITY)
    kept = hold_back(course, 3, m.ShareHeld)
    course.until(lambda: len(kept) == 5)
    course.meddler = None
    assert encode(m.ShareHeld(begun(course, 2))) in kept
    return course, begun(course, 2)


REPORTS: dict[str, Callable[[m.MaskName], list[m.MaskName]]] = {
    "twice": lambda name: [name, name],
    "another version": lambda name: [change(name, version=name.version + 1)],
    "its own share": lambda name: [change(name, client=3, upload=name.upload + 1)],
    "an upload that did not begin": lambda name: [change(name, upload=name.upload + 100)],
    "of a slot that is not": lambda name: [change(name, client=9)],
}


@pytest.mark.parametrize("flaw", REPORTS)
def test_a_report_of_what_a_client_cannot_hold_drops_it(flaw: str) -> None:
    course, name = reporting()
    *fine, bad = REPORTS[flaw](name)
    for honest in fine:
        taken(course, 3, encode(m.ShareHeld(honest)))
    if flaw == "its own share":
        assert bad == begun(course, 3)
    drops(course, 3, m.ShareHeld(bad), Reason.PROTOCOL_VIOLATION)


def test_a_report_before_the_share_was_through_drops_its_sender() -> None:
    for receiver in (3, 6):  # of a seed, of parts
        course, name, shares = dealing()
        for message in shares if receiver == 3 else ():
            taken(course, 2, encode(message))
        course.meddler = None
        if receiver == 3:
            taken(course, 3, encode(m.ShareHeld(name)))
        else:
            drops(course, receiver, m.ShareHeld(name), Reason.PROTOCOL_VIOLATION)


def test_a_report_by_a_client_outside_the_cohort_drops_it() -> None:
    course, name, shares = dealing(present=(1, 2, 3, 4, 5))
    course.join(6)
    course.quiet()
    course.meddler = None
    for message in shares:
        taken(course, 2, encode(message))
    assert 6 in course.server.alive
    drops(course, 6, m.ShareHeld(name), Reason.PROTOCOL_VIOLATION)


def test_a_report_of_an_upload_that_is_spent_is_late() -> None:
    course, name = reporting()
    course.run(1)
    course.perform(SERVER, course.server.lose(2, Reason.LINK_LOST))
    course.dropped.clear()
    ignores(course, 3, m.ShareHeld(name))


# Uploads.


def granted() -> tuple[Course, int, list[m.MaskedUpdate]]:
    """Client 2 has a grant and has sent nothing; the grant, and what it would send: three parts."""
    course = Course(CAPACITY, dimension=11, slots=6)
    kept = hold_back(course, 2, m.MaskedUpdate)
    course.until(lambda: len(kept) == 3)
    (grant, came) = course.server.slot_holders[2]
    assert came == 0
    course.meddler = None
    return course, grant, [from_client(raw) for raw in kept]


UPLOADS: dict[str, tuple[Callable[[int, list[m.MaskedUpdate]], list[m.MaskedUpdate]], Reason]] = {
    "no such grant": (lambda g, p: [change(p[0], grant=g + 100)], Reason.PROTOCOL_VIOLATION),
    "another's grant": (lambda g, p: [change(p[0], grant=1 + (g == 1))], Reason.PROTOCOL_VIOLATION),
    "an upload that did not begin": (lambda g, p: [change(p[0], round=99)], Reason.PROTOCOL_VIOLATION),
    "the first part left out": (lambda g, p: [p[1]], Reason.PROTOCOL_VIOLATION),
    "a part twice": (lambda g, p: [p[0], p[0]], Reason.PROTOCOL_VIOLATION),
    "a short part": (lambda g, p: [p[0], change(p[1], data=p[1].data[:-3])], Reason.BAD_LENGTH),
    "a long last part": (lambda g, p: [*p[:2], change(p[2], data=memoryview(bytes(15)))], Reason.BAD_LENGTH),
    "an element of p": (
        lambda g, p: [change(p[0], data=memoryview((2**24 - 3).to_bytes(3, "little") * 4))],
        Reason.BAD_ELEMENT,
    ),
    "an element above p": (lambda g, p: [change(p[0], data=memoryview(b"\xff" * 12))], Reason.BAD_ELEMENT),
}


@pytest.mark.parametrize("flaw", UPLOADS)
def test_an_upload_that_breaks_a_rule_drops_its_sender_and_enters_no_list(flaw: str) -> None:
    make, reason = UPLOADS[flaw]
    with short_parts(4):
        course, grant, parts = granted()
        assert len(parts) == 3
        *fine, bad = make(grant, parts)
        for message in fine:
            taken(course, 2, encode(message))
        upload = begun(course, 2).upload
        drops(course, 2, bad, reason)
        listed = {(e.client, e.upload) for result in course.results for e in result.entries}
        assert (2, upload) not in listed
        honest, _, parts = granted()
        for message in parts:
            taken(honest, 2, encode(message))
        honest.run(2)
        assert honest.dropped == {}


def test_parts_of_a_withdrawn_grant_and_of_an_upload_that_is_in_are_late() -> None:
    with short_parts(4):
        course, grant, parts = granted()
        taken(course, 2, encode(parts[0]))
        course.perform(SERVER, course.server.revoke(2))
        assert course.server.slot_holders[2][0] > grant
        ignores(course, 2, parts[1])
        course, _, parts = granted()
        *_, last = [course.server.receive(2, encode(message)) for message in parts]
        assert UploadCompleted(2) in last
        course.perform(SERVER, last)
        ignores(course, 2, change(parts[2], index=3))


def test_a_key_that_is_published_while_its_upload_is_open_drops_its_client() -> None:
    course = Course(CAPACITY)
    course.quiet()
    course.run(2)
    course.until(lambda: course.turns[2].round_number is not None)
    actions = course.server.free(2, course.turns[2].member)
    assert ClientDropped(2, Reason.PROTOCOL_VIOLATION) in actions
    course.perform(SERVER, actions)
    course.run(3)
    assert course.dropped == {2: Reason.PROTOCOL_VIOLATION}


def test_an_update_that_is_withdrawn_spares_its_client_and_is_late_to_withdraw_again() -> None:
    course = Course(CAPACITY)
    kept = hold_back(course, 2, m.UpdateReady)
    course.until(lambda: bool(kept))
    course.meddler = None
    number = begun(course, 2).upload
    course.perform(2, course.turns[2].withdraw(Reason.TRAINING_FAILED))
    course.until(lambda: course.refused != [])
    assert course.refused == [UpdateRefused(2, Reason.TRAINING_FAILED)]
    ignores(course, 2, m.Withdraw(number, Reason.TRAINING_FAILED))
    drops(course, 2, m.Withdraw(number + 100, Reason.TRAINING_FAILED), Reason.PROTOCOL_VIOLATION)


def test_a_client_that_leaves_while_it_trains_is_gone_whatever_its_reason() -> None:
    """It erased what it held of the others; to count on it would be to wait for nothing."""
    for reason in (Reason.TRAINING_FAILED, Reason.NOT_FINITE, Reason.BAD_LIST):
        course = Course(CAPACITY)
        course.quiet()
        course.until(lambda: course.turns[2].round_number is not None)  # noqa: B023
        drops_itself = course.server.receive(2, encode(m.Leave(0, reason)))
        assert ClientDropped(2, reason, left=True) in drops_itself


# Everything else.


def test_nonsense_drops_its_sender() -> None:
    for nonsense in (b"", b"\xc1", b"\x00" * 50, bytes(2**20 + 2**12 + 1), encode(m.Finish("done"))):
        course = Course(CAPACITY)
        course.quiet()
        drops(course, 2, nonsense, Reason.MALFORMED)


FOREIGN: list[Callable[[int], m.Message]] = [
    lambda upload: m.Hello("scene", 2, 1, bytes(32), {}, (), bytes(64)),
    lambda upload: m.RoundKeyMessage(2, bytes(32), bytes(64)),
    lambda upload: m.PlainReady(),
    lambda upload: m.FinishAcknowledged(),
    lambda upload: m.SharesHeld(upload, b"\x3f"),
    lambda upload: m.PlainUpdate(upload, 1, 0, memoryview(bytes(4))),
]


@pytest.mark.parametrize("stage", [BufferStage.COLLECTING, BufferStage.ENDORSING, BufferStage.RECOVERING])
def test_messages_of_other_conversations_drop_their_sender_in_every_stage(stage: BufferStage) -> None:
    for make in FOREIGN:
        course = Course(CAPACITY, size=3)
        hold_back(course, 2, m.UpdateReady)
        course.until(lambda: course.server.can_freeze)  # noqa: B023
        course.until(stage)
        course.meddler = None
        drops(course, 2, make(course.server._uploads[2].name.upload), Reason.PROTOCOL_VIOLATION)


def test_messages_of_an_upload_to_come_drop_their_sender_and_of_an_earlier_one_are_late() -> None:
    messages: list[Callable[[int], m.Message]] = [
        m.UpdateReady,
        lambda upload: m.SealedSeeds(m.MaskName(2, 0, upload), memoryview(bytes(144))),
        lambda upload: m.EncodedMask(m.MaskName(2, 0, upload), 6, 0, memoryview(bytes(28))),
        lambda upload: m.MaskedUpdate(upload, 1, 0, memoryview(bytes(30))),
        lambda upload: m.Withdraw(upload, Reason.TRAINING_FAILED),
    ]
    for make in messages:
        course = Course(CAPACITY)
        course.run(2)
        course.until(lambda: 2 in course.server._uploads)  # noqa: B023
        number = course.server._uploads[2].name.upload
        ignores(course, 2, make(number - 1))  # somebody's, but not its own
        drops(course, 2, make(number + 100), Reason.PROTOCOL_VIOLATION)


def test_update_ready_is_said_once() -> None:
    course = Course(CAPACITY)
    kept = hold_back(course, 2, m.UpdateReady, m.UploadGrant)
    course.until(lambda: bool(kept))
    taken(course, 2, kept[0])
    course.meddler = None
    drops(course, 2, kept[0], Reason.PROTOCOL_VIOLATION)


@pytest.mark.parametrize("number", [0, -1, 7, 2000])
def test_client_numbers_that_do_not_exist_are_the_callers_mistake(number: int) -> None:
    server = Course(CAPACITY).server
    for call in (
        lambda: server.receive(number, encode(m.UpdateReady(1))),
        lambda: server.free(number, None),
        lambda: server.away(number),
        lambda: server.back(number),
        lambda: server.lose(number, Reason.LINK_LOST),
        lambda: server.revoke(number),
    ):
        with pytest.raises(LocalProtocolError, match=r"1\.\.6"):
            call()


@settings(max_examples=60, deadline=None)
@given(
    place=st.integers(0, 25),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    flip=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
)
def test_a_damaged_message_of_one_client_never_raises_and_costs_at_most_that_client(
    place: int, cut: float | None, flip: tuple[float, int]
) -> None:
    course = Course(CAPACITY)
    counted = count()

    def damage(sender: int, _: int, raw: bytes) -> list[bytes]:
        content = sender == 2 and isinstance(
            from_client(raw), m.MaskedUpdate | m.AggregateEncodedMask | m.RoundKeyMessage
        )
        if sender != 2 or content or next(counted) != place:
            return [raw]
        if cut is not None:
            return [raw[: int(cut * len(raw))]]
        where = int(flip[0] * len(raw))
        return [raw[:where] + bytes([raw[where] ^ 1 << flip[1]]) + raw[where + 1 :]]

    course.meddler = damage
    course.run(3)
    assert set(course.dropped) | set(course.left) <= {2}
