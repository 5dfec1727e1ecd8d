"""The codec's speed as a command: ``python -m benchmarks.codec``.

OpenBLAS takes the kernels that suit the processor, and other ones where OPENBLAS_CORETYPE says so. It is
measured as it was started, and once more, in a process of its own, without these words if there are any.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_info

from benchmarks.codec.figures import Figure, Kind
from benchmarks.codec.products import LARGE, ORDERS, SIZES, decoding, encoding, offline
from benchmarks.codec.vectors import DIMENSIONS, packing, quantizing, summing
from benchmarks.runs import RESULTS
from lightsecagg.cli.process import keep_freed_buffers
from lightsecagg.kernels import set_threads

_WORDS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def figures() -> Iterator[Figure]:
    """Every row, as it is measured."""
    for order in ORDERS:
        for size in SIZES:
            yield from encoding(size, order)
        yield from decoding(LARGE, order)
        for size in SIZES:
            yield from offline(size, order)
    for dimension in DIMENSIONS:
        for order in ORDERS:
            yield from quantizing(dimension, order)
        yield from packing(dimension)
    yield from summing(DIMENSIONS[-1])


@click.command()
@click.option(
    "--here", is_flag=True, help="Only as it was started; JSON to standard output, no table or file."
)
def main(here: bool) -> None:
    """Measure, print a table for each kind of core and write benchmarks/results/codec.json."""
    keep_freed_buffers()  # as the program does
    record = _measure()
    if here:
        click.echo(json.dumps(record))
        return
    records = [record]
    if any(word in os.environ for word in _WORDS):
        records.append(_measure_without_words())
    for one in records:
        _print(one)
    RESULTS.mkdir(exist_ok=True)
    found = {
        "machine": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "core_types": {one["core_type"]: one for one in records},
    }
    (RESULTS / "codec.json").write_text(json.dumps(found, indent=1) + "\n")


def _measure() -> dict[str, Any]:
    set_threads(1)
    blas = next(library for library in threadpool_info() if library["user_api"] == "blas")
    load = os.getloadavg()[0]
    return {
        "core_type": blas.get("architecture", "unknown"),
        "blas": f"{blas['internal_api']} {blas['version']}",
        "blas_threads": blas["num_threads"],
        "environment": {word: os.environ[word] for word in _WORDS if word in os.environ},
        "load_at_start": load,
        "figures": [figure.record() for figure in figures()],
    }


def _measure_without_words() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name not in _WORDS}
    words = [sys.executable, "-m", "benchmarks.codec", "--here"]
    found = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(found.stdout)
    return record


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()


def _print(record: dict[str, Any]) -> None:
    table = Table(title=f"The codec on {_processor()}, {record['blas']} for {record['core_type']} cores")
    for column in ("what", "against", "ours", "yardstick", "ratio", "turns", "goal"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    for row in record["figures"]:
        table.add_row(
            row["what"],
            row["yardstick"],
            _milliseconds(row["seconds"]),
            _milliseconds(row["yardstick_seconds"]),
            _against_goal(row),
            f"{_ratio(row, 'least')} … {_ratio(row, 'most')}",
            _goal(row),
        )
    Console(width=190).print(table)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"


def _ratio(row: dict[str, Any], which: str) -> str:
    if row["kind"] == Kind.SHARE.value:
        return f"{100 * row[which]:.0f} %"
    return f"{row[which]:.3g}×"


def _goal(row: dict[str, Any]) -> str:
    if row["goal"] is None:
        return ""
    bound = "≤" if row["kind"] == Kind.COST.value else "≥"
    return f"{bound} {_ratio(row, 'goal')} {'met' if row['is_met'] else 'missed'}"


def _against_goal(row: dict[str, Any]) -> str:
    colour = {True: "[bold green]", False: "[bold red]", None: ""}[row["is_met"]]
    return f"{colour}{_ratio(row, 'ratio')}"


if __name__ == "__main__":
    main()
