"""What a client holds: shares that it was offered and that open for that very upload (DESIGN §3 and §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lightsecagg.errors import Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.model import model_streams
from lightsecagg.protocol.terms import Floors, make_member
from tests.protocol.buffered_scene import Dealt, Puppet, answered, dealt, endorsed, refuses
from tests.protocol.scene import change, flat


def cohort_without(puppet: Puppet, given: Dealt, *left_out: int) -> bytes:
    return puppet.bits(set(given.cohort) - set(left_out))


OFFERS: dict[str, tuple[Callable[[Puppet, Dealt, m.ShareOffer], m.ShareOffer], Reason]] = {
    "a slot out of range": (
        lambda p, d, o: change(o, mask=change(o.mask, client=9), dealer=change(o.dealer, rank=9)),
        Reason.BAD_COHORT,
    ),
    "a slot nobody has": (
        lambda p, d, o: change(o, mask=change(o.mask, client=6), dealer=change(o.dealer, rank=6)),
        Reason.BAD_COHORT,
    ),
    "its own slot": (lambda p, d, o: change(o, mask=change(o.mask, client=5)), Reason.BAD_COHORT),
    "its own slot and entry": (
        lambda p, d, o: change(o, mask=change(o.mask, client=5), dealer=p.turns[5].member),
        Reason.BAD_COHORT,
    ),
    "another dealer's entry": (lambda p, d, o: change(o, dealer=p.turns[2].member), Reason.BAD_COHORT),
    "a cohort without its dealer": (
        lambda p, d, o: change(o, cohort=cohort_without(p, d, 1)),
        Reason.BAD_COHORT,
    ),
    "a cohort without it": (lambda p, d, o: change(o, cohort=cohort_without(p, d, 5)), Reason.BAD_COHORT),
    "a cohort of fewer than U": (
        lambda p, d, o: change(o, cohort=cohort_without(p, d, 2, 3)),
        Reason.BAD_COHORT,
    ),
    "a cohort beyond the slots": (lambda p, d, o: change(o, cohort=b"\x5f"), Reason.BAD_COHORT),
    "a longer bitmap": (lambda p, d, o: change(o, cohort=o.cohort + b"\0"), Reason.BAD_COHORT),
    "a key nobody signed": (
        lambda p, d, o: change(o, dealer=change(o.dealer, key=bytes(range(32)))),
        Reason.BAD_SIGNATURE,
    ),
    "a stranger at a known slot": (lambda p, d, o: change(o, dealer=p.stranger_at(1)), Reason.BAD_COHORT),
    "a known client at another slot": (
        lambda p, d, o: change(o, dealer=make_member(p.identities[2], p.protocol_run, 1, 1, o.dealer.key)),
        Reason.BAD_COHORT,
    ),
}


@pytest.mark.parametrize("flaw", OFFERS)
def test_an_offer_that_breaks_a_rule_is_refused_and_the_honest_one_beside_it_taken(flaw: str) -> None:
    make, reason = OFFERS[flaw]
    puppet = Puppet(6, 4, 1, present=range(1, 6))
    puppet.deal(5, to=())  # so that it knows everybody
    given = puppet.deal(1, to=())
    refuses(puppet, 5, make(puppet, given, puppet.offer(given, 5)), reason)
    puppet.give(given, 4)


def test_an_offer_by_somebody_outside_the_roster_is_refused() -> None:
    for with_roster in (True, False):
        puppet = Puppet(with_roster=with_roster)
        one = puppet.deal(1, to=())
        offer = change(puppet.offer(one, 5), dealer=puppet.stranger_at(1))
        if with_roster:
            refuses(puppet, 5, offer, Reason.UNKNOWN_IDENTITY)
            puppet.give(one, 4)
        else:
            assert puppet.tell(5, offer) == []


def test_an_upload_is_offered_once() -> None:
    puppet = Puppet()
    first, second = puppet.deal(1, to=()), puppet.deal(1, to=())
    for client, earlier in ((5, second), (4, first)):
        puppet.give(second, client)
        refuses(puppet, client, puppet.offer(earlier, client), Reason.PROTOCOL_VIOLATION)
    puppet.give(first, 3)
    puppet.give(second, 3)
    assert puppet.tell(3, m.Spent((first.key, second.key))) == []
    refuses(puppet, 3, puppet.offer(second, 3), Reason.PROTOCOL_VIOLATION)


def test_more_open_uploads_than_an_honest_server_has_are_refused() -> None:
    """C = 3 and K = 3: at most 2C + 3K = 15 are held; those that are spent make room."""
    puppet = Puppet(3, 2, 0, size=3, floors=Floors(2, 0, min_buffer_clients=2))
    for _ in range(15):
        spent = puppet.deal(1, to=(2,))
        puppet.tell(2, m.Spent((spent.key,)))
    assert puppet.holders[2].held == frozenset()
    held = [puppet.deal(1, to=(2,)) for _ in range(15)]
    assert puppet.holders[2].held == {each.key for each in held}
    one_more = puppet.deal(1, to=())
    refuses(puppet, 2, puppet.offer(one_more, 2), Reason.PROTOCOL_VIOLATION)


def test_no_flood_of_versions_makes_a_client_forget_which_model_a_version_has() -> None:
    """Some are held, some not; past a bound versions that it never heard of are not: it could not tell."""
    puppet = Puppet(3, 2, 0, size=3, floors=Floors(2, 0, min_buffer_clients=2))
    first = puppet.deal(2)  # version 0
    for version in range(1, 60):
        flood = puppet.deal(1, version, to=())
        offer = puppet.offer(flood, 3)
        if version % 2:
            offer = change(offer, key=bytes(range(32)))
        assert puppet.tell(3, offer) == []
        puppet.tell(3, flood.shares[3][0])
        assert puppet.tell(3, m.Spent((flood.key,))) == []
    assert first.key in puppet.holders[3].held
    assert len(puppet.holders[3]._models) == 2 * 3 + 3 * 3 + 3
    again = puppet.deal(2, to=())
    refuses(puppet, 3, change(puppet.offer(again, 3), model_hash=bytes(32)), Reason.MODEL_MISMATCH)


# Shares open only for who was told of the same upload.


def not_held(puppet: Puppet, client: int, given: Dealt, offer: m.ShareOffer) -> None:
    """The share does not open under this offer: nothing is said of it, and no list with it is endorsed."""
    assert puppet.tell(client, offer) == []
    for share in given.shares[client]:
        renamed = change(share, mask=offer.mask)
        assert puppet.tell(client, renamed) == []
    assert given.key not in puppet.holders[client].held
    others = [puppet.deal(i) for i in (2, 3)]
    updates = puppet.updates([*others, replace(given, name=offer.mask)])
    refuses(puppet, client, m.ListAnnounced(updates), Reason.BAD_LIST)


RELABELLED: dict[str, Callable[[Puppet, int, m.ShareOffer], m.ShareOffer]] = {
    "a later version": lambda p, i, o: change(o, mask=change(o.mask, version=2)),
    "another upload": lambda p, i, o: change(o, mask=change(o.mask, upload=o.mask.upload + 5)),
    "a larger cohort": lambda p, i, o: change(o, cohort=p.bits(range(1, 7))),
    "a smaller cohort": lambda p, i, o: change(o, cohort=p.bits({1, 2, 4, 5})),
    "another model": lambda p, i, o: change(o, model_hash=bytes(32)),
    "the dealer's key before": lambda p, i, o: change(o, dealer=p.dealt[0].dealer),
    "the dealer's key after": lambda p, i, o: change(o, dealer=p.turns[1].member),
    "another of its own keys": lambda p, i, o: change(o, key=p.turns[i].member.key),
    "another client's key": lambda p, i, o: change(o, key=p.turns[3].member.key),
}


@pytest.mark.parametrize("client", [4, 5])
@pytest.mark.parametrize("label", RELABELLED)
def test_a_share_offered_as_something_else_than_its_dealer_sealed_is_not_held(
    label: str, client: int
) -> None:
    """Client 1's mask is dealt to 1..5 of six slots (U = 4): client 4's share is a seed, and 5's derived."""
    puppet = Puppet(6, 4, 1, present=range(1, 6))
    puppet.deal(1, to=())
    given = puppet.deal(1, version=1, to=())
    assert [type(share) for i in (4, 5) for share in given.shares[i]] == [m.SealedSeed, m.EncodedMask]
    puppet.renew(client)
    not_held(puppet, client, given, RELABELLED[label](puppet, client, puppet.offer(given, client)))
    puppet.give(given, 3)


@pytest.mark.parametrize("client", [4, 5])
def test_a_share_that_comes_under_another_version_than_was_offered_is_refused(client: int) -> None:
    puppet = Puppet()
    given = puppet.deal(1, to=())
    assert puppet.tell(client, puppet.offer(given, client)) == []
    for share in given.shares[client]:
        relabelled = change(share, mask=change(given.name, version=1))
        refuses(puppet, client, relabelled, Reason.PROTOCOL_VIOLATION)
    puppet.give(given, 3)


@pytest.mark.parametrize("client", [4, 5])
def test_a_share_that_was_damaged_or_comes_as_another_kind_is_not_held_and_blames_nobody(client: int) -> None:
    kinds = {
        4: lambda share, data: m.EncodedMask(share.mask, 4, 0, memoryview(data)),
        5: lambda share, data: m.SealedSeed(share.mask, memoryview(data)),
    }
    for flaw in ("flipped", "short", "empty", "another kind"):
        puppet = Puppet()
        given = puppet.deal(1, to=())
        assert puppet.tell(client, puppet.offer(given, client)) == []
        (share,) = given.shares[client]
        data = bytes(share.data)
        flipped = memoryview(data[:-1] + bytes([data[-1] ^ 1]))
        damaged = {
            "flipped": change(share, data=flipped),
            "short": change(share, data=share.data[:-1]),
            "empty": change(share, data=memoryview(b"")),
            "another kind": kinds[client](share, data),
        }[flaw]
        assert puppet.tell(client, damaged) == []
        assert puppet.tell(client, share) == []  # it stays spoilt
        assert given.key not in puppet.holders[client]._holdings


def test_a_share_for_somebody_else_or_that_was_not_offered_is_refused() -> None:
    puppet = Puppet()
    given = puppet.deal(1, to=())
    (part,), (seed,) = given.shares[5], given.shares[4]
    refuses(puppet, 5, part, Reason.PROTOCOL_VIOLATION)
    refuses(puppet, 4, seed, Reason.PROTOCOL_VIOLATION)
    puppet.tell(3, puppet.offer(given, 3))
    refuses(puppet, 3, part, Reason.PROTOCOL_VIOLATION)
    puppet.give(given, 2)


def test_a_share_that_comes_after_its_upload_was_spent_is_ignored() -> None:
    puppet = Puppet()
    given = puppet.deal(1, to=())
    puppet.tell(5, puppet.offer(given, 5))
    assert puppet.tell(5, m.Spent((given.key,))) == []
    assert puppet.tell(5, given.shares[5][0]) == []
    assert puppet.holders[5].held == frozenset()


def test_a_share_sealed_for_a_key_that_was_erased_is_not_held_and_nobody_leaves() -> None:
    """A key serves until the client's next upload but one has begun."""
    for renewals in (0, 1, 2):
        puppet = Puppet()
        given = puppet.deal(1, to=())
        for _ in range(renewals):
            puppet.deal(5, to=())
        if renewals < 2:
            puppet.give(given, 5)
        else:
            not_held(puppet, 5, given, puppet.offer(given, 5))


# Leaving and coming back.


@pytest.mark.parametrize("same_session", [True, False])
def test_what_was_under_way_to_a_client_before_it_left_is_nothing_to_it_afterwards(
    same_session: bool,
) -> None:
    """In the same session it knows that it is late; a new process has a new session, where it cannot come."""
    puppet = dealt(1, 2, 3, 4)
    pending = puppet.deal(1, to=())
    puppet.tell(5, puppet.offer(pending, 5))
    old = puppet.holders[5]
    puppet.turns[5].leave(Reason.TRAINING_FAILED)
    puppet.join(5, old if same_session else None)
    updates = puppet.updates(puppet.dealt[:3])
    late: list[tuple[m.Message, Reason]] = [
        (pending.shares[5][0], Reason.PROTOCOL_VIOLATION),
        (m.ListAnnounced(updates), Reason.BAD_LIST),
        (puppet.certificate(updates), Reason.BAD_LIST),
    ]
    for message, reason in late:
        if same_session:
            assert puppet.tell(5, message) == []
        else:
            refuses(puppet, 5, message, reason)
            puppet.join(5)
    again = [puppet.deal(client) for client in (1, 2, 3)]
    mixed = puppet.updates([pending, *again], 2)
    if same_session:
        assert puppet.tell(5, m.ListAnnounced(mixed)) == []
    fresh = puppet.updates(again, 3)
    endorsed(puppet, 5, fresh)
    assert answered(puppet, 5, puppet.certificate(fresh))
    beyond = puppet.deal(2, to=())
    refuses(puppet, 5, beyond.shares[5][0], Reason.PROTOCOL_VIOLATION)


def test_a_client_that_came_back_in_its_session_still_refuses_what_no_server_sent_it_before() -> None:
    puppet = dealt(1, 2, 3, 4)
    old = puppet.holders[5]
    puppet.turns[5].leave(Reason.TRAINING_FAILED)
    puppet.join(5, old)
    assert puppet.holders[5].last_seen == old.last_seen == puppet.dealt[-1].name.upload
    again = [puppet.deal(client) for client in (1, 2, 3)]
    puppet.turns[5].leave(Reason.TRAINING_FAILED)
    puppet.join(5, puppet.holders[5])
    assert puppet.holders[5].last_seen == again[-1].name.upload
    others = [puppet.deal(client) for client in (1, 2, 3)]
    flawed = puppet.updates(others, weights=[1, 1, 1])
    refuses(puppet, 5, m.ListAnnounced(flawed), Reason.BAD_LIST)


def test_what_comes_to_a_client_that_has_just_left_does_not_trouble_it_when_it_is_back() -> None:
    """The server had not heard of it yet: an offer, and the beginning of an upload of its own."""
    puppet = Puppet()
    given = puppet.deal(1, to=())
    puppet.turns[2].leave(Reason.STALE_LIST)
    assert puppet.tell(2, puppet.offer(given, 2)) == []
    puppet.join(2, before=puppet.holders[2])
    assert [puppet.tell(2, message) for message in given.shares[2]] == [[]] * len(given.shares[2])

    start, model = puppet.start(0), puppet.model(0)
    puppet.turns[3].leave(Reason.STALE_LIST)
    assert puppet.tell(3, start) == []
    number = puppet.turns[3].highest_round
    assert number == start.round
    puppet.join(3, before=puppet.holders[3])
    assert puppet.turns[3].highest_round == number
    for send in flat(model_streams(start.round, [3], model)):
        assert puppet.turns[3].receive(send.message) == []
