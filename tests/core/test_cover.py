"""Who is taken out where complaints cannot tell their two ends apart, against every cover there is."""

from __future__ import annotations

from itertools import product

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.protocol import cover as module
from lightsecagg.protocol.cover import Cover, settle
from tests.core import oracle
from tests.core.strategies import MANY, SOME

EVERYONE = frozenset(range(1, 11))


def covers(cover: Cover, edges: set[tuple[int, int]]) -> bool:
    return all(i in cover.senders or j in cover.receivers for i, j in edges)


def smaller_side(cover: Cover, candidates: frozenset[int], answerers: frozenset[int]) -> int:
    return min(len(candidates - cover.senders), len(answerers - cover.receivers))


def extremes(edges: set[tuple[int, int]]) -> list[tuple[set[int], set[int]]]:
    """The minimum covers with the most senders and with the fewest: König's two."""
    _, minimum = oracle.minimum_cover_sizes(edges)
    counts = [len(senders) for senders, _ in minimum]
    found = []
    for count in (min(counts), max(counts)):
        (only,) = [cover for cover in minimum if len(cover[0]) == count]  # covers form a lattice
        found.append(only)
    return found


def test_every_graph_of_three_senders_and_three_receivers_is_settled_by_a_minimum_cover() -> None:
    pairs = list(product((1, 2, 3), (1, 2, 3)))
    everyone = frozenset((1, 2, 3))
    for chosen in range(1 << len(pairs)):
        edges = {pair for bit, pair in enumerate(pairs) if chosen >> bit & 1}
        found = settle(everyone, everyone, edges)
        size, minimum = oracle.minimum_cover_sizes(edges)
        assert covers(found, edges)
        assert found.size == size
        assert (set(found.senders), set(found.receivers)) in minimum
        if edges:
            best = max(
                smaller_side(Cover(frozenset(s), frozenset(r)), everyone, everyone)
                for s, r in extremes(edges)
            )
            assert smaller_side(found, everyone, everyone) >= best


edge_sets = st.sets(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12)


@given(edge_sets, st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)))
@MANY
def test_the_cover_is_minimum_and_at_least_as_good_as_both_extremes(
    edges: set[tuple[int, int]], more_candidates: set[int], more_answerers: set[int]
) -> None:
    candidates = frozenset({i for i, _ in edges} | more_candidates)
    answerers = frozenset({j for _, j in edges} | more_answerers)
    found = settle(candidates, answerers, edges)
    size, _ = oracle.minimum_cover_sizes(edges)
    assert covers(found, edges)
    assert found.size == size
    assert found.senders <= candidates
    assert found.receivers <= answerers
    if edges:
        for senders, receivers in extremes(edges):
            other = Cover(frozenset(senders), frozenset(receivers))
            assert smaller_side(found, candidates, answerers) >= smaller_side(other, candidates, answerers)


@given(edge_sets.filter(bool))
@SOME
def test_koenigs_covers_are_the_two_extremes(edges: set[tuple[int, int]]) -> None:
    found = [module._koenig(sorted(edges), towards_receivers=side) for side in (False, True)]
    assert {(cover.senders, cover.receivers) for cover in found} == {
        (frozenset(s), frozenset(r)) for s, r in extremes(edges)
    }


@given(st.sets(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=200))
@SOME
def test_large_graphs_are_covered_by_as_few_as_a_matching_needs(edges: set[tuple[int, int]]) -> None:
    everyone = frozenset(range(1, 61))
    found = settle(everyone, everyone, edges)
    graph = nx.Graph((("s", i), ("r", j)) for i, j in edges)
    assert covers(found, edges)
    assert found.size == len(nx.max_weight_matching(graph, maxcardinality=True))


@given(edge_sets, st.randoms())
@SOME
def test_order_and_repetition_of_complaints_do_not_matter(
    edges: set[tuple[int, int]], random: object
) -> None:
    shuffled = [*edges, *edges]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert settle(EVERYONE, EVERYONE, shuffled) == settle(EVERYONE, EVERYONE, sorted(edges))


def test_no_complaints_take_nobody_out() -> None:
    assert settle(EVERYONE, EVERYONE, []) == Cover(frozenset(), frozenset())


def test_complaints_by_or_about_those_who_are_out_already_count_for_nothing() -> None:
    candidates, answerers = frozenset({1, 2, 3}), frozenset({2, 3, 4})
    assert settle(candidates, answerers, [(4, 2), (1, 1), (9, 9)]).size == 0
    assert settle(candidates, answerers, [(4, 2), (1, 4)]).size == 1


def test_a_sender_of_garbage_to_all_goes_alone() -> None:
    found = settle(EVERYONE, EVERYONE, [(3, j) for j in EVERYONE if j != 3])
    assert found == Cover(frozenset({3}), frozenset())


def test_a_receiver_that_complains_about_all_goes_alone() -> None:
    found = settle(EVERYONE, EVERYONE, [(i, 8) for i in EVERYONE if i != 8])
    assert found == Cover(frozenset(), frozenset({8}))


def test_a_single_complaint_goes_against_the_sender() -> None:
    for i, j in ((2, 9), (9, 2), (1, 10), (10, 1)):
        assert settle(EVERYONE, EVERYONE, [(i, j)]) == Cover(frozenset({i}), frozenset())


def test_a_client_that_cheats_in_both_roles_loses_both() -> None:
    edges = [(5, j) for j in EVERYONE if j != 5] + [(i, 5) for i in EVERYONE if i != 5]
    assert settle(EVERYONE, EVERYONE, edges) == Cover(frozenset({5}), frozenset({5}))


def test_a_client_complained_about_in_both_roles_goes_whole_rather_than_two_clients_by_halves() -> None:
    """5 → 6 and 7 → 5: one liar explains both. The extremes {5, 7} and {5, 6} would cost a side two."""
    assert settle(EVERYONE, EVERYONE, [(5, 6), (7, 5)]) == Cover(frozenset({5}), frozenset({5}))


def test_among_the_covers_tried_the_one_with_the_larger_smaller_side_wins() -> None:
    """Two senders against two receivers cost two either way; the side with more to spare pays."""
    edges = {(1, 7), (2, 8)}
    few_candidates, few_answerers = frozenset(range(1, 5)), frozenset(range(6, 10))
    assert settle(few_candidates, EVERYONE, edges) == Cover(frozenset(), frozenset({7, 8}))
    assert settle(EVERYONE, few_answerers, edges) == Cover(frozenset({1, 2}), frozenset())


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_b_liars_cost_at_most_two_roles_each(liars: int) -> None:
    """Whatever B liars claim, at most 2B roles go, and no more than B from either side beyond their own."""
    for claims in (
        {(liar, j) for liar in range(1, liars + 1) for j in range(4, 11)},
        {(i, liar) for liar in range(1, liars + 1) for i in range(4, 11)},
        {(liar, j) for liar in range(1, liars + 1) for j in range(1, 11) if j != liar}
        | {(i, liar) for liar in range(1, liars + 1) for i in range(1, 11) if i != liar},
    ):
        found = settle(EVERYONE, EVERYONE, claims)
        assert found.size <= 2 * liars
        assert smaller_side(found, EVERYONE, EVERYONE) >= 10 - 2 * liars
