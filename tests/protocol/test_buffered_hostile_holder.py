"""What one holder can do to a list with its signature and its answer: cost itself (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RoundAborted
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.buffered.views import list_digest, sign_list
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import encode, from_client
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.buffered_course import Course, drops, hold_back, ignores, taken
from tests.protocol.scene import change

CAPACITY = 6
"""Slots; U = 4, T = 1, K = 4: two clients can be lost."""


def listed(stage: BufferStage) -> tuple[Course, m.UpdateList]:
    """The first list has just reached ``stage``; client 2's word about it is held back."""
    course = Course(CAPACITY)
    hold_back(course, 2, m.Endorse, m.AggregateEncodedMask)
    course.until(stage)
    assert 2 in course.server._holders
    assert course.server._list is not None
    return course, course.server._list


def signed(course: Course, client: int, updates: m.UpdateList, *others: bytes) -> bytes:
    """The client's signature over a list of the updates in the list under way, but for ``others``."""
    digests = [upload.digest for upload in course.server._chosen]
    view = list_digest(course.digest, updates, [*digests[len(others) :], *others])
    return sign_list(course.identities[client], view)


def test_an_endorsement_that_breaks_a_rule_drops_its_sender() -> None:
    for flaw in (
        "another's signature",
        "another list",
        "another number",
        "other masks",
        "a list to come",
        "twice",
        "too early",
    ):
        course, updates = listed(BufferStage.ENDORSING)
        number, signature = updates.number, signed(course, 2, updates)
        reason = Reason.BAD_SIGNATURE
        if flaw == "another's signature":
            signature = signed(course, 3, updates)
        elif flaw == "another list":
            signature = signed(course, 2, change(updates, entries=updates.entries[::-1]))
        elif flaw == "another number":
            signature = signed(course, 2, change(updates, number=2))
        elif flaw == "other masks":
            signature = signed(course, 2, updates, bytes(32))
        elif flaw == "a list to come":
            number, reason = 2, Reason.PROTOCOL_VIOLATION
        elif flaw == "twice":
            taken(course, 2, encode(m.Endorse(1, signature)))
            reason = Reason.PROTOCOL_VIOLATION
        else:
            course, reason = Course(CAPACITY), Reason.PROTOCOL_VIOLATION
            course.quiet()
        course.meddler = None
        drops(course, 2, m.Endorse(number, signature), reason)


def test_an_endorsement_or_answer_that_was_not_asked_for_drops_its_sender() -> None:
    for stage, word in (
        (BufferStage.ENDORSING, m.Endorse(1, bytes(64))),
        (BufferStage.RECOVERING, m.AggregateEncodedMask(1, 0, memoryview(bytes(12)))),
    ):
        course = Course(CAPACITY, present=(1, 2, 3, 4, 5))
        course.quiet()
        course.join(6)  # too late to hold what is in the buffer
        course.until(stage)
        assert 6 not in course.server._holders
        drops(course, 6, word, Reason.PROTOCOL_VIOLATION)


ANSWERS: dict[str, tuple[Callable[[list[m.AggregateEncodedMask]], list[m.AggregateEncodedMask]], Reason]] = {
    "out of order": (lambda a: [a[1]], Reason.PROTOCOL_VIOLATION),
    "twice": (lambda a: [a[0], a[0]], Reason.PROTOCOL_VIOLATION),
    "too many": (lambda a: [*a, change(a[0], index=2)], Reason.PROTOCOL_VIOLATION),
    "of a list to come": (lambda a: [change(a[0], round=2)], Reason.PROTOCOL_VIOLATION),
    "short": (lambda a: [change(a[0], data=a[0].data[:-3])], Reason.BAD_LENGTH),
    "long": (lambda a: [change(a[0], data=memoryview(bytes(15)))], Reason.BAD_LENGTH),
    "an element of p": (
        lambda a: [change(a[0], data=memoryview((2**24 - 3).to_bytes(3, "little") * 4))],
        Reason.BAD_ELEMENT,
    ),
}


def answering() -> tuple[Course, list[m.AggregateEncodedMask]]:
    """The certificate is out, fewer than U answered, and client 2's answer of two parts was held back."""
    course = Course(CAPACITY, dimension=20)
    kept = hold_back(course, 2, m.AggregateEncodedMask)
    course.until(BufferStage.RECOVERING)
    course.until(lambda: len(kept) == 2)
    course.meddler = None
    assert not course.server.can_decode
    return course, [from_client(raw) for raw in kept]


@pytest.mark.parametrize("flaw", ANSWERS)
def test_an_answer_that_breaks_a_rule_drops_its_sender(flaw: str) -> None:
    make, reason = ANSWERS[flaw]
    with short_parts(4):
        course, parts = answering()
        *fine, bad = make(parts)
        for message in fine:
            taken(course, 2, encode(message))
        drops(course, 2, bad, reason)
        honest, parts = answering()
        for message in parts:
            taken(honest, 2, encode(message))
        honest.run(2)
        assert honest.dropped == {}


def test_an_answer_before_the_certificate_drops_its_sender() -> None:
    course, updates = listed(BufferStage.ENDORSING)
    course.meddler = None
    answer = m.AggregateEncodedMask(updates.number, 0, memoryview(bytes(12)))
    drops(course, 2, answer, Reason.PROTOCOL_VIOLATION)


def test_words_about_a_list_that_is_certified_decoded_or_failed_are_late() -> None:
    endorsement, answer = m.Endorse(1, bytes(64)), m.AggregateEncodedMask(1, 0, memoryview(bytes(12)))
    course, _ = listed(BufferStage.RECOVERING)
    course.meddler = None
    ignores(course, 2, endorsement)
    for late in (endorsement, answer):
        decoded = Course(CAPACITY)
        decoded.run(1)
        ignores(decoded, 2, late)
        failed, _ = listed(BufferStage.ENDORSING)
        failed.meddler = None
        failed.perform(SERVER, failed.server.abort(AbortReason.TOO_FEW_ENDORSEMENTS))
        ignores(failed, 2, late)


def test_a_dealer_that_lets_its_own_lists_fail_does_so_once() -> None:
    """Exactly U hold client 2's updates, itself among them, and it says nothing to any list."""
    course = Course(CAPACITY)

    def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        message = from_client(raw) if sender == 2 else None
        match message:
            case m.Endorse() | m.AggregateEncodedMask():
                return []
            case m.SealedSeeds(_, data):  # for 3, 4 and 5
                return [encode(change(message, data=memoryview(bytes(data[:96]) + bytes(48))))]
            case m.EncodedMask(_, 6, _, data):
                return [encode(change(message, data=memoryview(bytes(len(data)))))]
            case _:
                return [raw]

    course.meddler = meddle
    course.run(8)
    assert course.aborted == [AbortReason.TOO_FEW_ENDORSEMENTS]
    assert all(entry.client != 2 for result in course.results for entry in result.entries)
    assert (course.dropped, course.left) == ({}, {})


def test_answers_beyond_what_is_needed_are_not_kept() -> None:
    course = Course(CAPACITY)
    course.until(lambda: course.server.can_decode)
    whole = course.server._answers.whole
    extra = [number for number in course.present if number not in whole]
    assert len(extra) == 2
    late = course.server.late_messages
    for number in extra:
        answer = m.AggregateEncodedMask(1, 0, memoryview(bytes(12)))
        assert course.server.receive(number, encode(answer)) == []
    assert course.server.late_messages == late + 2
    assert course.server._answers.whole == whole
    course.run(2)


@pytest.mark.parametrize("coordinate", [0, -1])
def test_a_sum_that_no_honest_updates_have_is_not_used_and_its_updates_never_again(coordinate: int) -> None:
    course = Course(CAPACITY)
    honest = course.update
    lies = []

    def update(number: int):
        vector = honest(number)
        if number == 2 and not lies:
            vector[coordinate] = 2_000_000
            lies.append(course.turns[2].round_number)
        return vector

    course.update = update
    with pytest.raises(RoundAborted) as caught:
        course.run(1)
    assert caught.value.reason is AbortReason.SUM_OUT_OF_RANGE
    with pytest.raises(LocalProtocolError):
        course.server.finish()
    failed = {(entry.client, entry.upload) for entry in course.server._list.entries}
    assert (2, lies[0]) in failed
    course.perform(SERVER, course.server.abort(AbortReason.SUM_OUT_OF_RANGE))
    course.run(4)
    assert not failed & {(e.client, e.upload) for result in course.results for e in result.entries}
    assert (course.dropped, course.left) == ({}, {})
