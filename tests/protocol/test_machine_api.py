"""What a caller may ask of the machines, and when (DESIGN §4)."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lightsecagg.errors import (
    AbortReason,
    LocalProtocolError,
    ParameterError,
    Reason,
    RoundAborted,
    UpdateError,
)
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    SERVER,
    Aborted,
    ClientDropped,
    Finished,
    Ready,
    Send,
    StageReached,
    What,
)
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.transitions import ClientStage, Phase, ServerStage
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.faults import STAGES
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, hold_back, said

ALL = frozenset(range(1, 6))


# Properties at each point.


def test_the_round_walks_through_its_phases_and_shows_what_may_be_done() -> None:
    scene = Scene(5, 3, 1)
    server = scene.server
    seen = []
    while scene.wire.outcome is None:
        scene.wire.one()
        state = (server.phase, server.can_freeze, server.can_decode)
        if not seen or seen[-1] != state:
            seen.append(state)
    assert seen == [
        (Phase.COLLECT, False, False),
        (Phase.COLLECT, True, False),
        (Phase.ENDORSE, False, False),
        (Phase.RECOVER, False, False),
        (Phase.RECOVER, False, True),
        (Phase.DONE, False, False),
    ]
    assert server.survivors == ALL
    assert server.missing == frozenset()


def test_missing_names_whom_each_stage_waits_for() -> None:
    scene = Scene(5, 3, 1)
    assert scene.server.missing == ALL
    for stage in STAGES[1:]:
        scene.wire.until(stage)
        assert scene.server.missing == ALL
        scene.wire.perform(SERVER, scene.server.lose(5, Reason.LINK_LOST)) if stage is STAGES[-1] else None
    assert scene.server.missing == ALL - {5}
    scene.finish()


def test_survivors_are_those_who_are_in_until_they_are_frozen() -> None:
    scene = Scene(5, 3, 1, slots=1)
    scene.wire.until(ServerStage.UPLOADING)
    sizes = set()
    while scene.server.stage is ServerStage.UPLOADING:
        sizes.add(len(scene.server.survivors))
        scene.wire.one()
    assert sizes == {0, 1, 2, 3, 4, 5}


# Calls in wrong states.


def test_calls_that_the_state_does_not_allow_are_the_callers_mistake() -> None:
    scene = Scene(5, 3, 1)
    server, client = scene.server, scene.clients[1]
    for call in (server.freeze, server.finish, server.end, client.shares, lambda: client.model):
        with pytest.raises(LocalProtocolError):
            call()
    with pytest.raises(LocalProtocolError):
        client.upload(scene.update(1))
    client.receive(encode(scene.opening))
    with pytest.raises(LocalProtocolError, match="pull shares"):
        client.upload(scene.update(1))
    assert not client.can_upload
    list(client.shares())
    assert client.can_upload
    with pytest.raises(LocalProtocolError):
        client.shares()
    assert said(client.upload(scene.update(1))) == [m.UpdateReady(1)]
    assert not client.can_upload
    with pytest.raises(LocalProtocolError):
        client.upload(scene.update(1))


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(9, dtype=np.uint32),
        np.zeros(11, dtype=np.uint32),
        np.zeros((10, 1), dtype=np.uint32),
        np.zeros(10, dtype=np.int64),
        np.full(10, 2**24 - 3, dtype=np.uint32),
    ],
    ids=["short", "long", "matrix", "signed", "element of p"],
)
def test_an_update_of_another_shape_type_or_range_is_refused_and_the_right_one_still_taken(
    update: np.ndarray,
) -> None:
    scene = Scene(5, 3, 1)
    client = scene.clients[1]
    client.receive(encode(scene.opening))
    list(client.shares())
    with pytest.raises(UpdateError):
        client.upload(update)
    assert said(client.upload(scene.update(1))) == [m.UpdateReady(1)]


def test_freeze_and_finish_and_end_are_allowed_when_offered_and_not_again() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.quiet()
    assert scene.wire.offers == [What.FREEZE]
    with pytest.raises(LocalProtocolError):
        scene.server.finish()
    scene.wire.perform(SERVER, scene.server.freeze())
    with pytest.raises(LocalProtocolError):
        scene.server.freeze()
    scene.wire.quiet()
    result = scene.server.finish()
    assert scene.server.finish() is result
    assert scene.server.end()[-1] == Finished()
    assert scene.server.deadline() == []
    assert scene.server.abort(AbortReason.STOPPED) == []
    assert scene.server.lose(1, Reason.LINK_LOST) == []


@pytest.mark.parametrize("stage", STAGES)
def test_an_abort_ends_the_round_in_every_stage_and_tells_everybody_that_is_left(stage: ServerStage) -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(stage)
    scene.wire.perform(SERVER, scene.server.lose(4, Reason.LINK_LOST))
    actions = scene.server.abort(AbortReason.STOPPED)
    assert actions[0] == StageReached("aborted")
    assert [action.to for action in actions[1:-1]] == [1, 2, 3, 5]
    assert {from_server(action.message) for action in actions[1:-1]} == {m.RoundEnd(1, "stopped")}
    assert actions[-1] == Aborted(AbortReason.STOPPED)
    assert scene.server.abort(AbortReason.STOPPED) == []
    with pytest.raises(RoundAborted) as caught:
        scene.server.finish()
    assert caught.value.reason is AbortReason.STOPPED


def test_a_cohort_that_does_not_fit_is_refused_by_the_server() -> None:
    scene = Scene(5, 3, 1)

    def server(cohort: list[m.Member], numbers: tuple[int, int, int] = (5, 3, 1)) -> ServerRound:
        return ServerRound(scene.protocol_run, 1, Parameters(*numbers), scene.terms, cohort)

    assert server(scene.cohort).stage is ServerStage.SHARING
    for cohort, numbers in (
        (scene.cohort[:4], (5, 3, 1)),
        (scene.cohort, (4, 3, 1)),
        (scene.cohort[::-1], (5, 3, 1)),
        ([*scene.cohort[:4], scene.cohort[3]], (5, 3, 1)),
    ):
        with pytest.raises(ParameterError):
            server(cohort, numbers)


# Deadlines.


def test_the_deadline_of_sharing_asks_for_reports_and_the_unfinished_are_no_candidates() -> None:
    scene = Scene(5, 3, 1)
    hold_back(scene, m.SealedSeeds, client=5)
    while scene.server.missing != {5}:
        scene.wire.one()
    scene.wire.meddler = None
    scene.wire.perform(SERVER, scene.server.deadline())
    assert scene.server.stage is ServerStage.REPORTING
    assert scene.finish().survivors == (1, 2, 3, 4)
    # Its parts without their seeds broke no rule that a late message explains: they were of the same link.
    assert set(scene.wire.dropped) <= {5}


def test_a_sharing_deadline_that_leaves_too_few_dealers_aborts_at_once() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.one()
    actions = scene.server.deadline()
    assert actions[-1] == Aborted(AbortReason.TOO_FEW_SHARED)


def test_the_deadline_of_reports_announces_candidates_and_the_silent_answer_nothing() -> None:
    scene = Scene(5, 3, 1)
    hold_back(scene, m.SharesHeld, client=2)
    scene.wire.until(ServerStage.REPORTING)
    scene.wire.quiet()
    assert scene.server.missing == {2}
    scene.wire.perform(SERVER, scene.server.deadline())
    assert scene.server.stage is ServerStage.UPLOADING
    scene.wire.meddler = None
    assert 2 in scene.finish().survivors  # whose update counts all the same
    assert scene.wire.sent_by(2, m.Endorse) == []


def test_the_deadline_of_reports_aborts_with_too_few_of_them() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.REPORTING)
    assert scene.server.deadline()[-1] == Aborted(AbortReason.TOO_FEW_SHARED)


@pytest.mark.parametrize(("uploads", "freezes"), [(3, True), (2, False)])
def test_the_deadline_of_uploads_freezes_what_is_in_or_aborts(uploads: int, freezes: bool) -> None:
    scene = Scene(5, 3, 1, slots=1)
    scene.wire.until(ServerStage.UPLOADING)
    while len(scene.server.survivors) < uploads:
        scene.wire.step()
    assert scene.server.can_freeze is freezes
    actions = scene.server.deadline()
    if freezes:
        assert actions[0] == StageReached("endorsing")
        scene.wire.perform(SERVER, actions)
        assert len(scene.finish().survivors) == 3
    else:
        assert actions[-1] == Aborted(AbortReason.TOO_FEW_UPDATES)


def test_the_deadlines_of_endorsing_and_recovery_abort_with_their_reasons() -> None:
    for stage, reason in (
        (ServerStage.ENDORSING, AbortReason.TOO_FEW_ENDORSEMENTS),
        (ServerStage.RECOVERING, AbortReason.TOO_FEW_ANSWERS),
    ):
        scene = Scene(5, 3, 1)
        scene.wire.until(stage)
        assert scene.server.deadline()[-1] == Aborted(reason)


def test_the_deadline_of_recovery_decodes_where_it_can() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.RECOVERING)
    scene.wire.quiet()
    assert scene.server.deadline() == [Ready(What.DECODE)]
    scene.check(scene.server.finish())


# Presence.


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (ServerStage.SHARING, AbortReason.TOO_FEW_SHARED),
        (ServerStage.REPORTING, AbortReason.TOO_FEW_SHARED),
        (ServerStage.UPLOADING, AbortReason.TOO_FEW_UPDATES),
        (ServerStage.ENDORSING, AbortReason.TOO_FEW_ENDORSEMENTS),
        (ServerStage.RECOVERING, AbortReason.TOO_FEW_ANSWERS),
    ],
)
def test_the_loss_that_leaves_fewer_than_enough_aborts_at_once(
    stage: ServerStage, reason: AbortReason
) -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(stage)
    for number in (1, 2):
        actions = scene.server.lose(number, Reason.LINK_LOST)
        assert ClientDropped(number, Reason.LINK_LOST) in actions
        assert scene.server.phase is not Phase.ABORTED
    assert scene.server.lose(3, Reason.GOODBYE)[-1] == Aborted(reason)


def test_a_client_that_is_gone_is_lost_once_and_heard_no_more() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.REPORTING)
    assert scene.server.lose(1, Reason.LINK_LOST)[0] == ClientDropped(1, Reason.LINK_LOST)
    assert scene.server.lose(1, Reason.LINK_LOST) == []
    assert scene.server.away(1) == scene.server.back(1) == scene.server.revoke(1) == []
    assert scene.server.receive(1, b"nonsense") == []


@pytest.mark.parametrize("stage", [ServerStage.SHARING, ServerStage.REPORTING, ServerStage.UPLOADING])
def test_closing_is_offered_once_only_clients_that_are_away_are_missing(stage: ServerStage) -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(stage)
    scene.wire.away(5)
    scene.wire.away(4)
    assert scene.wire.offers == []
    scene.wire.quiet()
    assert scene.server.missing == {4, 5}
    assert scene.wire.offers == [What.CLOSE]
    scene.wire.offers.clear()
    scene.wire.back(4)
    assert scene.wire.offers == []  # somebody who is there is missing again
    scene.wire.quiet()
    assert scene.server.missing == {5}
    assert scene.wire.offers == [What.CLOSE]
    scene.wire.perform(SERVER, scene.server.deadline())
    assert scene.server.stage is STAGES[STAGES.index(stage) + 1]
    scene.wire.offers.clear()
    scene.wire.back(5)
    scene.finish()
    assert scene.wire.dropped == scene.wire.left == {}


def test_closing_is_not_offered_where_those_who_are_there_do_not_suffice() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.away(4)
    scene.wire.away(5)
    scene.wire.quiet()
    assert scene.wire.offers == []
    scene.wire.back(5)
    scene.wire.quiet()
    assert scene.wire.offers == [What.CLOSE]


def test_nobody_waits_for_the_away_in_endorsing_and_recovery() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.ENDORSING)
    scene.wire.away(1)
    scene.wire.away(2)
    assert scene.finish().survivors == (1, 2, 3, 4, 5)


def test_an_away_holder_gets_the_survivor_set_and_certificate_when_it_is_back() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.until(ServerStage.UPLOADING)
    scene.wire.quiet()
    scene.wire.away(1)
    scene.wire.away(2)
    scene.wire.perform(SERVER, scene.server.freeze())
    scene.wire.quiet()
    assert scene.server.stage is ServerStage.ENDORSING
    scene.wire.back(1)
    scene.finish()
    assert len(scene.wire.sent_by(1, m.AggregateEncodedMask)) == 1


def test_clients_that_leave_tell_why_and_are_dropped_for_it() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.UPLOADING)
    actions = scene.clients[2].leave(Reason.TRAINING_FAILED)
    assert said(actions) == [m.Leave(1, Reason.TRAINING_FAILED)]
    assert scene.clients[2].leave(Reason.TRAINING_FAILED) == []
    scene.wire.left.clear()
    scene.wire.perform(2, actions)
    assert scene.finish().survivors == (1, 3, 4, 5)
    assert scene.wire.dropped == {2: Reason.TRAINING_FAILED}


def test_a_client_that_leaves_before_the_round_says_nothing() -> None:
    client = Scene(3, 2, 1).clients[1]
    assert said(client.leave(Reason.STOPPED_BY_USER)) == []
    assert client.stage is ClientStage.OVER


def test_the_round_key_message_carries_what_the_cohort_needs() -> None:
    scene = Scene(3, 2, 1)
    send = scene.clients[2].round_key()
    member = scene.clients[2].member
    assert send.to == SERVER
    assert from_client(send.message) == m.RoundKeyMessage(member.sequence, member.key, member.signature)


def test_the_protocol_package_needs_no_thread_of_its_own() -> None:
    assert "threading" not in vars(sys.modules["lightsecagg.protocol.uploads"])


def test_closing_is_taken_back_where_those_who_are_there_no_longer_suffice() -> None:
    scene = Scene(6, 4, 1)
    scene.wire.until(ServerStage.REPORTING)
    for number in (1, 2):
        scene.wire.away(number)
    scene.wire.quiet()
    assert scene.wire.offers == [What.CLOSE]
    assert scene.server.can_close
    scene.wire.lose(6)
    assert not scene.server.can_close, "three live reporters are fewer than U, whatever a lost one reported"
    for number in (1, 2):
        scene.wire.back(number)
    scene.wire.to_the_end()
    assert scene.finish().survivors == (1, 2, 3, 4, 5)


def test_a_client_that_leaves_is_told_apart_from_one_that_is_dropped() -> None:
    scene = Scene(5, 4, 1)
    scene.wire.until(ServerStage.SHARING)
    leave = encode(m.Leave(1, Reason.PROTOCOL_VIOLATION))
    assert scene.server.receive(1, leave)[0] == ClientDropped(1, Reason.PROTOCOL_VIOLATION, left=True)
    assert scene.server.receive(2, b"nonsense")[0] == ClientDropped(2, Reason.MALFORMED)


def test_an_upload_ends_once_the_survivor_set_is_fixed_without_it() -> None:
    with short_parts(4):
        scene = Scene(5, 4, 1)
        scene.wire.until(ServerStage.UPLOADING)
        client = scene.clients[2]
        while client.stage is not ClientStage.CANDIDATES or client.can_upload:
            scene.wire.step()
        parts = client.receive(encode(m.UploadGrant(1, 101)))[0].sends
        next(parts)
        others = m.bitmap(frozenset({1, 3, 4, 5}), 5)
        assert isinstance(client.receive(encode(m.SurvivorSet(1, others)))[0], Send)
        assert list(parts) == []
