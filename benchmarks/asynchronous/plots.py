"""docs/async.png and docs/async_bits.png, drawn from what the parts wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MODES = {"async": ("asynchronous, secure", "#e6550d"), "sync": ("synchronous, secure", "#08519c")}
_SIDES = {"async": ("right", -4), "sync": ("left", 4)}  # of its line, where each mode's seconds stand
_ROUNDINGS = {"stochastic": ("stochastic rounding", "#e6550d"), "nearest": ("to nearest", "#08519c")}
_PLAIN = "#636363"


def draw_race(races: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy over time of every run, and when each mode reached the target in the median."""
    with _figure(len(races), path) as (figure, row):
        for axes, race in zip(row, races, strict=True):
            for mode, (label, colour) in _MODES.items():
                _runs(axes, race["runs"][mode], label, colour)
                _mark(axes, race["seconds_to_target"][mode], race["target"], colour, _SIDES[mode])
            axes.axhline(race["target"], color="black", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"target {race['target']:.1%}",
                (0.985, race["target"]),
                (0, -12),
                fontsize=9,
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
            )
            axes.set_title(f"{race['task']}{_gain(race)}", fontsize=11)
            axes.set_xlabel("seconds")
            axes.set_xlim(left=0)
            _percent(axes)
        paces, seeds = races[0]["paces"], len(races[0]["runs"]["async"])
        figure.suptitle(
            f"{len(paces)} clients whose training takes {paces[0]:g} to {paces[-1]:g} s: every run of "
            f"{seeds} seeds over loopback gRPC, and when half of them had reached the target"
        )


def draw_bits(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against fraction bits, each rounding; medians, and from the worst seed to the best."""
    with _figure(len(results), path) as (figure, row):
        for axes, result in zip(row, results, strict=True):
            places = range(len(result["bits"]))
            for rounding, (label, colour) in _ROUNDINGS.items():
                found = np.array(result["accuracies"][rounding])
                axes.plot(places, np.median(found, axis=1), "o-", color=colour, markersize=4, label=label)
                axes.fill_between(
                    places, found.min(axis=1), found.max(axis=1), color=colour, alpha=0.15, lw=0
                )
            plain = float(np.median(result["plain"]))
            axes.axhline(plain, color=_PLAIN, linestyle="--", linewidth=1, label="without masks or rounding")
            axes.set_xticks(list(places), [str(count) for count in result["bits"]])
            axes.set_xlabel("fraction bits")
            axes.set_title(f"{result['task']}: {plain:.1%} without masks or rounding", fontsize=11)
            _percent(axes)
        figure.suptitle(
            f"Buffered asynchronous LightSecAgg: median and range of {len(results[0]['seeds'])} seeds"
        )


@contextmanager
def _figure(columns: int, path: Path) -> Iterator[tuple[Figure, list[Axes]]]:
    """A row of pictures with one legend beneath, written when all is drawn."""
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(1, columns, figsize=(6.4 * columns, 4.9), squeeze=False)
        row = list(axes[0])
        yield figure, row
        row[0].set_ylabel("accuracy on the test set")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
        figure.subplots_adjust(left=0.07, right=0.985, top=0.84, bottom=0.2, wspace=0.14)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)


def _runs(axes: Axes, runs: Sequence[Mapping[str, Any]], label: str, colour: str) -> None:
    """Each run thinly, and their median over time."""
    for run in runs:
        axes.step(run["seconds"], run["accuracies"], where="post", color=colour, alpha=0.3, linewidth=0.8)
    ends = min(run["seconds"][-1] for run in runs)
    begins = max(run["seconds"][0] for run in runs)
    seconds = np.linspace(begins, ends, 200)
    steps = [_at(seconds, run["seconds"], run["accuracies"]) for run in runs]
    axes.plot(seconds, np.median(steps, axis=0), color=colour, linewidth=2, label=label)


def _at(seconds: Any, made: Sequence[float], accuracies: Sequence[float]) -> Any:
    """The accuracy of the newest model at each time; a model stands until the next one."""
    return np.array(accuracies)[np.searchsorted(made, seconds, side="right") - 1]


def _gain(race: Mapping[str, Any]) -> str:
    """The median over seeds of how many times as fast, and from the least to the most."""
    if race["ratio"] is None:
        return ""
    return (
        f": {race['ratio']:.1f} times as fast to the target "
        f"({min(race['ratios']):.1f} to {max(race['ratios']):.1f} by seed)"
    )


def _mark(axes: Axes, second: float | None, target: float, colour: str, side: tuple[str, int]) -> None:
    if second is not None:
        axes.plot([second, second], [0, target], color=colour, linewidth=1, linestyle="--")
        alignment, points = side
        axes.annotate(
            f"{second:.1f} s",
            (second, 0),
            (points, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
            ha=alignment,
        )


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylim(0, 1)
