"""What one client can do to a round: cost itself, and no more than the budget says (DESIGN §3, promise 2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RoundAborted
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Aborted, ClientDropped, Finished
from lightsecagg.protocol.transitions import Phase, ServerStage, UpdateState
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.faults import STAGES
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, at, change, drops, ignores, tamper

ALL = frozenset(range(1, 6))


# What no order of delivery explains drops its sender, and never the round.


CLIENT_MESSAGES: dict[str, Callable[[Scene], m.Message]] = {
    "Hello": lambda s: m.Hello("scene", 1, 1, bytes(32), {}, (), bytes(64)),
    "RoundKeyMessage": lambda s: m.RoundKeyMessage(2, bytes(32), bytes(64)),
    "SealedSeeds": lambda s: m.SealedSeeds(m.MaskName(1, 1, 0), memoryview(bytes(96))),
    "EncodedMask": lambda s: m.EncodedMask(m.MaskName(1, 1, 0), 4, 0, memoryview(bytes(31))),
    "SharesHeld": lambda s: m.SharesHeld(1, s.bits(ALL)),
    "UpdateReady": lambda s: m.UpdateReady(1),
    "MaskedUpdate": lambda s: m.MaskedUpdate(1, 1, 0, memoryview(bytes(30))),
    "Endorse": lambda s: m.Endorse(1, s.signatures(ALL, [1])[0]),
    "AggregateEncodedMask": lambda s: m.AggregateEncodedMask(1, 0, memoryview(bytes(15))),
    "Leave": lambda s: m.Leave(1, Reason.STOPPED_BY_USER),
    "FinishAcknowledged": lambda s: m.FinishAcknowledged(),
    "PlainReady": lambda s: m.PlainReady(),
    "PlainUpdate": lambda s: m.PlainUpdate(1, 1, 0, memoryview(bytes(4))),
}

ORDER = [*STAGES, ServerStage.DONE]
FIRST_TAKEN = {
    "SealedSeeds": ServerStage.SHARING,
    "EncodedMask": ServerStage.SHARING,
    "SharesHeld": ServerStage.REPORTING,
    "UpdateReady": ServerStage.SHARING,
    "MaskedUpdate": ServerStage.UPLOADING,
    "Endorse": ServerStage.ENDORSING,
    "AggregateEncodedMask": ServerStage.RECOVERING,
    "Leave": ServerStage.SHARING,
}
LAST_TAKEN = FIRST_TAKEN | {"UpdateReady": ServerStage.UPLOADING, "Leave": ServerStage.RECOVERING}


@pytest.mark.parametrize("kind", CLIENT_MESSAGES)
@pytest.mark.parametrize("stage", [*ORDER, ServerStage.ABORTED])
def test_every_message_in_every_stage_is_taken_or_late_or_drops_its_sender(
    stage: ServerStage, kind: str
) -> None:
    if stage in (ServerStage.DONE, ServerStage.ABORTED):
        scene = at(ServerStage.RECOVERING)
        if stage is ServerStage.DONE:
            scene.finish()
        else:
            scene.wire.perform(SERVER, scene.server.abort(AbortReason.STOPPED))
    else:
        scene = at(stage)
    message = encode(CLIENT_MESSAGES[kind](scene))
    late_before = scene.server.late_messages
    was_ready = scene.server._desk.state(1) is not UpdateState.TRAINING
    actions = scene.server.receive(1, message)
    dropped = [action.reason for action in actions if isinstance(action, ClientDropped)]
    is_late = scene.server.late_messages - late_before
    place = ORDER.index(ServerStage.DONE if stage is ServerStage.ABORTED else stage)
    if kind not in FIRST_TAKEN or place < ORDER.index(FIRST_TAKEN[kind]):
        ended = stage in (ServerStage.DONE, ServerStage.ABORTED)
        assert dropped == ([] if ended else [Reason.PROTOCOL_VIOLATION])
        assert not is_late
    elif place > ORDER.index(LAST_TAKEN[kind]):
        assert (actions, is_late) == ([], 1)
    elif kind == "Leave":
        assert dropped == [Reason.STOPPED_BY_USER]
    elif kind in ("EncodedMask", "MaskedUpdate"):
        assert dropped == [Reason.PROTOCOL_VIOLATION]  # before its seeds; under no grant of its own
    elif kind == "UpdateReady" and was_ready:
        assert dropped == [Reason.PROTOCOL_VIOLATION]
    else:
        assert (dropped, is_late) == ([], 0)
    if kind == "AggregateEncodedMask" and stage is ServerStage.RECOVERING:
        return  # a wrong answer: with R = U nothing checks it
    if scene.server.phase not in (Phase.DONE, Phase.ABORTED):
        scene.wire.perform(SERVER, actions)
        scene.finish()


@pytest.mark.parametrize("number", [0, -1, 6, 2000])
def test_client_numbers_that_do_not_exist_are_the_callers_mistake(number: int) -> None:
    server = Scene(5, 3, 1).server
    for call in (
        lambda: server.receive(number, encode(m.UpdateReady(1))),
        lambda: server.away(number),
        lambda: server.back(number),
        lambda: server.lose(number, Reason.LINK_LOST),
        lambda: server.revoke(number),
    ):
        with pytest.raises(LocalProtocolError, match=r"1\.\.5"):
            call()


def test_nonsense_drops_its_sender() -> None:
    for nonsense in (b"", b"\xc1", b"\x00" * 50, bytes(2**20 + 2**12 + 1), encode(m.Finish("done"))):
        drops(at(ServerStage.SHARING), 2, nonsense, Reason.MALFORMED)


def test_messages_of_a_later_round_drop_their_sender_and_of_an_earlier_one_are_late() -> None:
    for message in (
        m.UpdateReady(8),
        m.SealedSeeds(m.MaskName(2, 8, 0), memoryview(bytes(96))),
        m.Endorse(8, bytes(64)),
    ):
        drops(at(ServerStage.REPORTING, round_number=7), 2, message, Reason.PROTOCOL_VIOLATION)
    for message in (
        m.UpdateReady(6),
        m.SealedSeeds(m.MaskName(2, 6, 0), memoryview(bytes(96))),
        m.Endorse(6, bytes(64)),
        m.AggregateEncodedMask(6, 3, memoryview(b"")),
        m.Leave(6, Reason.GOODBYE),
    ):
        ignores(at(ServerStage.SHARING, round_number=7), 2, message)


# Reports, uploads, signatures, answers.


def test_a_second_report_or_one_that_is_no_set_drops_its_sender() -> None:
    scene = at(ServerStage.REPORTING)
    assert not [
        a
        for a in scene.server.receive(2, encode(m.SharesHeld(1, scene.bits(ALL))))
        if isinstance(a, ClientDropped)
    ]
    drops(scene, 2, m.SharesHeld(1, scene.bits(ALL)), Reason.PROTOCOL_VIOLATION)
    for bits in (b"", b"\x3f", b"\x1f\x00"):
        drops(at(ServerStage.REPORTING), 2, m.SharesHeld(1, bits), Reason.MALFORMED)


def granted(number: int, **options) -> tuple[Scene, int, list[m.Message]]:
    """A scene in which ``number`` holds a slot and has sent nothing; its grant, and what it would send."""
    scene = Scene(5, 3, 1, dimension=17, **options)
    scene.wire.meddler = lambda _, receiver, raw: (
        [] if receiver == number and isinstance(from_server(raw), m.UploadGrant) else [raw]
    )
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.quiet()
    grant, came = scene.server.slot_holders[number]
    assert came == 0
    stream = scene.clients[number].receive(encode(m.UploadGrant(1, grant)))[0]
    return scene, grant, [from_client(send.message) for send in stream.sends]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a grant that was never given", Reason.PROTOCOL_VIOLATION),
        ("another's grant", Reason.PROTOCOL_VIOLATION),
        ("the first part left out", Reason.PROTOCOL_VIOLATION),
        ("a part twice", Reason.PROTOCOL_VIOLATION),
        ("a part too many", Reason.PROTOCOL_VIOLATION),
        ("a short part", Reason.BAD_LENGTH),
        ("a long last part", Reason.BAD_LENGTH),
        ("an element of p", Reason.BAD_ELEMENT),
        ("an element above p", Reason.BAD_ELEMENT),
    ],
)
def test_an_upload_that_breaks_the_rules_drops_its_sender_and_leaves_no_trace_in_the_sum(
    name: str, reason: Reason
) -> None:
    with short_parts(4):
        scene, grant, parts = granted(4)
        assert len(parts) == 5
        order = scene.field.order
        prime = order.to_bytes(3, "little") + bytes(parts[1].data[3:])
        bad = {
            "a grant that was never given": [change(parts[0], grant=grant + 100)],
            "another's grant": [change(parts[0], grant=1 if grant != 1 else 2)],
            "the first part left out": [parts[1]],
            "a part twice": [parts[0], parts[0]],
            "a part too many": [*parts, change(parts[-1], index=5)],
            "a short part": [parts[0], change(parts[1], data=parts[1].data[:-3])],
            "a long last part": [*parts[:-1], change(parts[-1], data=parts[0].data)],
            "an element of p": [parts[0], change(parts[1], data=memoryview(prime))],
            "an element above p": [parts[0], change(parts[1], data=memoryview(b"\xff" * 12))],
        }[name]
        *fine, last = bad
        for message in fine:
            scene.wire.perform(SERVER, scene.server.receive(4, encode(message)))
        assert scene.wire.dropped == {}
        drops(scene, 4, last, reason)
        # Where it had been whole before it broke the rules, it is in.
        assert (4 in scene.server.survivors) == (name == "a part too many")


def test_parts_of_a_withdrawn_grant_are_late_and_the_next_grant_begins_anew() -> None:
    with short_parts(4):
        scene, grant, parts = granted(4)
        for message in parts[:3]:
            scene.wire.perform(SERVER, scene.server.receive(4, encode(message)))
        assert scene.server.slot_holders[4] == (grant, 3)
        scene.wire.meddler = None
        scene.wire.perform(SERVER, scene.server.revoke(4))
        (again, came) = scene.server.slot_holders[4]
        assert (came, again > grant) == (0, True)
        before = scene.server.late_messages
        for message in parts[3:]:
            assert scene.server.receive(4, encode(message)) == []
        assert scene.server.late_messages == before + 2
        assert 4 in scene.finish().survivors
        assert scene.wire.dropped == {}


def test_parts_after_the_freeze_are_late() -> None:
    with short_parts(4):
        scene, _, parts = granted(4)
        scene.wire.perform(SERVER, scene.server.receive(4, encode(parts[0])))
        scene.wire.perform(SERVER, scene.server.freeze())
        for message in parts[1:]:
            assert scene.server.receive(4, encode(message)) == []
        assert scene.finish().survivors == (1, 2, 3, 5)
        assert scene.wire.dropped == {}


def test_no_grant_follows_the_freeze() -> None:
    """A client that has the survivor set cannot take a grant: it would leave."""
    scene, _, _ = granted(4, slots=1)
    assert scene.server.uploads_wait
    assert len(scene.server.survivors) == 3
    (holder,) = scene.server.slot_holders
    scene.wire.perform(SERVER, scene.server.freeze())
    scene.wire.away(holder)
    scene.wire.back(holder)
    scene.wire.perform(SERVER, scene.server.revoke(holder))
    scene.wire.perform(SERVER, scene.server.lose(holder, Reason.LINK_LOST))
    scene.finish()
    assert scene.wire.left == {}


@pytest.mark.parametrize("flaw", ["twice", "wrong signature", "another set", "not asked for"])
def test_an_endorsement_that_breaks_the_rules_drops_its_sender(flaw: str) -> None:
    scene = Scene(5, 3, 1)
    if flaw == "not asked for":  # client 2 lacks client 3's share, so it holds no S with 3 in it
        lacking = m.SharesHeld(1, m.bitmap(ALL - {3, 4}, 5))
        tamper(scene, 2, lambda message: lacking if isinstance(message, m.SharesHeld) else None)
    scene.wire.until(ServerStage.ENDORSING)
    right = m.Endorse(1, scene.signatures(scene.server.survivors, [2])[0])
    if flaw == "not asked for":
        assert {3, 4} <= scene.server.survivors
        drops(scene, 2, right, Reason.PROTOCOL_VIOLATION)
    elif flaw == "twice":
        assert scene.server.receive(2, encode(right)) == []
        drops(scene, 2, right, Reason.PROTOCOL_VIOLATION)
    elif flaw == "another set":
        drops(scene, 2, m.Endorse(1, scene.signatures({1, 2, 3}, [2])[0]), Reason.BAD_SIGNATURE)
    else:
        drops(scene, 2, m.Endorse(1, scene.signatures(scene.server.survivors, [3])[0]), Reason.BAD_SIGNATURE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("out of order", Reason.PROTOCOL_VIOLATION),
        ("twice", Reason.PROTOCOL_VIOLATION),
        ("too many", Reason.PROTOCOL_VIOLATION),
        ("short", Reason.BAD_LENGTH),
        ("long", Reason.BAD_LENGTH),
        ("an element of p", Reason.BAD_ELEMENT),
    ],
)
def test_an_answer_that_breaks_the_rules_drops_its_sender(name: str, reason: Reason) -> None:
    with short_parts(4):
        scene = Scene(5, 3, 1, dimension=17)
        scene.wire.until(ServerStage.RECOVERING)
        certificate = next(
            raw
            for _, to, raw in scene.wire.traffic
            if to == 2 and isinstance(from_server(raw), m.Certificate)
        )
        while (SERVER, 2) in scene.wire._links:
            raw = scene.wire._links[SERVER, 2].popleft()
            if not scene.wire._links[SERVER, 2]:
                del scene.wire._links[SERVER, 2]
            if raw != certificate:
                scene.wire.deliver(SERVER, 2, raw)
        (stream,) = scene.clients[2].receive(certificate)
        parts = [from_client(send.message) for send in stream.sends]
        assert len(parts) == 3
        prime = memoryview(scene.field.order.to_bytes(3, "little") + bytes(parts[0].data[3:]))
        bad = {
            "out of order": [parts[1]],
            "twice": [parts[0], parts[0]],
            "too many": [*parts, change(parts[0], index=3)],
            "short": [change(parts[0], data=parts[0].data[:-3])],
            "long": [change(parts[0], data=memoryview(bytes(15)))],
            "an element of p": [change(parts[0], data=prime)],
        }[name]
        *fine, last = bad
        for message in fine:
            assert scene.server.receive(2, encode(message)) == []
        drops(scene, 2, last, reason)


def test_floods_of_late_messages_are_counted_and_leave_nothing_behind() -> None:
    import tracemalloc

    scene = at(ServerStage.ENDORSING)
    flood = [
        encode(m.SealedSeeds(m.MaskName(1, 1, 0), memoryview(bytes(2**16)))),
        encode(m.MaskedUpdate(1, 3, 0, memoryview(bytes(2**16)))),
        encode(m.SharesHeld(1, b"\x00")),
    ]
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        for message in flood * 200:
            assert scene.server.receive(1, message) == []
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scene.server.late_messages >= 600
    assert now - start < 2**16
    scene.finish()


def test_answers_beyond_what_is_needed_are_not_kept() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.RECOVERING)
    while not scene.server.can_decode:
        scene.wire.step()
    before = scene.server.late_messages
    late = [n for n in scene.numbers if n not in scene.server._answers.whole]
    for number in late:
        assert scene.server.receive(number, encode(m.AggregateEncodedMask(1, 0, memoryview(bytes(15))))) == []
    assert scene.server.late_messages == before + len(late) > before
    scene.check(scene.server.finish())


@pytest.mark.parametrize("coordinate", [0, -1])
def test_a_sum_that_no_honest_updates_have_is_not_used(coordinate: int) -> None:
    scene = Scene(5, 3, 1)
    update = np.array(scene.update(2))
    # Beyond |S| · (clip · 2^bits + 1), and a weight beyond |S| · max_weight.
    update[coordinate] = 5 * 8194 + 100_000 if coordinate == 0 else 5 * 100 + 1
    scene.wire._updates = lambda n: update if n == 2 else scene.update(n)
    with pytest.raises(RoundAborted) as caught:
        scene.wire.to_the_end()
    assert caught.value.reason is AbortReason.SUM_OUT_OF_RANGE
    for _ in range(2):
        with pytest.raises(RoundAborted) as again:
            scene.server.finish()
        assert again.value.reason is AbortReason.SUM_OUT_OF_RANGE
    actions = scene.server.end()
    assert actions[-1] == Aborted(AbortReason.SUM_OUT_OF_RANGE)
    ends = [from_server(send.message) for send in actions[1:-1]]
    assert ends == [m.RoundEnd(1, "sum_out_of_range")] * 5
    assert scene.server.stage is ServerStage.ABORTED


@settings(max_examples=250, deadline=None)
@given(
    place=st.integers(0, 12),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    flip=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
)
def test_a_damaged_message_of_one_client_never_raises_and_costs_at_most_that_client(
    place: int, cut: float | None, flip: tuple[float, int]
) -> None:
    scene = Scene(5, 3, 1)  # one client is within the budget, liar or not
    count = itertools.count()
    content_changed = []

    def damage(sender: int, _: int, raw: bytes) -> list[bytes]:
        if sender != 2 or next(count) != place:
            return [raw]
        if isinstance(from_client(raw), m.MaskedUpdate | m.AggregateEncodedMask):
            content_changed.append(True)
        if cut is not None:
            return [raw[: int(cut * len(raw))]]
        where = int(flip[0] * len(raw))
        return [raw[:where] + bytes([raw[where] ^ 1 << flip[1]]) + raw[where + 1 :]]

    scene.wire.meddler = damage
    if content_changed_into_nonsense(scene):
        assert content_changed
        return
    assert isinstance(scene.wire.outcome, Finished)
    assert set(scene.wire.dropped) <= {2}
    if not content_changed:
        scene.check(scene.server.finish())


def content_changed_into_nonsense(scene: Scene) -> bool:
    """Play to the end; whether the sum came out of range."""
    try:
        scene.wire.to_the_end()
    except RoundAborted as error:
        return error.reason is AbortReason.SUM_OUT_OF_RANGE
    return False
