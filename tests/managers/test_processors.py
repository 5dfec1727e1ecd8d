"""Who gets which cores, and on which device."""

from __future__ import annotations

from typing import Any

import pytest

from lightsecagg import kernels
from lightsecagg.managers import processors
from lightsecagg.managers.processors import choose_device, share_out
from lightsecagg.settings import Settings


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch and the codec were told, on a machine of eight cores."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(processors, "set_threads", lambda count: told.update(torch=count))
    monkeypatch.setattr(kernels, "set_threads", lambda count: told.update(codec=count))
    monkeypatch.setattr(kernels, "use_device", lambda name: told.update(device=name))
    return told


def settings(host: str = "127.0.0.1", optimizer: str = "LSA", **device: Any) -> Settings:
    return Settings.model_validate(
        {
            "train_args": {"federated_optimizer": optimizer},
            "device_args": {"worker_num": 2, **device},
            "comm_args": {"grpc": {"host": host}},
        }
    )


@pytest.mark.parametrize(
    ("chosen", "torch", "codec"),
    [
        (settings(), 3, 1),  # half of the cores each, for two clients on one host
        (settings("10.0.0.5"), 7, 1),
        (settings("10.0.0.5", codec_threads=3), 5, 3),
        (settings("10.0.0.5", codec_threads=20), 1, 20),
        (settings("10.0.0.5", threads=8), 8, 1),
        (settings("10.0.0.5", "FedAvg"), 8, 1),  # nothing to leave a core for
        (settings(worker_num=8), 1, 1),
    ],
)
def test_the_codec_gets_its_threads_and_torch_the_rest(
    given: dict[str, Any], chosen: Settings, torch: int, codec: int
) -> None:
    share_out(chosen, "cpu")
    assert given == {"torch": torch, "codec": codec, "device": None}


def test_a_gpu_serves_training_and_codec_where_torch_finds_one(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "has_gpu", lambda: True)
    assert choose_device(settings(using_gpu=True)) == ("cuda", None)
    assert choose_device(settings()) == ("cpu", None)
    share_out(settings(using_gpu=True), "cuda")
    assert given["device"] == "cuda"


def test_without_a_gpu_the_cpu_serves_and_people_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "has_gpu", lambda: False)
    device, notice = choose_device(settings(using_gpu=True))
    assert device == "cpu"
    assert notice is not None
    assert "device_args.using_gpu: torch finds no GPU" in notice
