"""The parts' results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.asynchronous.accuracy import MOST as MOST_APART
from benchmarks.asynchronous.overhead import LEAST_TRAINING
from benchmarks.asynchronous.overhead import MOST as MOST_TIMES


def tuning_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """What was chosen."""
    table = _table("Chosen in virtual time", "", "mode", "learning rate", "buffer", "accuracy", "target")
    for name, tuned in results.items():
        for mode, choice in tuned["choices"].items():
            table.add_row(
                name,
                mode,
                f"{choice['learning_rate']:g}",
                str(choice["buffer_size"]) if mode == "async" else "",
                f"{tuned['reachable'][mode]:.1%}",
                f"{tuned['target']:.1%}",
            )
    return table


def race_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Seconds to the target."""
    table = _table(
        "Time to the target, both secure, over loopback gRPC",
        *("", "mode", "target", "each seed", "median", "sync / async", "accuracy", "updates/s", "staleness"),
    )
    for race in results:
        for mode, runs in race["runs"].items():
            table.add_row(
                race["task"],
                mode,
                f"{race['target']:.1%}",
                ", ".join(_seconds(run["seconds_to_target"]) for run in runs),
                _seconds(race["seconds_to_target"][mode]),
                "" if mode == "sync" or race["ratio"] is None else f"{race['ratio']:.2f}",
                ", ".join(f"{run['settled_accuracy']:.1%}" for run in runs),
                f"{sum(run['updates_a_second'] for run in runs) / len(runs):.1f}",
                ", ".join(
                    "-" if run["mean_staleness"] is None else f"{run['mean_staleness']:.1f}" for run in runs
                ),
            )
    return table


def masks_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Secure beside plain."""
    table = _table(
        f"Accuracy with masks less that without, same lists; at most {MOST_APART:.1%} in the mean",
        *("", "staleness", "plain, each seed", "difference, each seed", "mean", "largest"),
    )
    for result in results:
        table.add_row(
            result["task"],
            result["choice"]["staleness"],
            ", ".join(f"{run['plain']:.2%}" for run in result["runs"]),
            ", ".join(f"{run['secure'] - run['plain']:+.2%}" for run in result["runs"]),
            _against_goal(f"{result['mean_difference']:+.2%}", abs(result["mean_difference"]) <= MOST_APART),
            f"{result['largest_difference']:+.2%}",
        )
    return table


def bits_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy against fraction bits, means over the seeds."""
    bits = [str(count) for count in results[0]["bits"]]
    table = _table("Mean accuracy with so many fraction bits", "", "rounding", *bits, "plain")
    for result in results:
        for rounding, found in result["accuracies"].items():
            means = [f"{sum(each) / len(each):.1%}" for each in (*found, result["plain"])]
            table.add_row(result["task"], rounding, *means)
    return table


def overhead_table(result: Mapping[str, Any]) -> Table:
    """Times of an update."""
    secure, plain, ratios = result["secure"], result["plain"], result["ratios"]
    table = _table(
        f"An update of {result['dimension']:,} parameters over loopback gRPC, medians of {len(ratios)} turns",
        *("", "secure", "plain FedBuff", "ratio", f"wanted, at most {MOST_TIMES}; from pair to pair"),
    )
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    ratio = _against_goal(f"{result['ratio']:.3f}", result["ratio"] <= MOST_TIMES)
    table.add_row("update", _seconds(secure["update"]), _seconds(plain["update"]), ratio, spread)
    for name in ("cycle", "version"):
        table.add_row(
            name, _seconds(secure[name]), _seconds(plain[name]), f"{secure[name] / plain[name]:.3f}", ""
        )
    training = _against_goal(_seconds(plain["training"]), plain["training"] >= LEAST_TRAINING)
    table.add_row("training", _seconds(secure["training"]), training, "", "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s"


def _against_goal(text: str, is_met: bool) -> str:
    return text if is_met else f"[bold red]{text}[/]"
