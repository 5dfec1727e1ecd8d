"""When an asynchronous run goes on: what enters the buffer, when a list can be made, and who begins anew."""

from __future__ import annotations

import pytest

from lightsecagg.errors import Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Ready, UpdateRefused, What
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import from_client
from tests.protocol.buffered_course import Course, begun, hold_back, taken

CAPACITY = 6
"""Slots; U = 4, T = 1, K = 4: two clients can be lost."""


def few_reports(*missing: tuple[int, int]):
    """No report of the first of each pair about the shares of the second arrives."""

    def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        message = from_client(raw) if receiver == SERVER else None
        is_missing = isinstance(message, m.ShareHeld) and (sender, message.mask.client) in missing
        return [] if is_missing else [raw]

    return meddle


def test_a_client_whose_updates_go_with_no_others_delays_no_list() -> None:
    """Client 6 holds nobody's shares, and its own are held by four others: no five hold one more with it.

    So nobody has to wait for client 1, which is slow, and no other's update is crowded out.
    """
    course = Course(6, 5, 1, size=5, weights=(1,) * 12, order_seed=3, slow={1: 30})
    course.meddler = few_reports(*((6, dealer) for dealer in range(1, 6)), (5, 6))
    course.run(25)
    assert all(entry.client != 6 for result in course.results for entry in result.entries)
    assert not [refused for refused in course.refused if refused.number != 6]
    assert (course.aborted, course.dropped) == ([], {})


def test_updates_that_make_no_list_go_though_a_client_holds_its_slot_and_says_nothing() -> None:
    course = Course(4, 3, 1, size=3)
    course.meddler = few_reports((4, 1), (1, 2), (2, 3))
    course.until(lambda: course.server.buffered == 3)
    kept = hold_back(course, 4, m.MaskedUpdate)
    course.quiet(offers=True)
    assert kept
    assert not course.server.can_freeze
    course.perform(SERVER, course.server.stalled())
    assert course.refused == [UpdateRefused(1, Reason.CROWDED_OUT)]


@pytest.mark.parametrize("is_lost", [False, True])
def test_an_update_enters_the_buffer_only_while_enough_hold_its_shares(is_lost: bool) -> None:
    """Clients 5 and 6 never report client 1's share; client 4 is lost while the update is on its way."""
    course = Course(CAPACITY)
    course.meddler = few_reports((5, 1), (6, 1))
    course.until(lambda: 1 in course.server.slot_holders)
    kept = hold_back(course, 1, m.MaskedUpdate)
    course.until(lambda: bool(kept))
    if is_lost:
        course.lose(4)
    assert course.server.unheld == {}
    for raw in kept:
        taken(course, 1, raw) if not is_lost else course.perform(SERVER, course.server.receive(1, raw))
    refused = [UpdateRefused(1, Reason.TOO_FEW_HOLDERS)] if is_lost else []
    assert course.refused == refused
    assert course.server.buffered == (0 if is_lost else 1)


def test_a_report_about_an_update_in_the_buffer_lets_a_list_be_made_at_once() -> None:
    """Its dealer has begun its next one meanwhile."""
    course = Course(5)  # U = 4, K = 4
    kept = []

    def meddle(sender: int, receiver: int, raw: bytes) -> list[bytes]:
        message = from_client(raw) if receiver == SERVER else None
        match message:
            case m.ShareHeld(mask) if (sender, mask.client) in ((4, 1), (3, 2)) and mask.upload <= 5:
                kept.append((sender, raw))
                return []
            case m.UpdateReady(number) if number > 5 or sender == 5:
                return []
            case _:
                return [raw]

    course.meddler = meddle
    course.quiet()
    assert course.server.buffered == 4
    assert not course.server.can_freeze
    sender, raw = kept[0]
    assert course.server.receive(sender, raw) == [Ready(What.FREEZE)]


def test_those_whose_updates_are_being_listed_wait_for_the_version_that_is_made_of_them() -> None:
    course = Course(4, 3, 1, size=3)
    course.until(BufferStage.ENDORSING)
    (announced,) = {message.list for message in course.sent(SERVER, m.ListAnnounced)}
    listed = [entry.client for entry in announced.entries]
    course.quiet()  # all but decoding the list
    assert [course.turns[number].round_number for number in listed] == [None] * 3
    course.until(lambda: len(course.results) == 1)
    course.until(lambda: all(course.turns[number].round_number for number in listed))
    assert {begun(course, number).version for number in listed} == {1}


def test_a_client_that_left_on_a_version_is_not_asked_again_before_the_next() -> None:
    course = Course(CAPACITY)
    course.until(lambda: course.turns[2].round_number is not None)
    course.perform(2, course.turns[2].leave(Reason.TRAINING_FAILED))
    course.until(lambda: 2 in course.dropped)
    course.join(2, before=course.holders[2])
    course.quiet()
    assert course.turns[2].round_number is None
    course.run(1)
    course.quiet()
    assert begun(course, 2).version == 1
