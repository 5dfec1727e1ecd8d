"""The comparison as tables and sentences, for the terminal and for the page in docs/ alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.paper.comparison import BASELINES, OURS, SECAGG, Measured
from benchmarks.paper.costs import Network, Phases
from benchmarks.paper.settings import (
    MODELS,
    NETWORKS,
    SERVER_BANDWIDTHS,
    USER_BANDWIDTHS,
    USUAL_NETWORK,
    Setting,
)

TOTALS: dict[str, Callable[[Phases], float]] = {
    "non-overlapped": lambda phases: phases.non_overlapped,
    "overlapped": lambda phases: phases.overlapped,
    "aggregation-only": lambda phases: phases.aggregation_only,
}

Cells = Sequence[str]


@dataclass(frozen=True)
class Grid:
    """One table: a title, the columns' names, and groups of rows that belong together."""

    title: str
    columns: Cells
    groups: Sequence[Sequence[Cells]]

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, box=SIMPLE_HEAD)
        for name in self.columns:
            table.add_column(name, justify="left" if name in _WORDS else "right")
        for group in self.groups:
            for row in group:
                table.add_row(*row)
            table.add_section()
        return table

    def markdown(self) -> str:
        """For the page."""
        rules = ["---" if name in _WORDS else "---:" for name in self.columns]
        rows = [row for group in self.groups for row in group]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, rules, *rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"


_WORDS = ("dropout", "scheme", "numbers")


class Comparison:
    """All that was measured, to be looked up.

    Args:
        measured: every scheme in every setting at every size.
    """

    def __init__(self, measured: Sequence[Measured]) -> None:
        self.settings: list[Setting] = list(dict.fromkeys(one.setting for one in measured))
        self.dimensions = sorted({one.dimension for one in measured})
        self._measured = {(one.setting, one.dimension, one.scheme): one for one in measured}

    def find(self, setting: Setting, dimension: int, scheme: str) -> Measured:
        """One scheme in one setting at one size."""
        return self._measured[setting, dimension, scheme]

    def gain(
        self, setting: Setting, dimension: int, scheme: str, network: Network, total: str = "aggregation-only"
    ) -> float:
        """How many times as long as LightSecAgg the baseline takes."""
        theirs, ours = (
            TOTALS[total](self.find(setting, dimension, name).phases(network)) for name in (scheme, OURS)
        )
        return theirs / ours

    def cases(self) -> Iterator[tuple[int, Setting]]:
        """Sizes and settings in the order of the tables."""
        return ((dimension, setting) for dimension in self.dimensions for setting in self.settings)


def model_name(dimension: int) -> str:
    """What has so many parameters."""
    return f"{MODELS.get(dimension, 'model')}, {dimension:,}"


def setting_name(setting: Setting) -> str:
    """The dropout rate; a dagger where LightSecAgg lacks promise 3."""
    return setting.label + ("" if setting.parameters.unique_survivor_set else " †")


def network_name(network: Network) -> str:
    """Its bandwidths in words."""
    user, server = network.user_bandwidth / 10**6, network.server_bandwidth / 10**9
    return f"{user:g} Mb/s a user, {server:g} Gb/s at the server"


def times_grid(comparison: Comparison) -> Grid:
    """Phases and totals of everything at the usual bandwidth, and the gain."""
    groups = [
        [_times_row(comparison, dimension, setting, scheme) for scheme in (OURS, *BASELINES)]
        for dimension, setting in comparison.cases()
    ]
    columns = ["parameters", "dropout", "scheme", "numbers", "offline", "upload", "recovery", *TOTALS]
    title = f"Seconds of a round, computation measured, network modelled: {network_name(USUAL_NETWORK)}"
    return Grid(title, [*columns, "gains in these three"], groups)


def _times_row(comparison: Comparison, dimension: int, setting: Setting, scheme: str) -> Cells:
    one = comparison.find(setting, dimension, scheme)
    phases = one.phases(USUAL_NETWORK)
    seconds = [phases.offline, phases.upload, phases.recovery, *(total(phases) for total in TOTALS.values())]
    gains = [_times(comparison.gain(setting, dimension, scheme, USUAL_NETWORK, total)) for total in TOTALS]
    gain = "" if scheme == OURS else " / ".join(gains)
    return [f"{dimension:,}", setting_name(setting), scheme, _numbers(one), *map(_seconds, seconds), gain]


def gains_grid(comparison: Comparison) -> Grid:
    """Aggregation-only gains on every network."""
    groups = [
        [_gains_row(comparison, dimension, setting) for setting in comparison.settings]
        for dimension in comparison.dimensions
    ]
    columns = [
        f"{scheme}, server {server / 10**9:g} Gb/s" for server in SERVER_BANDWIDTHS for scheme in BASELINES
    ]
    users = " / ".join(f"{user / 10**6:g}" for user in USER_BANDWIDTHS)
    title = f"Gain, aggregation-only, at {users} Mb/s a user (below 1 LightSecAgg loses)"
    return Grid(title, ["parameters", "dropout", *columns], groups)


def _gains_row(comparison: Comparison, dimension: int, setting: Setting) -> Cells:
    cells = [
        " / ".join(
            _times(comparison.gain(setting, dimension, scheme, Network(user, server)))
            for user in USER_BANDWIDTHS
        )
        for server in SERVER_BANDWIDTHS
        for scheme in BASELINES
    ]
    return [f"{dimension:,}", setting_name(setting), *cells]


def traffic_grid(comparison: Comparison) -> Grid:
    """What one client sends before the upload, beside the upload itself."""
    groups = [
        [
            [
                f"{dimension:,}",
                setting_name(setting),
                *(
                    _size(comparison.find(setting, dimension, s).traffic.offline_up)
                    for s in (OURS, *BASELINES)
                ),
                _size(comparison.find(setting, dimension, OURS).traffic.upload),
            ]
            for setting in comparison.settings
        ]
        for dimension in comparison.dimensions
    ]
    columns = [f"{scheme}, offline" for scheme in (OURS, *BASELINES)]
    return Grid(
        "What one client sends (and receives) offline, and the masked update that all of them send",
        ["parameters", "dropout", *columns, "update"],
        groups,
    )


def losses(comparison: Comparison) -> list[str]:
    """Where LightSecAgg loses, in sentences that follow from the numbers."""
    slower = [
        sentence
        for setting in comparison.settings
        for scheme in BASELINES
        if (sentence := _slower(comparison, setting, scheme))
    ]
    return [*slower, *(_heavier(comparison, setting) for setting in comparison.settings)]


def _slower(comparison: Comparison, setting: Setting, scheme: str) -> str | None:
    cases = [
        (comparison.gain(setting, dimension, scheme, network), dimension, network)
        for dimension in comparison.dimensions
        for network in NETWORKS
    ]
    lost = sum(gain < 1 for gain, _, _ in cases)
    if not lost:
        return None
    gain, dimension, network = min(cases, key=lambda case: case[0])
    return (
        f"Dropout {setting_name(setting)}: slower than {scheme} in {lost} of {len(cases)} cases of size and "
        f"bandwidth, at worst {1 / gain:.2g} times as slow (d = {dimension:,}, {network_name(network)})."
    )


def _heavier(comparison: Comparison, setting: Setting) -> str:
    dimension = comparison.dimensions[-1]
    ours, secagg = (comparison.find(setting, dimension, scheme).traffic for scheme in (OURS, SECAGG))
    return (
        f"Dropout {setting_name(setting)}, d = {dimension:,}: a client sends {_size(ours.offline_up)} "
        f"offline, {ours.offline_up / ours.upload:.2g} times its update, and receives and holds as much; "
        f"under SecAgg it sends {_size(secagg.offline_up)}."
    )


def _numbers(one: Measured) -> str:
    if one.plan is None:
        parameters = one.setting.parameters
        return f"U={parameters.target_survivors} T={parameters.privacy_threshold}"
    return f"k={one.plan.degree} t={one.plan.threshold}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.3f}"


def _times(gain: float) -> str:
    return f"{gain:.1f}×" if gain >= 1 else f"{gain:.2f}×"


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"
