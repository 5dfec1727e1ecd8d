"""The digits data set, loaded once, and what most tests of training share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightsecagg.training.base import Dataset, LocalData, TrainSettings
from lightsecagg.training.data import load_dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", Path("unused"), seed=0)


@pytest.fixture
def local(digits: Dataset) -> LocalData:
    return LocalData(digits.train_x, digits.train_y)


@pytest.fixture
def settings() -> Callable[..., TrainSettings]:
    def make(**changes: object) -> TrainSettings:
        values: dict[str, object] = {
            "epochs": 1,
            "batch_size": 10,
            "learning_rate": 0.1,
            "weight_decay": 0.001,
            "client_optimizer": "sgd",
            "seed": 7,
        }
        return TrainSettings(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def stop_before_batch() -> Callable[[int], Callable[[], bool]]:
    """``stop_before_batch(n)`` lets n batches pass and then asks to stop."""

    def make(passed: int) -> Callable[[], bool]:
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > passed

        return should_stop

    return make


class _Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Any]:
    """An object that nobody may unpickle."""
    folder = tmp_path / "sprung"
    yield _Trap(folder)
    assert not folder.exists(), "something was unpickled"


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a module as a user would and put its folder on the Python path."""

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    return write
