"""How much of its rate training keeps beside the codec: ``python -m benchmarks.beside 1 1`` (torch, codec).

One client's process as the program runs it, training in one thread and dealing masks without end in another,
each with its budget of cores. Training alone and training beside take turns.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator

import click
import numpy as np

from benchmarks.bench_plugins import femnist_cnn
from lightsecagg import (
    ClientRound,
    FixedPoint,
    Identity,
    Parameters,
    Run,
    Send,
    ServerRound,
    vector_terms,
)
from lightsecagg.kernels import set_threads as set_codec_threads
from lightsecagg.training.base import LocalData, TrainingStopped, TrainSettings
from lightsecagg.training.torch import TorchTrainer
from lightsecagg.training.torch import set_threads as set_torch_threads

DIMENSION = 1_206_590
PARAMETERS = Parameters(50, 35, 25)
SAMPLES = 2000
TURNS = 3
SECONDS = 2.5  # of each turn


def deal_for_ever(stop: threading.Event) -> None:
    """Let one client after another deal its mask."""
    terms = vector_terms(
        FixedPoint(clip=8.0, fraction_bits=16, max_weight=1000), DIMENSION, num_clients=PARAMETERS.num_clients
    )
    while not stop.is_set():
        run = Run.new("beside")
        ranks = range(1, PARAMETERS.num_clients + 1)
        clients = [ClientRound(Identity.generate(), rank, run, terms) for rank in ranks]
        server = ServerRound(run, 1, PARAMETERS, terms, [client.member for client in clients])
        for opening in server.start():
            if isinstance(opening, Send):
                client = clients[opening.to - 1]
                client.receive(opening.message)
                if any(stop.is_set() for _ in client.shares()):
                    return


@contextlib.contextmanager
def dealing() -> Iterator[None]:
    """Masks are dealt meanwhile."""
    stop = threading.Event()
    thread = threading.Thread(target=deal_for_ever, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def batches_per_second(trainer: TorchTrainer, data: LocalData) -> float:
    """The rate of training now."""
    settings = TrainSettings(1000, 20, 0.03, 0.0, "sgd", 0)
    times = [time.monotonic()]

    def is_over() -> bool:
        times.append(time.monotonic())
        return times[-1] > times[0] + SECONDS

    with contextlib.suppress(TrainingStopped):
        trainer.train(data, settings, is_over)
    return (len(times) - 2) / (times[-1] - times[0])


@click.command()
@click.argument("torch_threads", type=int)
@click.argument("codec_threads", type=int)
def main(torch_threads: int, codec_threads: int) -> None:
    """Measure and print JSON."""
    trainer = TorchTrainer(femnist_cnn())
    set_torch_threads(torch_threads)
    set_codec_threads(codec_threads)
    random = np.random.default_rng(0)
    x = random.standard_normal((SAMPLES, 1, 28, 28), dtype=np.float32)
    data = LocalData(x, random.integers(62, size=SAMPLES))
    alone, beside = [], []
    batches_per_second(trainer, data)  # warms up
    for _ in range(TURNS):
        alone.append(batches_per_second(trainer, data))
        with dealing():
            beside.append(batches_per_second(trainer, data))
    result = {
        "torch_threads": torch_threads,
        "codec_threads": codec_threads,
        "batches_per_second_alone": statistics.median(alone),
        "batches_per_second_beside": statistics.median(beside),
        "rate_kept": statistics.median(b / a for a, b in zip(alone, beside, strict=True)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
