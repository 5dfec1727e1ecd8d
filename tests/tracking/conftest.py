"""Two small runs as events, for all that shows or stores them: one of rounds, one of versions."""

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
    UpdateRefused,
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


_BUFFER = 3


def _filling(version: int, cohort: tuple[int, ...]) -> list[Event]:
    return [
        RoundStarted(round=version, cohort=cohort, num_clients=5, target_survivors=3, privacy_threshold=1),
        PhaseStarted(round=version, phase="collecting"),
    ]


def _uploads(version: int, *ranks: int, after: int = 0) -> list[Event]:
    return [
        UploadDone(round=version, rank=rank, done=done, of=_BUFFER)
        for done, rank in enumerate(ranks, start=after + 1)
    ]


def _decoding(version: int) -> list[Event]:
    return [PhaseStarted(round=version, phase=phase) for phase in ("endorsing", "recovering")]


def _done(version: int, survivors: tuple[int, ...], staleness: tuple[int, ...]) -> RoundCompleted:
    return RoundCompleted(
        round=version,
        survivors=survivors,
        staleness=staleness,
        seconds={"collecting": 1.0, "recovering": 0.5},
        bytes_per_client=2000.0,
        bytes_by_phase={"collecting": 1500.0, "recovering": 500.0},
    )


@pytest.fixture
def buffered_run() -> list[Event]:
    """Lists of three: client 1 is fast, 3 slow, 4 lost and back again, 5 late; a list fails."""
    return [
        RunStarted(
            run_id="my_run",
            role="server",
            num_clients=5,
            target_survivors=3,
            privacy_threshold=1,
            address="127.0.0.1:8890",
            secure=True,
            model_path="runs/my_run/model.npz",
            log_path="runs/my_run/events.jsonl",
            buffer_size=_BUFFER,
        ),
        *(ClientJoined(rank=rank) for rank in range(1, 5)),
        *_filling(1, (1, 2, 3, 4)),
        *_uploads(1, 1, 2),
        ClientLost(rank=4, reason="link_lost", round=1, phase="collecting"),
        *_uploads(1, 1, after=2),
        *_decoding(1),
        _done(1, (2, 1, 1), (0, 0, 0)),
        *_filling(2, (1, 2, 3)),
        ClientJoined(rank=5),
        Evaluated(round=1, accuracy=0.5),
        *_uploads(2, 1, 2),
        UpdateRefused(rank=3, reason="stale", round=2),
        *_uploads(2, 5, after=2),
        *_decoding(2),
        RoundAborted(round=2, reason="too_few_answers"),
        *_filling(2, (1, 2, 3, 5)),
        ClientJoined(rank=4),
        *_uploads(2, 3, 1, 4),
        *_decoding(2),
        _done(2, (3, 1, 4), (1, 0, 1)),
        Evaluated(round=2, accuracy=0.914),
        RunFinished(rounds=2, aborted=1, outcome="completed", seconds=12.0, accuracy=0.914),
    ]
