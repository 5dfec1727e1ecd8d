"""What else a server may try: models, grants, retries, and messages that cannot come (DESIGN §3 and §4)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightsecagg.errors import AbortReason, LocalProtocolError, Reason, RoundAborted
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Aborted, Ready, What
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.transitions import ClientStage, ServerStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, collected, reason_of, said

ALL = frozenset(range(1, 6))


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
