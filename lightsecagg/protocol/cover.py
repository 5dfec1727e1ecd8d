"""Whose shares count: complaints as a bipartite graph, and the minimum vertex cover that settles them.

A complaint (i, j) says that receiver j could not open sender i's share; it cannot tell its two ends apart. A
cover takes one end of each out of its role: a covered sender is no candidate, a covered receiver no answerer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from typing import NamedTuple

Complaint = tuple[int, int]
"""(sender, receiver)"""


class Cover(NamedTuple):
    """Who is taken out of which role."""

    senders: frozenset[int]
    receivers: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.senders) + len(self.receivers)


def settle(candidates: Set[int], answerers: Set[int], complaints: Iterable[Complaint]) -> Cover:
    """The minimum cover that leaves the larger smaller side (the first of those tried, where they tie).

    Tried are the two extremes of König's construction, and whole clients by most complaints, where that
    comes out minimum.
    """
    edges = sorted({(i, j) for i, j in complaints if i in candidates and j in answerers})
    if not edges:
        return Cover(frozenset(), frozenset())
    extremes = [_koenig(edges, towards_receivers=False), _koenig(edges, towards_receivers=True)]
    minimum = extremes[0].size
    tried = [cover for cover in [_by_most_complaints(edges), *extremes] if cover.size == minimum]
    return max(tried, key=lambda c: min(len(candidates) - len(c.senders), len(answerers) - len(c.receivers)))


def _koenig(edges: list[Complaint], *, towards_receivers: bool) -> Cover:
    """König's cover from a Hopcroft–Karp matching, seen from the senders' side or the receivers'."""
    import networkx as nx  # noqa: PLC0415 - 20 MB that a round without complaints does without
    from networkx.algorithms import bipartite  # noqa: PLC0415

    near = "receiver" if towards_receivers else "sender"
    graph: nx.Graph[tuple[str, int]] = nx.Graph()
    for i, j in edges:
        graph.add_edge(("sender", i), ("receiver", j))
    top = [node for node in graph if node[0] == near]
    cover = bipartite.to_vertex_cover(graph, bipartite.hopcroft_karp_matching(graph, top), top)
    return Cover(
        frozenset(number for role, number in cover if role == "sender"),
        frozenset(number for role, number in cover if role == "receiver"),
    )


def _by_most_complaints(edges: list[Complaint]) -> Cover:
    """Take out one client after another, each the one that most remaining complaints touch."""
    senders: set[int] = set()
    receivers: set[int] = set()
    left = edges
    while left:
        against, by = Counter(i for i, _ in left), Counter(j for _, j in left)
        worst = max(
            sorted(against.keys() | by.keys()),
            key=lambda client: (against[client] + by[client], against[client]),
        )
        if against[worst]:
            senders.add(worst)
        if by[worst]:
            receivers.add(worst)
        left = [(i, j) for i, j in left if worst not in (i, j)]
    return Cover(frozenset(senders), frozenset(receivers))
