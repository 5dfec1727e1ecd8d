"""``lightsecagg keygen``: make an identity."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from lightsecagg.cli.common import EXIT_CONFIG, default_identity, fail
from lightsecagg.errors import ConfigError
from lightsecagg.identity import Identity, encode_key


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="File to write; never overwritten.")
@click.option("--run_id", "--run-id", "run_id", help="With --rank: write where that client looks for it.")
@click.option("--rank", type=click.IntRange(min=1))
def keygen(out: Path | None, run_id: str | None, rank: int | None) -> None:
    """Make an Ed25519 identity and print its public key, for the roster."""
    if out is None:
        if run_id is None or rank is None:
            raise click.UsageError("wanted --out FILE, or --run_id RUN_ID and --rank RANK")
        out = default_identity(run_id, rank)
    identity = Identity.generate()
    try:
        identity.save(out)
    except ConfigError as error:
        with contextlib.suppress(ConfigError):
            known = encode_key(Identity.load(out).public)
            fail(ConfigError(f"{error}; its public key is {known}"), EXIT_CONFIG)
        fail(error, EXIT_CONFIG)
    click.echo(f"{out}: an identity for its owner's eyes only; its public key is", err=True)
    click.echo(encode_key(identity.public))
