"""Who masks with whom: the complete graph of SecAgg and the sparse random graphs of SecAgg+.

SecAgg+ (Bell et al., CCS 2020) takes a Harary graph on a random permutation: clients in a ring, each joined
to the k/2 on either side. ``sparse_plan`` chooses k and the threshold t as Google's production code does
(federated-compute, fcp/secagg/server/graph_parameter_finder.cc, a curious server): the smallest even k that
has a t with

- security: with probability ≥ 1 − 2^-40 nobody has t or more colluding neighbours, and those who neither
  collude nor drop out stay connected (2^-41 for each);
- correctness: with probability ≥ 1 − 2^-20 everybody keeps t neighbours that do not drop out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, perm
from random import Random

Graph = Mapping[int, tuple[int, ...]]
"""Client number 1..N to its neighbours, ascending."""

SECURITY_BITS = 40
CORRECTNESS_BITS = 20


@dataclass(frozen=True)
class GraphPlan:
    """How many neighbours each client has, and how many shares of a secret give it back.

    Attributes:
        degree: k; N − 1 is the complete graph.
        threshold: t, of k + 1 shares: a client keeps one of its own secrets' shares itself.
    """

    num_clients: int
    degree: int
    threshold: int

    @property
    def is_complete(self) -> bool:
        """Whether everybody masks with everybody: SecAgg."""
        return self.degree == self.num_clients - 1

    def graph(self, random: Random) -> Graph:
        """A graph of this degree; the sparse ones on a random permutation."""
        numbers = list(range(1, self.num_clients + 1))
        if self.is_complete:
            return {i: tuple(j for j in numbers if j != i) for i in numbers}
        random.shuffle(numbers)
        reach = [step for step in range(-self.degree // 2, self.degree // 2 + 1) if step]
        return {
            number: tuple(sorted(numbers[(place + step) % self.num_clients] for step in reach))
            for place, number in enumerate(numbers)
        }


def complete_plan(num_clients: int, colluders: int) -> GraphPlan:
    """SecAgg: everybody masks with everybody, and one share more than all colluders hold is needed."""
    return GraphPlan(num_clients, num_clients - 1, colluders + 1)


def sparse_plan(num_clients: int, colluders: int, dropouts: int) -> GraphPlan:
    """SecAgg+: the smallest degree that does; the complete graph where no smaller one does."""
    for degree in range(2, num_clients - 1, 2):
        threshold = _secure_threshold(num_clients, colluders, degree)
        if (
            _stays_connected(num_clients, colluders + dropouts, degree)
            and threshold <= degree
            and _keeps_enough(num_clients, dropouts, degree, threshold)
        ):
            return GraphPlan(num_clients, degree, threshold)
    return complete_plan(num_clients, colluders)


def _stays_connected(num_clients: int, bad: int, degree: int) -> bool:
    """Cutting a ring takes two gaps of k/2 bad clients in a row; a union bound over all pairs of gaps."""
    pairs = num_clients * (num_clients - degree - 1)
    return pairs * perm(bad, degree) << SECURITY_BITS < perm(num_clients, degree)


def _secure_threshold(num_clients: int, colluders: int, degree: int) -> int:
    """The smallest t ≥ 2 that somebody's colluding neighbours reach with probability ≤ 2^-41."""
    threshold, ways = degree + 1, 0
    while threshold > 2:
        ways += _ways(num_clients, colluders, degree, threshold - 1)
        if num_clients * ways << SECURITY_BITS + 1 > comb(num_clients, degree):
            break
        threshold -= 1
    return threshold


def _keeps_enough(num_clients: int, dropouts: int, degree: int, threshold: int) -> bool:
    """Whether fewer than t of somebody's neighbours survive with probability ≤ 2^-20 only."""
    ways = sum(_ways(num_clients, num_clients - dropouts, degree, count) for count in range(threshold))
    return num_clients * ways << CORRECTNESS_BITS <= comb(num_clients, degree)


def _ways(num_clients: int, marked: int, degree: int, count: int) -> int:
    """Choices of k out of N clients with exactly ``count`` of the marked ones (hypergeometric)."""
    return comb(marked, count) * comb(num_clients - marked, degree - count)
