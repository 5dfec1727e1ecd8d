"""Shares stream: the first part leaves before the second is computed, and a slow receiver stops nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightsecagg.managers.participation import Participation
from lightsecagg.protocol.messages import EncodedMask
from lightsecagg.protocol.wire import from_server
from lightsecagg.simulation.schedule import short_parts
from lightsecagg.tracking import events
from tests.managers.test_runs import PATIENCE, Stage, make_settings, play, with_trainer


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


async def test_a_client_that_reads_slowly_costs_itself_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # N = 8, U = 3: each client is sent five shares of 8 MB, and the server keeps 2 MiB for it.
    numbers = {"targeted_number_active_clients": 3, "privacy_guarantee": 2, "share_timeout": 9}
    settings = with_trainer(make_settings(8, **numbers), "tests.e2e.e2e_plugins:LargeTrainer")
    comm_args = settings.comm_args.model_copy(update={"relay_buffer": 2 * 2**20})
    stage = Stage(tmp_path, settings.model_copy(update={"comm_args": comm_args}))
    take = Participation._payload

    async def take_slowly(self: Participation, data: bytes | memoryview) -> None:
        is_share = isinstance(from_server(data), EncodedMask)
        if is_share and self._context.rank == 1 and not stage.recorder.of(events.ClientLost):
            await asyncio.sleep(1.5)  # its link lives: heartbeats and acknowledgements go on
        await take(self, data)

    monkeypatch.setattr(Participation, "_payload", take_slowly)
    await play(stage.server(), [stage.client(rank) for rank in range(1, 9)])
    assert [done.survivors for done in stage.recorder.of(events.RoundCompleted)] == [tuple(range(2, 9))] * 2
    assert [(lost.rank, lost.reason) for lost in stage.recorder.of(events.ClientLost)] == [(1, "stalled")]
    assert not stage.recorder.of(events.RoundAborted)
