"""A round of 1,000 clients and 100,000 parameters in one process: ``python -m benchmarks.large``.

It may take 10 minutes and 3 GiB; the figures go to benchmarks/results/large.json.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.runs import RESULTS

MOST_SECONDS = 600.0
MOST_BYTES = 3 * 2**30

WORDS = ["--clients", "1000", "--dimension", "100000", "--dropout", "0.3", "--rounds", "1"]


def main() -> None:
    """Run it, and fail where it takes more than it may."""
    path = RESULTS / "large.json"
    RESULTS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lightsecagg", "simulate", *WORDS, "--json", str(path)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
    found = json.loads(path.read_text())
    if found["seconds"] > MOST_SECONDS or found["peak_memory_bytes"] > MOST_BYTES:
        sys.exit("that is more than the 10 minutes and 3 GiB that it may take")


if __name__ == "__main__":
    main()
