"""Which cores and which device the training and the codec of a process use."""

from __future__ import annotations

import os

from lightsecagg import kernels
from lightsecagg.settings import Settings
from lightsecagg.training.registry import has_gpu, set_threads

GPU = "cuda"


def choose_device(settings: Settings) -> tuple[str, str | None]:
    """The device, as torch names it, for training and codec; and a notice where it is not the one wanted."""
    if not settings.device_args.using_gpu:
        return "cpu", None
    if has_gpu():
        return GPU, None
    return "cpu", "device_args.using_gpu: torch finds no GPU on this machine; training runs on the CPU"


def share_out(settings: Settings, device: str) -> None:
    """Give the codec its threads and torch the rest of this process's cores.

    Where torch takes all cores, its threads and the codec's wait for each other and training runs at a third
    of its rate.
    """
    given = settings.device_args
    codec = given.codec_threads if settings.secure else 0
    kernels.use_device(device if device == GPU and settings.secure else None)
    kernels.set_threads(given.codec_threads)
    set_threads(given.threads or max(1, _own_cores(settings) - codec))


def _own_cores(settings: Settings) -> int:
    """Cores over the clients on this host; a server on loopback means that all of them are here."""
    # Only Linux tells which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = settings.comm_args.backend == "LOCAL" or settings.comm_args.grpc.host in (
        "127.0.0.1",
        "localhost",
        "::1",
    )
    return max(1, cores // settings.device_args.worker_num) if local else cores
