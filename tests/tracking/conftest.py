"""One small run as events, for all that shows or stores them."""

from __future__ import annotations

import pytest

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    ClientRefused,
    Evaluated,
    Event,
    Notice,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    RunFinished,
    RunStarted,
    UploadDone,
)


@pytest.fixture
def run() -> list[Event]:
    """Five clients; client 4 is lost in round 3, which completes; round 4 aborts."""
    return [
        RunStarted(
            run_id="my_run",
            role="server",
            num_clients=5,
            target_survivors=4,
            privacy_threshold=1,
            address="127.0.0.1:8890",
            secure=True,
            model_path="runs/my_run/model.npz",
            log_path="runs/my_run/events.jsonl",
        ),
        Notice(text="no roster: the run is open", level="warning"),
        *(ClientJoined(rank=rank) for rank in range(1, 6)),
        ClientRefused(rank=6, reason="rank_out_of_range", detail="ranks are 1..5"),
        ClientRefused(rank=None, reason="malformed"),
        RoundStarted(round=3, cohort=(1, 2, 3, 4, 5), num_clients=5, target_survivors=4, privacy_threshold=1),
        PhaseStarted(round=3, phase="sharing"),
        ClientLost(rank=4, reason="link_lost", round=3, phase="sharing"),
        PhaseStarted(round=3, phase="uploading"),
        *(UploadDone(round=3, rank=rank, done=place, of=4) for place, rank in enumerate((1, 2, 3, 5), 1)),
        RoundCompleted(
            round=3,
            survivors=(1, 2, 3, 5),
            seconds={"sharing": 0.25, "uploading": 0.5, "recovering": 0.05},
            bytes_per_client=123456.0,
            bytes_by_phase={"sharing": 123456.0},
        ),
        Evaluated(round=3, accuracy=0.914, loss=0.31234),
        RoundStarted(round=4, cohort=(1, 2, 3, 5), num_clients=4, target_survivors=3, privacy_threshold=1),
        RoundAborted(round=4, reason="too_few_shared"),
        RunFinished(
            rounds=1, aborted=1, outcome="stopped", seconds=12.0, accuracy=0.914, reason="too_few_shared"
        ),
    ]
