"""``lightsecagg trace``: put the traces of a run's processes together."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from lightsecagg.cli.common import EXIT_CONFIG, fail
from lightsecagg.errors import ConfigError
from lightsecagg.tracking.trace import TraceEvent, merge


@click.command()
@click.argument("run")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of all runs.",
)
def trace(run: str, runs: Path) -> None:
    """Merge the traces of RUN, a RUN_ID or a run's folder, into its trace.json, for ui.perfetto.dev."""
    try:
        files = _find(run, runs)
        events = merge(files)
        merged = files[0].parent / "trace.json"
        merged.write_bytes(_document(events))
    except ConfigError as error:
        fail(error, EXIT_CONFIG)
    except OSError as error:
        fail(ConfigError(f"cannot merge {error.filename or run}: {error.strerror}"), EXIT_CONFIG)
    spans = sum(event.ph in ("X", "b") for event in events)
    click.echo(f"{merged}: {spans} spans of {len(files)} processes; open it at https://ui.perfetto.dev")


def _find(run: str, runs: Path) -> list[Path]:
    """The run's trace files.

    Raises:
        ConfigError: there is no such run, or none of its processes was traced.
    """
    folder = next((place for place in (runs / run, Path(run)) if place.is_dir()), None)
    if folder is None:
        raise ConfigError(
            f"RUN: wanted the folder of a run or a RUN_ID in {runs} (--runs), found neither at {run!r}"
        )
    files = sorted(folder.glob("trace-*.json"))
    if not files:
        raise ConfigError(
            f"no trace in {folder}: start the run with --set tracking_args.trace=true; if it sets "
            "tracking_args.log_file_dir too, its traces lie in that folder: give it as --runs"
        )
    return files


def _document(events: list[TraceEvent]) -> bytes:
    lines = b",\n".join(map(msgspec.json.encode, events))
    return b'{"displayTimeUnit": "ms", "traceEvents": [\n' + lines + b"\n]}\n"
