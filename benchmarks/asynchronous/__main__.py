"""The measurements as a command: ``python -m benchmarks.asynchronous``."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from benchmarks.asynchronous import overhead, tables
from benchmarks.asynchronous.accuracy import BITS_SEEDS, by_bits, differences
from benchmarks.asynchronous.plots import draw_bits, draw_race
from benchmarks.asynchronous.race import race
from benchmarks.asynchronous.tasks import CLIENTS, SEEDS, TASKS, Choice
from benchmarks.asynchronous.tuning import SEEDS as TUNING_SEEDS
from benchmarks.asynchronous.tuning import Tuned, tune
from benchmarks.runs import RESULTS

_DOCS = Path(__file__).parents[2] / "docs"


class _Book:
    """Where results are written, and read again by the parts that need them."""

    def __init__(self, out: Path | None, console: Console) -> None:
        self._results, self.docs = (RESULTS, _DOCS) if out is None else (out, out)
        self._console = console
        for folder in (self._results, self.docs):
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, part: str, results: Any, table: Any, started: float, load: float) -> None:
        """Keep a part's results, and show them."""
        record = {
            "machine": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("lightsecagg", "numpy", "torch")},
            "load_at_start": load,
            "load_at_end": os.getloadavg()[0],
            "seconds": time.monotonic() - started,
            "clients": CLIENTS,
            "results": results,
        }
        self._path(part).write_text(json.dumps(record, indent=1) + "\n")
        self._console.print(table)
        self._console.print(f"{part}: {record['seconds']:.0f} s")

    def tuned(self) -> Mapping[str, Tuned]:
        """By the task's name, what tuning chose.

        Raises:
            click.ClickException: it was never run.
        """
        path = self._path("tuning")
        if not path.exists():
            raise click.ClickException(f"wanted {path}, which --part tuning writes; run that part first")
        results = json.loads(path.read_text())["results"]
        return {name: msgspec.convert(found, Tuned) for name, found in results.items()}

    def _path(self, part: str) -> Path:
        return self._results / f"asynchronous_{part}.json"


def _tuning(_book: _Book) -> tuple[Any, Any]:
    found = {task.name: {"seeds": TUNING_SEEDS, **asdict(tune(task))} for task in TASKS}
    return found, tables.tuning_table(found)


def _race(book: _Book) -> tuple[Any, Any]:
    tuned = book.tuned()
    found = [race(task, tuned[task.name], SEEDS) for task in TASKS]
    draw_race(found, book.docs / "async.png")
    return found, tables.race_table(found)


def _masks(book: _Book) -> tuple[Any, Any]:
    found = differences(TASKS, _asynchronous_choices(book), SEEDS)
    return found, tables.masks_table(found)


def _bits(book: _Book) -> tuple[Any, Any]:
    found = by_bits(TASKS, _asynchronous_choices(book), SEEDS[:BITS_SEEDS])
    draw_bits(found, book.docs / "async_bits.png")
    return found, tables.bits_table(found)


def _overhead(_book: _Book) -> tuple[Any, Any]:
    found = overhead.compare()
    return found, tables.overhead_table(found)


def _asynchronous_choices(book: _Book) -> dict[str, Choice]:
    return {name: found.choices["async"] for name, found in book.tuned().items()}


_PARTS = {"tuning": _tuning, "race": _race, "masks": _masks, "bits": _bits, "overhead": _overhead}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(tuple(_PARTS)), help="[default: all]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results and pictures instead of benchmarks/results and docs.",
)
def main(parts: tuple[str, ...], out: Path | None) -> None:
    """Measure; print tables, write benchmarks/results/asynchronous_*.json and draw docs/async*.png."""
    book = _Book(out, Console(width=190))
    for part in parts or _PARTS:
        started, load = time.monotonic(), os.getloadavg()[0]
        results, table = _PARTS[part](book)
        book.write(part, results, table, started, load)


if __name__ == "__main__":
    main()
