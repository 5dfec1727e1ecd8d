"""Shares leave part by part, the first while the second is not yet computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightsecagg.simulation.schedule import short_parts
from lightsecagg.tracking import events
from tests.managers.test_runs import PATIENCE, Stage, make_settings, play


async def test_a_receiver_holds_a_shares_first_part_before_its_sender_computes_the_second(
    tmp_path: Path,
) -> None:
    # N = 3, U = 2: client 1 deals client 2 a seed, and client 3 the only share that is sent whole.
    stage = Stage(tmp_path, make_settings(3, targeted_number_active_clients=2, privacy_guarantee=1))
    is_held = threading.Event()
    encoded: list[bool] = []

    @contextmanager
    def spans(name: str) -> Iterator[None]:
        if name == "encode":
            encoded.append(is_held.is_set())
            if len(encoded) == 2:
                encoded[1] = is_held.wait(PATIENCE / 2)
        yield

    def observe(what: str) -> None:
        if what == "take EncodedMask":
            is_held.set()

    with short_parts():
        clients = [stage.client(1, spans=spans), stage.client(2), stage.client(3, observer=observe)]
        assert await play(stage.server(), clients) == [None] * 4
    assert encoded[:2] == [False, True]
    assert len(stage.recorder.of(events.RoundCompleted)) == 2
