"""A client of a run, called as FedML's: --cf FILE --rank RANK --role client --run_id RUN_ID."""

from lightsecagg.cli.client import client

if __name__ == "__main__":
    client()
