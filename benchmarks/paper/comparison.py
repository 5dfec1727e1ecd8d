"""Measure every scheme in every setting at every size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.baselines.graph import GraphPlan, complete_plan, sparse_plan
from benchmarks.paper.clock import median_work
from benchmarks.paper.costs import (
    Network,
    Phases,
    Traffic,
    Work,
    lightsecagg_traffic,
    pairwise_traffic,
    phases,
)
from benchmarks.paper.ours import LightSecAgg
from benchmarks.paper.settings import Setting, training_seconds
from benchmarks.paper.theirs import Pairwise

OURS = "LightSecAgg"
SECAGG = "SecAgg"
SPARSE = "SecAgg+"
SPARSER = "SecAgg+ N/10"
"""SecAgg+ for N/10 colluders instead of T: fewer neighbours, and a weaker promise than all the others'."""

BASELINES = (SECAGG, SPARSE, SPARSER)


@dataclass(frozen=True)
class Measured:
    """What one scheme costs in one setting at one size.

    Attributes:
        plan: the graph of SecAgg and SecAgg+; None for LightSecAgg.
    """

    scheme: str
    setting: Setting
    dimension: int
    plan: GraphPlan | None
    work: Work
    traffic: Traffic

    def phases(self, network: Network) -> Phases:
        """The round's phases on a network of stated bandwidth."""
        training = training_seconds(self.dimension)
        return phases(self.work, self.traffic, network, self.setting.parameters, training)


def measure(
    settings: Iterable[Setting], dimensions: Sequence[int], tell: Callable[[str], None]
) -> list[Measured]:
    """Every scheme in every setting at every size; ``tell`` hears what is done."""
    found = []
    for setting in settings:
        for dimension in dimensions:
            found.append(_ours(setting, dimension))
            tell(f"{setting.label}, d = {dimension:,}: {OURS}")
        found += _all_of_theirs(setting, dimensions, tell)
    return found


def _all_of_theirs(
    setting: Setting, dimensions: Sequence[int], tell: Callable[[str], None]
) -> Iterator[Measured]:
    done: dict[GraphPlan, list[Measured]] = {}
    for scheme, plan in _plans(setting).items():
        if plan not in done:  # SecAgg+ is SecAgg where only the complete graph is safe
            done[plan] = _theirs(scheme, plan, setting, dimensions)
        yield from (replace(one, scheme=scheme) for one in done[plan])
        tell(f"{setting.label}: {scheme}")


def _plans(setting: Setting) -> dict[str, GraphPlan]:
    clients, dropouts = setting.parameters.num_clients, setting.parameters.dropout_tolerance
    return {
        SECAGG: complete_plan(clients, setting.colluders),
        SPARSE: sparse_plan(clients, setting.colluders, dropouts),
        SPARSER: sparse_plan(clients, clients // 10, dropouts),
    }


def _ours(setting: Setting, dimension: int) -> Measured:
    length = dimension + 1  # the last coordinate is the weight
    scheme = LightSecAgg(setting.parameters, length)
    traffic = lightsecagg_traffic(setting.parameters, scheme.field, length)
    return Measured(OURS, setting, dimension, None, median_work(scheme.run), traffic)


def _theirs(scheme: str, plan: GraphPlan, setting: Setting, dimensions: Sequence[int]) -> list[Measured]:
    pairwise = Pairwise(plan, setting.parameters)
    found = []
    for dimension in dimensions:
        length = dimension + 1
        work = median_work(partial(pairwise.run, length))
        found.append(Measured(scheme, setting, dimension, plan, work, pairwise_traffic(plan, length)))
    return found
