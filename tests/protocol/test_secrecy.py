"""With every secret known to the test, none of them is found where it must not be (DESIGN §3)."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scipy.stats import chisquare

from lightsecagg import sealing
from lightsecagg.codec import MaskCodec, SeededShares
from lightsecagg.codec.seeded import seeded_receivers
from lightsecagg.errors import AbortReason, Reason
from lightsecagg.field import Elements
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.transitions import ServerStage
from lightsecagg.protocol.wire import from_client
from lightsecagg.quantize import FixedPoint
from lightsecagg.simulation.schedule import play, short_parts
from tests.protocol.scene import Scene, as_bytes

WINDOW = 16


class Secrets:
    """An entropy source that remembers everything it gave."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)
        self.given: list[bytes] = []

    def __call__(self, count: int) -> bytes:
        self.given.append(self._source.randbytes(count))
        return self.given[-1]


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[int, bytes]]:
    """Every client's seeds, client to receiver to seed, as they are drawn."""
    seeds: dict[int, dict[int, bytes]] = {}
    begin = Dealing.__init__

    def remember(self, codec, name, *others) -> None:
        begin(self, codec, name, *others)
        seeds[name.client] = dict(self._seeds)

    monkeypatch.setattr(Dealing, "__init__", remember)
    return seeds


@pytest.fixture
def pair_keys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, str, bytes]]:
    """(key, what was done, nonce) of every use of AES-GCM."""
    uses: list[tuple[bytes, str, bytes]] = []

    class Spy:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            uses.append((self._key, "encrypt", nonce))
            return self._cipher.encrypt(nonce, data, associated)

        def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            uses.append((self._key, "decrypt", nonce))
            return self._cipher.decrypt(nonce, data, associated)

    monkeypatch.setattr(sealing, "AESGCM", Spy)
    return uses


def windows(data: bytes) -> set[bytes]:
    return {data[at : at + WINDOW] for at in range(len(data) - WINDOW + 1)}


def masks_and_shares(scene: Scene, seeds: dict[int, bytes], owner: int) -> tuple[Elements, list[Elements]]:
    """A client's mask and all the shares of it, computed anew from its seeds."""
    from lightsecagg.randomness import expand

    codec = MaskCodec(scene.field, scene.parameters)
    length = scene.dimension + 1
    mask, derived = SeededShares(codec, owner, codec.clients, seeds).whole(length)
    columns = codec.share_length(length)
    return mask, [*derived.values(), *(expand(seed, scene.field, 0, columns) for seed in seeds.values())]


@pytest.mark.parametrize("order", [2**16 - 15, 2**24 - 3, 2**31 - 1, 2**32 - 5])
def test_no_window_of_any_secret_is_on_the_wire(
    order: int, dealt: dict[int, dict[int, bytes]], pair_keys: list[tuple[bytes, str, bytes]]
) -> None:
    entropy = Secrets(5)
    quantizer = FixedPoint(2.0, 8, 100)
    scene = Scene(5, 3, 1, dimension=300, order=order, quantizer=quantizer, entropy=entropy)
    scene.finish()
    traffic = set().union(*(windows(raw) for _, _, raw in scene.wire.traffic))
    assert len(traffic) > 5_000
    secrets: dict[str, list[bytes]] = {
        "entropy": entropy.given,
        "pair key": [key for key, _, _ in pair_keys],
        "identity": [identity._key.private_bytes_raw() for identity in scene.identities.values()],
    }
    width = scene.field.element_bytes
    for number in scene.numbers:
        assert sorted(dealt[number]) == sorted(seeded_receivers(number, range(1, 6), 3))
        mask, shares = masks_and_shares(scene, dealt[number], number)
        update = scene.update(number)
        vectors = {"mask": [mask], "share": shares, "update": [update]}
        for kind, arrays in vectors.items():
            for array in arrays:
                secrets.setdefault(kind, []).extend([as_bytes(array, width), as_bytes(array, 4)])
        # What must be there shows that the search would find the rest.
        masked = [(int(x) + int(z)) % order for x, z in zip(update, mask, strict=True)]
        assert windows(as_bytes(np.array(masked, dtype=np.uint64), width)) <= traffic
    assert len(secrets["entropy"]) == 5 * (1 + 3)
    assert len(secrets["pair key"]) > 20
    for kind, values in secrets.items():
        assert values
        for value in values:
            assert len(value) >= WINDOW
            assert not windows(value) & traffic, f"a {kind} is on the wire"


def chi_square(values: list[int], order: int, bins: int = 64) -> float:
    """p-value of the values' being uniform below ``order``."""
    counts = np.bincount([value * bins // order for value in values], minlength=bins)
    edges = np.array([-(-place * order // bins) for place in range(bins + 1)])
    return float(chisquare(counts, np.diff(edges) / order * len(values)).pvalue)


def uploaded(scene: Scene, number: int) -> list[int]:
    width = scene.field.element_bytes
    data = b"".join(bytes(part.data) for part in scene.wire.sent_by(number, m.MaskedUpdate))
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


@pytest.mark.parametrize("order", [2**16 - 15, 2**24 - 3, 2**31 - 1, 2**32 - 5])
def test_masked_updates_are_uniform_to_a_chi_square_test(order: int) -> None:
    scene = Scene(5, 3, 1, dimension=6000, order=order, quantizer=FixedPoint(2.0, 8, 100), seed=3)
    scene.finish()
    for number in scene.numbers:
        masked = uploaded(scene, number)
        assert len(masked) == 6001
        assert chi_square(masked, order) > 0.001
        assert chi_square([v % order for v in scene.integers[number]], order) < 1e-9  # unmasked it shows


def test_no_key_and_nonce_seal_twice_over_rounds_retries_and_grants(
    pair_keys: list[tuple[bytes, str, bytes]],
) -> None:
    with short_parts(4):
        first = Scene(5, 3, 1, dimension=40)
        first.wire.until(ServerStage.UPLOADING)
        for number in first.numbers:
            first.wire.perform(SERVER, first.server.revoke(number))
        first.wire.until(ServerStage.RECOVERING)
        first.wire.perform(SERVER, first.server.abort(AbortReason.STOPPED))
        for round_number in (2, 3):
            # The same source of secrets, so that only fresh draws keep the keys apart.
            again = Scene(
                5,
                3,
                1,
                dimension=40,
                round_number=round_number,
                after_round=1,
                before=first,
                entropy=first.entropy,
            )
            again.finish()
    sealed = [(key, nonce) for key, what, nonce in pair_keys if what == "encrypt"]
    # Each round every client seals U − 1 seeds, and N − U shares of ⌈41/2⌉ = 21 columns in 6 parts.
    assert len(sealed) == 3 * 5 * (2 + 2 * 6)
    assert len(set(sealed)) == len(sealed)
    assert len({key for key, _ in sealed}) == 3 * 5 * 4


def test_no_key_and_nonce_seal_twice_in_random_schedules(pair_keys: list[tuple[bytes, str, bytes]]) -> None:
    for seed in range(40):
        play(seed)
    sealed = [(key, nonce) for key, what, nonce in pair_keys if what == "encrypt"]
    assert len(sealed) > 1000
    assert len(set(sealed)) == len(sealed)


def test_one_key_seals_one_direction_only(pair_keys: list[tuple[bytes, str, bytes]]) -> None:
    scene = Scene(4, 3, 1)
    scene.finish()
    assert len({key for key, what, _ in pair_keys if what == "encrypt"}) == 4 * 3
    assert {(k, n) for k, what, n in pair_keys if what == "encrypt"} == {
        (k, n) for k, what, n in pair_keys if what == "decrypt"
    }


def test_the_same_run_with_other_entropy_has_other_masks_and_the_same_result() -> None:
    same = [Scene(5, 3, 1, seed=4, dimension=50, entropy=random.Random(8).randbytes) for _ in range(2)]
    other = Scene(5, 3, 1, seed=4, dimension=50)
    system = [Scene(5, 3, 1, seed=4, dimension=50, entropy=_system()) for _ in range(2)]
    results = [scene.finish() for scene in (*same, other, *system)]
    assert all(np.array_equal(results[0].mean, result.mean) for result in results)
    assert all(uploaded(same[0], n) == uploaded(same[1], n) for n in same[0].numbers)
    for one, two in ((same[0], other), (other, system[0]), (system[0], system[1])):
        for number in one.numbers:
            differing = [a != b for a, b in zip(uploaded(one, number), uploaded(two, number), strict=True)]
            assert sum(differing) > 45


def _system():
    from lightsecagg.randomness import system_entropy

    return system_entropy


def test_secrets_stand_in_no_repr_exception_or_log(
    caplog: pytest.LogCaptureFixture, dealt: dict[int, dict[int, bytes]]
) -> None:
    caplog.set_level(logging.DEBUG)
    entropy = Secrets(6)
    scene = Scene(5, 3, 1, dimension=100, entropy=entropy)
    printed: list[str] = []

    def look() -> None:
        for client in scene.clients.values():
            running = client._running
            things = [client, client._round_key, client._identity, client.__dict__]
            if running is not None:
                things += [running, running.dealing, running.holding, running.upload]
                things += [running.dealing._keys, running.assembly]
            printed.extend(text for thing in things for text in (repr(thing), str(thing)))
        printed.extend([repr(scene.server), str(scene.server), repr(scene.entropy)])

    for stage in ServerStage:
        if stage in (ServerStage.COUNTING, ServerStage.DONE, ServerStage.ABORTED):
            continue
        scene.wire.until(stage) if stage is not ServerStage.SHARING else scene.wire.one()
        look()
    errors = []
    for call in (scene.clients[1].shares, lambda: scene.clients[1].upload(scene.update(1))):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call()
        errors += [str(caught.value), repr(caught.value)]
    printed += errors
    scene.finish()
    look()
    everything = "\n".join([*printed, caplog.text])
    assert caplog.text == ""
    assert "<secret>" in everything
    for secret in entropy.given:
        assert secret.hex() not in everything
        assert repr(secret)[2:-1] not in everything
    for number in scene.numbers:
        mask, shares = masks_and_shares(scene, dealt[number], number)
        for vector in (mask, *shares, scene.update(number)):
            assert ", ".join(map(str, vector[:4].tolist())) not in everything
            assert " ".join(map(str, vector[:3].tolist())) not in everything


def test_nothing_of_others_is_held_after_the_round_or_after_leaving() -> None:
    ended, left = Scene(5, 3, 1), Scene(5, 3, 1)
    ended.finish()
    ended.wire.quiet()
    left.wire.until(ServerStage.UPLOADING)
    holding = left.clients[1]._running.holding
    assert len(holding.held) > 1
    left.clients[1].leave(Reason.STOPPED_BY_USER)
    assert holding.held == frozenset()
    for client in (*ended.clients.values(), left.clients[1]):
        assert client._running is None
        assert client._round_key is None


def test_an_answer_hands_over_what_was_held() -> None:
    scene = Scene(5, 3, 1)
    scene.wire.until(ServerStage.ENDORSING)
    client = scene.clients[1]
    holding = client._running.holding
    client.receive(scene.certificate(range(1, 6), {1, 2, 3}))
    assert holding.held == frozenset()
    assert not holding._shares


def test_a_report_and_an_answer_name_no_share() -> None:
    """Nothing that a client says of others' shares depends on what is in them."""
    one, two = Scene(5, 3, 1, seed=1), Scene(5, 3, 1, seed=1, entropy=random.Random(99).randbytes)
    for scene in (one, two):
        scene.finish()
    for number in one.numbers:
        assert one.wire.sent_by(number, m.SharesHeld) == two.wire.sent_by(number, m.SharesHeld)
    kinds = [[type(from_client(raw)) for s, _, raw in w.wire.traffic if s == 1] for w in (one, two)]
    assert kinds[0] == kinds[1]
