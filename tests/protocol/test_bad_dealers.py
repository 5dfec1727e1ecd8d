"""Dealers of garbage and false complainers: the budget of promise 2, and shares that break the rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightsecagg.codec.seeded import seeded_receivers
from lightsecagg.errors import Reason
from lightsecagg.labels import KIND_ELEMENTS, KIND_SEED
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.transitions import ServerStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.sealing import seal
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, change, drops, tamper

ALL = frozenset(range(1, 6))


def reports(scene: Scene) -> dict[int, frozenset[int]]:
    return {
        n: m.members(report.held, len(scene.clients)) or frozenset()
        for n in scene.numbers
        for report in scene.wire.sent_by(n, m.SharesHeld)
    }


# Shares that do not open.


def garbage(
    scene: Scene, dealer: int, victims: frozenset[int], how: str
) -> Callable[[m.Message], m.Message | None]:
    """Spoil the dealer's shares for the victims: not sealed right, or sealed right with nonsense inside."""
    n, u = scene.parameters.num_clients, scene.parameters.target_survivors

    def key(receiver: int):
        return scene.clients[dealer]._running.dealing._keys[receiver].outgoing

    def spoil(message: m.Message) -> m.Message | None:
        match message:
            case m.SealedSeeds(mask, data):
                pieces = [bytes(data[at : at + 48]) for at in range(0, len(data), 48)]
                for place, receiver in enumerate(seeded_receivers(dealer, range(1, n + 1), u)[1:]):
                    if receiver in victims:
                        wrong = seal(key(receiver), 0, True, bytes(32), KIND_SEED, 31)
                        pieces[place] = bytes(48) if how == "random" else wrong
                return m.SealedSeeds(mask, memoryview(b"".join(pieces)))
            case m.EncodedMask(mask, receiver, index, data) if receiver in victims:
                columns = scene.parameters.share_length(scene.dimension + 1)
                too_large = b"\xff" * (len(data) - 16)
                wrong = seal(key(receiver), index, True, too_large, KIND_ELEMENTS, columns * 3)
                return change(message, data=memoryview(bytes(len(data)) if how == "random" else wrong))
        return None

    return spoil


@pytest.mark.parametrize("how", ["random", "sealed nonsense"])
@pytest.mark.parametrize(
    "victims", [{2}, {4}, {5}, {2, 4}, {1, 2, 5}, {1, 2, 4, 5}], ids=lambda v: "".join(map(str, v))
)
def test_a_dealer_of_garbage_costs_at_most_two_and_the_round_completes(victims: set[int], how: str) -> None:
    scene = Scene(5, 3, 1)  # L + 2B = 2 ≤ N − U
    tamper(scene, 3, garbage(scene, 3, frozenset(victims), how))
    result = scene.finish()
    assert all(reports(scene)[n] == (ALL - {3} if n in victims else ALL) for n in scene.numbers)
    if len(victims) > 1:
        assert 3 not in result.survivors
    assert set(result.survivors) >= ALL - {3}
    assert scene.wire.dropped == {}  # a share that does not open blames nobody in public
    assert scene.wire.left == {}


def test_a_dealer_of_garbage_to_everybody_is_no_candidate_but_still_answers() -> None:
    scene = Scene(4, 3, 1)  # one dealer is beyond the budget of promise 2, and still only costs itself
    tamper(scene, 2, garbage(scene, 2, frozenset({1, 3, 4}), "random"))
    assert scene.finish().survivors == (1, 3, 4)
    assert len(scene.wire.sent_by(2, m.Endorse)) == 1


@pytest.mark.parametrize("accused", [{1}, {5}, {1, 2}, {1, 2, 4, 5}, {1, 2, 3, 4, 5}])
def test_a_liar_that_complains_falsely_costs_at_most_two(accused: set[int]) -> None:
    scene = Scene(5, 3, 1)
    tamper(
        scene,
        3,
        lambda message: (
            m.SharesHeld(1, m.bitmap(ALL - accused, 5)) if isinstance(message, m.SharesHeld) else None
        ),
    )
    result = scene.finish()
    assert len(result.survivors) >= 4
    if len(accused) > 1:
        assert result.survivors == (1, 2, 3, 4, 5)  # the liar is no answerer, and nobody else pays


def test_two_bad_dealers_are_within_a_budget_of_four() -> None:
    scene = Scene(7, 3, 1)
    spoils = {liar: garbage(scene, liar, frozenset(range(1, 8)) - {liar, 5}, "random") for liar in (2, 6)}
    scene.wire.meddler = lambda sender, _, raw: [
        raw if sender not in spoils else encode(spoils[sender](from_client(raw)) or from_client(raw))
    ]
    assert set(scene.finish().survivors) >= {1, 3, 4, 7}


def test_a_client_that_is_no_candidate_gets_no_slot_and_nobody_waits_for_it() -> None:
    scene = Scene(5, 3, 1)
    tamper(scene, 3, garbage(scene, 3, ALL - {3}, "random"))
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.quiet()
    assert scene.wire.sent_by(3, m.UpdateReady)
    assert not scene.server.uploads_wait
    assert [
        raw for _, to, raw in scene.wire.traffic if to == 3 and isinstance(from_server(raw), m.UploadGrant)
    ] == []


# Shares on their way through.


def opened(**options) -> tuple[Scene, list[m.Message]]:
    """Everybody knows of the round; nobody has dealt, and client 2's shares are at hand."""
    scene = Scene(5, 3, 1, **options)
    scene.wire.one()
    while (SERVER, 2) in scene.wire._links:
        scene.wire.do((SERVER, 2))
    (outlet,) = (outlet for outlet in scene.wire._outlets if outlet.owner == 2)
    scene.wire._outlets.remove(outlet)
    return scene, [from_client(send.message) for send in outlet.sends]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("seeds twice", Reason.PROTOCOL_VIOLATION),
        ("seeds too short", Reason.BAD_LENGTH),
        ("seeds too long", Reason.BAD_LENGTH),
        ("another's seeds", Reason.PROTOCOL_VIOLATION),
        ("another upload's seeds", Reason.PROTOCOL_VIOLATION),
        ("a share before the seeds", Reason.PROTOCOL_VIOLATION),
        ("a share for a seeded receiver", Reason.PROTOCOL_VIOLATION),
        ("a share for itself", Reason.PROTOCOL_VIOLATION),
        ("a share for nobody", Reason.PROTOCOL_VIOLATION),
        ("another's share", Reason.PROTOCOL_VIOLATION),
        ("a part twice", Reason.PROTOCOL_VIOLATION),
        ("a part left out", Reason.PROTOCOL_VIOLATION),
        ("a part too many", Reason.PROTOCOL_VIOLATION),
        ("a short part", Reason.BAD_LENGTH),
        ("a long part", Reason.BAD_LENGTH),
    ],
)
def test_shares_that_break_the_rules_drop_their_dealer(name: str, reason: Reason) -> None:
    with short_parts(4):
        scene, (seeds, *parts) = opened(dimension=17)
        first, later = parts[0], [p for p in parts if p.receiver == parts[0].receiver]
        assert len(later) == 3  # nine columns
        blank = memoryview(bytes(first.data))
        bad = {
            "seeds twice": [seeds, seeds],
            "seeds too short": [change(seeds, data=seeds.data[:-1])],
            "seeds too long": [change(seeds, data=memoryview(bytes(seeds.data) + b"\0"))],
            "another's seeds": [change(seeds, mask=m.MaskName(3, 1, 0))],
            "another upload's seeds": [change(seeds, mask=m.MaskName(2, 1, 1))],
            "a share before the seeds": [first],
            "a share for a seeded receiver": [seeds, change(first, receiver=3)],
            "a share for itself": [seeds, change(first, receiver=2)],
            "a share for nobody": [seeds, change(first, receiver=1000)],
            "another's share": [seeds, change(first, mask=m.MaskName(3, 1, 0))],
            "a part twice": [seeds, first, first],
            "a part left out": [seeds, first, later[2]],
            "a part too many": [seeds, *parts, change(later[2], index=3)],
            "a short part": [seeds, change(first, data=blank[:-1])],
            "a long part": [seeds, change(first, data=memoryview(bytes(blank) + b"\0"))],
        }[name]
        *fine, last = bad
        for message in fine:
            scene.wire.perform(SERVER, scene.server.receive(2, encode(message)))
        assert scene.wire.dropped == {}
        drops(scene, 2, last, reason)


def test_shares_go_through_byte_by_byte_as_they_came() -> None:
    scene = Scene(5, 3, 1)
    scene.finish()
    dealt = [
        raw for s, r, raw in scene.wire.traffic if r == SERVER and isinstance(from_client(raw), m.EncodedMask)
    ]
    relayed = [
        raw for s, r, raw in scene.wire.traffic if s == SERVER and isinstance(from_server(raw), m.EncodedMask)
    ]
    assert len(dealt) == 10  # N · (N − U)
    assert sorted(dealt) == sorted(relayed)
