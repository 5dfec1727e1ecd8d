"""``python -m lightsecagg``: the ``lightsecagg`` command."""

from lightsecagg.cli.main import main

main(prog_name="lightsecagg")
