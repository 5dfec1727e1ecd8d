"""The server of a run, called as FedML's: --cf FILE --rank 0 --role server --run_id RUN_ID."""

from lightsecagg.cli.server import server

if __name__ == "__main__":
    server()
