"""The optional tracker, against a stand-in for the service's package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.tracking.events import Event
from lightsecagg.tracking.wandb import WandbTracker

KEY = "ee0b00000000000000000000000000000000beef"


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


class FakeWandb:
    def __init__(self, error: Exception | None = None) -> None:
        self.run = FakeRun()
        self.asked: dict[str, Any] = {}
        self._error = error

    def Settings(self, **values: Any) -> SimpleNamespace:
        return SimpleNamespace(**values)

    def init(self, **values: Any) -> FakeRun:
        self.asked = values
        if self._error:
            raise self._error
        return self.run


def tracker(path: Path) -> WandbTracker:
    return WandbTracker(project="p", name="n", api_key=KEY, config={"model": "lr"}, directory=path)


def test_rounds_and_accuracies_are_logged_and_the_key_goes_by_the_settings_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: list[Event]
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    tracked = tracker(tmp_path)
    for event in run:
        tracked.emit(event)
    tracked.close()
    settings = fake.asked.pop("settings")
    assert settings.api_key == KEY
    assert fake.asked == {"project": "p", "name": "n", "config": {"model": "lr"}, "dir": str(tmp_path)}
    assert fake.run.logged == [
        {
            "round": 3,
            "survivors": 4,
            "bytes_per_client": 123456.0,
            "seconds/sharing": 0.25,
            "seconds/uploading": 0.5,
            "seconds/recovering": 0.05,
        },
        {"round": 3, "accuracy": 0.914, "loss": 0.31234},
        {"round": 4, "aborted": "too_few_shared"},
    ]
    assert fake.run.summary == {"outcome": "stopped"}
    assert fake.run.finished


def test_versions_are_logged_with_the_age_of_their_updates_and_what_was_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, buffered_run: list[Event]
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    tracked = tracker(tmp_path)
    for event in buffered_run:
        tracked.emit(event)
    tracked.close()
    costs = {"bytes_per_client": 2000.0, "seconds/collecting": 1.0, "seconds/recovering": 0.5}
    assert fake.run.logged == [
        {"round": 1, "survivors": 3, **costs, "staleness/mean": 0.0, "staleness/max": 0},
        {"round": 1, "accuracy": 0.5},
        {"round": 2, "refused": "stale"},
        {"round": 2, "aborted": "too_few_answers"},
        {"round": 2, "survivors": 3, **costs, "staleness/mean": pytest.approx(2 / 3), "staleness/max": 1},
        {"round": 2, "accuracy": 0.914},
    ]


def test_service_that_refuses_is_a_config_error_without_its_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(ValueError(f"bad key {KEY}")))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tracking_args\.enable_wandb: .* found ValueError") as caught:
        tracker(tmp_path)
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightsecagg\[wandb\]'"):
        tracker(tmp_path)
