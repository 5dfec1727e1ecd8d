"""One process of a group: ``python -m benchmarks.ends SPEC``, a Spec as JSON.

The server writes one line once it listens, and one with all process ids once all clients are there. Then it
reads lines like "echo 5 20", makes so many transfers of so many blocks, and writes their seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from typing import Any

from benchmarks.ends.scenario import Measure, ServerEnd, Spec
from lightsecagg.cli.process import keep_freed_buffers


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


async def _serve(end: ServerEnd, peers: int) -> None:
    measure = Measure(end, peers)
    await measure.listen()
    _say("listening")
    await measure.complete()
    _say({"server": os.getpid(), "clients": list(measure.pids.values())})
    while line := await asyncio.to_thread(sys.stdin.readline):
        direction, blocks, times = line.split()
        _say([await measure.transfer(direction, int(blocks)) for _ in range(int(times))])


def main(words: str) -> None:
    """Be the server (rank 0) or a client."""
    keep_freed_buffers()  # as the program does; the bare library has the same good of it
    spec = Spec(**json.loads(words))
    if spec.rank is None:
        spec = replace(spec, rank=int(os.environ["PMIX_RANK"]))
    ends: Any = import_module(f"benchmarks.ends.{'link' if spec.is_link else spec.carrier.lower()}")
    if spec.rank:
        ends.work(spec)
    else:
        asyncio.run(_serve(ends.Server(spec), spec.peers))


if __name__ == "__main__":
    main(sys.argv[1])
