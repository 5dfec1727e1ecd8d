"""docs/paper.png: what a round costs, phase by phase, and how many times as long the others take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.paper.comparison import BASELINES, OURS, SECAGG, SPARSE, SPARSER
from benchmarks.paper.costs import Network, Phases
from benchmarks.paper.settings import SERVER_BANDWIDTHS, USUAL_NETWORK, Setting
from benchmarks.paper.tables import Comparison, model_name, network_name

_PHASES: dict[str, tuple[Callable[[Phases], float], str]] = {
    "offline": (lambda phases: phases.offline, "#9ecae1"),
    "upload": (lambda phases: phases.upload, "#c7c7c7"),
    "recovery": (lambda phases: phases.recovery, "#e6550d"),
}
_COLOURS = {SECAGG: "#08519c", SPARSE: "#238b45", SPARSER: "#88419d"}
_STYLES = dict(zip(SERVER_BANDWIDTHS, ("o-", "o:"), strict=True))
_SHOWN = 1_206_590  # the model whose phases the paper breaks down


def draw(comparison: Comparison, path: Path) -> None:
    """Write the picture."""
    columns = len(comparison.settings)
    shown = _SHOWN if _SHOWN in comparison.dimensions else comparison.dimensions[-1]
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, columns, figsize=(3.7 * columns, 8.6), squeeze=False)
        for place, setting in enumerate(comparison.settings):
            _bars(axes[0, place], comparison, setting, shown)
            _lines(axes[1, place], comparison, setting)
        _share_gain_axis(list(axes[1]))
        axes[0, 0].set_ylabel(f"seconds without training\n({model_name(shown)} parameters)")
        axes[1, 0].set_ylabel("gain: their time / LightSecAgg's,\nwithout training")
        for row, height in zip(axes, (0.91, 0.0), strict=True):
            handles, labels = row[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="lower center", bbox_to_anchor=(0.5, height), ncols=3, frameon=False
            )
        figure.suptitle(
            f"One round of {comparison.settings[0].parameters.num_clients} clients: computation measured on "
            f"one thread, network modelled ({network_name(USUAL_NETWORK)})"
        )
        figure.subplots_adjust(left=0.07, right=0.985, top=0.85, bottom=0.15, hspace=0.35, wspace=0.22)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)


def _bars(axes: Axes, comparison: Comparison, setting: Setting, dimension: int) -> None:
    schemes = (OURS, *BASELINES)
    phases = [comparison.find(setting, dimension, scheme).phases(USUAL_NETWORK) for scheme in schemes]
    bottoms = [0.0] * len(schemes)
    for name, (seconds, colour) in _PHASES.items():
        heights = [seconds(one) for one in phases]
        axes.bar(schemes, heights, bottom=bottoms, color=colour, label=name, width=0.65)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, total in enumerate(bottoms):
        axes.annotate(f"{total:.3g} s", (place, total), ha="center", va="bottom", fontweight="bold")
    axes.margins(y=0.1)
    axes.set_xticks(range(len(schemes)), [scheme.replace(" ", "\n") for scheme in schemes], fontsize=9)
    parameters = setting.parameters
    promise = "" if parameters.unique_survivor_set else ", no promise 3"
    axes.set_title(
        f"dropout {setting.label}\n"
        f"U = {parameters.target_survivors}, T = {parameters.privacy_threshold}{promise}",
        fontsize=11,
    )


def _lines(axes: Axes, comparison: Comparison, setting: Setting) -> None:
    places = range(len(comparison.dimensions))
    for scheme, colour in _COLOURS.items():
        for server, style in _STYLES.items():
            network = Network(USUAL_NETWORK.user_bandwidth, server)
            gains = [
                comparison.gain(setting, dimension, scheme, network) for dimension in comparison.dimensions
            ]
            label = f"{scheme}, {server / 10**9:g} Gb/s at the server"
            axes.plot(places, gains, style, color=colour, markersize=4, label=label)
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda gain, _: f"{gain:g}×"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(list(places), [_short(dimension) for dimension in comparison.dimensions])
    axes.set_xlabel("parameters")
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.12)


def _share_gain_axis(row: list[Axes]) -> None:
    limits = [limit for axes in row for limit in axes.get_ylim()]
    lowest, highest = min(*limits, 0.7), max(*limits, 1.5)
    for axes in row:
        axes.set_ylim(lowest, highest)
        axes.axhspan(lowest, 1, color="#e6550d", alpha=0.07, linewidth=0)
    row[0].annotate("LightSecAgg slower", (0.02, 0.02), xycoords="axes fraction", fontsize=9, color="#a63603")


def _short(dimension: int) -> str:
    return f"{dimension / 10**6:.1f} M" if dimension >= 10**6 else f"{dimension:,}"
