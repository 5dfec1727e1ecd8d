"""``lightsecagg``: the group of all commands."""

from __future__ import annotations

import click

from .client import client
from .demo import demo
from .keygen import keygen
from .roster import roster
from .run import run
from .server import server


@click.group()
@click.version_option(package_name="lightsecagg")
def main() -> None:
    """Secure aggregation for federated learning: the server learns the clients' average and nothing else."""


for command in (server, client, run, demo, keygen, roster):
    main.add_command(command)
