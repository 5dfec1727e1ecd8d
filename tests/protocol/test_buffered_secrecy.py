"""With every secret of an asynchronous run known to the test, none is where it must not be (DESIGN §3)."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from lightsecagg.codec import MaskCodec, SeededShares
from lightsecagg.errors import LocalProtocolError, Reason
from lightsecagg.field import Elements
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import encode
from lightsecagg.quantize import FixedPoint
from lightsecagg.randomness import expand
from lightsecagg.simulation.schedule import short_parts
from tests.protocol import test_secrecy as synchronous
from tests.protocol.buffered_course import Course
from tests.protocol.buffered_scene import Clients, Puppet, answered, dealt, endorsed
from tests.protocol.scene import as_bytes, reason_of
from tests.protocol.test_secrecy import WINDOW, Secrets, chi_square, windows

pair_keys = synchronous.pair_keys

Drawn = dict[tuple[int, int], tuple[list[int], dict[int, bytes]]]
"""(client, upload) to the cohort it was dealt to and the seeds, by receiver."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Every upload's seeds, as they are drawn."""
    seeds: Drawn = {}
    begin = Dealing.__init__

    def remember(self, codec, name, *others) -> None:
        begin(self, codec, name, *others)
        seeds[name.client, name.upload] = self._cohort, dict(self._seeds)

    monkeypatch.setattr(Dealing, "__init__", remember)
    return seeds


def mask_and_shares(
    run: Clients, key: tuple[int, int], cohort: list[int], seeds: dict[int, bytes]
) -> tuple[Elements, list[Elements]]:
    """An upload's mask and all the shares of it, computed anew from its seeds."""
    codec = MaskCodec(run.field, next(iter(run.holders.values())).parameters)
    length = run.dimension + 1
    mask, derived = SeededShares(codec, key[0], cohort, seeds).whole(length)
    columns = codec.share_length(length)
    return mask, [*derived.values(), *(expand(seed, run.field, 0, columns) for seed in seeds.values())]


# The wire.


@pytest.mark.parametrize("order", [2**16 - 15, 2**24 - 3, 2**31 - 1, 2**32 - 5])
def test_no_window_of_any_secret_is_on_the_wire(
    order: int, drawn: Drawn, pair_keys: list[tuple[bytes, str, bytes]]
) -> None:
    entropy = Secrets(5)
    course = Course(
        5, 3, 1, dimension=150, order=order, quantizer=FixedPoint(2.0, 8, 100), entropy=entropy, size=3
    )
    course.run(2)
    traffic = set().union(*(windows(raw) for _, _, raw in course.traffic))
    secrets: dict[str, list[bytes]] = {
        "entropy": entropy.given,
        "pair key": [key for key, _, _ in pair_keys],
        "identity": [identity._key.private_bytes_raw() for identity in course.identities.values()],
    }
    width, found = course.field.element_bytes, 0
    for key, (cohort, seeds) in drawn.items():
        mask, shares = mask_and_shares(course, key, cohort, seeds)
        vectors = {"mask": [mask], "share": shares}
        if key in course.integers:
            update = course.field.elements(course.integers[key])
            vectors["update"] = [update]
            # What must be there, once it left, shows that the search would find the rest.
            found += windows(as_bytes(course.field.add(update, mask), width)) <= traffic
        for kind, arrays in vectors.items():
            for array in arrays:
                secrets.setdefault(kind, []).extend([as_bytes(array, width), as_bytes(array, 4)])
    assert found >= 6
    for kind, values in secrets.items():
        assert values
        for value in values:
            assert len(value) >= WINDOW
            assert not windows(value) & traffic, f"a {kind} is on the wire"


def test_masked_updates_are_uniform_to_a_chi_square_test() -> None:
    order = 2**24 - 3
    course = Course(5, 3, 1, dimension=6000, quantizer=FixedPoint(2.0, 8, 100), size=3)
    course.run(2)
    seen = 0
    for number in course.present:
        for part in course.sent(number, m.MaskedUpdate):
            data = bytes(part.data)
            masked = [int.from_bytes(data[at : at + 3], "little") for at in range(0, len(data), 3)]
            assert len(masked) == 6001
            assert chi_square(masked, order) > 0.001
            plain = [value % order for value in course.integers[number, part.round]]
            assert chi_square(plain, order) < 1e-9  # unmasked it shows
            seen += 1
    assert seen >= 6


def test_no_key_and_nonce_seal_twice_over_uploads_grants_and_returns(
    pair_keys: list[tuple[bytes, str, bytes]],
) -> None:
    with short_parts(4):
        course = Course(6, 4, 1, dimension=20, order_seed=2)
        for _ in range(4):
            course.run(2)
            for number in list(course.server.slot_holders):
                course.perform(SERVER, course.server.revoke(number))
        course.lose(2)
        course.run(2)
        course.join(2)
        course.run(4)
    sealed = [(key, nonce) for key, what, nonce in pair_keys if what == "encrypt"]
    opened = {key for key, what, _ in pair_keys if what == "decrypt"}
    assert len(sealed) > 300
    assert len(set(sealed)) == len(sealed)
    assert opened <= {key for key, _ in sealed}  # each way has a key of its own


def test_an_upload_is_one_vector_however_often_it_is_granted() -> None:
    vectors: dict[tuple[int, int, int], set[bytes]] = {}
    with short_parts(4):
        course = Course(6, 4, 1, dimension=20, order_seed=5, slots=2)
        while len(course.results) < 6:
            course.step()
            if course.server.slot_holders and len(course.traffic) % 7 == 0:
                course.perform(SERVER, course.server.revoke(min(course.server.slot_holders)))
    grants: dict[tuple[int, int], set[int]] = {}
    for number in course.present:
        for part in course.sent(number, m.MaskedUpdate):
            vectors.setdefault((number, part.round, part.index), set()).add(bytes(part.data))
            grants.setdefault((number, part.round), set()).add(part.grant)
    assert max(map(len, grants.values())) > 1
    assert all(len(data) == 1 for data in vectors.values())


def test_the_same_update_leaves_under_another_mask_each_time() -> None:
    """Its client trains on the same version again, and comes to the same."""
    course = Course(5, 3, 1, dimension=50, size=3)

    def update(number: int) -> Elements:
        course.integers[number, course.turns[number].round_number] = [7] * 51
        return course.field.elements([7] * 51)

    course.update = update
    course.run(4)
    vectors = [bytes(part.data) for number in course.present for part in course.sent(number, m.MaskedUpdate)]
    assert len(vectors) >= 12
    for one, other in combinations(vectors, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > 140  # of 153 bytes


# Words for people.


def things_of(course: Course) -> Iterator[object]:
    yield course.server
    for number in course.present:
        holder, turn = course.holders[number], course.turns[number]
        yield from (holder, holder.__dict__, holder._stand, turn, turn.__dict__)
        yield from (holding.share for holding in holder._holdings.values())
        if (running := turn._running) is not None:
            yield from (running, running.dealing, running.dealing._keys, running.upload, running.assembly)


def test_secrets_stand_in_no_repr_exception_or_log(caplog: pytest.LogCaptureFixture, drawn: Drawn) -> None:
    caplog.set_level(logging.DEBUG)
    entropy = Secrets(6)
    course = Course(5, 3, 1, dimension=60, entropy=entropy, order_seed=3, size=3)
    printed: list[str] = []
    for _ in range(6):
        for stage in (BufferStage.ENDORSING, BufferStage.RECOVERING, BufferStage.COLLECTING):
            course.until(stage)
            printed += [text for thing in things_of(course) for text in (repr(thing), str(thing))]
    turn = course.turns[1]
    turn.withdraw(Reason.TRAINING_FAILED)
    for call in (turn.shares, lambda: turn.upload(course.field.elements([0])), lambda: turn.model):
        with pytest.raises(LocalProtocolError) as caught:
            call()
        printed += [str(caught.value), repr(caught.value)]
    printed += [repr(turn.leave(Reason.STOPPED_BY_USER)), repr(course.holders[1])]
    everything = "\n".join(printed)
    assert caplog.text == ""
    assert everything.count("<secret>") > 100
    assert "BufferedServer(version=" in everything
    for secret in entropy.given:
        assert secret.hex() not in everything
        assert repr(secret)[2:-1] not in everything
    for key, (cohort, seeds) in drawn.items():
        mask, shares = mask_and_shares(course, key, cohort, seeds)
        for vector in (mask, *shares, np.array(course.integers.get(key, mask))):
            assert ", ".join(map(str, vector[:4].tolist())) not in everything
            assert " ".join(map(str, vector[:3].tolist())) not in everything


def test_a_refusal_says_why_and_no_secret(drawn: Drawn) -> None:
    puppet = dealt()
    updates = puppet.updates(puppet.dealt[:4], weights=[9, 9, 9, 9])
    actions = puppet.tell(5, m.ListAnnounced(updates))
    assert reason_of(actions) is Reason.BAD_LIST
    for _, seeds in drawn.values():
        for seed in seeds.values():
            assert repr(seed)[2:-1] not in repr(actions)


# What is erased, and when.


def is_empty(puppet: Puppet, client: int) -> bool:
    holder, turn = puppet.holders[client], puppet.turns[client]
    kept = (holder._keys, holder._holdings, holder._own, holder._stand.chosen)
    return not any(kept) and holder.held == frozenset() and turn._running is None and turn._round_key is None


def test_keys_older_than_the_last_start_are_erased() -> None:
    puppet = Puppet()
    keys = []
    for _ in range(4):
        keys.append(weakref.ref(puppet.turns[1]._round_key))
        public, start = puppet.turns[1].member.key, puppet.start()
        puppet.tell(1, start)
        assert [key.public for key in puppet.holders[1]._keys] == [public]
        puppet.tell(1, m.RoundEnd(start.round, "done"))
        puppet.renew(1)
        assert [key.public for key in puppet.holders[1]._keys] == [public, puppet.turns[1].member.key]
        gc.collect()
        assert [key() is not None for key in keys] == [False] * (len(keys) - 1) + [True]
    puppet.deal(2)  # other clients' uploads change nothing about it
    assert keys[-1]() is not None
    puppet.renew(1)  # two keys are the most, whatever the caller does
    gc.collect()
    assert keys[-1]() is None
    assert len(puppet.holders[1]._keys) == 2


def test_after_leaving_nothing_is_held_and_nothing_is_said() -> None:
    for training in (True, False):
        puppet = dealt()
        endorsed(puppet, 1, puppet.updates(puppet.dealt[:4]))
        if training:
            puppet.tell(1, puppet.start())
        assert not is_empty(puppet, 1)
        (said, _) = puppet.turns[1].leave(Reason.STOPPED_BY_USER)
        number = puppet.turns[1].highest_round
        assert said.message == encode(m.Leave(number, Reason.STOPPED_BY_USER))
        assert is_empty(puppet, 1)
        assert puppet.turns[1].leave(Reason.STOPPED_BY_USER) == []
        assert puppet.tell(1, puppet.certificate(puppet.updates(puppet.dealt[:4]))) == []
        late = puppet.deal(2, to=())
        for message in (puppet.offer(late, 1), *late.shares[1]):
            assert puppet.tell(1, message) == []
        assert is_empty(puppet, 1)


def test_an_answer_hands_over_what_was_held_and_keeps_nothing_of_it() -> None:
    puppet = dealt()
    updates = puppet.updates(puppet.dealt[:4])
    assert puppet.holders[5].held == {each.key for each in puppet.dealt}
    endorsed(puppet, 5, updates)
    assert puppet.holders[5].held == {puppet.dealt[4].key}
    assert len(puppet.holders[5]._stand.chosen) == 4
    assert answered(puppet, 5, puppet.certificate(updates))
    assert puppet.holders[5]._stand.chosen == []
    assert set(puppet.holders[5]._holdings) == {puppet.dealt[4].key}


def test_shares_that_are_spent_or_too_old_for_any_list_are_erased() -> None:
    puppet = dealt(1, 2, 3)
    spent = puppet.dealt[0].key
    assert puppet.tell(5, m.Spent((spent,))) == []
    assert set(puppet.holders[5]._holdings) == {each.key for each in puppet.dealt[1:]}
    for version in (1, 2, 3):  # of version 0 until the newest is 3: three weights
        own = puppet.deal(5, version)
        old = {each.key for each in puppet.dealt[1:3]} if version < 3 else set()
        assert {key for key in puppet.holders[5].held if key[0] != 5} == old
        assert own.key in puppet.holders[5].held
    late = puppet.deal(4, 0, to=())
    assert puppet.tell(5, puppet.offer(late, 5)) == []
    assert late.key not in puppet.holders[5]._holdings


def test_an_upload_that_came_to_nothing_leaves_no_mask_with_its_client() -> None:
    for outcome in ("withdrawn", "refused"):
        puppet = Puppet()
        start = puppet.start()
        puppet.tell(1, start)
        puppet.tell(1, m.ModelPart(start.round, 0, memoryview(puppet.model(0))))
        if outcome == "refused":
            puppet.tell(1, m.RoundEnd(start.round, Reason.STALE.value))
        else:
            puppet.turns[1].withdraw(Reason.TRAINING_FAILED)
        assert puppet.turns[1]._running is None
        assert puppet.holders[1].held == {(1, start.round)}
        assert puppet.tell(1, m.Spent(((1, start.round),))) == []
        assert puppet.holders[1].held == frozenset()
        assert puppet.holders[1]._own == {}
