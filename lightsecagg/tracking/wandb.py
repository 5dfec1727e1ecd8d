"""Rounds and accuracies to Weights & Biases, behind the extra ``wandb``, imported only here and late."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from lightsecagg.errors import ConfigError
from lightsecagg.tracking.events import (
    Evaluated,
    Event,
    RoundAborted,
    RoundCompleted,
    RunFinished,
    Tracker,
    UpdateRefused,
)


class WandbTracker(Tracker):
    """Logs what the server knows of each round: no event, and so no record there, is about one client's data.

    Raises:
        ConfigError: the extra is missing, or the service refuses.
    """

    def __init__(
        self,
        *,
        project: str | None,
        name: str | None,
        api_key: str | None,
        config: Mapping[str, str],
        directory: Path,
    ) -> None:
        try:
            wandb: Any = import_module("wandb")
        except ImportError:
            raise ConfigError(
                "tracking_args.enable_wandb: wanted the package wandb, found none; "
                "pip install 'lightsecagg[wandb]', or set it to false"
            ) from None
        # The key goes in by the settings: wandb.login would write it into ~/.netrc. None: WANDB_API_KEY.
        failure = None
        try:
            settings = wandb.Settings(
                api_key=api_key, silent=True, console="off", save_code=False, disable_git=True
            )
            self._run = wandb.init(
                project=project, name=name, config=dict(config), dir=str(directory), settings=settings
            )
        except Exception as error:  # the service's exceptions are its own, and its texts may hold the key
            failure = type(error).__name__
        if failure is not None:
            raise ConfigError(
                f"tracking_args.enable_wandb: wanted a run at Weights & Biases, found {failure}; "
                "check the key and the network, or set WANDB_MODE=offline"
            )

    def emit(self, event: Event) -> None:
        match event:
            case RoundCompleted():
                self._run.log(
                    {
                        "round": event.round,
                        "survivors": len(event.survivors),
                        "bytes_per_client": event.bytes_per_client,
                        **{f"seconds/{phase}": seconds for phase, seconds in event.seconds.items()},
                        **_ages(event),
                    }
                )
            case RoundAborted():
                self._run.log({"round": event.round, "aborted": event.reason})
            case UpdateRefused():
                self._run.log({"round": event.round, "refused": event.reason})
            case Evaluated():
                measures = {"accuracy": event.accuracy, "loss": event.loss}
                known = {label: value for label, value in measures.items() if value is not None}
                self._run.log({"round": event.round, **known})
            case RunFinished():
                self._run.summary["outcome"] = event.outcome

    def close(self) -> None:
        self._run.finish()


def _ages(event: RoundCompleted) -> dict[str, float]:
    if event.staleness is None:
        return {}
    return {"staleness/mean": fmean(event.staleness), "staleness/max": max(event.staleness)}
