"""The comparison as a command: ``python -m benchmarks.paper``."""

from __future__ import annotations

import json
import os
import platform
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.paper.comparison import Measured, measure
from benchmarks.paper.costs import Network
from benchmarks.paper.page import notes, page
from benchmarks.paper.plot import draw
from benchmarks.paper.settings import CLIENTS, DROPOUT_RATES, MODELS, NETWORKS, paper_settings
from benchmarks.paper.tables import (
    TOTALS,
    Comparison,
    gains_grid,
    losses,
    network_name,
    times_grid,
    traffic_grid,
)
from lightsecagg.kernels import set_threads
from lightsecagg.parameters import MAX_CLIENTS

_REPOSITORY = Path(__file__).parents[2]
_RESULTS = _REPOSITORY / "benchmarks" / "results"
_DOCS = _REPOSITORY / "docs"


@click.command()
@click.option("--clients", type=click.IntRange(4, MAX_CLIENTS), default=CLIENTS, show_default=True)
@click.option(
    "--dimension",
    "dimensions",
    multiple=True,
    type=click.IntRange(1),
    default=tuple(MODELS),
    show_default=True,
    help="Parameters of the model; may be given several times.",
)
@click.option(
    "--dropout",
    "rates",
    multiple=True,
    type=click.FloatRange(0, 0.5),
    default=DROPOUT_RATES,
    show_default=True,
    help="Rate at T = N/2; may be given several times.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for paper.json, paper.md and paper.png instead of benchmarks/results and docs.",
)
def main(clients: int, dimensions: tuple[int, ...], rates: tuple[float, ...], out: Path | None) -> None:
    """Measure LightSecAgg, SecAgg and SecAgg+ in the paper's setting; print, write and draw it."""
    console = Console(width=190, log_path=False)
    set_threads(1)
    measured = measure(paper_settings(clients, rates), dimensions, console.log)
    comparison = Comparison(measured)
    for grid in (times_grid, gains_grid, traffic_grid):
        console.print(grid(comparison).rich())
    console.print("[bold]How to read it[/bold]", *notes(comparison), sep="\n• ")
    console.print("\n[bold]Where LightSecAgg loses[/bold]", *losses(comparison), sep="\n• ")
    results, docs = (_RESULTS, _DOCS) if out is None else (out, out)
    for folder in (results, docs):
        folder.mkdir(parents=True, exist_ok=True)
    (results / "paper.json").write_text(json.dumps(_record(comparison, measured), indent=1) + "\n")
    (docs / "paper.md").write_text(page(comparison, f"{os.cpu_count()} cores, {platform.machine()}"))
    draw(comparison, docs / "paper.png")


def _record(comparison: Comparison, measured: list[Measured]) -> dict[str, Any]:
    return {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "notes": notes(comparison),
        "losses": losses(comparison),
        "results": [_one(one) for one in measured],
    }


def _one(one: Measured) -> dict[str, Any]:
    parameters = one.setting.parameters
    return {
        "scheme": one.scheme,
        "setting": one.setting.label,
        "num_clients": parameters.num_clients,
        "target_survivors": parameters.target_survivors,
        "privacy_threshold": parameters.privacy_threshold,
        "has_promise_3": parameters.unique_survivor_set,
        "dimension": one.dimension,
        "graph": None if one.plan is None else {"degree": one.plan.degree, "threshold": one.plan.threshold},
        "work_seconds": asdict(one.work),
        "traffic_bytes": asdict(one.traffic),
        "modelled": {network_name(network): _modelled(one, network) for network in NETWORKS},
    }


def _modelled(one: Measured, network: Network) -> dict[str, float]:
    phases = one.phases(network)
    return {**asdict(phases), **{name: total(phases) for name, total in TOTALS.items()}}


if __name__ == "__main__":
    main()
