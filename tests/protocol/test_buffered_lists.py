"""One list for each upload, honestly weighted and certified, or no answer (DESIGN §4, buffered rounds)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from lightsecagg.errors import Reason
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.terms import Floors
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.buffered_scene import Puppet, answered, dealt, endorsed, refuses
from tests.protocol.scene import change, reason_of, said

HOW = pytest.mark.parametrize("how", ["announced", "certified"])
"""Whether the client hears of the list before its certificate, or with it."""


def as_told(puppet: Puppet, updates: m.UpdateList, how: str) -> m.Message:
    return m.ListAnnounced(updates) if how == "announced" else puppet.certificate(updates)


def accepts(puppet: Puppet, client: int, updates: m.UpdateList, how: str) -> None:
    if how == "announced":
        endorsed(puppet, client, updates)
    assert answered(puppet, client, puppet.certificate(updates))


# What a list must be. Each flaw stands beside the honest list that it was made of.


def reweighted(*weights: int) -> Callable[[Puppet], tuple[m.UpdateList, m.UpdateList]]:
    """Versions 0, 1, 2 and 2 in a list at version 2, which weigh 1, 2, 4 and 4."""

    def lists(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
        mixed = [puppet.deal(client, version) for client, version in ((1, 0), (2, 1), (3, 2), (4, 2))]
        honest = puppet.updates(mixed)
        assert [entry.weight for entry in honest.entries] == [1, 2, 4, 4]
        return honest, puppet.updates(mixed, weights=weights)

    return lists


def cut_to(count: int) -> Callable[[Puppet], tuple[m.UpdateList, m.UpdateList]]:
    def lists(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
        several = [puppet.deal(client) for client in (1, 2, 3)]
        return puppet.updates(several), puppet.updates(several[:count])

    return lists


def of_few_clients(*clients: int) -> Callable[[Puppet], tuple[m.UpdateList, m.UpdateList]]:
    def lists(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
        first = [puppet.deal(client) for client in (2, 3, 4)]
        few = [puppet.deal(client) for client in clients]
        return puppet.updates([*first, few[0]]), puppet.updates(few)

    return lists


def twice(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    several = [puppet.deal(client) for client in (1, 2, 3)]
    return puppet.updates(several), puppet.updates([*several, several[0]])


def too_long(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    several = [puppet.deal(client) for client in puppet.present]
    return puppet.updates(several[:4]), puppet.updates(several)


def too_stale(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    several = [puppet.deal(client) for client in (1, 2, 3)]
    return puppet.updates(several, version=2), puppet.updates(several, version=3)


def of_the_future(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    several = [puppet.deal(client, version) for client, version in ((1, 0), (2, 0), (3, 1))]
    return puppet.updates(several), puppet.updates(several, version=0)


def unknown(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    honest = puppet.updates([puppet.deal(client) for client in (1, 2, 3)])
    return honest, change(honest, entries=(*honest.entries, m.Listed(4, 4, 4)))


def not_held(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    several = [puppet.deal(client) for client in (1, 2, 3)]
    return puppet.updates(several), puppet.updates([*several, puppet.deal(4, to=(1, 2, 3))])


def by_halves(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    """Client 5 was offered a share that did not come."""
    several = [puppet.deal(client) for client in (1, 2, 3)]
    fourth = puppet.deal(4, to=(1, 2, 3))
    puppet.tell(5, puppet.offer(fourth, 5))
    return puppet.updates(several), puppet.updates([*several, fourth])


def own_that_stayed(puppet: Puppet) -> tuple[m.UpdateList, m.UpdateList]:
    several = [puppet.deal(client) for client in (1, 2, 3)]
    return puppet.updates(several), puppet.updates([*several, puppet.deal(5, leaves=False)])


FLAWS: dict[str, tuple[Callable[[Puppet], tuple[m.UpdateList, m.UpdateList]], Reason]] = {
    "one client": (cut_to(1), Reason.BELOW_FLOOR),
    "two clients": (cut_to(2), Reason.BELOW_FLOOR),
    "one client many times": (of_few_clients(1, 1, 1, 1), Reason.BELOW_FLOOR),
    "two clients many times": (of_few_clients(1, 4, 1, 4), Reason.BELOW_FLOOR),
    "an update twice": (twice, Reason.BAD_LIST),
    "more updates than the buffer has": (too_long, Reason.BAD_LIST),
    "the oldest weighs more": (reweighted(2, 2, 4, 4), Reason.BAD_LIST),
    "the newest weighs less": (reweighted(1, 2, 4, 3), Reason.BAD_LIST),
    "a weight of zero": (reweighted(1, 2, 4, 0), Reason.BAD_LIST),
    "a huge weight": (reweighted(1, 2, 2**53 - 1, 4), Reason.BAD_LIST),
    "two weights exchanged": (reweighted(2, 1, 4, 4), Reason.BAD_LIST),
    "all weigh the same": (reweighted(4, 4, 4, 4), Reason.BAD_LIST),
    "updates that are too old": (too_stale, Reason.BAD_LIST),
    "an update newer than the list": (of_the_future, Reason.BAD_LIST),
    "an upload nobody knows of": (unknown, Reason.BAD_LIST),
    "a share that never came": (not_held, Reason.BAD_LIST),
    "a share that was only offered": (by_halves, Reason.BAD_LIST),
    "its own update, which stayed": (own_that_stayed, Reason.BAD_LIST),
}


@HOW
@pytest.mark.parametrize("flaw", FLAWS)
def test_a_list_that_breaks_a_rule_is_refused_and_the_honest_one_beside_it_answered(
    flaw: str, how: str
) -> None:
    make, reason = FLAWS[flaw]
    puppet = Puppet()
    _, flawed = make(puppet)
    refuses(puppet, 5, as_told(puppet, flawed, how), reason)
    again = Puppet()
    honest, _ = make(again)
    accepts(again, 5, honest, how)


@HOW
@pytest.mark.parametrize(("floor", "least"), [(0, 3), (3, 3), (4, 4)])
def test_fewer_clients_than_its_floor_or_than_t_plus_two_are_refused(
    floor: int, least: int, how: str
) -> None:
    for count in (least - 1, least):
        puppet = dealt(1, 2, 3, 4, floors=Floors(2, 0, min_buffer_clients=floor))
        updates = puppet.updates(puppet.dealt[:count])
        if count < least:
            refuses(puppet, 5, as_told(puppet, updates, how), Reason.BELOW_FLOOR)
        else:
            accepts(puppet, 5, updates, how)


@HOW
def test_its_own_update_is_endorsed_only_if_it_left(how: str) -> None:
    for leaves in (True, False):
        puppet = dealt(1, 2, 3)
        updates = puppet.updates([*puppet.dealt, puppet.deal(4, leaves=leaves)])
        if leaves:
            accepts(puppet, 4, updates, how)
        else:
            refuses(puppet, 4, as_told(puppet, updates, how), Reason.BAD_LIST)


@HOW
@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_list_number_that_is_not_above_the_last_is_refused(number: int, how: str) -> None:
    puppet = dealt(1, 2, 3, 1, 2, 3, 4)
    assert answered(puppet, 5, puppet.certificate(puppet.updates(puppet.dealt[:3], 3)))
    another = puppet.updates(puppet.dealt[3:6], number)
    refuses(puppet, 5, as_told(puppet, another, how), Reason.STALE_LIST)
    accepts(puppet, 4, puppet.updates(puppet.dealt[3:6], 4), how)


@HOW
def test_a_version_below_the_newest_that_a_client_trained_on_or_stood_for_is_refused(how: str) -> None:
    for heard in ("own start", "list"):
        puppet = dealt(1, 2, 3, 1, 2, 3)
        if heard == "own start":
            puppet.deal(5, 1)
        else:
            endorsed(puppet, 5, puppet.updates(puppet.dealt[3:6], 1, version=1))
        stale = puppet.updates(puppet.dealt[:3], 2, version=0)
        refuses(puppet, 5, as_told(puppet, stale, how), Reason.STALE_LIST)
        accepts(puppet, 4, puppet.updates(puppet.dealt[:3], 2, version=1), how)


@HOW
def test_strict_weights_want_t_plus_two_distinct_clients_beside_each_weight(how: str) -> None:
    floors = {strict: Floors(2, 0, min_buffer_clients=3, strict_weights=strict) for strict in (True, False)}
    lonely = ((1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 1))  # two distinct clients of weight 4
    paired = ((1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1))
    for versions, strict in itertools.product((lonely, paired), (True, False)):
        puppet = Puppet(size=6, floors=floors[strict])
        updates = puppet.updates([puppet.deal(*each) for each in versions])
        if strict and versions is lonely:
            refuses(puppet, 5, as_told(puppet, updates, how), Reason.BELOW_FLOOR)
        else:
            accepts(puppet, 5, updates, how)


# One mask, one list.


PASTS = {
    "announced": lambda puppet, updates: endorsed(puppet, 5, updates),
    "certified": lambda puppet, updates: answered(puppet, 5, puppet.certificate(updates)),
    "announced and certified": lambda puppet, updates: accepts(puppet, 5, updates, "announced"),
    "spent": lambda puppet, updates: spend(puppet, 5, updates),
    "announced and spent": lambda puppet, updates: (
        endorsed(puppet, 5, updates),
        spend(puppet, 5, updates),
    ),
    "all of it": lambda puppet, updates: (
        accepts(puppet, 5, updates, "announced"),
        spend(puppet, 5, updates),
    ),
}


def spend(puppet: Puppet, client: int, updates: m.UpdateList) -> None:
    masks = tuple((entry.client, entry.upload) for entry in updates.entries)
    assert puppet.tell(client, m.Spent(masks)) == []


@HOW
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("common", [1, 2, 3])
def test_no_mask_is_in_two_lists(past: str, common: int, how: str) -> None:
    """``common`` = 3 is the failed list tried again as it was, under a new number."""
    puppet = dealt(1, 2, 3, 4, 1, 2, 3)
    one, other = puppet.dealt[:3], [*puppet.dealt[:common], *puppet.dealt[4 + common :]]
    PASTS[past](puppet, puppet.updates(one, 1))
    refuses(puppet, 5, as_told(puppet, puppet.updates(other, 2), how), Reason.BAD_LIST)


@HOW
@pytest.mark.parametrize("past", PASTS)
def test_the_next_list_of_other_masks_is_answered_whatever_became_of_the_one_before(
    past: str, how: str
) -> None:
    puppet = dealt(1, 2, 3, 4, 1, 2, 3)
    PASTS[past](puppet, puppet.updates(puppet.dealt[:3], 1))
    accepts(puppet, 5, puppet.updates(puppet.dealt[3:6], 2), how)


@HOW
@pytest.mark.parametrize("past", ["announced", "certified"])
def test_a_failed_list_is_not_cut_down_and_tried_again(past: str, how: str) -> None:
    puppet = dealt(1, 2, 3, 4)
    PASTS[past](puppet, puppet.updates(puppet.dealt, 1))
    refuses(puppet, 5, as_told(puppet, puppet.updates(puppet.dealt[:3], 2), how), Reason.BAD_LIST)
    fresh = dealt(1, 2, 3, 4)
    accepts(fresh, 5, fresh.updates(fresh.dealt[:3], 2), how)


def test_a_list_is_signed_once_and_answered_once() -> None:
    puppet = dealt()
    updates = puppet.updates(puppet.dealt[:4])
    endorsed(puppet, 5, updates)
    assert puppet.tell(5, m.ListAnnounced(updates)) == []
    assert answered(puppet, 5, puppet.certificate(updates))
    assert not answered(puppet, 5, puppet.certificate(updates))
    assert not answered(puppet, 5, puppet.certificate(updates, [2, 3, 4, 5]))
    assert puppet.tell(5, m.ListAnnounced(updates)) == []
    assert answered(puppet, 4, puppet.certificate(updates))  # without having signed it
    assert puppet.tell(4, m.ListAnnounced(updates)) == []


def test_a_client_that_signed_a_list_and_hears_that_it_is_spent_answers_nothing() -> None:
    for masks in (1, 4):
        puppet = dealt()
        updates = puppet.updates(puppet.dealt[:4])
        endorsed(puppet, 5, updates)
        spend(puppet, 5, change(updates, entries=updates.entries[:masks]))
        assert not answered(puppet, 5, puppet.certificate(updates))
    other = dealt(1, 2, 3, 4, 1)
    updates = other.updates(other.dealt[:4])
    endorsed(other, 5, updates)
    spend(other, 5, other.updates(other.dealt[4:]))
    assert answered(other, 5, other.certificate(updates))


def test_the_certificate_of_a_list_that_another_followed_is_refused() -> None:
    puppet = dealt(1, 2, 3, 1, 2, 3)
    first, second = puppet.updates(puppet.dealt[:3], 1), puppet.updates(puppet.dealt[3:], 2)
    endorsed(puppet, 5, first)
    endorsed(puppet, 5, second)
    assert answered(puppet, 5, puppet.certificate(second))
    refuses(puppet, 5, puppet.certificate(first), Reason.STALE_LIST)


def test_an_answer_is_the_whole_of_what_was_held_and_says_which_list_it_is_for() -> None:
    puppet = dealt()
    updates = puppet.updates(puppet.dealt[:4], 17)
    (answer,) = said(puppet.tell(5, puppet.certificate(updates)))
    assert (answer.round, answer.index, len(answer.data)) == (17, 0, 4 * 3)
    assert puppet.holders[5].held == {puppet.dealt[4].key}


@pytest.mark.parametrize("ends", ["spent", "left", "the next list", "not"])
def test_an_answer_that_is_on_its_way_ends_where_its_list_does(ends: str) -> None:
    """Its dealers may be dealt to anew by then; nobody would use the rest of it."""
    with short_parts(4):
        puppet = dealt(1, 2, 3, 1, 2, 3, dimension=30)
        updates = puppet.updates(puppet.dealt[:3], 1)
        (answer,) = puppet.tell(5, puppet.certificate(updates))
        assert answer.is_urgent
        parts = [next(answer.sends)]
        if ends == "spent":
            spend(puppet, 5, updates)
        elif ends == "left":
            puppet.turns[5].leave(Reason.STOPPED_BY_USER)
        elif ends == "the next list":
            endorsed(puppet, 5, puppet.updates(puppet.dealt[3:], 2))
        parts += answer.sends
    assert len(parts) == (3 if ends == "not" else 1)


# Two lists with common updates, shown to different holders.


@pytest.mark.parametrize("assignment", list(itertools.product((0, 1), repeat=4)))
@pytest.mark.parametrize("numbers", [(1, 1), (1, 2)])
def test_no_two_lists_with_a_common_update_are_answered_by_honest_holders(
    assignment: tuple[int, ...], numbers: tuple[int, int]
) -> None:
    """Client 5 is in the server's pay; whoever of 1..4 is shown which list first, and the other one then."""
    puppet = dealt(1, 2, 3, 4)
    lists = [
        puppet.updates(chosen, number)
        for chosen, number in zip((puppet.dealt[:3], puppet.dealt[1:]), numbers, strict=True)
    ]
    signed: list[dict[int, bytes]] = [{}, {}]
    for holder, first in enumerate(assignment, start=1):
        signed[first][holder] = endorsed(puppet, holder, lists[first]).signature
    for which in (0, 1):
        signed[which][5] = puppet.signature(5, lists[which])
    certified = [which for which in (0, 1) if len(signed[which]) >= 4]
    assert len(certified) == (1 if assignment.count(0) != 2 else 0)
    for which, holder in itertools.product(certified, range(1, 5)):
        endorsers = sorted(signed[which])[:4]
        certificate = puppet.certificate(lists[which], endorsers)
        assert certificate.signatures == b"".join(signed[which][i] for i in endorsers)
        if assignment[holder - 1] == which:
            assert answered(puppet, holder, certificate)
    for holder, first in enumerate(assignment, start=1):
        reason = reason_of(puppet.tell(holder, m.ListAnnounced(lists[1 - first])))
        assert reason in (Reason.STALE_LIST, Reason.BAD_LIST)


def test_where_two_quorums_may_have_only_colluders_in_common_both_lists_are_answered() -> None:
    """Why it takes 2U > C + T: here U = 2 of C = 4, and a client that demands it stays out."""
    assert not Parameters(4, 2, 0).unique_survivor_set
    puppet = dealt(1, 2, 3, capacity=4, u=2, t=0, size=2)
    for chosen, holders in ((puppet.dealt[:2], (1, 2)), (puppet.dealt[1:], (3, 4))):
        updates = puppet.updates(chosen)
        for holder in holders:
            endorsed(puppet, holder, updates)
        assert all(answered(puppet, holder, puppet.certificate(updates, holders)) for holder in holders)
    strict = Floors(2, 0, unique_survivor_set=True, min_buffer_clients=2)
    careful = Puppet(4, 2, 0, size=2, floors=strict)
    refuses(careful, 1, careful.start(), Reason.BELOW_FLOOR)
    unique = Puppet(4, 3, 0, size=2, floors=strict)
    assert reason_of(unique.tell(1, unique.start())) is None


@pytest.mark.parametrize("capacity", range(2, 9))
def test_any_two_quorums_have_an_honest_client_in_common_just_where_twice_u_exceeds_c_plus_t(
    capacity: int,
) -> None:
    for u, t in itertools.product(range(1, capacity + 1), range(capacity)):
        if t >= u:
            continue
        quorums = [frozenset(quorum) for quorum in itertools.combinations(range(capacity), u)]
        overlap = min(len(quorums[0] & quorum) for quorum in quorums)
        assert (overlap > t) == Parameters(capacity, u, t).unique_survivor_set
