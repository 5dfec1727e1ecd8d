"""``python -m lightsecagg``: the ``lightsecagg`` command."""

from .cli.main import main

main(prog_name="lightsecagg")
