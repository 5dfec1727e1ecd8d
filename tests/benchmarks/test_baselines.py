"""SecAgg and SecAgg+: the exact sum or a refusal, held against Python's sum of the plain updates."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

import networkx
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from scipy.stats import hypergeom

from benchmarks.baselines import shamir
from benchmarks.baselines.graph import GraphPlan, complete_plan, sparse_plan
from benchmarks.baselines.masks import MaskAdder, Vector
from benchmarks.baselines.pairwise import Client, Server, TooFewSharesError

DIMENSION = 23
ORDER = 2**31 - 1


class Round:
    """One round in memory, up to the uploads."""

    def __init__(self, plan: GraphPlan, *, silent: Collection[int] = (), seed: int = 0) -> None:
        """``silent`` clients publish keys and vanish before they share."""
        graph = plan.graph(Random(seed))
        self.clients = {i: Client(i, graph[i], plan.threshold) for i in graph}
        keys = {i: client.keys for i, client in self.clients.items()}
        sealed = {i: client.share(keys) for i, client in self.clients.items() if i not in silent}
        self.keys = {i: keys[i] for i in sealed}
        for sender, messages in sealed.items():
            for receiver in messages.keys() & sealed.keys():
                self.clients[receiver].take(sender, messages[receiver])
        random = np.random.default_rng(seed)
        self.updates = {i: random.integers(0, 2**32, DIMENSION, dtype=np.uint32) for i in graph}
        self.server = Server(graph, plan.threshold, self.keys, DIMENSION)

    def masked(self, i: int) -> Vector:
        return self.updates[i] + self.clients[i].mask(self.keys, DIMENSION)

    def upload(self, lost: Collection[int]) -> None:
        for i in self.keys.keys() - set(lost):
            self.server.add(i, self.masked(i))

    def unmask(self, lost: Collection[int]) -> list[int]:
        survivors = self.server.survivors
        answers = {i: self.clients[i].reveal(survivors) for i in survivors - set(lost)}
        return self.server.unmask(answers).tolist()

    def plain_sum(self) -> list[int]:
        survivors = self.server.survivors
        return [sum(int(self.updates[i][k]) for i in survivors) % 2**32 for k in range(DIMENSION)]


AT_MOST = [
    # plan, lost before they upload, lost before they answer
    (GraphPlan(5, 4, 3), (), ()),
    (GraphPlan(5, 4, 3), (1, 5), ()),
    (GraphPlan(5, 4, 3), (4,), (2,)),
    (GraphPlan(5, 4, 3), (), (1, 2)),
    (GraphPlan(9, 8, 9), (), ()),
    (GraphPlan(12, 11, 7), (1, 2, 3, 4, 5), ()),
    (GraphPlan(12, 11, 7), (2, 6, 9), (1, 12)),
    (GraphPlan(8, 4, 3), (1, 8), ()),
    (GraphPlan(11, 4, 2), (2, 7), (5,)),
    (GraphPlan(12, 6, 4), (), ()),
    (GraphPlan(12, 6, 4), (3, 4, 8), ()),
    (GraphPlan(12, 6, 4), (3,), (4, 8)),
    (GraphPlan(12, 6, 4), (), (10, 11, 12)),
]


@pytest.mark.parametrize(("plan", "before_upload", "before_answer"), AT_MOST, ids=str)
def test_sum_is_exact_with_as_many_dropouts_as_the_threshold_allows(
    plan: GraphPlan, before_upload: tuple[int, ...], before_answer: tuple[int, ...]
) -> None:
    a_round = Round(plan)
    a_round.upload(before_upload)
    assert a_round.unmask(before_answer) == a_round.plain_sum()


@pytest.mark.parametrize("plan", [GraphPlan(10, 9, 5), GraphPlan(10, 6, 3)], ids=str)
def test_clients_that_never_shared_leave_no_mask_behind(plan: GraphPlan) -> None:
    a_round = Round(plan, silent=(2, 9))
    a_round.upload((5,))
    assert a_round.unmask((7,)) == a_round.plain_sum()


BEYOND = [
    (GraphPlan(5, 4, 3), (), (1, 2, 3)),
    (GraphPlan(5, 4, 3), (4,), (2, 3)),
    (GraphPlan(9, 8, 9), (), (6,)),
    (GraphPlan(12, 11, 7), (2, 6, 9), (1, 11, 12)),
    (GraphPlan(12, 6, 7), (), (1,)),
]


@pytest.mark.parametrize(("plan", "before_upload", "before_answer"), BEYOND, ids=str)
def test_one_dropout_more_is_refused(
    plan: GraphPlan, before_upload: tuple[int, ...], before_answer: tuple[int, ...]
) -> None:
    a_round = Round(plan)
    a_round.upload(before_upload)
    with pytest.raises(TooFewSharesError, match=f"wanted t = {plan.threshold} shares"):
        a_round.unmask(before_answer)


def test_client_does_not_help_to_open_a_sum_of_fewer_than_the_threshold() -> None:
    a_round = Round(GraphPlan(6, 5, 4))
    a_round.upload((1, 2, 3))
    with pytest.raises(TooFewSharesError, match="at least t = 4"):
        a_round.unmask(())


def test_client_reveals_one_secret_of_each_owner() -> None:
    a_round = Round(GraphPlan(6, 5, 3))
    a_round.upload((4,))
    revealed = a_round.clients[1].reveal(a_round.server.survivors)
    held = a_round.clients[1]._held
    assert sorted(revealed.owners) == [1, 2, 3, 4, 5, 6]
    for owner, share in zip(revealed.owners, revealed.shares, strict=True):
        seed, key = held[owner]
        assert np.array_equal(share, key if owner == 4 else seed)


def test_own_and_pairwise_masks_both_hide_the_sum() -> None:
    a_round = Round(GraphPlan(6, 4, 3))
    a_round.upload((4,))
    server = a_round.server
    answers = {i: a_round.clients[i].reveal(server.survivors) for i in server.survivors}
    secrets = server.recover(answers)
    plain = np.array(a_round.plain_sum(), dtype=np.uint32)
    assert not np.any(server.total == plain)
    server.remove_own_masks(secrets)
    assert not np.any(server.total == plain)
    for pair in server.pair_masks(secrets):
        server.remove_pair_mask(pair)
    assert np.array_equal(server.total, plain)


@pytest.mark.parametrize("length", [0, 1, 5, 2**16, 2**16 + 3, 3 * 2**16])
def test_mask_is_the_key_stream_of_aes_256_in_counter_mode(length: int) -> None:
    seed = bytes(range(32))
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(-(-length // 4)))
    stream = Cipher(AES256(seed), ECB()).encryptor().update(blocks)
    words = np.frombuffer(stream, dtype="<u4")[:length].astype(np.int64)
    start = np.arange(length, dtype=np.uint32) * np.uint32(2**20 + 7)
    adder, total = MaskAdder(), start.copy()
    adder.add(total, seed)
    assert np.array_equal(total, (start.astype(np.int64) + words) % 2**32)
    adder.add(total, seed, negative=True)
    adder.add(total, seed, negative=True)
    assert np.array_equal(total, (start.astype(np.int64) - words) % 2**32)


SECRETS = [bytes(32), bytes([255]) * 32, bytes(range(32))]


def lagrange_at_zero(values: dict[int, int]) -> int:
    total = 0
    for k, value in values.items():
        top = bottom = 1
        for other in values:
            if other != k:
                top, bottom = top * other % ORDER, bottom * (other - k) % ORDER
        total += value * top * pow(bottom, -1, ORDER)
    return total % ORDER


@pytest.mark.parametrize("threshold", [2, 5, 7])
def test_shares_interpolate_to_the_secret_and_fewer_do_not(threshold: int) -> None:
    holders = [3, 1, 200, 7, 12, 9, 45]
    shares = shamir.share(SECRETS, holders, threshold)
    for place, secret in enumerate(SECRETS):
        for count, gives_it_back in ((threshold, True), (threshold - 1, False)):
            chosen = Random(place).sample(range(len(holders)), count)
            limbs = [
                lagrange_at_zero({holders[h]: int(shares[h, place, limb]) for h in chosen})
                for limb in range(9)
            ]
            number = sum(value << 30 * limb for limb, value in enumerate(limbs))
            assert (number == int.from_bytes(secret, "little")) is gives_it_back


def test_secrets_of_many_dealers_come_back_at_once_each_from_holders_of_its_own() -> None:
    threshold, everyone = 4, list(range(1, 11))
    dealt = [shamir.share([secret], everyone, threshold)[:, 0] for secret in SECRETS]
    holders = np.array([[1, 2, 3, 4], [10, 3, 8, 1], [9, 5, 2, 7]])
    shares = np.stack([dealt[row][holders[row] - 1] for row in range(3)])
    assert shamir.recover(holders, shares) == SECRETS


def test_shares_that_do_not_belong_together_give_no_secret() -> None:
    one, other = (shamir.share([secret], [1, 2, 3], 3)[:, 0] for secret in SECRETS[1:])
    mixed = np.stack([one[0], other[1], one[2]])[None]
    with pytest.raises(ValueError, match="do not belong"):
        shamir.recover(np.array([[1, 2, 3]]), mixed)


@pytest.mark.parametrize("plan", [GraphPlan(5, 4, 3), GraphPlan(12, 6, 4), GraphPlan(11, 2, 2)], ids=str)
def test_graph_is_regular_mutual_and_connected(plan: GraphPlan) -> None:
    graph = plan.graph(Random(1))
    assert all(i not in peers and list(peers) == sorted(set(peers)) for i, peers in graph.items())
    assert all(len(peers) == plan.degree for peers in graph.values())
    assert all(i in graph[j] for i, peers in graph.items() for j in peers)
    assert networkx.is_connected(networkx.Graph(dict(graph)))


def test_sparse_graph_is_drawn_anew_each_round() -> None:
    plan = GraphPlan(12, 4, 3)
    assert plan.graph(Random(1)) != plan.graph(Random(2))


@pytest.mark.parametrize(
    ("colluders", "dropouts", "degree", "threshold"),
    # What Google's finder gives for N = 200 and these shares of colluders and dropouts.
    [(100, 20, 96, 76), (100, 60, 162, 101), (60, 60, 108, 57), (20, 20, 34, 19), (20, 100, 82, 21)],
)
def test_sparse_plan_is_the_sparsest_that_holds_both_probabilities(
    colluders: int, dropouts: int, degree: int, threshold: int
) -> None:
    plan = sparse_plan(200, colluders, dropouts)
    assert (plan.degree, plan.threshold) == (degree, threshold)
    for k, holds in ((degree, True), (degree - 2, False)):
        secure = [t for t in range(2, k + 1) if 200 * hypergeom.sf(t - 1, 200, colluders, k) <= 2**-41]
        correct = [t for t in secure if 200 * hypergeom.cdf(t - 1, 200, 200 - dropouts, k) <= 2**-20]
        assert bool(correct) is holds
        if holds:
            assert threshold == min(correct)


def test_graph_is_complete_where_no_sparse_one_is_safe() -> None:
    assert sparse_plan(200, 100, 99) == complete_plan(200, 100) == GraphPlan(200, 199, 101)
    assert sparse_plan(10, 5, 3).is_complete
