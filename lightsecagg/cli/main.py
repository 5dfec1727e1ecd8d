"""``lightsecagg``: the group of all commands."""

from __future__ import annotations

import click

from lightsecagg.cli.client import client
from lightsecagg.cli.demo import demo
from lightsecagg.cli.demo_async import demo_async
from lightsecagg.cli.keygen import keygen
from lightsecagg.cli.mpi import mpi
from lightsecagg.cli.mqtt_config import mqtt_config
from lightsecagg.cli.process import prepare_process
from lightsecagg.cli.roster import roster
from lightsecagg.cli.run import run
from lightsecagg.cli.server import server
from lightsecagg.cli.simulate import simulate
from lightsecagg.cli.trace import trace


@click.group()
@click.version_option(package_name="lightsecagg")
def main() -> None:
    """Secure aggregation for federated learning: the server learns the clients' average and nothing else."""
    prepare_process()


for command in (server, client, run, mpi, demo, demo_async, keygen, roster, mqtt_config, simulate, trace):
    main.add_command(command)
