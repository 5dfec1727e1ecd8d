"""``lightsecagg roster``: write and check the list of who may take part."""

from __future__ import annotations

from pathlib import Path

import click

from lightsecagg.cli.common import EXIT_CONFIG, fail
from lightsecagg.errors import ConfigError
from lightsecagg.identity import Identity, Roster, decode_key, encode_key


@click.group()
def roster() -> None:
    """Write and check rosters: who may take part, one line `RANK KEY [comment]` each."""


@roster.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(min=1), required=True)
@click.option("--key", help="Public key, as `lightsecagg keygen` prints it.")
@click.option("--identity", type=click.Path(path_type=Path), help="Or the identity file itself.")
@click.option("--comment", default="")
def add(file: Path, rank: int, key: str | None, identity: Path | None, comment: str) -> None:
    """Add client RANK to the roster FILE, which is made if it is not there."""
    if (key is None) == (identity is None):
        raise click.UsageError("wanted one of --key and --identity")
    try:
        public = decode_key(key) if key is not None else Identity.load(identity or Path()).public
        known = Roster.load(file).keys if file.exists() else {}
        if rank in known or public in known.values():
            raise ConfigError(f"{file}: rank {rank} or this key stands in the roster already")
    except ConfigError as error:
        fail(error, EXIT_CONFIG)
    line = " ".join([str(rank), encode_key(public), *comment.split()])
    try:
        with file.open("a") as roster_file:
            roster_file.write(line + "\n")
    except OSError as error:
        fail(ConfigError(f"cannot write the roster {file}: {error.strerror}"), EXIT_CONFIG)
    click.echo(f"{file}: {len(known) + 1} clients")


@roster.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Read the roster FILE and say who is in it, or what is wrong."""
    try:
        found = Roster.load(file)
        if not found.keys:
            raise ConfigError(f"{file}: nobody is in it; `lightsecagg roster add` adds a client")
    except ConfigError as error:
        fail(error, EXIT_CONFIG)
    for rank, public in sorted(found.keys.items()):
        click.echo(f"{rank} {encode_key(public)}")
    click.echo(f"{file}: {len(found.keys)} clients", err=True)
