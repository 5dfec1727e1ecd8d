"""SecAgg's and SecAgg+'s work in a round, measured: one client's, and the server's."""

from __future__ import annotations

from itertools import islice
from random import Random
from statistics import median

import numpy as np

from benchmarks.baselines.graph import GraphPlan
from benchmarks.baselines.pairwise import Client, Server
from benchmarks.paper.clock import Watch
from benchmarks.paper.costs import Work
from lightsecagg.parameters import Parameters

TIMED_PAIRS = 100
"""Pairwise masks that the server takes off for real; the time of the others is scaled from theirs."""

_OWN = 1


class Pairwise:
    """N clients that have shared for real. It serves every size of update, since sharing depends on none.

    Args:
        plan: the graph's degree and the threshold.
        parameters: N and U; N − U clients drop out before they upload.
    """

    def __init__(self, plan: GraphPlan, parameters: Parameters) -> None:
        random = Random(1)
        self._plan = plan
        self._graph = plan.graph(random)
        others = range(2, parameters.num_clients + 1)
        chosen = random.sample(others, parameters.target_survivors - 1)
        self._survivors = frozenset([_OWN, *chosen])
        self._share()

    def _share(self) -> None:
        watches = {number: Watch() for number in self._graph}
        self._clients: dict[int, Client] = {}
        for number, neighbours in self._graph.items():
            with watches[number].running():
                self._clients[number] = Client(number, neighbours, self._plan.threshold)
        self._keys = {number: client.keys for number, client in self._clients.items()}
        sealed = {}
        for number, client in self._clients.items():
            with watches[number].running():
                sealed[number] = client.share(self._keys)
        for number, client in self._clients.items():
            with watches[number].running():
                for sender in self._graph[number]:
                    client.take(sender, sealed[sender][number])
        self._sharing_seconds = median(watch.seconds for watch in watches.values())

    def run(self, length: int) -> Work:
        """One client's round and the server's, once, for updates of ``length`` coordinates."""
        expanding, masking, answering, adding, unmasking = (Watch() for _ in range(5))
        own = self._clients[_OWN]
        with expanding.running():
            mask = own.mask(self._keys, length)
        update = np.ones(length, dtype=np.uint32)
        with masking.running():
            masked = update + mask
        server = Server(self._graph, self._plan.threshold, self._keys, length)
        with adding.running():
            for number in self._survivors:
                server.add(number, masked)
        answers = {
            number: self._clients[number].reveal(self._survivors) for number in self._survivors - {_OWN}
        }
        with answering.running():
            answers[_OWN] = own.reveal(self._survivors)
        with unmasking.running():
            secrets = server.recover(answers)
            server.remove_own_masks(secrets)
        return Work(
            self._sharing_seconds + expanding.seconds,
            masking.seconds,
            adding.seconds,
            answering.seconds,
            unmasking.seconds + _pairs_seconds(server, secrets),
        )


def _pairs_seconds(server: Server, secrets: dict[int, bytes]) -> float:
    watch = Watch()
    pairs = server.pair_masks(secrets)
    timed = list(islice(pairs, TIMED_PAIRS))
    with watch.running():
        for pair in timed:
            server.remove_pair_mask(pair)
    left = sum(1 for _ in pairs)
    return watch.seconds * (1 + left / len(timed)) if timed else 0.0
