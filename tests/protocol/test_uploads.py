"""Upload slots, and long outputs that are computed as they are pulled (DESIGN §4)."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    SERVER,
    Send,
    Stream,
)
from lightsecagg.protocol.transitions import ServerStage
from lightsecagg.protocol.uploads import OutgoingUpload
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.simulation.schedule import short_parts
from tests.protocol.scene import Scene, hold_back

ALL = frozenset(range(1, 6))


# Upload slots.


def all_ready(n: int, slots: int) -> Scene:
    """Everybody has trained, and the first grants are under way."""
    scene = Scene(n, 3, 1, dimension=20, slots=slots)
    hold_back(scene, m.SharesHeld, client=1)  # client 1 answers nothing, and is a candidate all the same
    scene.wire.until(ServerStage.REPORTING)
    scene.wire.quiet()
    assert (
        len({s for s, _, raw in scene.wire.traffic if s and isinstance(from_client(raw), m.UpdateReady)}) == n
    )
    scene.wire.meddler = None
    scene.wire.perform(SERVER, scene.server.deadline())
    return scene


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_no_more_uploads_than_slots_are_on_their_way(slots: int) -> None:
    with short_parts(4):
        scene = all_ready(9, slots)
        luck = random.Random(1)
        most = most_partial = 0
        while scene.wire.outcome is None:
            if possible := scene.wire.possible():
                scene.wire.do(luck.choice(possible))
            else:
                scene.wire.one()
            holders = scene.server.slot_holders
            most = max(most, len(holders))
            most_partial = max(most_partial, sum(parts > 0 for _, parts in holders.values()))
        assert most == slots
        assert most_partial == slots
        scene.check(scene.server.finish())


def test_a_holder_that_goes_away_loses_its_slot_and_gets_one_again_when_it_is_back() -> None:
    with short_parts(4):
        scene = all_ready(5, 1)
        while not any(parts == 2 for _, parts in scene.server.slot_holders.values()):
            scene.wire.step()
        ((holder, (grant, _)),) = scene.server.slot_holders.items()
        scene.wire.away(holder)
        ((next_holder, (next_grant, parts)),) = scene.server.slot_holders.items()
        assert next_holder != holder
        assert (next_grant > grant, parts) == (True, 0)
        scene.wire.quiet()
        assert scene.server.survivors == ALL - {holder}
        scene.wire.offers.clear()
        scene.wire.back(holder)
        assert scene.server.slot_holders[holder][0] > next_grant
        assert scene.finish().survivors == (1, 2, 3, 4, 5)
        grants = {part.grant for part in scene.wire.sent_by(holder, m.MaskedUpdate)}
        assert len(grants) == 2


def test_a_revoked_holder_queues_behind_the_others() -> None:
    scene = all_ready(5, 1)
    assert scene.server.uploads_wait
    (holder,) = scene.server.slot_holders
    actions = scene.server.revoke(holder)
    assert isinstance(from_server(actions[0].message), m.UploadGrant)
    assert actions[0].to != holder
    assert scene.server.revoke(holder) == []
    scene.wire.perform(SERVER, actions)
    assert scene.finish().survivors == (1, 2, 3, 4, 5)


def test_grants_go_to_candidates_and_only_after_they_were_announced() -> None:
    scene = Scene(5, 3, 1)
    hold_back(scene, m.SharesHeld, client=1)
    scene.wire.until(ServerStage.REPORTING)
    scene.wire.quiet()
    assert len(scene.wire.sent_by(2, m.UpdateReady)) == 1
    assert scene.server.slot_holders == {}
    assert scene.wire.sent_by(SERVER, m.UploadGrant) == []
    scene.wire.perform(SERVER, scene.server.deadline())
    assert len(scene.server.slot_holders) == 4


# Long outputs are computed as they are pulled.


def test_a_receiver_can_hold_the_first_part_of_a_share_before_the_second_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lightsecagg.protocol import dealing

    sealed: list[int] = []
    seal = dealing.seal
    monkeypatch.setattr(
        dealing, "seal", lambda key, index, *rest: (sealed.append(index), seal(key, index, *rest))[1]
    )
    with short_parts(4):
        scene = Scene(3, 2, 1, dimension=19)
        for client in scene.clients.values():
            client.receive(encode(scene.opening))
        sends = scene.clients[1].shares()
        assert sealed == []
        assert isinstance(from_client(next(sends).message), m.SealedSeeds)
        assert sealed == [0]
        part = from_client(next(sends).message)
        assert (part.index, part.receiver, sealed) == (0, 3, [0, 0])
        assert scene.clients[3].receive(encode(part)) == []
        assert [from_client(send.message).index for send in sends] == [1, 2, 3, 4]


def test_masks_are_added_and_answers_summed_only_when_they_are_pulled() -> None:
    with short_parts(4):
        scene = Scene(5, 3, 1, dimension=19)
        hold_back(scene, m.UploadGrant, client=1)
        scene.wire.until(ServerStage.UPLOADING)
        scene.wire.quiet()
        client = scene.clients[1]
        (stream,) = client.receive(encode(m.UploadGrant(1, scene.server.slot_holders[1][0])))
        assert isinstance(stream, Stream)
        assert client._running.upload._concealed is None
        assert isinstance(next(stream.sends), Send)
        assert client._running.upload._concealed is not None
        assert not client._running.upload.is_whole
        assert len(list(stream.sends)) == 4
        assert client._running.upload.is_whole


def test_shares_stop_when_the_round_has_moved_on() -> None:
    with short_parts(4):
        scene = Scene(3, 2, 1, dimension=99)
        client = scene.clients[1]
        client.receive(encode(scene.opening))
        sends = client.shares()
        next(sends)
        next(sends)
        client.receive(encode(m.ReportShares(1)))
        assert len(list(sends)) < 5
        assert not client.can_upload


def test_long_outputs_may_be_pulled_in_another_thread() -> None:
    with short_parts(4):
        scene = Scene(5, 3, 1, dimension=40)
        pull = scene.wire._pull

        def elsewhere(outlet) -> None:
            thread = threading.Thread(target=pull, args=(outlet,))
            thread.start()
            thread.join()

        scene.wire._pull = elsewhere
        scene.finish()


@pytest.mark.parametrize("is_masking", [False, True])
def test_an_update_leaves_or_is_given_back_and_never_both_whatever_the_threads_do(is_masking: int) -> None:
    """The round may end in the machine's thread while the first part is masked in another one."""
    inside, go_on = threading.Event(), threading.Event()

    def conceal(vector: np.ndarray) -> np.ndarray:
        inside.set()
        assert go_on.wait(10)
        return vector

    upload = OutgoingUpload(
        np.arange(4),
        conceal,
        4,
        1,
        lambda piece: memoryview(piece.tobytes()),
        lambda grant, index, data: m.MaskedUpdate(1, grant, index, data),
    )
    sent: list[Send] = []
    thread = threading.Thread(target=lambda: sent.extend(upload.parts(1)))
    given_back = upload.close() if not is_masking else None
    thread.start()
    if is_masking:
        assert inside.wait(10)
        given_back = upload.close()
    go_on.set()
    thread.join()
    assert (given_back is None) is is_masking
    assert len(sent) == (1 if is_masking else 0)  # the part that was being masked, and none after it
